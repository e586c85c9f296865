package image

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"syscall"
	"time"
)

// Template is template.json: what a host must know of a template.
type Template struct {
	Name          string    `json:"name"`
	VCPUs         int       `json:"vcpus"`         // default of a sandbox
	MemoryMiB     int       `json:"memoryMib"`     // default of a sandbox
	DiskMiB       int       `json:"diskMib"`       // apparent size of rootfs.ext4
	EnvdVersion   string    `json:"envdVersion"`   // decides what E2B's SDKs dare to ask for
	KernelVersion string    `json:"kernelVersion"` // release of the kernel built with it
	ContentHash   string    `json:"contentHash"`   // SHA-256 over all inputs of the disk, hexadecimal
	BuiltAt       time.Time `json:"builtAt"`       // when the disk was made, UTC
}

// Report is what one run did and what the output folder holds, also image.json.
type Report struct {
	Kernel  string  `json:"kernel"` // release
	Envd    string  `json:"envd"`   // version
	Seconds float64 `json:"seconds"`
	Stages  []Stage `json:"stages"`
	Files   []File  `json:"files"`
}

// Stage is one part of a run.
type Stage struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"`
	Reused  bool    `json:"reused"` // nothing had to be made
}

// File is one artefact. Allocated is what it takes on the host's disk; of a sparse file that is less
// than its size.
type File struct {
	Path      string `json:"path"` // relative to the output folder
	Size      int64  `json:"size"`
	Allocated int64  `json:"allocated"`
}

// measure lists the artefacts below out, the cache and the report itself left out.
func (r *Report) measure(out string) error {
	return filepath.WalkDir(out, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(out, path)
		if err != nil {
			return err
		}
		if rel == "cache" {
			return fs.SkipDir
		}
		if !d.Type().IsRegular() || filepath.Ext(path) == ".json" {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return errors.New("this system does not say what a file takes on disk")
		}
		// st_blocks counts 512 bytes whatever the file system's block size (stat(2)).
		r.Files = append(r.Files, File{Path: rel, Size: info.Size(), Allocated: st.Blocks * 512})
		return nil
	})
}

// Print writes the report's end for people: sizes and the time of the whole run.
func (r Report) Print(w io.Writer) {
	const mib = 1 << 20
	fmt.Fprintf(w, "\n%-34s %10s %14s\n", "file", "size MiB", "allocated MiB")
	for _, f := range r.Files {
		fmt.Fprintf(w, "%-34s %10.1f %14.1f\n", f.Path, float64(f.Size)/mib, float64(f.Allocated)/mib)
	}
	reused := 0
	for _, s := range r.Stages {
		if s.Reused {
			reused++
		}
	}
	fmt.Fprintf(w, "\nkernel %s, envd %s, %.1f s, %d of %d stages reused\n", r.Kernel, r.Envd, r.Seconds, reused, len(r.Stages))
}
