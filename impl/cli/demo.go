package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"wrenn/impl/agent"
	"wrenn/impl/apiclient"
	"wrenn/impl/envdclient"
	"wrenn/impl/transport"
)

// demoTimeout bounds everything after the sandbox's create; by emulation it takes some ten seconds.
const demoTimeout = 2 * time.Minute

func demoCommand(o *options) *cobra.Command {
	var cfg agent.Config
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Make a sandbox, show what it can do and how long each part takes, and end it",
		Long: `Make a sandbox, show what it can do and how long each part takes, and end it. It uses the control plane
of "wrenn up" if one runs, and otherwise starts one for as long as the demo takes (which needs root).`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
			defer stop()
			d := demo{out: cmd.OutOrStdout()}
			if e, err := o.endpoint(); err == nil && answers(ctx, e) {
				d.endpoint = e
				return d.run(ctx)
			}
			return d.runAlone(ctx, cfg)
		},
	}
	cfg.Flags(cmd.Flags())
	return cmd
}

func answers(ctx context.Context, e endpoint) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.APIURL+"/health", nil)
	if err != nil {
		return false
	}
	rt := transport.NewRPCTransport()
	defer rt.CloseIdleConnections()
	resp, err := rt.RoundTrip(req)
	return err == nil && resp.Body.Close() == nil
}

// demo shows a sandbox off, one titled act after the other.
type demo struct {
	endpoint
	out   io.Writer
	api   *apiclient.Client
	id    string
	guest *envdclient.Client
}

