package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"wrenn/bench/echo"
	"wrenn/bench/samples"
)

// results are what one run has left.
type results struct {
	facts      []fact
	benchmarks []benchmark
	echoes     []distribution
}

// benchmark is one line of the benchmark format.
type benchmark struct {
	name    string
	metrics []metric
}

type metric struct {
	value float64
	unit  string
}

// distribution are the samples of one benchmark, whose name has parts key=value.
type distribution struct {
	kind  string // what comes before the first slash
	parts map[string]string
	took  []time.Duration
}

func (d distribution) quantile(q float64) time.Duration { return echo.Quantile(d.took, q) }

// configLine is a line of configuration in the benchmark format.
var configLine = regexp.MustCompile(`^([a-z][^\s:]*): (.*)$`)

// processors is what the testing package adds to names.
var processors = regexp.MustCompile(`-\d+$`)

func read(dir string) (*results, error) {
	raw, err := os.ReadFile(filepath.Join(dir, "bench.txt"))
	if err != nil {
		return nil, err
	}
	r := &results{}
	for line := range strings.Lines(string(raw)) {
		line = strings.TrimSpace(line)
		if m := configLine.FindStringSubmatch(line); m != nil {
			if !slices.ContainsFunc(r.facts, func(f fact) bool { return f.key == m[1] }) && m[1] != "pkg" {
				r.facts = append(r.facts, fact{m[1], m[2]})
			}
		} else if b, ok := parse(line); ok {
			r.benchmarks = append(r.benchmarks, b)
		}
	}
	all, err := samples.Read(filepath.Join(dir, "samples"))
	if err != nil {
		return nil, err
	}
	for name, took := range all {
		kind, rest, _ := strings.Cut(name, "/")
		d := distribution{kind: kind, parts: map[string]string{}, took: took}
		for part := range strings.SplitSeq(rest, "/") {
			key, value, _ := strings.Cut(part, "=")
			d.parts[key] = value
		}
		r.echoes = append(r.echoes, d)
	}
	return r, nil
}

// parse reads "BenchmarkX-2 100 12.5 ns/op 3 p50-us".
func parse(line string) (benchmark, bool) {
	f := strings.Fields(line)
	if len(f) < 4 || !strings.HasPrefix(f[0], "Benchmark") {
		return benchmark{}, false
	}
	b := benchmark{name: processors.ReplaceAllString(strings.TrimPrefix(f[0], "Benchmark"), "")}
	for i := 2; i+1 < len(f); i += 2 {
		v, err := strconv.ParseFloat(f[i], 64)
		if err != nil {
			return benchmark{}, false
		}
		b.metrics = append(b.metrics, metric{v, f[i+1]})
	}
	return b, true
}

// find returns the distribution of a terminal's echoes.
func (r *results) find(kind, link, load, design string) (distribution, bool) {
	for _, d := range r.echoes {
		if d.kind == kind && d.parts["link"] == link && d.parts["load"] == load && d.parts["design"] == design {
			return d, true
		}
	}
	return distribution{}, false
}

// links are the pairs of benchmark and link that there are samples of, in the order of their names, loopback
// first.
func (r *results) links() (kinds, links []string) {
	seen := map[string]bool{}
	for _, d := range r.echoes {
		if d.parts["link"] != "" {
			seen[d.kind+"/"+d.parts["link"]] = true
		}
	}
	names := make([]string, 0, len(seen))
	for name := range seen {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int {
		if x, y := strings.HasSuffix(a, "loopback"), strings.HasSuffix(b, "loopback"); x != y {
			if x {
				return -1
			}
			return 1
		}
		return strings.Compare(a, b)
	})
	for _, name := range names {
		kind, link, _ := strings.Cut(name, "/")
		kinds, links = append(kinds, kind), append(links, link)
	}
	return kinds, links
}

// ms is a time in milliseconds with three digits that count.
func ms(d time.Duration) string {
	v := float64(d.Nanoseconds()) / 1e6
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}
