// Package samples keeps what benchmarks measured, one file per benchmark, for the report's plots.
package samples

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// DirEnv names the variable with the directory for samples; empty for none.
const DirEnv = "WRENN_BENCH_SAMPLES"

const suffix = ".txt"

// Write keeps the samples of a benchmark, in order, as whole nanoseconds, one a line. The slashes of its name
// become commas in the file's.
func Write(tb testing.TB, took []time.Duration) {
	tb.Helper()
	dir := os.Getenv(DirEnv)
	if dir == "" {
		return
	}
	require.NoError(tb, os.MkdirAll(dir, 0o755))
	var text strings.Builder
	for _, d := range took {
		fmt.Fprintln(&text, d.Nanoseconds())
	}
	name := strings.ReplaceAll(strings.TrimPrefix(tb.Name(), "Benchmark"), "/", ",") + suffix
	require.NoError(tb, os.WriteFile(filepath.Join(dir, name), []byte(text.String()), 0o644))
}

// Read returns the samples in a directory by the benchmarks' names without "Benchmark"; none if it is missing.
func Read(dir string) (map[string][]time.Duration, error) {
	found, err := filepath.Glob(filepath.Join(dir, "*"+suffix))
	if err != nil {
		return nil, err
	}
	all := map[string][]time.Duration{}
	for _, path := range found {
		took, err := readFile(path)
		if err != nil {
			return nil, err
		}
		all[strings.ReplaceAll(strings.TrimSuffix(filepath.Base(path), suffix), ",", "/")] = took
	}
	return all, nil
}

func readFile(path string) ([]time.Duration, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var took []time.Duration
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		ns, err := strconv.ParseInt(lines.Text(), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%s, line %d: %w", path, len(took)+1, err)
		}
		took = append(took, time.Duration(ns))
	}
	return took, lines.Err()
}