// runAlone starts a control plane and an agent in a directory that goes away again.
func (d demo) runAlone(ctx context.Context, cfg agent.Config) error {
	dir, err := os.MkdirTemp("", "wrenn-demo-")
	if err != nil {
		return fmt.Errorf("make a directory for the demo: %w", err)
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a temporary directory
	var log bytes.Buffer
	cfg.Listen, cfg.DestroyAtExit = "127.0.0.1:0", true
	up1 := upConfig{dir: dir, agent: cfg, logger: slog.New(slog.NewTextHandler(&log, nil))}
	up1.cp.APIListen, up1.cp.ProxyListen = "127.0.0.1:0", "127.0.0.1:0"
	ready := make(chan endpoint, 1)
	up1.ready = func(e endpoint) { ready <- e }
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	d.say("No control plane runs here; starting one in %s for the demo (probing which VMM works) ...", filepath.Base(dir))
	go func() { ended <- up(ctx, up1) }()
	select {
	case err := <-ended:
		return errors.Join(err, fmt.Errorf("the control plane did not start; its log:\n%s", log.Bytes()))
	case d.endpoint = <-ready:
	}
	err = d.run(ctx)
	stop()
	err = errors.Join(err, <-ended)
	if err != nil {
		d.say("log of control plane and agent:\n%s", log.Bytes())
	}
	return err
}

func (d *demo) say(format string, args ...any) { _, _ = fmt.Fprintf(d.out, format+"\n", args...) }

func (d *demo) run(ctx context.Context) (err error) {
	client := apiclient.New(d.APIURL, d.APIKey, transport.NewRPCTransport())
	d.api = client
	d.say("Creating a sandbox ...")
	start := time.Now()
	s, err := client.Create(ctx, apiclient.CreateRequest{TemplateID: "base", Timeout: seconds(2 * demoTimeout), Metadata: map[string]string{"made-by": "wrenn demo"}})
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	d.id = s.SandboxID
	d.say("Sandbox %s after %v:", s.SandboxID, time.Since(start).Round(time.Millisecond))
	printStages(d.out, s.Wrenn)
	defer func() {
		start := time.Now()
		killErr := client.Kill(context.WithoutCancel(ctx), s.SandboxID)
		d.say("  %-10s %8.1f ms", "destroy", millis(start))
		err = errors.Join(err, killErr)
	}()
	ctx, cancel := context.WithTimeout(ctx, demoTimeout)
	defer cancel()
	if d.guest, err = d.endpoint.guest(s); err != nil {
		return err
	}
	defer d.guest.CloseIdle()
	for _, act := range []struct {
		name string
		run  func(context.Context) (string, error)
	}{
		{"first exec", d.uname}, {"python", d.python}, {"file", d.file}, {"terminal", d.terminal},
		{"pause", d.pause}, {"resume", d.resume},
	} {
		start := time.Now()
		shown, err := act.run(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", act.name, err)
		}
		d.say("  %-10s %8.1f ms  %s", act.name, millis(start), shown)
	}
	return nil
}

func millis(since time.Time) float64 { return float64(time.Since(since).Microseconds()) / 1000 }

func (d *demo) exec(ctx context.Context, cmd string, args ...string) (string, error) {
	var out, stderr bytes.Buffer
	exit, err := d.guest.Exec(ctx, envdclient.ExecRequest{Cmd: cmd, Args: args, Stdout: &out, Stderr: &stderr})
	if err != nil {
		return "", err
	}
	if exit.Code != 0 {
		return "", fmt.Errorf("%s: %s: %s", cmd, exit.Status, stderr.Bytes())
	}
	return strings.TrimSpace(out.String()), nil
}

func (d *demo) uname(ctx context.Context) (string, error) {
	out, err := d.exec(ctx, "uname", "-a")
	if err != nil {
		return "", err
	}
	host, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s   (this machine's kernel: %s)", out, bytes.TrimSpace(host)), nil
}

func (d *demo) python(ctx context.Context) (string, error) {
	return d.exec(ctx, "python3", "-c", `import sys; print("2**100 =", 2**100, "by Python", sys.version.split()[0])`)
}

// keptNote is written to a file system in memory, which a sandbox that boots anew has lost.
const keptNote = "/dev/shm/kept"

func (d *demo) pause(ctx context.Context) (string, error) {
	if _, err := d.exec(ctx, "sh", "-c", "echo in memory > "+keptNote); err != nil {
		return "", err
	}
	d.guest.CloseIdle()
	phases, err := d.api.Pause(ctx, d.id, false)
	if err != nil {
		return "", err
	}
	return inOneLine(phases), nil
}

func (d *demo) resume(ctx context.Context) (string, error) {
	s, err := d.api.Connect(ctx, d.id, seconds(demoTimeout))
	if err != nil {
		return "", err
	}
	kept, err := d.exec(ctx, "cat", keptNote)
	if err != nil {
		return "", fmt.Errorf("what was in memory is lost: %w", err)
	}
	shown := "what was " + kept + " still is"
	if s.Wrenn != nil {
		shown += "; " + inOneLine(s.Wrenn.Stages)
	}
	return shown, nil
}

func inOneLine(phases []apiclient.Stage) string {
	list := make([]string, 0, len(phases))
	for _, p := range phases {
		list = append(list, fmt.Sprintf("%s %.0f", p.Name, p.Ms))
	}
	return strings.Join(list, ", ")
}

func (d *demo) file(ctx context.Context) (string, error) {
	const text = "written from outside\n"
	if err := d.guest.WriteFile(ctx, "", "/home/user/hello.txt", strings.NewReader(text), int64(len(text))); err != nil {
		return "", err
	}
	r, err := d.guest.ReadFile(ctx, "", "/home/user/hello.txt")
	if err != nil {
		return "", err
	}
	defer r.Close() //nolint:errcheck // read to its end
	got, err := io.ReadAll(r)
	if err != nil {
		return "", err
	}
	if string(got) != text {
		return "", fmt.Errorf("read %q back, wrote %q", got, text)
	}
	return fmt.Sprintf("wrote and read /home/user/hello.txt: %q", got), nil
}

func (d *demo) terminal(ctx context.Context) (string, error) {
	s, err := d.guest.PTY(ctx, envdclient.PTYRequest{
		Cmd: "/bin/bash", Args: []string{"-i", "-l"}, Env: map[string]string{"TERM": "dumb", "PS1": "$ "}, Size: envdclient.Size{Cols: 80, Rows: 24},
	})
	if err != nil {
		return "", err
	}
	defer s.Close() //nolint:errcheck // the program has ended
	if _, err := s.Write([]byte("echo typed in $(tty); exit\n")); err != nil {
		return "", err
	}
	out, err := io.ReadAll(s)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(out)) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "typed in /dev/pts/") {
			return line, nil
		}
	}
	return "", fmt.Errorf("the echo did not come back; the terminal printed %q", out)
}
