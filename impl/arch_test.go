// Package impl_test keeps the architecture: who may import whom, how long a file may be, and where the
// network's defaults may not be used. Each rule carries its reason.
package impl_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// rule says what a package, or a tree of packages ("/..."), may import of this module in code that is
// not a test. Anything not listed is forbidden.
type rule struct {
	pkg    string
	may    []string
	reason string
}

var rules = []rule{
	{"impl", nil, "holds this test alone"},

	// The floor: imports nothing of ours, so that everything may stand on it.
	{"impl/step", nil, "the floor"},
	{"impl/safename", nil, "the floor"},
	{"impl/egress", nil, "the floor: what rules mean is the same for the API, the domain and the kernel"},
	{"impl/need", nil, "the floor"},
	{"impl/transport", []string{"impl/transport/hopserver", "impl/internal/shortcut"}, "the floor"},
	{"impl/transport/hopserver", nil, "the floor: HTTP alone"},
	{"impl/netns", nil, "the floor"},
	{"impl/netns/netnstest", []string{"impl/netns", "impl/need"}, "test support of netns"},
	{"impl/internal/...", nil, "the floor"},
	{"impl/snapshot", []string{"impl/internal/..."}, "a format of directories: files alone, so that domain and adapters mean the same by it"},

	// The domain knows no adapter: package agent hands them in.
	{"impl/sandbox", []string{"impl/step", "impl/safename", "impl/egress", "impl/snapshot", "impl/internal/..."}, "the domain imports no adapter"},
	{"impl/sandbox/sandboxtest", []string{"impl/sandbox", "impl/snapshot", "impl/egress"}, "fakes and the lifecycle suite"},

	// Adapters know neither the domain nor each other.
	{"impl/firecracker", []string{"impl/transport", "impl/internal/..."}, "an adapter"},
	{"impl/firecracker/firecrackertest/guestinit", nil, "runs as the init of the suite's guests"},
	{"impl/firecracker/firecrackertest", []string{"impl/firecracker", "impl/need", "impl/netns", "impl/netns/netnstest"}, "the conformance suite of VMMs"},
	{"impl/network", []string{"impl/netns", "impl/network/nameserver", "impl/step", "impl/egress", "impl/internal/..."}, "an adapter; a sandbox's network lives in a namespace"},
	{"impl/network/nameserver", nil, "speaks DNS, and knows neither sandboxes nor namespaces"},
	{"impl/memfile", []string{"impl/internal/..."}, "files alone: knows neither VMMs nor sandboxes, so that it can be proven without either"},
	{"impl/uffd", []string{"impl/memfile", "impl/internal/..."}, "an adapter; pages come out of layers, whoever's they are"},
	{"impl/devicemapper", []string{"impl/safename", "impl/internal/..."}, "knows files and devices, not sandboxes and templates"},
	{"impl/rootfs", []string{"impl/devicemapper", "impl/safename", "impl/internal/..."}, "an adapter; one kind of its disks is made of devices"},
	{"impl/envdclient", []string{"proto/gen/..."}, "an adapter; speaks the guest's wire"},
	{"impl/qemu", []string{"impl/transport", "impl/internal/..."}, "a program of its own: knows Firecracker's wire, not our client of it"},
	{"impl/portproxy", []string{"impl/transport", "impl/safename", "impl/portproxy/internal/..."}, "knows addresses, not sandboxes"},
	{"impl/portproxy/internal/former", nil, "names defects, which only portproxytest may turn on"},
	{"impl/portproxy/portproxytest", []string{"impl/portproxy", "impl/portproxy/internal/...", "impl/transport", "impl/transport/hopserver"}, "the proxy on loopback, for suites"},

	// The guest's daemon shares nothing with the host but the wire.
	{"impl/envd/...", []string{"impl/envd/...", "impl/internal/shortcut", "proto/gen/..."}, "nothing of the host side runs in a guest; the floor is no host code"},

	// The agent wires the domain to the adapters.
	{"impl/agent", []string{
		"impl/sandbox", "impl/snapshot", "impl/memfile", "impl/uffd", "impl/firecracker", "impl/network", "impl/netns", "impl/egress", "impl/rootfs", "impl/envdclient", "impl/portproxy",
		"impl/transport", "impl/transport/hopserver", "impl/safename", "impl/internal/...", "proto/gen/...",
	}, "the one place where adapters meet"},

	// The control plane knows agents by their wire alone.
	{"impl/agentclient", []string{"impl/transport", "proto/gen/..."}, "the control plane's view of agents"},
	{"impl/session", []string{"impl/envdclient", "impl/internal/shortcut"}, "joins a WebSocket to a guest's daemon; whose, and who may, is for its caller"},
	{"impl/store", []string{"impl/internal/..."}, "the control plane's memory"},
	{"impl/store/storetest", []string{"impl/store"}, "the suite that each database passes"},
	{"impl/controlplane", []string{
		"impl/agentclient", "impl/store", "impl/portproxy", "impl/session", "impl/envdclient", "impl/transport", "impl/transport/hopserver", "impl/safename", "impl/egress", "proto", "proto/gen/...",
	}, "knows agents by their wire alone, and guests by their daemon's"},

	// Clients and programs.
	{"impl/apiclient", nil, "speaks the public REST and nothing else"},
	{"impl/cli", []string{
		"impl/agent", "impl/agentclient", "impl/controlplane", "impl/store", "impl/apiclient", "impl/envdclient",
		"impl/transport", "impl/rootfs", "impl/uffd", "impl/internal/...",
	}, "`wrenn up` is agent and control plane in one process"},
	{"impl/cmd/wrenn", []string{"impl/cli"}, "flags to Run"},
	{"impl/cmd/wrenn-cp", []string{"impl/controlplane", "impl/agentclient", "impl/internal/collector"}, "flags to Run"},
	{"impl/cmd/wrenn-agent", []string{"impl/agent", "impl/uffd", "impl/internal/collector"}, "flags to Run; page servers are the same program under a subcommand"},
	{"impl/cmd/envd", []string{"impl/envd/..."}, "flags to Run"},
	{"impl/cmd/firecracker-qemu", []string{"impl/qemu"}, "the only importer of impl/qemu"},

	// Outside impl: the wire and public packages only.
	{"proto", nil, "the wire"},
	{"proto/gen/...", []string{"proto/gen/..."}, "generated"},
	{"proto/check", nil, "a tool of `make check`"},
	{"guest/...", []string{"guest/...", "impl/safename", "impl/need"}, "no host code in the guest's parts; the floor is no host code"},
	{"vagrant/...", []string{"vagrant/...", "guest/initramfs", "guest/kernel", "guest/rootfs"}, "runs tests in VMs, built as the guests are"},
	{"e2e/...", []string{"e2e/...", "impl/apiclient", "impl/envdclient", "impl/transport", "impl/need", "impl/netns/netnstest"}, "suites reach the system by the wire and public packages; a host of their own is test support"},
	{"fault", nil, "holds tests alone, which are built with a tag; they reach the system by the wire, and its steps by their names"},
	{"bench/...", []string{"bench/...", "e2e/...", "impl/apiclient", "impl/envdclient", "impl/transport", "impl/memfile", "impl/need"}, "suites reach the system by the wire and public packages; a VMM alone wants memory in one file"},
}

