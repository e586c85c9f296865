package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"wrenn/impl/envd/account"
	pb "wrenn/proto/gen/envd/process"
)

// Bounds of a start request; each is far above what a shell command needs.
const (
	maxTag  = 256       // bytes
	maxArgs = 8192      // count
	maxEnv  = 4096      // count, global ones not included
	maxWord = 128 << 10 // bytes of one argument or KEY=value, NUL included: the kernel's MAX_ARG_STRLEN
	maxSize = 65535     // columns or rows of a terminal, 16 bits in the kernel
)

func invalid(format string, args ...any) error {
	return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf(format, args...))
}

// checkStart refuses what cannot be run, naming the field.
func checkStart(m *pb.StartRequest) error {
	c := m.GetProcess()
	switch {
	case c.GetCmd() == "":
		return invalid("process.cmd: must not be empty")
	case len(c.GetCmd()) > account.MaxPath:
		return invalid("process.cmd: longer than %d bytes", account.MaxPath)
	case len(c.GetArgs()) > maxArgs:
		return invalid("process.args: more than %d", maxArgs)
	case len(c.GetEnvs()) > maxEnv:
		return invalid("process.envs: more than %d", maxEnv)
	case len(m.GetTag()) > maxTag:
		return invalid("tag: longer than %d bytes", maxTag)
	case strings.ContainsRune(c.GetCmd(), 0):
		return invalid("process.cmd: holds a NUL byte")
	}
	for i, a := range c.GetArgs() {
		if len(a) >= maxWord {
			return invalid("process.args[%d]: longer than %d bytes (use a file or standard input)", i, maxWord-1)
		}
		if strings.ContainsRune(a, 0) {
			return invalid("process.args[%d]: holds a NUL byte", i)
		}
	}
	for k, v := range c.GetEnvs() {
		switch {
		case k == "" || strings.ContainsAny(k, "=\x00"):
			return invalid("process.envs: %q is no variable name", k)
		case len(k)+len(v)+1 >= maxWord:
			return invalid("process.envs[%q]: longer than %d bytes", k, maxWord-1)
		case strings.ContainsRune(v, 0):
			return invalid("process.envs[%q]: holds a NUL byte", k)
		}
	}
	return nil
}

// specOf makes the Spec of a checked request, all but its deadline.
func (h *Handler) specOf(m *pb.StartRequest, u account.User) (Spec, error) {
	c := m.GetProcess()
	dir, err := account.Path(c.GetCwd(), u, h.settings.Workdir())
	if err != nil {
		return Spec{}, invalid("process.cwd: %w", err)
	}
	if c.GetCwd() == "" {
		dir = existing(dir)
	}
	spec := Spec{
		Cmd: c.GetCmd(), Args: c.GetArgs(), Dir: dir, User: u, Tag: m.Tag,
		Env:   environment(u, h.settings.Env(), c.GetEnvs()),
		Stdin: m.Stdin == nil || m.GetStdin(), Requested: proto.CloneOf(c),
	}
	if m.GetPty() != nil {
		size, err := sizeOf(m.GetPty())
		if err != nil {
			return Spec{}, err
		}
		spec.Terminal = &size
	}
	return spec, nil
}

// existing returns dir or, while it does not exist, the nearest parent that does: a user without a
// home still gets a process when none was asked for by name.
func existing(dir string) string {
	for dir != "/" {
		if info, err := os.Stat(dir); err == nil && info.IsDir() {
			return dir
		}
		dir = filepath.Dir(dir)
	}
	return dir
}

// defaultPath is Debian's for a login; it stands in where the daemon has no PATH itself.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environment is PATH, the user's variables, the global ones, the request's: later ones win.
func environment(u account.User, layers ...map[string]string) []string {
	path := os.Getenv("PATH")
	if path == "" {
		path = defaultPath
	}
	all := map[string]string{"PATH": path, "HOME": u.Home, "USER": u.Name, "LOGNAME": u.Name}
	for _, l := range layers {
		for k, v := range l {
			all[k] = v
		}
	}
	out := make([]string, 0, len(all))
	for k, v := range all {
		out = append(out, k+"="+v)
	}
	return out
}

