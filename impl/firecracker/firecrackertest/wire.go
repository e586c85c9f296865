package firecrackertest

import (
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/firecracker"
)

// roundTrip sends raw bytes on a connection of its own and returns head and body of the answer, which
// ends after a body of the announced length.
func roundTrip(t *testing.T, socket, request string) (head, body string) {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(stepLimit)))
	_, err = io.WriteString(conn, request)
	require.NoError(t, err)
	var got strings.Builder
	buffer := make([]byte, 4096)
	for {
		n, err := conn.Read(buffer)
		got.Write(buffer[:n])
		var whole bool
		head, body, whole = strings.Cut(got.String(), "\r\n\r\n")
		if whole && len(body) >= announced(head) {
			return head, body
		}
		require.NoError(t, err, "the answer so far: %q", got.String())
	}
}

func announced(head string) int {
	for line := range strings.SplitSeq(head, "\r\n") {
		name, value, _ := strings.Cut(line, ": ")
		if strings.EqualFold(name, "Content-Length") {
			n, err := strconv.Atoi(value)
			if err == nil {
				return n
			}
		}
	}
	return 0
}

func request(method, path, body string) string {
	r := method + " " + path + " HTTP/1.1\r\nHost: localhost\r\n"
	if body != "" {
		r += "Content-Type: application/json\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\n"
	}
	return r + "\r\n" + body
}

// wire holds what only raw bytes show: statuses, headers, and refusals of malformed calls.
func (s *suite) wire(t *testing.T) {
	v := s.launch(t, "")
	const cannot = "An error occurred when deserializing the json body of a request"
	for _, test := range []struct {
		name, request, status, body string
	}{
		{"no data", request("PUT", "/machine-config", `{"vcpu_count":1,"mem_size_mib":128}`), "204", ""},
		{"data", request("GET", "/machine-config", ""), "200", `"mem_size_mib":128`},
		{"unknown path", request("GET", "/nothing", ""), "400", "Invalid request method and/or path: GET nothing."},
		{"no GET /vm", request("GET", "/vm", ""), "400", "Invalid request method and/or path"},
		{"wrong method", request("PATCH", "/boot-source", `{}`), "400", "Invalid request method and/or path"},
		{"body of a GET", request("GET", "/", `{}`), "400", "GET request cannot have a body."},
		{"empty PUT", request("PUT", "/machine-config", ""), "400", "Empty PUT request."},
		{"empty PATCH", request("PATCH", "/vm", ""), "400", "Empty PATCH request."},
		{"patch of nothing", request("PATCH", "/machine-config", `{}`), "400", "Empty PATCH request."},
		{"unknown field", request("PUT", "/machine-config", `{"vcpu_count":1,"mem_size_mib":128,"color":1}`), "400", "unknown field `color`"},
		{"missing field", request("PUT", "/machine-config", `{"vcpu_count":1}`), "400", "missing field `mem_size_mib`"},
		{"case matters", request("PUT", "/machine-config", `{"VCPU_COUNT":1,"mem_size_mib":128}`), "400", "unknown field `VCPU_COUNT`"},
		{"field twice", request("PUT", "/machine-config", `{"vcpu_count":1,"vcpu_count":1,"mem_size_mib":128}`), "400", "duplicate field `vcpu_count`"},
		{"wrong type", request("PUT", "/machine-config", `{"vcpu_count":"1","mem_size_mib":128}`), "400", cannot},
		{"no json", request("PUT", "/machine-config", `{"vcpu_count":`), "400", cannot},
		{"unknown action", request("PUT", "/actions", `{"action_type":"Dance"}`), "400", "unknown variant `Dance`"},
		{"hyphen in an id", request("PUT", "/drives/a-b", `{}`), "400", "API Resource IDs can only contain alphanumeric characters and underscores."},
		{"no id", request("PUT", "/drives/", `{}`), "400", "The ID cannot be empty."},
		{"another id", request("PUT", "/drives/a", `{"drive_id":"b","path_on_host":"/dev/null","is_root_device":false}`), "400",
			"The id from the path does not match the id from the body!"},
		{"unknown field of a limiter", request("PUT", "/entropy", `{"rate_limiter":{"speed":1}}`), "400", "unknown field `speed`"},
		{"method", request("POST", "/", ""), "400", `"error"`},
		{"too large", "PUT /machine-config HTTP/1.1\r\nHost: localhost\r\nContent-Length: 51201\r\n\r\n{", "400",
			"Request payload with size 51201 is larger than the limit of 51200 allowed by server."},
	} {
		t.Run(test.name, func(t *testing.T) {
			head, body := roundTrip(t, v.socket, test.request)
			assert.True(t, strings.HasPrefix(head, "HTTP/1.1 "+test.status+" "), head)
			assert.Contains(t, head, "Server: Firecracker API")
			assert.NotContains(t, head, "Date:")
			assert.Contains(t, body, test.body)
			switch {
			case test.status == "204":
				assert.NotContains(t, head, "Content-Length")
			case test.status == "400" && !strings.Contains(body, `"error"`):
				assert.Contains(t, body, `{"fault_message":"`)
			}
		})
	}
}

