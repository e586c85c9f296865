package rootfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"wrenn/impl/devicemapper"
)

// choose finds out by trying how new disks are made here, and says it. The devices are opened in any case where
// there are any: a disk stays in the mode in which it was made.
func (s *Store) choose() error {
	if err := s.removeProbes(); err != nil {
		return err
	}
	dir, err := filepath.Abs(s.cfg.Dir)
	if err != nil {
		return fmt.Errorf("find the disks' directory: %w", err)
	}
	s.devices, err = devicemapper.Open(devicemapper.Config{Dir: dir, Logger: s.cfg.Logger})
	switch s.cfg.Mode {
	case ModeCopy:
		s.mode, err = ModeCopy, errors.New("so it is set")
	case "", ModeSnapshot:
		if err == nil {
			err = s.devices.Probe(context.Background())
		}
		s.mode = ModeSnapshot
		if err != nil {
			s.mode = ModeCopy
		}
	default:
		return fmt.Errorf("unknown mode of disks %q", s.cfg.Mode)
	}
	if s.cfg.Mode == ModeSnapshot && err != nil {
		return errors.Join(fmt.Errorf("%w: %w", ErrUnavailable, err), s.closeDevices())
	}
	if s.mode == ModeSnapshot {
		s.cfg.Logger.Info("disks are dm-snapshots over their templates")
		return nil
	}
	how := "sparse copies of their templates"
	if s.reflinks() {
		how = "copies that share blocks with their templates (reflink)"
	}
	s.cfg.Logger.Info("disks are "+how, "reason", err)
	return nil
}

// removeProbes removes what probes have left that were killed; their devices go with the other leftovers.
func (s *Store) removeProbes() error {
	left, err := filepath.Glob(filepath.Join(s.cfg.Dir, "probe-*"))
	for _, p := range left {
		err = errors.Join(err, os.RemoveAll(p))
	}
	return err
}

// reflinks tells whether a copy of a template shares its blocks. Without any template yet it asks whether one
// in Dir would.
func (s *Store) reflinks() bool {
	source := ""
	if names, err := s.Templates(); err == nil && len(names) > 0 {
		if t, err := s.Template(names[0]); err == nil {
			source = t.path
		}
	}
	if source == "" {
		f, err := os.CreateTemp(s.cfg.Dir, "probe-")
		if err != nil {
			return false
		}
		_, err = f.Write(make([]byte, hashBlock))
		source = f.Name()
		defer os.Remove(source) //nolint:errcheck // removed at the next start then
		if errors.Join(err, f.Close()) != nil {
			return false
		}
	}
	from, err := os.Open(source)
	if err != nil {
		return false
	}
	defer from.Close()
	to, err := os.CreateTemp(s.cfg.Dir, "probe-")
	if err != nil {
		return false
	}
	defer os.Remove(to.Name()) //nolint:errcheck // removed at the next start then
	defer to.Close()
	return unix.IoctlFileClone(int(to.Fd()), int(from.Fd())) == nil
}

func (s *Store) closeDevices() error {
	if s.devices == nil {
		return nil
	}
	return s.devices.Close()
}
