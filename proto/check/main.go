// Command check fails unless proto/gen is exactly what `make generate` makes of the .proto files.
package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "proto/check:", err)
		os.Exit(1)
	}
}

// run generates into a temporary directory and compares.
func run() error {
	fresh, err := os.MkdirTemp("", "wrenn-proto-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(fresh) //nolint:errcheck // a temporary directory
	for _, args := range [][]string{{"lint"}, {"generate", "--output", fresh}} {
		cmd := exec.Command("go", append([]string{"tool", "buf"}, args...)...) //nolint:noctx // ends by itself
		cmd.Dir = "proto"
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("buf %v: %w\n%s", args, err, out)
		}
	}
	return errorsOf(fresh)
}

// errorsOf compares both trees, each way.
func errorsOf(fresh string) error {
	for from, to := range map[string]string{filepath.Join(fresh, "gen"): "proto/gen", "proto/gen": filepath.Join(fresh, "gen")} {
		err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			rel, err := filepath.Rel(from, path)
			if err != nil {
				return err
			}
			a, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if b, err := os.ReadFile(filepath.Join(to, rel)); err != nil || !bytes.Equal(a, b) {
				return fmt.Errorf("%s is not what the .proto files say: run `make generate`", rel)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
