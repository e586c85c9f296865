package rootfs

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"wrenn/impl/safename"
)

// The files of a disk in a sandbox's or a snapshot's directory.
const (
	// DiskName is what a VMM opens: a regular file in copy mode, a link to the device in dm mode. In a
	// snapshot it exists in copy mode alone.
	DiskName = "root.disk"
	// CowName holds in dm mode what differs from the template.
	CowName = "root.cow"
	// RecordName says how the disk is made.
	RecordName = "root.json"

	partName = DiskName + ".part" // a copy that is not finished
)

// Mode is how a disk is made of its template.
type Mode string

// The modes. A disk stays in the mode in which it was made.
const (
	// ModeCopy is a private file, which shares blocks with the template where the file system can.
	ModeCopy Mode = "copy"
	// ModeSnapshot is a dm-snapshot over the template.
	ModeSnapshot Mode = "dm-snapshot"
)

// maxSizeMiB bounds a disk to 1 TiB: no host of ours has more to give, and far below it sectors and chunks
// stay clear of every integer's end.
const maxSizeMiB = 1 << 20

// recordVersion is that of root.json's format.
const recordVersion = 1

// maxRecord bounds root.json, whose fields have 300 bytes together.
const maxRecord = 4096

// Record says how a disk is made. It never changes.
type Record struct {
	Version int  `json:"version"`
	Mode    Mode `json:"mode"`
	// Template is the name, TemplateHash the content (see hashFile), and TemplateBytes the size of what the
	// disk started from.
	Template      string `json:"template"`
	TemplateHash  string `json:"templateHash"`
	TemplateBytes int64  `json:"templateBytes"`
	// SizeMiB is the size that the guest sees, at least the template's.
	SizeMiB int `json:"sizeMiB"`
}

var (
	// ErrNoRecord is returned for a directory that holds no disk.
	ErrNoRecord = errors.New("no disk")
	// ErrTemplateChanged is returned for a disk over a template whose content is another by now.
	ErrTemplateChanged = errors.New("template has changed since the disk was made")
	// ErrSize is returned for a size that a disk of that template cannot have.
	ErrSize = errors.New("disk size out of bounds")
	// ErrUnavailable is returned for a disk in dm mode on a host without device-mapper.
	ErrUnavailable = errors.New("this host has no device-mapper")
)

// Info reads how the disk in dir, a sandbox's or a snapshot's directory, is made. It returns ErrNoRecord when
// there is none.
func Info(dir string) (Record, error) {
	path := filepath.Join(dir, RecordName)
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return Record{}, fmt.Errorf("%w in %s", ErrNoRecord, dir)
	}
	if err != nil {
		return Record{}, fmt.Errorf("read the disk's record: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxRecord {
		return Record{}, fmt.Errorf("%s is no record of a disk: not a file, or more than %d bytes", path, maxRecord)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return Record{}, fmt.Errorf("read the disk's record: %w", err)
	}
	var r Record
	if err := json.Unmarshal(data, &r); err != nil {
		return Record{}, fmt.Errorf("%s is no record of a disk: %w", path, err)
	}
	if err := r.check(); err != nil {
		return Record{}, fmt.Errorf("%s is no record of a disk: %w", path, err)
	}
	return r, nil
}

// check distrusts a record: a snapshot may come from elsewhere.
func (r Record) check() error {
	if r.Version != recordVersion {
		return fmt.Errorf("version %d, not %d", r.Version, recordVersion)
	}
	if r.Mode != ModeCopy && r.Mode != ModeSnapshot {
		return fmt.Errorf("unknown mode %q", r.Mode)
	}
	if err := safename.Check("template", r.Template); err != nil {
		return err
	}
	if r.TemplateHash == "" || r.TemplateBytes <= 0 {
		return errors.New("it does not say what the disk started from")
	}
	if r.SizeMiB < 1 || r.SizeMiB > maxSizeMiB || r.TemplateBytes > r.bytes() {
		return fmt.Errorf("%w: %d MiB over a template of %d bytes", ErrSize, r.SizeMiB, r.TemplateBytes)
	}
	return nil
}

func (r Record) bytes() int64 { return int64(r.SizeMiB) << 20 }

// write puts the record into dir by a rename. It is not synced, as nothing of a sandbox's disk is; Link and
// Sync do that for a snapshot's.
func (r Record) write(dir string) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("write the disk's record: %w", err)
	}
	path := filepath.Join(dir, RecordName)
	beside := path + ".part"
	if err := os.WriteFile(beside, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("write the disk's record: %w", noSpace(err))
	}
	if err := os.Rename(beside, path); err != nil {
		return fmt.Errorf("write the disk's record: %w", err)
	}
	return nil
}
