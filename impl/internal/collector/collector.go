// Package collector says how often the garbage of a program that carries traffic is collected.
package collector

import (
	"os"
	"runtime/debug"
)

// percent is how much the heap grows over what lives before a collection, in percent; Go's own is 100. The agent and the
// control plane hold some MiB and 10 to 20 KiB per connection, and make 5 KiB of garbage per proxied request: at Go's least
// heap of 4 MiB and 6,000 requests per second that is ten collections per second, each with the stacks of all connections to
// look through, and a tenth of the processor time. With 400 it is two, and an idle WebSocket takes 15 KiB instead of 10.
const percent = 400

// Rarely makes collections rare, unless whoever runs the program has set GOGC.
func Rarely() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(percent)
	}
}
