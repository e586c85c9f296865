package main

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"wrenn/bench/ground"
	"wrenn/bench/load"
)

// loads are all that are reported, in order.
var loads = []load.Kind{load.None, load.Jupyter, load.Poll, load.Downloads, load.Flood, load.Unread, load.Stalled, load.All}

// blockedAfter is from when on an echo counts as one that does not come, in seconds: the benchmark's limit.
const blockedAfter = 5

func write(dir string) error {
	r, err := read(dir)
	if err != nil {
		return fmt.Errorf("read results: %w", err)
	}
	var page strings.Builder
	page.WriteString("# Terminals beside heavy ports\n\nHow long a keystroke takes to come back, in milliseconds. `isolated` is Wrenn, " +
		"the real programs, with a terminal as E2B's SDKs have one (a call per key), `isolated-ws` the same with one as Wrenn's own page has it (a WebSocket to the control plane); `shared` sends terminals and ports through one HTTP/2 connection per hop; the others are rulers. " +
		"`tcp-hops` is a byte relayed by plain TCP over as many hops to the same guest, without a terminal: what it takes beside a load is the kernel's, the machine's and the link's share.\n\n")
	page.WriteString("| fact | |\n|---|---|\n")
	for _, f := range r.facts {
		fmt.Fprintf(&page, "| %s | %s |\n", f.key, f.value)
	}
	kinds, links := r.links()
	for i := range links {
		if err := r.link(&page, dir, kinds[i], links[i]); err != nil {
			return err
		}
	}
	r.comparisons(&page, kinds, links)
	r.hops(&page)
	r.others(&page)
	page.WriteString(notes)
	return os.WriteFile(filepath.Join(dir, "report.md"), []byte(page.String()), 0o644)
}

// link writes the tables and plots of one link.
func (r *results) link(page *strings.Builder, dir, kind, link string) error {
	fmt.Fprintf(page, "\n## Link %s\n\n| load | design | keys | p50 | p99 | p99.9 | max |\n|---|---|---|---|---|---|---|\n", link)
	var plots []string
	for _, l := range loads {
		var lines []distribution
		for _, d := range ground.Designs {
			took, ok := r.find(kind, link, string(l), d.Name)
			if !ok {
				continue
			}
			lines = append(lines, took)
			note := ""
			if took.quantile(1).Seconds() >= blockedAfter {
				note = " **blocked**"
			}
			fmt.Fprintf(page, "| %s | %s | %d | %s | %s | %s | %s%s |\n", l, d.Name, len(took.took),
				ms(took.quantile(0.5)), ms(took.quantile(0.99)), ms(took.quantile(0.999)), ms(took.quantile(1)), note)
		}
		if len(lines) == 0 {
			continue
		}
		name := fmt.Sprintf("%s-%s.svg", link, l)
		if err := plotTo(filepath.Join(dir, name), fmt.Sprintf("%s, load: %s", link, l), lines); err != nil {
			return err
		}
		plots = append(plots, fmt.Sprintf("![%s](%s)", l, name))
	}
	page.WriteString("\n" + strings.Join(plots, "\n") + "\n")
	return nil
}

// comparisons sets the designs against each other.
func (r *results) comparisons(page *strings.Builder, kinds, links []string) {
	page.WriteString("\n## Against each other\n\nRatios of p99, and at idle of p50. \"own idle\" is the same design without load.\n\n" +
		"| link | load | shared / isolated | isolated / own idle | tcp-hops / own idle | ssh-hops / own idle | isolated / tcp-hops | isolated-ws / tcp-hops | isolated / ssh-own | isolated / ssh-hops |\n|---|---|---|---|---|---|---|---|---|---|\n")
	for i, link := range links {
		for _, l := range loads {
			q := 0.99
			if l == load.None {
				q = 0.5
			}
			ratio := func(over, under string, underLoad load.Kind) string {
				a, ok1 := r.find(kinds[i], link, string(l), over)
				b, ok2 := r.find(kinds[i], link, string(underLoad), under)
				if !ok1 || !ok2 || b.quantile(q) == 0 {
					return ""
				}
				return fmt.Sprintf("%.1f", float64(a.quantile(q))/float64(b.quantile(q)))
			}
			cells := []string{
				ratio("shared", "isolated", l), ratio("isolated", "isolated", load.None), ratio("tcp-hops", "tcp-hops", load.None), ratio("ssh-hops", "ssh-hops", load.None),
				ratio("isolated", "tcp-hops", l), ratio("isolated-ws", "tcp-hops", l), ratio("isolated", "ssh-own", l), ratio("isolated", "ssh-hops", l),
			}
			if strings.Join(cells, "") != "" {
				fmt.Fprintf(page, "| %s | %s | %s |\n", link, l, strings.Join(cells, " | "))
			}
		}
	}
}

// hops writes where the time of an idle echo goes.
func (r *results) hops(page *strings.Builder) {
	var ways []distribution
	for _, d := range r.echoes {
		if d.kind == "Hops" {
			ways = append(ways, d)
		}
	}
	if len(ways) == 0 {
		return
	}
	slices.SortFunc(ways, func(a, b distribution) int { return cmp.Compare(a.parts["way"], b.parts["way"]) })
	page.WriteString("\n## Where the time of an idle echo goes\n\nEach way has one part more than another; p10 is what it takes when nothing else wants the processor.\n\n" +
		"| way | p10 | p50 | p99 |\n|---|---|---|---|\n")
	for _, d := range ways {
		fmt.Fprintf(page, "| %s | %s | %s | %s |\n", d.parts["way"], ms(d.quantile(0.1)), ms(d.quantile(0.5)), ms(d.quantile(0.99)))
	}
}

// others lists the benchmarks that have no samples.
func (r *results) others(page *strings.Builder) {
	page.WriteString("\n## Everything else\n\n| benchmark | |\n|---|---|\n")
	for _, b := range r.benchmarks {
		if strings.HasPrefix(b.name, "PTY/") || strings.HasPrefix(b.name, "PTYReno/") || strings.HasPrefix(b.name, "PTYBands/") || strings.HasPrefix(b.name, "PTYSpare/") || strings.HasPrefix(b.name, "Hops/") {
			continue
		}
		cells := make([]string, 0, len(b.metrics))
		for _, m := range b.metrics {
			if m.value != 0 || m.unit != "ns/op" {
				cells = append(cells, fmt.Sprintf("%.4g %s", m.value, m.unit))
			}
		}
		fmt.Fprintf(page, "| %s | %s |\n", b.name, strings.Join(cells, ", "))
	}
}
