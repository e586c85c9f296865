// Package filesystem reads and changes the guest's directory tree and watches parts of it.
package filesystem

import (
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"wrenn/impl/envd/metadata"
)

// Entry is a file, directory or symbolic link. A link has the type and mode of its target, the size of
// itself.
type Entry struct {
	Name     string
	Path     string // absolute
	Mode     fs.FileMode
	Size     int64 // bytes
	Owner    string
	Group    string
	Modified time.Time
	Target   *string           // of a link: resolved and absolute; as it stands where it leads nowhere
	Metadata map[string]string // nil if none
}

// names finds the names of ids, each once.
type names struct {
	users, groups map[uint32]string
}

func newNames() *names { return &names{users: map[uint32]string{}, groups: map[uint32]string{}} }

// user returns the name of uid, or the number where it has none.
func (n *names) user(uid uint32) string {
	return remembered(n.users, uid, func(id string) (string, error) {
		u, err := user.LookupId(id)
		if err != nil {
			return "", err
		}
		return u.Username, nil
	})
}

func (n *names) group(gid uint32) string {
	return remembered(n.groups, gid, func(id string) (string, error) {
		g, err := user.LookupGroupId(id)
		if err != nil {
			return "", err
		}
		return g.Name, nil
	})
}

func remembered(known map[uint32]string, id uint32, find func(string) (string, error)) string {
	if name, ok := known[id]; ok {
		return name
	}
	number := strconv.FormatUint(uint64(id), 10)
	name, err := find(number)
	if err != nil {
		name = number
	}
	known[id] = name
	return name
}

// entry reads what is at path. Its errors are those of lstat.
func (n *names) entry(path string) (Entry, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return Entry{}, fmt.Errorf("stat: %w", err)
	}
	e := Entry{Name: filepath.Base(path), Path: path, Mode: info.Mode(), Size: info.Size(), Modified: info.ModTime()}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		e.Owner, e.Group = n.user(sys.Uid), n.group(sys.Gid)
	}
	if info.Mode()&fs.ModeSymlink == 0 {
		if info.Mode().IsRegular() || info.IsDir() {
			e.Metadata = metadata.Read(path)
		}
		return e, nil
	}
	if target, err := filepath.EvalSymlinks(path); err == nil {
		e.Target = &target
		if info, err := os.Stat(target); err == nil {
			e.Mode = info.Mode()
		}
	} else if raw, err := os.Readlink(path); err == nil {
		e.Target = &raw
	}
	return e, nil
}

// list returns what dir holds, depth levels deep, each directory before its content, by name. Links to
// directories are not entered, save dir itself. What vanishes or may not be read is left out.
func (n *names) list(dir string, depth int) ([]Entry, error) {
	found, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list: %w", err)
	}
	var out []Entry
	for _, d := range found {
		path := filepath.Join(dir, d.Name())
		e, err := n.entry(path)
		if err != nil {
			continue
		}
		out = append(out, e)
		if d.IsDir() && depth > 1 {
			if below, err := n.list(path, depth-1); err == nil {
				out = append(out, below...)
			}
		}
	}
	return out, nil
}
