package rootfs

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"wrenn/impl/safename"
)

// Template is a root disk on this host that sandboxes start from. Its files never change: a new build
// replaces the whole directory.
type Template struct {
	Name string `json:"name"`
	// VCPUs and MemoryMiB are what a sandbox gets that does not ask; DiskMiB is the disk's apparent size.
	VCPUs     int `json:"vcpus"`
	MemoryMiB int `json:"memoryMib"`
	DiskMiB   int `json:"diskMib"`
	// EnvdVersion and KernelVersion say what the image was built with.
	EnvdVersion   string `json:"envdVersion"`
	KernelVersion string `json:"kernelVersion"`

	path string
	// generation changes when the disk is rebuilt.
	generation string
}

// ErrNoTemplate is returned for a name that no directory has.
var ErrNoTemplate = errors.New("no such template")

const (
	templateDisk = "rootfs.ext4"
	templateMeta = "template.json"
)

// Load reads the template called name of an image directory. It returns ErrNoTemplate when there is none.
func Load(imageDir, name string) (Template, error) {
	if err := safename.Check("template", name); err != nil {
		return Template{}, err
	}
	root, err := os.OpenRoot(filepath.Join(imageDir, "templates"))
	if err != nil {
		return Template{}, fmt.Errorf("%w: %s: the image is not built (make image): %w", ErrNoTemplate, name, err)
	}
	defer root.Close() //nolint:errcheck // opened for reading
	data, err := root.ReadFile(filepath.Join(name, templateMeta))
	if errors.Is(err, fs.ErrNotExist) {
		return Template{}, fmt.Errorf("%w: %s", ErrNoTemplate, name)
	}
	if err != nil {
		return Template{}, fmt.Errorf("read template %s: %w", name, err)
	}
	t := Template{}
	if err := json.Unmarshal(data, &t); err != nil {
		return Template{}, fmt.Errorf("read template %s: %w", name, err)
	}
	info, err := root.Stat(filepath.Join(name, templateDisk))
	if err != nil {
		return Template{}, fmt.Errorf("read template %s: %w", name, err)
	}
	t.Name = name
	t.path = filepath.Join(root.Name(), name, templateDisk)
	t.generation = fmt.Sprintf("%x-%x", info.ModTime().UnixNano(), info.Size())
	return t, nil
}

// List returns the names of all templates of an image directory, sorted.
func List(imageDir string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(imageDir, "templates"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list templates: %w", err)
	}
	var names []string
	for _, e := range entries {
		if _, err := Load(imageDir, e.Name()); err == nil {
			names = append(names, e.Name())
		}
	}
	return names, nil
}
