package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"wrenn/impl/internal/atomicfile"
	"wrenn/impl/netns"
)

const ipForward = "/proc/sys/net/ipv4/ip_forward"

// hostNote remembers what the host was like before us, across crashes of the process. After a reboot
// it means nothing, since the host is as it was by itself.
type hostNote struct {
	BootID    string `json:"boot_id"`
	IPForward string `json:"ip_forward"`
	// NetnsMount says that the folder of named namespaces was a mount already.
	NetnsMount bool `json:"netns_mount"`
}

func (h *Host) notePath() string { return filepath.Join(h.cfg.Dir, "host.json") }

// noteAndForward writes the note before it changes the setting. What a note of this boot says beside a
// setting of 1 is what a predecessor found which did not end in an orderly way, and is kept.
func (h *Host) noteAndForward() error {
	if err := atomicfile.RemoveUnfinished(h.notePath()); err != nil {
		return err
	}
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
		fresh := hostNote{BootID: bootID, IPForward: was, NetnsMount: note.NetnsMount}
		if note.BootID != bootID {
			if fresh.NetnsMount, err = netns.Prepared(); err != nil {
				return err
			}
		}
		if err := h.writeNote(fresh); err != nil {
			return err
		}
	}
	if was == "1" {
		return nil
	}
	return writeSetting(ipForward, "1")
}

// restore does nothing when there is no note of this boot. Forwarding that is off was turned off by somebody
// since, and stays so.
func (h *Host) restore() error {
	bootID, err := readSetting("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	note, err := h.readNote()
	if err != nil {
		return err
	}
	if note.BootID == bootID {
		now, err := readSetting(ipForward)
		if err != nil {
			return err
		}
		if now == "1" && note.IPForward != now {
			if err := writeSetting(ipForward, note.IPForward); err != nil {
				return err
			}
		}
		if !note.NetnsMount {
			if err := netns.Unprepare(); err != nil {
				return err
			}
		}
	}
	if err := os.Remove(h.notePath()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing the note of the host: %w", err)
	}
	return nil
}

// readNote returns the zero note when there is none.
func (h *Host) readNote() (hostNote, error) {
	var note hostNote
	content, err := os.ReadFile(h.notePath())
	if errors.Is(err, os.ErrNotExist) {
		return note, nil
	}
	if err == nil {
		err = json.Unmarshal(content, &note)
	}
	if err != nil {
		return note, fmt.Errorf("reading the note of the host: %w", err)
	}
	return note, nil
}

func (h *Host) writeNote(note hostNote) error {
	content, err := json.Marshal(note)
	if err != nil {
		return fmt.Errorf("noting what the host was like: %w", err)
	}
	return atomicfile.Write(h.notePath(), content, 0o600)
}

func readSetting(path string) (string, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("reading a kernel setting: %w", err)
	}
	return strings.TrimSpace(string(content)), nil
}

func writeSetting(path, value string) error {
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		return fmt.Errorf("writing a kernel setting: %w", err)
	}
	return nil
}
