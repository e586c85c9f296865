package rootfs

import "fmt"

// choose decides how new disks are made.
func (s *Store) choose() error {
	switch s.cfg.Mode {
	case "", ModeCopy:
		s.mode = ModeCopy
	default:
		return fmt.Errorf("%w: mode %q", ErrUnavailable, s.cfg.Mode)
	}
	s.cfg.Logger.Info("disks are copies of their templates")
	return nil
}
