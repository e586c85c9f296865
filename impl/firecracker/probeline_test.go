package firecracker

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestProbeLineIsWhole(t *testing.T) {
	assert.False(t, probeLine.MatchString("WRENN-PROBE-OK 6"), "the rest of the line is still to come")
	assert.Equal(t, "6.1.0", probeLine.FindStringSubmatch("quiet\r\nWRENN-PROBE-OK 6.1.0\r\n")[1])
}
