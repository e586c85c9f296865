package sick

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"wrenn/impl/need"
)

func TestMain(m *testing.M) {
	if os.Getenv("WRENN_SICK") == "deaf" {
		time.Sleep(time.Hour) // before any time-out of the testing package is set
	}
	goleak.VerifyTestMain(m)
}

func TestPass(t *testing.T) { t.Log("all is well") }

func TestFail(t *testing.T) { t.Error("as it should") }

func TestPanic(*testing.T) { panic("at the disco") }

func TestHang(*testing.T) { time.Sleep(time.Hour) }

func TestSkip(t *testing.T) { need.Program(t, "no-such-program") }

func TestExit(*testing.T) { os.Exit(42) }

func TestKilled(*testing.T) {
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	time.Sleep(time.Hour)
}

func TestLeakGoroutine(*testing.T) { go func() { select {} }() }

func TestLeakProcess(t *testing.T) {
	cmd := exec.Command("sleep", "12345")
	cmd.Stdout = os.Stdout // which keeps the output open
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

func TestKernelPanic(t *testing.T) {
	if err := os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Hour)
}

// TestOutput writes a megabyte of every byte there is, a prime number of bytes at a time.
func TestOutput(t *testing.T) {
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	for data := bytes.Repeat(all, 4096); len(data) > 0; {
		n := min(len(data), 7919)
		if _, err := os.Stdout.Write(data[:n]); err != nil {
			t.Fatal(err)
		}
		data = data[n:]
	}
}

// TestFiles reads what lies beside it, and leaves files in the folder for artifacts.
func TestFiles(t *testing.T) {
	greeting, err := os.ReadFile("testdata/deep/greeting")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.ArtifactDir(), "sub")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "big"), bytes.Repeat(greeting, 100_000), 0o640); err != nil {
		t.Fatal(err)
	}
}

func TestEnvironment(t *testing.T) {
	t.Log("environment:", strings.Join(os.Environ(), " "))
}

func TestSleep(t *testing.T) {
	t.Log("sleeping")
	time.Sleep(2 * time.Second)
}

func BenchmarkLoop(b *testing.B) {
	for b.Loop() {
		double(1)
	}
}
