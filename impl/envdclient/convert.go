package envdclient

import (
	"io/fs"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	fspb "wrenn/proto/gen/envd/filesystem"
	pb "wrenn/proto/gen/envd/process"
)

type initJSON struct {
	Timestamp      time.Time         `json:"timestamp"`
	EnvVars        map[string]string `json:"envVars,omitzero"`
	AccessToken    *string           `json:"accessToken,omitempty"`
	DefaultUser    *string           `json:"defaultUser,omitempty"`
	DefaultWorkdir *string           `json:"defaultWorkdir,omitempty"`
	Resumed        bool              `json:"wrennResumed,omitempty"`
	Entropy        []byte            `json:"wrennEntropy,omitempty"`
	Hostname       string            `json:"wrennHostname,omitempty"`
	MachineID      string            `json:"wrennMachineID,omitempty"`
}

func initBody(r InitRequest) initJSON {
	if r.Timestamp.IsZero() {
		r.Timestamp = time.Now()
	}
	return initJSON{
		Timestamp: r.Timestamp, EnvVars: r.Env, AccessToken: r.AccessToken,
		DefaultUser: r.DefaultUser, DefaultWorkdir: r.Workdir,
		Resumed: r.Resumed, Entropy: r.Entropy, Hostname: r.Hostname, MachineID: r.MachineID,
	}
}

// clockOffset is how far ahead of ours a clock is that showed header's nanoseconds of Unix time at the moment at.
func clockOffset(header string, at time.Time) time.Duration {
	nanos, err := strconv.ParseInt(header, 10, 64)
	if err != nil {
		return 0
	}
	return time.Unix(0, nanos).Sub(at.Round(0))
}

// bootTimesOf reads "init=1.5;envd=1.9;now=2.0", in seconds; what it does not understand stays zero.
func bootTimesOf(header string) BootTimes {
	var b BootTimes
	for part := range strings.SplitSeq(header, ";") {
		name, value, _ := strings.Cut(part, "=")
		seconds, err := strconv.ParseFloat(value, 64)
		if err != nil || !(seconds >= 0 && seconds < 1e9) {
			continue
		}
		at := time.Duration(seconds * float64(time.Second))
		switch name {
		case "init":
			b.Init = at
		case "envd":
			b.Envd = at
		case "now":
			b.Now = at
		}
	}
	return b
}

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