func sizeOf(p *pb.PTY) (Size, error) {
	cols, rows := p.GetSize().GetCols(), p.GetSize().GetRows()
	switch {
	case cols > maxSize || rows > maxSize:
		return Size{}, invalid("pty.size: %dx%d is over %d", cols, rows, maxSize)
	case cols == 0 && rows == 0:
		return defaultSize, nil
	case cols == 0 || rows == 0:
		return Size{}, invalid("pty.size: cols and rows must both be at least 1")
	}
	return Size{Cols: uint16(cols), Rows: uint16(rows)}, nil
}

func selectorOf(s *pb.ProcessSelector) (Selector, error) {
	switch v := s.GetSelector().(type) {
	case *pb.ProcessSelector_Pid:
		return Selector{PID: int(v.Pid)}, nil
	case *pb.ProcessSelector_Tag:
		return Selector{Tag: &v.Tag}, nil
	}
	return Selector{}, invalid("process: a pid or a tag is needed")
}

// inputOf splits an input into its bytes and whether they are for a terminal.
func inputOf(in *pb.ProcessInput) (data []byte, terminal bool, err error) {
	switch v := in.GetInput().(type) {
	case *pb.ProcessInput_Stdin:
		return v.Stdin, false, nil
	case *pb.ProcessInput_Pty:
		return v.Pty, true, nil
	}
	return nil, false, invalid("input: stdin or pty is needed")
}

func infoOf(p *Process) *pb.ProcessInfo {
	config, _ := p.Spec.Requested.(*pb.ProcessConfig)
	return &pb.ProcessInfo{Config: config, Pid: uint32(p.PID), Tag: p.Spec.Tag}
}

func startEvent(p *Process) *pb.ProcessEvent {
	return &pb.ProcessEvent{Event: &pb.ProcessEvent_Start{Start: &pb.ProcessEvent_StartEvent{Pid: uint32(p.PID)}}}
}

func keepaliveEvent() *pb.ProcessEvent {
	return &pb.ProcessEvent{Event: &pb.ProcessEvent_Keepalive{Keepalive: &pb.ProcessEvent_KeepAlive{}}}
}

func eventOf(ev Event) *pb.ProcessEvent {
	data := &pb.ProcessEvent_DataEvent{}
	switch ev.Kind {
	case End:
		end := &pb.ProcessEvent_EndEvent{ExitCode: int32(ev.Exit.Code), Exited: ev.Exit.Exited, Status: ev.Exit.Status}
		if ev.Exit.Code != 0 {
			end.Error = proto.String(ev.Exit.Status)
		}
		return &pb.ProcessEvent{Event: &pb.ProcessEvent_End{End: end}}
	case Stdout:
		data.Output = &pb.ProcessEvent_DataEvent_Stdout{Stdout: ev.Data}
	case Stderr:
		data.Output = &pb.ProcessEvent_DataEvent_Stderr{Stderr: ev.Data}
	case Terminal:
		data.Output = &pb.ProcessEvent_DataEvent_Pty{Pty: ev.Data}
	}
	return &pb.ProcessEvent{Event: &pb.ProcessEvent_Data{Data: data}}
}

// wireError gives an error of this package its code.
func wireError(err error) error {
	code := connect.CodeInternal
	var coded *connect.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &coded):
		return err
	case errors.Is(err, ErrNotFound):
		code = connect.CodeNotFound
	case errors.Is(err, ErrTerminal), errors.Is(err, ErrNoTerminal), errors.Is(err, ErrInputClosed):
		code = connect.CodeFailedPrecondition
	case errors.Is(err, ErrTooSlow):
		code = connect.CodeResourceExhausted
	case errors.Is(err, os.ErrPermission):
		code = connect.CodePermissionDenied
	case errors.Is(err, ErrCommand):
		code = connect.CodeInvalidArgument
	case errors.Is(err, account.ErrUnknown), errors.Is(err, account.ErrCredentials):
		code = connect.CodeUnauthenticated
	case errors.Is(err, context.DeadlineExceeded):
		code = connect.CodeDeadlineExceeded
	case errors.Is(err, context.Canceled):
		code = connect.CodeCanceled
	}
	return connect.NewError(code, err)
}
