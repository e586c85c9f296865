package agent

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"wrenn/impl/envdclient"
	"wrenn/impl/network"
	"wrenn/impl/sandbox"
	"wrenn/impl/sandbox/sandboxtest"
	"wrenn/impl/transport"
)

// inGuest runs a shell script in the guest of a sandbox below dir, as its user.
func inGuest(t *testing.T, dir, id, script string, args ...string) string {
	t.Helper()
	infos, _, err := sandbox.Journaled(dir)
	require.NoError(t, err)
	for _, info := range infos {
		if info.ID != id {
			continue
		}
		var last error
		// The suite's tokens, again while the guest is too busy to be dialled.
		for _, token := range slices.Repeat([]string{"secret", "another"}, 20) {
			rt := transport.NewBootTransport()
			defer rt.CloseIdleConnections()
			client, err := clientOver(rt, network.Slot(info.Slot).HostIP(), token)
			require.NoError(t, err)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			var out, errs bytes.Buffer
			exit, err := client.Exec(ctx, envdclient.ExecRequest{
				Cmd: "/bin/sh", Args: append([]string{"-c", script, "sh"}, args...), Stdout: &out, Stderr: &errs,
			})
			if err == nil {
				require.Zero(t, exit.Code, "%s: %s%s", script, out.String(), errs.String())
				return strings.TrimSpace(out.String())
			}
			last = err
			if !strings.Contains(err.Error(), "access token") {
				time.Sleep(200 * time.Millisecond)
			}
		}
		require.NoError(t, last)
	}
	require.Fail(t, "no journal of "+id)
	return ""
}

// guestWrite keeps a value in a file system in memory and on the disk.
func guestWrite(t *testing.T, dir, id, key, value string) {
	t.Helper()
	inGuest(t, dir, id, `for f in "/dev/shm/$1" "$HOME/$1"; do if [ -n "$2" ]; then printf %s "$2" >"$f"; else rm -f "$f"; fi; done`, key, value)
}

func guestRead(t *testing.T, dir, id, key string) (inMemory, onDisk string) {
	t.Helper()
	out := inGuest(t, dir, id, `for f in "/dev/shm/$1" "$HOME/$1"; do cat "$f" 2>/dev/null; echo "|"; done`, key)
	parts := strings.Split(strings.ReplaceAll(out, "\n", ""), "|")
	require.Len(t, parts, 3)
	return parts[0], parts[1]
}

// guestSelf says who the guest is; it starts a process the first time, which must be there later.
func guestSelf(t *testing.T, dir, id string) sandboxtest.Self {
	t.Helper()
	before := time.Now()
	out := inGuest(t, dir, id, `
pid=$(cat /dev/shm/.pid 2>/dev/null) || { setsid sh -c 'while :; do sleep 0.2; done' >/dev/null 2>&1 & pid=$!; echo $pid >/dev/shm/.pid; }
kill -0 $pid || exit 1
date +%s%N; echo $pid; hostname; cat /etc/machine-id; head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n'`)
	lines := strings.Split(out, "\n")
	require.Len(t, lines, 5, "%q", out)
	nanos, err := strconv.ParseInt(lines[0], 10, 64)
	require.NoError(t, err)
	pid, err := strconv.Atoi(lines[1])
	require.NoError(t, err)
	// The guest looked at its clock at some moment of the call; what it is off by beyond that counts.
	clock, now := time.Unix(0, nanos), time.Now()
	if off := clock.Sub(now); clock.After(before) && clock.Before(now) {
		clock = now
	} else {
		fmt.Println("clock of", id, "off by", off)
	}
	return sandboxtest.Self{Clock: clock, PID: pid, Hostname: lines[2], MachineID: lines[3], Random: lines[4]}
}