type listed struct {
	ImportPath string
	Imports    []string
}

func modulePackages(t *testing.T) []listed {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", "wrenn/...")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	require.NoError(t, err)
	var all []listed
	dec := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p listed
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			return all
		}
		require.NoError(t, err)
		p.ImportPath = strings.TrimPrefix(p.ImportPath, "wrenn/")
		all = append(all, p)
	}
}

func matches(pattern, pkg string) bool {
	if tree, ok := strings.CutSuffix(pattern, "/..."); ok {
		return pkg == tree || strings.HasPrefix(pkg, tree+"/")
	}
	return pattern == pkg
}

func TestImportsFollowTheTable(t *testing.T) {
	used := make([]bool, len(rules))
	for _, p := range modulePackages(t) {
		i := slices.IndexFunc(rules, func(r rule) bool { return matches(r.pkg, p.ImportPath) })
		if !assert.GreaterOrEqual(t, i, 0, "package %s has no rule: give it one, with a reason", p.ImportPath) {
			continue
		}
		used[i] = true
		for _, imp := range p.Imports {
			ours, ok := strings.CutPrefix(imp, "wrenn/")
			if !ok {
				continue
			}
			allowed := slices.ContainsFunc(rules[i].may, func(pattern string) bool { return matches(pattern, ours) })
			assert.True(t, allowed, "%s imports %s, which its rule forbids (%s)", p.ImportPath, ours, rules[i].reason)
		}
	}
	for i, r := range rules {
		if !used[i] && !strings.HasPrefix(r.pkg, "bench") {
			assert.Fail(t, "a rule for no package", "%s", r.pkg)
		}
	}
}

// maxLines is how long a file may be before its design should be looked at again.
const maxLines = 400

// longFiles are hand-written files that may be longer, each with its reason.
var longFiles = map[string]string{}

// vague are names that say nothing of what a package or a file is about.
var vague = []string{"util", "utils", "common", "types", "models", "helper", "helpers", "shared", "misc"}

