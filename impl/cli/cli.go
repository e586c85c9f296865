// Package cli is the command line `wrenn`: it starts a control plane and an agent on one machine, and is
// a client of any control plane.
package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"wrenn/impl/agent"
	"wrenn/impl/apiclient"
	"wrenn/impl/envdclient"
	"wrenn/impl/transport"
	"wrenn/impl/uffd"
)

// ExitError makes the process end with a code of its own, without a message: the code of a program that
// ran in a sandbox.
type ExitError struct{ Code int }

// Error says the code.
func (e ExitError) Error() string { return fmt.Sprintf("exit status %d", e.Code) }

// options are the flags of every command.
type options struct {
	dir                        string
	apiURL, sandboxURL, apiKey string
	json                       bool
}

// New returns the command `wrenn`.
func New() *cobra.Command {
	var o options
	root := &cobra.Command{
		Use:   "wrenn",
		Short: "Run untrusted code in microVMs on your own Linux machine",
		Long: `Run untrusted code in microVMs on your own Linux machine.

  sudo wrenn up                       start a control plane and an agent here
  wrenn create                        make a sandbox; prints its id
  wrenn exec ID -- uname -a           run a program in it
  wrenn pty ID                        open a terminal in it
  wrenn pause ID; wrenn resume ID     put it away with all that runs in it, and go on
  wrenn snapshot create ID -n NAME    keep its state, to start others from: wrenn create --snapshot NAME
  wrenn kill ID                       end it

Without flags the other commands find the control plane that "wrenn up" started on this machine. For
another one set WRENN_API_URL, WRENN_SANDBOX_URL and WRENN_API_KEY (or E2B's names for them).`,
		SilenceUsage: true, SilenceErrors: true,
	}
	flags := root.PersistentFlags()
	flags.StringVar(&o.dir, "dir", env("", "WRENN_DIR"), "where `wrenn up` keeps its data (WRENN_DIR; default "+agent.DefaultDir+")")
	flags.StringVar(&o.apiURL, "api-url", env("", "WRENN_API_URL", "E2B_API_URL"), "the control plane's REST API (WRENN_API_URL)")
	flags.StringVar(&o.sandboxURL, "sandbox-url", env("", "WRENN_SANDBOX_URL", "E2B_SANDBOX_URL"), "the control plane's sandbox proxy (WRENN_SANDBOX_URL)")
	flags.StringVar(&o.apiKey, "api-key", "", "the API key (WRENN_API_KEY)")
	flags.BoolVar(&o.json, "json", false, "print JSON")
	root.AddCommand(
		upCommand(&o), demoCommand(&o), createCommand(&o), listCommand(&o), execCommand(&o), ptyCommand(&o),
		uffd.Command(), pauseCommand(&o), resumeCommand(&o), snapshotCommand(&o), forkCommand(&o), killCommand(&o), networkCommand(&o), logsCommand(&o), doctorCommand(&o), reclaimCommand(&o),
	)
	return root
}

// Main runs the command line and returns the process's exit code.
func Main() int {
	err := New().Execute()
	var exit ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.Code
	default:
		fmt.Fprintln(os.Stderr, "wrenn:", printable(err.Error()))
		return 1
	}
}

// dataDir is the directory of `wrenn up`.
func (o *options) dataDir() string {
	if o.dir != "" {
		return o.dir
	}
	return agent.DefaultDir
}

// endpoint is what a client needs to know of a control plane; `wrenn up` writes it down.
type endpoint struct {
	APIURL     string `json:"apiUrl"`
	SandboxURL string `json:"sandboxUrl"`
	APIKey     string `json:"apiKey"`
}

const endpointName = "client.json"

// endpoint takes flags and environment first, then what `wrenn up` wrote down on this machine.
func (o *options) endpoint() (endpoint, error) {
	e := endpoint{APIURL: o.apiURL, SandboxURL: o.sandboxURL, APIKey: o.apiKey}
	if e.APIKey == "" {
		e.APIKey = env("", "WRENN_API_KEY", "E2B_API_KEY")
	}
	if e.APIURL != "" && e.APIKey != "" {
		return e, nil
	}
	path := filepath.Join(o.dataDir(), endpointName)
	data, err := os.ReadFile(path)
	if err != nil {
		return e, fmt.Errorf("find the control plane: %w (start one with `sudo wrenn up`, run this as the same user, or set WRENN_API_URL and WRENN_API_KEY)", err)
	}
	var local endpoint
	if err := json.Unmarshal(data, &local); err != nil {
		return e, fmt.Errorf("read %s: %w", path, err)
	}
	if e.APIURL == "" {
		e.APIURL = local.APIURL
	}
	if e.SandboxURL == "" {
		e.SandboxURL = local.SandboxURL
	}
	if e.APIKey == "" {
		e.APIKey = local.APIKey
	}
	return e, nil
}

func (o *options) client() (*apiclient.Client, endpoint, error) {
	e, err := o.endpoint()
	if err != nil {
		return nil, e, err
	}
	return apiclient.New(e.APIURL, e.APIKey, transport.NewRPCTransport()), e, nil
}

// guest returns a client of the daemon in a sandbox, through the control plane's sandbox proxy.
func (e endpoint) guest(s apiclient.Sandbox) (*envdclient.Client, error) {
	if e.SandboxURL == "" {
		return nil, errors.New("the sandbox proxy is not known: set WRENN_SANDBOX_URL")
	}
	header := http.Header{}
	header.Set("E2b-Sandbox-Id", s.SandboxID)
	header.Set("E2b-Sandbox-Port", strconv.Itoa(49983))
	return envdclient.New(envdclient.Config{
		BaseURL: e.SandboxURL, HTTPClient: &http.Client{Transport: transport.NewStreamTransport()},
		Headers: header, AccessToken: s.EnvdAccessToken,
	})
}

// env returns the first variable that is set, else otherwise.
func env(otherwise string, names ...string) string {
	for _, n := range names {
		if v := os.Getenv(n); v != "" {
			return v
		}
	}
	return otherwise
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// printable takes from a guest's words whatever could act on the terminal that they are printed on.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || unicode.IsPrint(r) {
			return r
		}
		return -1
	}, s)
}

// pairs parses KEY=VALUE arguments of the named flag.
func pairs(flag string, args []string) (map[string]string, error) {
	out := make(map[string]string, len(args))
	for _, a := range args {
		k, v, ok := strings.Cut(a, "=")
		if !ok || k == "" {
			return nil, fmt.Errorf("--%s %q must have the form KEY=VALUE", flag, a)
		}
		out[k] = v
	}
	return out, nil
}

// seconds turns a duration into the API's whole seconds; at least one for anything above zero.
func seconds(d time.Duration) int {
	return int((d + time.Second - 1) / time.Second)
}
