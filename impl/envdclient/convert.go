package envdclient

import (
	"io/fs"

	"google.golang.org/protobuf/proto"

	fspb "wrenn/proto/gen/envd/filesystem"
	pb "wrenn/proto/gen/envd/process"
)

func execStart(r ExecRequest) *pb.StartRequest {
	return &pb.StartRequest{Process: configOf(r.Cmd, r.Args, r.Env, r.Cwd), Stdin: proto.Bool(r.Stdin != nil)}
}

func ptyStart(r PTYRequest) *pb.StartRequest {
	return &pb.StartRequest{Process: configOf(r.Cmd, r.Args, r.Env, r.Cwd), Pty: sizeOf(r.Size)}
}

func configOf(cmd string, args []string, env map[string]string, cwd string) *pb.ProcessConfig {
	c := &pb.ProcessConfig{Cmd: cmd, Args: args, Envs: env}
	if cwd != "" {
		c.Cwd = &cwd
	}
	return c
}

func sizeOf(s Size) *pb.PTY {
	return &pb.PTY{Size: &pb.PTY_Size{Cols: uint32(s.Cols), Rows: uint32(s.Rows)}}
}

func byPID(pid uint32) *pb.ProcessSelector {
	return &pb.ProcessSelector{Selector: &pb.ProcessSelector_Pid{Pid: pid}}
}

func stdinOf(p []byte) *pb.ProcessInput {
	return &pb.ProcessInput{Input: &pb.ProcessInput_Stdin{Stdin: p}}
}

func ptyOf(p []byte) *pb.ProcessInput {
	return &pb.ProcessInput{Input: &pb.ProcessInput_Pty{Pty: p}}
}

func exitOf(e *pb.ProcessEvent_EndEvent) Exit {
	return Exit{Code: int(e.GetExitCode()), Status: e.GetStatus()}
}

func entryOf(e *fspb.EntryInfo) Entry {
	mode := fs.FileMode(e.GetMode()).Perm()
	switch e.GetType() {
	case fspb.FileType_FILE_TYPE_DIRECTORY:
		mode |= fs.ModeDir
	case fspb.FileType_FILE_TYPE_SYMLINK:
		mode |= fs.ModeSymlink
	default:
	}
	return Entry{
		Name: e.GetName(), Path: e.GetPath(), Size: e.GetSize(), Mode: mode,
		Owner: e.GetOwner(), Group: e.GetGroup(), Modified: e.GetModifiedTime().AsTime(), Target: e.GetSymlinkTarget(),
	}
}