func TestFilesAreShortAndNamedAfterThings(t *testing.T) {
	root := ".."
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		name := strings.TrimSuffix(d.Name(), filepath.Ext(d.Name()))
		if d.IsDir() {
			if slices.Contains([]string{".git", "build", "node_modules", "gen"}, d.Name()) {
				return filepath.SkipDir
			}
			assert.NotContains(t, vague, name, "folder %s", rel)
			return nil
		}
		if filepath.Ext(path) != ".go" {
			return nil
		}
		assert.NotContains(t, vague, name, "file %s", rel)
		if n := lines(t, path); n > maxLines {
			assert.Contains(t, longFiles, rel, "%s has %d lines, more than %d: split it, or give a reason", rel, n, maxLines)
		}
		return nil
	})
	require.NoError(t, err)
}

func lines(t *testing.T, path string) int {
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	n := 0
	for s := bufio.NewScanner(f); s.Scan(); {
		n++
	}
	return n
}

// guestServers are the servers that run in a guest, which shares no code with the host: the daemon's, and those
// of programs which tests and benchmarks bring.
var guestServers = []string{"../impl/envd/envd.go", "../guest/drift/main.go", "../bench/actor/guest.go"}

// TestT02_TransportsAndServersAreMadeInOnePlace: each carries numbers that need a reason, and they are
// all in impl/transport.
func TestT02_TransportsAndServersAreMadeInOnePlace(t *testing.T) {
	made := regexp.MustCompile(`\bhttp\.(Transport|Server)\{|\bhopserver\.Server\{|&http\.Client\{\}`)
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && slices.Contains([]string{".git", "build", "node_modules", "transport"}, d.Name()) {
			return filepath.SkipDir
		}
		if filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") || slices.Contains(guestServers, path) {
			return nil
		}
		source, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		assert.Empty(t, made.FindString(string(source)), "%s makes one of its own", path)
		return nil
	})
	require.NoError(t, err)
}

// streamPaths are the packages through which terminals pass, with what of their files may bound something by
// time, and why that does not bound a stream.
var streamPaths = map[string]map[string]string{
	"transport":           {"direct.go": "the dial"},
	"transport/hopserver": {"conn.go": "what a client sends that has its answer"},
	"portproxy":           {"resume.go": "the wait for a paused sandbox to wake", "pipe.go": "the question why a guest has not answered"},
	"session":             {"session.go": "the first messages, and the kill of a client that has gone", "client.go": "resizes and signals", "input.go": "the answer to a probe"},
	"envdclient":          {"exec.go": "the kill after a caller that has gone", "client.go": "tries of the first call"},
	"envd":                {"envd.go": "the shutdown", "freeze.go": "the rehearsal of a freeze, which no request waits for"},
	"envd/process":        {"fanout.go": "the wait for a full queue"},
	"envd/stream":         {},
	"envd/ports":          {},
}

// TestT04_NothingOnStreamPathsBoundsAWholeStream looks for what has cut terminals elsewhere: a client with one
// timeout for everything, a server that bounds reads or writes, a context with a deadline around a stream.
func TestT04_NothingOnStreamPathsBoundsAWholeStream(t *testing.T) {
	never := regexp.MustCompile(`http\.Client\{[^}]*Timeout|\.Timeout\s*=\s|\b(ReadTimeout|WriteTimeout|ResponseHeaderTimeout):|http\.TimeoutHandler`)
	deadlines := regexp.MustCompile(`context\.With(Timeout|Deadline)(Cause)?\(`)
	for dir, reasons := range streamPaths {
		files, err := filepath.Glob(filepath.FromSlash(dir) + "/*.go")
		require.NoError(t, err)
		require.NotEmpty(t, files, dir)
		for _, path := range files {
			if strings.HasSuffix(path, "_test.go") {
				continue
			}
			source, err := os.ReadFile(path)
			require.NoError(t, err)
			assert.Empty(t, never.FindString(string(source)), path)
			if reasons[filepath.Base(path)] == "" {
				assert.Empty(t, deadlines.FindString(string(source)), "%s: give a reason in streamPaths, if there is one", path)
			}
		}
	}
	everywhere := regexp.MustCompile(`http\.Client\{[^}]*Timeout|\b(ReadTimeout|WriteTimeout|ResponseHeaderTimeout):|http\.TimeoutHandler`)
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		if err == nil {
			assert.Empty(t, everywhere.FindString(string(source)), path)
		}
		return err
	})
	require.NoError(t, err)
}

// TestMainsAreThin keeps logic out of the programs' main files, where no test reaches it.
func TestMainsAreThin(t *testing.T) {
	mains, err := filepath.Glob("cmd/*/main.go")
	require.NoError(t, err)
	require.NotEmpty(t, mains)
	for _, m := range mains {
		assert.LessOrEqual(t, lines(t, m), 40, m)
	}
}
