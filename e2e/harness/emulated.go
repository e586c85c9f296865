package harness

import (
	"bytes"
	"errors"
	"net/http"
	"os"
	"sync"

	"wrenn/impl/apiclient"
)

// emulated says whether this machine's processors are QEMU's emulation, as in the Vagrant machine where there
// is no KVM.
var emulated = sync.OnceValue(func() bool {
	cpuinfo, err := os.ReadFile("/proc/cpuinfo")
	return err == nil && bytes.Contains(cpuinfo, []byte("QEMU TCG CPU"))
})

// emulatedTries is how often a guest is started on an emulated processor. QEMU 7.2's emulation of SVM loses
// one in twenty when the machine is busy: its kernel stops or resets before its first line. None of 29 was lost
// on an idle one, and none ever on other grounds.
const emulatedTries = 3

// lost says whether a create failed as one does whose guest the emulated processor has lost.
func lost(err error) bool {
	var refusal *apiclient.Error
	return emulated() && errors.As(err, &refusal) && refusal.Code == http.StatusInternalServerError
}
