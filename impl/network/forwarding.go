package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

const ipForward = "/proc/sys/net/ipv4/ip_forward"

// forwardingNote remembers what the host's ip_forward was before us, across crashes of the process.
// After a reboot it means nothing, since the setting is the host's own again.
type forwardingNote struct {
	BootID    string `json:"boot_id"`
	IPForward string `json:"ip_forward"`
}

func (h *Host) notePath() string { return filepath.Join(h.cfg.Dir, "ip_forward.json") }

// enableForwarding writes the note before it changes the setting. A note of this boot beside a
// setting of 1 is that of a predecessor which did not end in an orderly way, and is kept.
func (h *Host) enableForwarding() error {
	was, err := readSetting(ipForward)
	if err != nil {
		return err
	}
	bootID, err := readSetting("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	note, err := h.readNote()
	if err != nil {
		return err
	}
	if was != "1" || note.BootID != bootID {
		if err := h.writeNote(forwardingNote{BootID: bootID, IPForward: was}); err != nil {
			return err
		}
	}
	if was == "1" {
		return nil
	}
	return writeSetting(ipForward, "1")
}

// restoreForwarding does nothing when there is no note of this boot.
func (h *Host) restoreForwarding() error {
	bootID, err := readSetting("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	note, err := h.readNote()
	if err != nil {
		return err
	}
	if note.BootID == bootID {
		if err := writeSetting(ipForward, note.IPForward); err != nil {
			return err
		}
	}
	if err := os.Remove(h.notePath()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing the note of ip_forward: %w", err)
	}
	return nil
}

// readNote returns the zero note when there is none.
func (h *Host) readNote() (forwardingNote, error) {
	var note forwardingNote
	content, err := os.ReadFile(h.notePath())
	if errors.Is(err, os.ErrNotExist) {
		return note, nil
	}
	if err == nil {
		err = json.Unmarshal(content, &note)
	}
	if err != nil {
		return note, fmt.Errorf("reading the note of ip_forward: %w", err)
	}
	return note, nil
}

// writeNote replaces the note in one go. It is not synced: a note lost in a crash of the host is one
// of a boot that is over.
func (h *Host) writeNote(note forwardingNote) error {
	content, err := json.Marshal(note)
	if err != nil {
		return fmt.Errorf("noting ip_forward: %w", err)
	}
	fresh := h.notePath() + ".new"
	if err := os.WriteFile(fresh, content, 0o600); err != nil {
		return fmt.Errorf("noting ip_forward: %w", err)
	}
	if err := os.Rename(fresh, h.notePath()); err != nil {
		return fmt.Errorf("noting ip_forward: %w", err)
	}
	return nil
}

func readSetting(path string) (string, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("reading a kernel setting: %w", err)
	}
	return strings.TrimSpace(string(content)), nil
}

// writeSetting writes a file under /proc/sys; those under net are the ones of the network namespace of
// the calling thread.
func writeSetting(path, value string) error {
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		return fmt.Errorf("writing a kernel setting: %w", err)
	}
	return nil
}
