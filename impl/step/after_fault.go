//go:build fault

package step

import (
	"fmt"
	"os"
	"strings"
	"syscall"
)

// FaultEnv names the environment variable that arms one fault: "ACT/STEP=kill" ends the process by
// SIGKILL just after that step was done, "ACT/STEP=error" fails the step after it was done.
const FaultEnv = "WRENN_FAULT"

func after(act, name string) error {
	where, what, ok := strings.Cut(os.Getenv(FaultEnv), "=")
	if !ok || where != act+"/"+name {
		return nil
	}
	if what == "kill" {
		if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
			return err
		}
		select {}
	}
	return fmt.Errorf("injected fault after %s/%s", act, name)
}
