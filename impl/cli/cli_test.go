package cli

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/envdclient"
)

// run executes the command line and returns what it printed.
func run(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, errOut bytes.Buffer
	cmd := New()
	cmd.SetArgs(args)
	cmd.SetOut(&out)
	cmd.SetErr(&errOut)
	err = cmd.ExecuteContext(t.Context())
	return out.String(), errOut.String(), err
}

// noEnvironment hides the variables of whoever runs the tests.
func noEnvironment(t *testing.T) {
	for _, name := range []string{"WRENN_DIR", "WRENN_API_URL", "E2B_API_URL", "WRENN_SANDBOX_URL", "E2B_SANDBOX_URL", "WRENN_API_KEY", "E2B_API_KEY"} {
		t.Setenv(name, "")
	}
}

// api is a control plane that answers what it is told and remembers what it was asked.
type api struct {
	*httptest.Server
	asked []string
}

func newAPI(t *testing.T, answers map[string]string) *api {
	a := &api{}
	a.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body bytes.Buffer
		_, _ = body.ReadFrom(r.Body)
		a.asked = append(a.asked, strings.TrimSpace(r.Method+" "+r.URL.Path+" "+r.Header.Get("X-API-KEY")+" "+body.String()))
		answer, ok := answers[r.Method+" "+r.URL.Path]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			answer = `{"code":404,"message":"sandbox was not found"}`
		}
		_, _ = w.Write([]byte(answer))
	}))
	t.Cleanup(a.Close)
	return a
}

func TestCreatePrintsTheIDAloneOnStdout(t *testing.T) {
	noEnvironment(t)
	a := newAPI(t, map[string]string{"POST /v2/sandboxes": `{"sandboxID":"abc","wrenn":{"bootPath":"cold","totalMs":12.5,"stages":[{"name":"disk","ms":1.5}]}}`})
	out, errOut, err := run(t, "--api-url", a.URL, "--api-key", "k", "create", "--timeout", "90s", "-m", "a=b=c", "-e", "X=1", "--no-internet")
	require.NoError(t, err)
	assert.Equal(t, "abc\n", out)
	assert.Contains(t, errOut, "disk")
	assert.Contains(t, errOut, "12.5 ms  (cold)")
	assert.Equal(t, []string{`POST /v2/sandboxes k {"templateID":"base","timeout":90,"metadata":{"a":"b=c"},"envVars":{"X":"1"},"allow_internet_access":false}`}, a.asked)

	out, _, err = run(t, "--api-url", a.URL, "--api-key", "k", "create", "--json")
	require.NoError(t, err)
	var reply struct {
		Wrenn struct {
			BootPath string
			Stages   []struct{ Name string }
		}
	}
	require.NoError(t, json.Unmarshal([]byte(out), &reply))
	assert.Equal(t, "cold", reply.Wrenn.BootPath)
	assert.Len(t, reply.Wrenn.Stages, 1)
}

func TestKillNamesWhatItCouldNotEnd(t *testing.T) {
	noEnvironment(t)
	a := newAPI(t, map[string]string{"DELETE /sandboxes/one": ""})
	_, _, err := run(t, "--api-url", a.URL, "--api-key", "k", "kill", "one", "two")
	require.ErrorContains(t, err, "kill two: sandbox was not found")
	assert.NotContains(t, err.Error(), "one")
	_, _, err = run(t, "--api-url", a.URL, "--api-key", "k", "kill")
	require.ErrorContains(t, err, "--all")
}

func TestTheEndpointComesFromFlagsEnvironmentAndFile(t *testing.T) {
	noEnvironment(t)
	dir := t.TempDir()
	_, _, err := run(t, "--dir", dir, "list")
	require.ErrorContains(t, err, "sudo wrenn up", "the remedy belongs to the error")
	require.NoError(t, os.WriteFile(filepath.Join(dir, endpointName), []byte(`{"apiUrl":"http://file","sandboxUrl":"http://box","apiKey":"file-key"}`), 0o600))
	o := options{dir: dir}
	e, err := o.endpoint()
	require.NoError(t, err)
	assert.Equal(t, endpoint{APIURL: "http://file", SandboxURL: "http://box", APIKey: "file-key"}, e)
	t.Setenv("E2B_API_KEY", "env-key")
	o.apiURL = "http://flag"
	e, err = o.endpoint()
	require.NoError(t, err)
	assert.Equal(t, endpoint{APIURL: "http://flag", APIKey: "env-key"}, e)
	require.NoError(t, os.WriteFile(filepath.Join(dir, endpointName), []byte(`{`), 0o600))
	o.apiURL = ""
	_, err = o.endpoint()
	require.ErrorContains(t, err, endpointName)
}

func TestSecretsStayTheSameAndAreNobodyElses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secrets.json")
	first, err := loadSecrets(path)
	require.NoError(t, err)
	assert.Regexp(t, `^e2b_[0-9a-f]{64}$`, first.APIKey)
	assert.Len(t, first.TokenSecret, 32)
	again, err := loadSecrets(path)
	require.NoError(t, err)
	assert.Equal(t, first, again)
	info, err := os.Stat(path)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode())
	require.NoError(t, os.WriteFile(path, []byte(`{"apiKey":"x"}`), 0o600))
	_, err = loadSecrets(path)
	require.ErrorContains(t, err, "a secret is missing")
}

func TestExitCodesAreThePrograms(t *testing.T) {
	require.NoError(t, exitError(envdclient.Exit{}, nil))
	assert.Equal(t, ExitError{Code: 3}, exitError(envdclient.Exit{Code: 3}, nil))
	assert.Equal(t, ExitError{Code: 137}, exitError(envdclient.Exit{Code: -1, Status: "signal: killed"}, nil))
	assert.Equal(t, ExitError{Code: 143}, exitError(envdclient.Exit{Code: -1, Status: "signal: terminated"}, nil))
	assert.Equal(t, ExitError{Code: 139}, exitError(envdclient.Exit{Code: -1, Status: "signal: segmentation fault (core dumped)"}, nil))
}

func TestAGuestCannotDriveTheTerminal(t *testing.T) {
	assert.Equal(t, "]0;PWNED[31mred\tü\n", printable("\x1b]0;PWNED\a\x1b[31mred\tü\n\r\x00"))
}

func TestArgumentsAreChecked(t *testing.T) {
	_, err := pairs("env", []string{"A"})
	require.ErrorContains(t, err, `--env "A" must have the form KEY=VALUE`)
	_, err = pairs("env", []string{"=x"})
	require.Error(t, err)
	assert.Equal(t, 1, seconds(time.Millisecond))
	assert.Equal(t, 60, seconds(time.Minute))
	assert.Equal(t, "127.0.0.1:3000", reachable("0.0.0.0:3000"))
	assert.Equal(t, "127.0.0.1:3000", reachable("[::]:3000"))
	assert.Equal(t, "192.0.2.1:3000", reachable("192.0.2.1:3000"))
	_, _, err = run(t, "exec", "id")
	require.Error(t, err)
}

func TestHelpTeaches(t *testing.T) {
	noEnvironment(t)
	for _, cmd := range New().Commands() {
		assert.NotEmpty(t, cmd.Short, cmd.Name())
		out, _, err := run(t, cmd.Name(), "--help")
		require.NoError(t, err)
		assert.Contains(t, out, "Usage:")
	}
}