// connections: ten are served, the eleventh is sent away, and a closed one makes room.
func (s *suite) connections(t *testing.T) {
	v := s.launch(t, "")
	v.Close()
	hello := request("GET", "/version", "")
	ask := func(conn net.Conn) string {
		require.NoError(t, conn.SetDeadline(time.Now().Add(stepLimit)))
		_, _ = io.WriteString(conn, hello) // one that is sent away may be closed already
		buffer := make([]byte, 4096)
		n, err := io.ReadAtLeast(conn, buffer, 12)
		require.NoError(t, err)
		return string(buffer[:n])
	}
	dial := func() net.Conn {
		conn, err := net.Dial("unix", v.socket)
		require.NoError(t, err)
		t.Cleanup(func() { _ = conn.Close() }) // some are closed below
		return conn
	}
	var open []net.Conn
	for range 10 {
		conn := dial()
		assert.Contains(t, ask(conn), "200")
		open = append(open, conn)
	}
	refused := ask(dial())
	assert.True(t, strings.HasPrefix(refused, "HTTP/1.1 503"), refused)
	assert.Contains(t, refused, `"error"`)
	require.NoError(t, open[0].Close())
	require.Eventually(t, func() bool {
		return strings.HasPrefix(ask(dial()), "HTTP/1.1 200")
	}, stepLimit, 50*time.Millisecond, "a closed connection makes no room")
}

// commandLine: what ends before any API exists.
func (s *suite) commandLine(t *testing.T) {
	run := func(args ...string) (int, string) {
		ctx, cancel := context.WithTimeout(t.Context(), stepLimit)
		defer cancel()
		cmd := exec.CommandContext(ctx, s.binary, args...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			var exit *exec.ExitError
			require.ErrorAs(t, err, &exit)
		}
		return cmd.ProcessState.ExitCode(), string(out)
	}
	code, out := run("--version")
	assert.Equal(t, 0, code)
	assert.Regexp(t, `Firecracker v\d+\.\d+\.\d+`, out)
	code, out = run("--no-such-flag")
	assert.Equal(t, 153, code)
	assert.Contains(t, out, "no-such-flag")
	code, _ = run("--id")
	assert.Equal(t, 153, code, "a flag without its value")
	code, _ = run("--no-api")
	assert.Equal(t, 153, code, "--no-api without --config-file")
}

// socketInUse: a second VMM on the same path must not start, and not disturb the first.
func (s *suite) socketInUse(t *testing.T) {
	v := s.launch(t, "")
	ctx, cancel := context.WithTimeout(t.Context(), stepLimit)
	defer cancel()
	out, err := exec.CommandContext(ctx, s.binary, "--api-sock", v.socket).CombinedOutput()
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit)
	assert.Equal(t, 1, exit.ExitCode(), "%s", out)
	_, err = v.Info(t.Context())
	require.NoError(t, err)

	_, err = firecracker.Launch(t.Context(), firecracker.LaunchConfig{Binary: s.binary, ID: "second",
		SocketPath: v.socket, ConsolePath: filepath.Join(t.TempDir(), "console"), Env: s.env})
	require.ErrorIs(t, err, os.ErrExist)
}
