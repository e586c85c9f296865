// Package initramfs makes the first file system of a guest: wrenn-init and the kernel modules that it
// needs to find the root disk.
package initramfs

import (
	"fmt"
	"io"
	"time"

	"github.com/cavaliergopher/cpio"
)

// epoch is the date of every file: two builds from the same parts give the same bytes. The zero of
// Unix time itself would be left out of the header by the library.
var epoch = time.Unix(1, 0)

// dirs exist before wrenn-init makes anything: mount points, and /dev for the console that the kernel
// opens by itself.
var dirs = []string{"dev", "proc", "sys", "newroot", "modules"}

// Write writes the archive (cpio, "newc"): init as /init, the modules as /modules/NN-name.ko in the
// order in which they are to be loaded.
func Write(w io.Writer, init []byte, modules []Module) error {
	cw := cpio.NewWriter(w)
	for _, d := range dirs {
		if err := cw.WriteHeader(&cpio.Header{Name: d, Mode: cpio.TypeDir | 0o755, Links: 2, ModTime: epoch}); err != nil {
			return fmt.Errorf("write folder %s of the initramfs: %w", d, err)
		}
	}
	// Where the machine has no console, the kernel starts /init with no open file at all, and the Go
	// runtime then insists on opening /dev/null before anything of ours runs. An empty file will do
	// until the real one is mounted over it (the cpio library cannot write device nodes).
	if err := writeFile(cw, "dev/null", 0o666, nil); err != nil {
		return err
	}
	if err := writeFile(cw, "init", 0o755, init); err != nil {
		return err
	}
	for i, m := range modules {
		if err := writeFile(cw, fmt.Sprintf("modules/%02d-%s.ko", i, m.Name), 0o644, m.Data); err != nil {
			return err
		}
	}
	if err := cw.Close(); err != nil {
		return fmt.Errorf("finish the initramfs: %w", err)
	}
	return nil
}

func writeFile(cw *cpio.Writer, name string, mode cpio.FileMode, data []byte) error {
	h := &cpio.Header{Name: name, Mode: cpio.TypeReg | mode, Links: 1, Size: int64(len(data)), ModTime: epoch}
	err := cw.WriteHeader(h)
	if err == nil {
		_, err = cw.Write(data)
	}
	if err != nil {
		return fmt.Errorf("write %s of the initramfs: %w", name, err)
	}
	return nil
}
