package main

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestProgressIsNotShown has what Vagrant writes while it copies a box, in pieces of any size.
func TestProgressIsNotShown(t *testing.T) {
	said := "==> wrenn: Uploading base box image...\r\x1b[KProgress: 0%\x1b[0K\rProgress: 57%\r\n\n==> wrenn: Starting domain.\n"
	for size := 1; size < 20; size++ {
		var out bytes.Buffer
		p := &progress{out: &out}
		for rest := []byte(said); len(rest) > 0; {
			n, err := p.Write(rest[:min(size, len(rest))])
			require.NoError(t, err)
			rest = rest[n:]
		}
		assert.Equal(t, "==> wrenn: Uploading base box image...\n==> wrenn: Starting domain.\n", out.String())
	}
}
