package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"wrenn/impl/internal/sparsefile"
)

// Fill learns the template's content in the background, so that no create waits for that, and in copy mode
// makes copies until Config.Ready are there.
func (s *Store) Fill(template string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	if _, running := s.filling[template]; running {
		s.filling[template] = true // it may have counted already
		return
	}
	s.filling[template] = false
	s.wg.Go(func() {
		for again := true; again; again = s.wanted(template) {
			if err := s.fill(template); err != nil && s.ctx.Err() == nil {
				s.cfg.Logger.Warn("cannot copy a disk ahead of need", "template", template, "error", err)
			}
		}
	})
}

// wanted tells whether Fill was called again meanwhile; if not, the filling has ended.
func (s *Store) wanted(template string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.filling[template] && !s.closed {
		s.filling[template] = false
		return true
	}
	delete(s.filling, template)
	return false
}

func (s *Store) fill(template string) error {
	for {
		t, err := s.Template(template)
		if err != nil {
			return err
		}
		if _, err := s.hashes.of(s.ctx, t.path); err != nil {
			return err
		}
		if s.mode != ModeCopy {
			return nil
		}
		ready, err := s.ready(t)
		if err != nil || len(ready) >= s.cfg.Ready {
			return err
		}
		s.mu.Lock()
		s.serial++
		name := fmt.Sprintf("%s@%s@%d", t.Name, t.generation, s.serial)
		s.mu.Unlock()
		path := filepath.Join(s.readyDir, name)
		if err := sparsefile.Copy(s.ctx, t.path, path+".part"); err != nil {
			return err
		}
		if err := os.Rename(path+".part", path); err != nil {
			return fmt.Errorf("file a ready disk: %w", err)
		}
	}
}

// ready lists the finished copies of the template's present generation and removes older ones.
func (s *Store) ready(t Template) ([]string, error) {
	entries, err := os.ReadDir(s.readyDir)
	if err != nil {
		return nil, fmt.Errorf("list ready disks: %w", err)
	}
	var paths []string
	for _, e := range entries {
		path := filepath.Join(s.readyDir, e.Name())
		parts := strings.Split(e.Name(), "@")
		switch {
		case len(parts) != 3 || parts[0] != t.Name || strings.HasSuffix(e.Name(), ".part"):
		case parts[1] == t.generation:
			paths = append(paths, path)
		default:
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, fmt.Errorf("remove a disk of an older template: %w", err)
			}
		}
	}
	return paths, nil
}

// take moves a ready copy to path; false when there was none. Two takers of one copy cannot both win,
// since the rename of the second finds nothing.
func (s *Store) take(t Template, path string) bool {
	paths, err := s.ready(t)
	if err != nil {
		s.cfg.Logger.Warn("cannot look for ready disks", "error", err)
		return false
	}
	for _, ready := range paths {
		if os.Rename(ready, path) == nil {
			return true
		}
	}
	return false
}
