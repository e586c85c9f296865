package ports

import (
	"context"
	"log/slog"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

// BenchmarkStep measures one scan with one forward in place, which is what a guest with a dev server pays five
// times a second.
func BenchmarkStep(b *testing.B) {
	s := &scanner{}
	defer s.close()
	w := New(Config{Logger: slog.New(slog.DiscardHandler), Addresses: func() ([]netip.Addr, error) { return nil, nil }})
	for name, addresses := range map[string]func() ([]netip.Addr, error){"addresses asked": nil, "addresses known": w.cfg.Addresses} {
		b.Run(name, func(b *testing.B) {
			w.cfg.Addresses = addresses
			for b.Loop() {
				w.step(context.Background(), s.scan)
			}
		})
	}
	b.Run("proc", func(b *testing.B) {
		for b.Loop() {
			_, err := scanProc()
			require.NoError(b, err)
		}
	})
}
