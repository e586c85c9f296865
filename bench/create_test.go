// Package bench_test measures what users wait for. Nothing here asserts a speed: machines differ and are
// shared; the figures are for comparing.
package bench_test

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"wrenn/e2e/harness"
	"wrenn/impl/apiclient"
)

func TestMain(m *testing.M) { harness.Main(m) }

// BenchmarkCreate makes and ends sandboxes one after the other through the API and reports the median of
// every stage in milliseconds. "outside" is what neither the VMM nor the guest takes: our own share.
func BenchmarkCreate(b *testing.B) {
	for name, ready := range map[string]string{"network=cold": "0", "network=ready": "4"} {
		b.Run(name, func(b *testing.B) { benchmarkCreate(b, harness.Start(b, harness.Dir(b), "--ready-networks", ready)) })
	}
}

func benchmarkCreate(b *testing.B, s *harness.System) {
	stages := map[string][]float64{}
	for b.Loop() {
		box := s.Create()
		outside := box.Wrenn.TotalMs
		for _, stage := range box.Wrenn.Stages {
			stages[stage.Name] = append(stages[stage.Name], stage.Ms)
			switch stage.Name {
			case "vmm", "kernel", "init", "envd":
				outside -= stage.Ms
			}
		}
		stages["outside"] = append(stages["outside"], outside)
		stages["total"] = append(stages["total"], box.Wrenn.TotalMs)
		b.StopTimer()
		require.NoError(b, s.Client.Kill(b.Context(), box.SandboxID))
		b.StartTimer()
	}
	for name, ms := range stages {
		slices.Sort(ms)
		b.ReportMetric(ms[len(ms)/2], name+"-p50-ms")
	}
	b.ReportMetric(stages["outside"][len(stages["outside"])*95/100], "outside-p95-ms")
	s.Stop()
}

// BenchmarkExec runs `true` in a living guest through the API's sandbox proxy: the way of every command.
func BenchmarkExec(b *testing.B) {
	s := harness.Start(b, harness.Dir(b))
	box := s.CreateWith(apiclient.CreateRequest{TemplateID: "base", Timeout: 3600})
	for b.Loop() {
		s.Exec(box, "true")
	}
	b.StopTimer()
	s.Stop()
}
