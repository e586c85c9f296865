package rootfs

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// journalMiB is the size of the ext4 journal. There is one because a disk outlives its VMM: a sandbox
// that is paused with its files only, or whose VMM was killed, boots from it again with nobody there to
// run fsck. It is small because a journal is written round and round, so its size ends up in every
// sandbox's copy; the default for a disk of 2 GiB would be 64 MiB.
const journalMiB = 8

// EnvdPath is where the guest daemon lies in an image and where wrenn-init starts it.
const EnvdPath = "/usr/bin/envd"

// WriteImage makes the ext4 image of a staged system with envd in it, diskMiB large (apparent) and as
// sparse as its content allows. The image must not exist; it appears whole or not at all. Key gives the
// file system its UUID and hash seed, so equal inputs give equal images but for the times of files.
func WriteImage(ctx context.Context, tree, envd, image, key string, diskMiB int) (err error) {
	work, err := os.MkdirTemp(filepath.Dir(image), ".image-")
	if err != nil {
		return fmt.Errorf("make image %s: %w", image, err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	// Hard links: the staged system stays as it is, and nothing is copied.
	system := filepath.Join(work, "system")
	if err := runTool(ctx, "coreutils", "cp", "-al", tree, system); err != nil {
		return fmt.Errorf("make image %s: %w", image, err)
	}
	if err := installEnvd(envd, filepath.Join(system, EnvdPath)); err != nil {
		return fmt.Errorf("make image %s: %w", image, err)
	}
	return WriteDisk(ctx, system, image, key, diskMiB)
}

// WriteDisk makes the ext4 image of a staged system as it stands; the rest is as WriteImage says.
func WriteDisk(ctx context.Context, tree, image, key string, diskMiB int) (err error) {
	work, err := os.MkdirTemp(filepath.Dir(image), ".image-")
	if err != nil {
		return fmt.Errorf("make image %s: %w", image, err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	file := filepath.Join(work, "rootfs.ext4")
	// A file of full length that is all hole: where mkfs makes the file itself it writes zeroes instead.
	if err := makeSparse(file, int64(diskMiB)<<20); err != nil {
		return fmt.Errorf("make image %s: %w", image, err)
	}
	if err := runTool(ctx, "e2fsprogs", "mkfs.ext4", mkfsArgs(tree, file, key, diskMiB)...); err != nil {
		return fmt.Errorf("make image %s: %w", image, err)
	}
	if err := syncFile(file); err != nil {
		return fmt.Errorf("make image %s: %w", image, err)
	}
	if err := os.Rename(file, image); err != nil {
		return fmt.Errorf("make image %s: %w", image, err)
	}
	return nil
}

// mkfsArgs is mkfs.ext4's command line. Inode tables and journal are zero because the new file is;
// "lazy" for the journal avoids writing its zeroes, not lazy for the tables keeps the guest's kernel
// from writing them in the background of every sandbox's first minutes.
func mkfsArgs(system, file, key string, diskMiB int) []string {
	return []string{
		"-q", "-F", "-b", "4096",
		"-m", "0", // no blocks reserved for root: everybody in a sandbox may be root
		"-J", "size=" + strconv.Itoa(journalMiB),
		"-U", uuid("fs", key),
		"-E", "lazy_itable_init=0,lazy_journal_init=1,hash_seed=" + uuid("hash", key),
		"-d", system,
		file, strconv.Itoa(diskMiB) + "M",
	}
}

// uuid derives a version 8 UUID (RFC 9562: content of our own) from a key.
func uuid(purpose, key string) string {
	h := sha256.Sum256([]byte(purpose + " " + key))
	h[6] = h[6]&0x0f | 0x80
	h[8] = h[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", h[0:4], h[4:6], h[6:8], h[8:10], h[10:16])
}

func installEnvd(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return fmt.Errorf("read envd: %w", err)
	}
	if err := os.Remove(to); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.WriteFile(to, b, 0o755)
}

func makeSparse(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

func syncFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// FormatKey describes, for a cache key, how images of that size are formatted.
func FormatKey(diskMiB int) string {
	return strings.Join(mkfsArgs("", "", "", diskMiB), " ")
}
