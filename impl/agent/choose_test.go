package agent

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

// TestAnEmulatedProcessorIsKnownByItsName has what /proc/cpuinfo says on each kind of machine.
func TestAnEmulatedProcessorIsKnownByItsName(t *testing.T) {
	assert.True(t, emulatedCPU([]byte("processor\t: 0\nmodel name\t: QEMU TCG CPU version 2.5+\n")))
	for _, name := range []string{"AMD EPYC 7763 64-Core Processor", "QEMU Virtual CPU version 2.5+", "Intel(R) Xeon(R) Processor"} {
		assert.False(t, emulatedCPU([]byte("model name\t: "+name+"\n")), name)
	}
}
