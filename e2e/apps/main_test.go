// Package apps_test uses real applications in real guests with a real browser: what a person sees of Jupyter,
// Python's http.server and a Next.js app when their ports are opened by name.
package apps_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/e2e/harness"
	"wrenn/impl/apiclient"
	"wrenn/impl/envdclient"
	"wrenn/impl/need"
)

func TestMain(m *testing.M) { harness.MainOnOwnHost(m) }

// app is a sandbox in which an application runs, and how to reach it.
type app struct {
	*harness.System
	t   *testing.T
	box apiclient.Sandbox
}

// startApp starts Wrenn with a sandbox of one of the templates of `make apps`.
func startApp(t *testing.T, template string, flags ...string) *app {
	t.Helper()
	need.Root(t)
	need.Program(t, "chromium")
	need.File(t, "apps", harness.Build(t, "apps/templates/"+template+"/rootfs.ext4"), "run `make apps`")
	flags = append([]string{"--image-dir", harness.Build(t, "apps"), "--resolver", "192.0.2.53"}, flags...)
	a := &app{t: t, System: harness.Start(t, harness.Dir(t), flags...)}
	a.box = a.CreateWith(apiclient.CreateRequest{TemplateID: template, Timeout: 3600})
	return a
}

// url is where a browser finds a port of the sandbox: Chromium resolves every name below localhost to
// loopback by itself.
func (a *app) url(port int, path string) string {
	return fmt.Sprintf("http://%d-%s.localhost:%s%s", port, a.box.SandboxID, a.SandboxURL[strings.LastIndex(a.SandboxURL, ":")+1:], path)
}

// run starts a program in the sandbox that goes on until the test ends, and prints its output if that failed.
func (a *app) run(cmd string) {
	a.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var out harness.Buffer
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = a.Guest(a.box).Exec(ctx, envdclient.ExecRequest{Cmd: "/bin/bash", Args: []string{"-l", "-c", cmd}, Stdout: &out, Stderr: &out})
	}()
	a.t.Cleanup(func() {
		cancel()
		<-done
		if a.t.Failed() {
			harness.Artifact(a.t, "output of "+strings.Fields(cmd)[0], []byte(out.String()))
		}
	})
}

// awaitPort waits until a port of the guest answers HTTP to the guest itself.
func (a *app) awaitPort(port int) {
	a.t.Helper()
	probe := fmt.Sprintf("curl -s -o /dev/null http://localhost:%d/", port)
	require.Eventually(a.t, func() bool {
		_, err := a.TryExec(a.box, "/bin/sh", "-c", probe)
		return err == nil
	}, harness.Patience, time.Second, "nothing answers on port %d", port)
}

// end stops everything in an orderly way.
func (a *app) end() {
	a.t.Helper()
	assert.NoError(a.t, a.Client.Kill(a.t.Context(), a.box.SandboxID))
	a.Stop()
}
