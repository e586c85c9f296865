package main

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestH03_AReportFromARun(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "bench.txt"), []byte(`kernel: 6.1
vmm: procvmm
pkg: wrenn/bench
BenchmarkPTY/link=loopback/load=none/design=isolated-2   3   0 blocked   2 p50-us
BenchmarkMemory/idle=terminals-2   1   0 ns/op   12.5 agent-KiB
BenchmarkBroken-2   1   x ns/op
--- BENCH: something
ok  	wrenn/bench	1.0s
`), 0o600))
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "samples"), 0o755))
	lines := func(name string, ns ...int) {
		text := ""
		for _, n := range ns {
			text += fmt.Sprintln(n)
		}
		require.NoError(t, os.WriteFile(filepath.Join(dir, "samples", name+".txt"), []byte(text), 0o600))
	}
	lines("PTY,link=loopback,load=none,design=isolated", 1_000_000, 2_000_000, 3_000_000)
	lines("PTY,link=loopback,load=none,design=tcp-hops", 1_000_000, 1_000_000, 1_000_000)
	lines("PTY,link=loopback,load=unread-upload,design=isolated", 4_000_000)
	lines("PTY,link=loopback,load=unread-upload,design=shared", 1_000_000, 5_000_000_000)
	lines("Hops,way=1-tcp", 500_000)
	require.NoError(t, write(dir))
	raw, err := os.ReadFile(filepath.Join(dir, "report.md"))
	require.NoError(t, err)
	page := string(raw)
	for _, want := range []string{
		"| kernel | 6.1 |\n| vmm | procvmm |\n",
		"| none | isolated | 3 | 2.00 | 3.00 | 3.00 | 3.00 |",
		"| unread-upload | shared | 2 | 1.00 | 5000 | 5000 | 5000 **blocked** |",
		"| loopback | none |  | 1.0 | 1.0 |  | 2.0 |  |",
		"| loopback | unread-upload | 1250.0 | 1.3 |  |  |  |",
		"| 1-tcp | 0.50 | 0.50 | 0.50 |",
		"| Memory/idle=terminals | 12.5 agent-KiB |",
	} {
		assert.Contains(t, page, want)
	}
	assert.NotContains(t, page, "Broken")
	assert.NotContains(t, page, "| pkg")
	for _, name := range []string{"loopback-none.svg", "loopback-unread-upload.svg"} {
		svg, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		assert.Contains(t, string(svg), "<svg")
		assert.Contains(t, page, name)
	}
}

func TestH03_FactsAreInTheBenchmarkFormat(t *testing.T) {
	found := facts(t.Context())
	for _, f := range found {
		assert.Regexp(t, configLine, f.key+": "+f.value)
	}
	assert.NotEmpty(t, found)
}
