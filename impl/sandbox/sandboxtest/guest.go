package sandboxtest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strconv"
	"time"

	"wrenn/impl/sandbox"
)

// guestState is what a guest's kernel and daemon keep in memory.
type guestState struct {
	Token     string `json:"token"`
	Frozen    bool   `json:"frozen"`
	Hostname  string `json:"hostname"`
	MachineID string `json:"machineID"`
	// Random is what its next random numbers come from.
	Random string `json:"random"`
	// Lag is how far its clock is behind; SavedAt is the host's time when the guest last stopped.
	Lag     time.Duration `json:"lag"`
	SavedAt time.Time     `json:"savedAt"`
	// PID is of a user's process.
	PID int `json:"pid"`
	// Own says that clock, randomness and identity are its own since it was restored.
	Own bool `json:"own"`
}

func bootedGuest(hostname string, pid int) guestState {
	return guestState{
		Hostname: hostname, MachineID: "booted-" + strconv.Itoa(pid), Random: "booted-" + strconv.Itoa(pid), PID: 1000 + pid, Own: true,
	}
}

// machineAt finds the machine whose guest answers at an address. It is called with mu held.
func (h *Host) machineAt(addr netip.Addr) *Machine {
	for _, m := range h.machines {
		if (network{h}).Address(m.slot) == addr {
			return m
		}
	}
	return nil
}

type guest struct{ h *Host }

// call does something in the guest's daemon. One whose machine stands still, or that hangs, does not answer.
func (g guest) call(ctx context.Context, addr netip.Addr, died <-chan struct{}, act string, do func(*Machine) error) error {
	g.h.mu.Lock()
	m := g.h.machineAt(addr)
	if m == nil || !m.running || g.h.Hang {
		g.h.mu.Unlock()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-died:
			return errors.New("the machine ended")
		}
	}
	defer g.h.mu.Unlock()
	return errors.Join(do(m), g.h.fail[act], ctx.Err())
}

func (g guest) Init(ctx context.Context, addr netip.Addr, init sandbox.GuestInit, died <-chan struct{}) (sandbox.BootReport, error) {
	awake := g.call(ctx, addr, died, "guest.awake", func(*Machine) error { return nil })
	if awake == nil && init.Ready != nil {
		awake = init.Ready(ctx)
	}
	if awake != nil {
		return sandbox.BootReport{}, awake
	}
	err := g.call(ctx, addr, died, "guest.init", func(m *Machine) error {
		s := &m.guest
		if s.Token != "" && s.Token != init.FormerToken && s.Token != init.AccessToken {
			return errors.New("envd answers 401: missing or wrong access token")
		}
		s.Token = init.AccessToken
		if init.SetClock {
			s.Lag = 0
			s.Own = s.Own || len(init.Entropy) >= 16
		}
		if len(init.Entropy) > 0 {
			s.Random = digest(s.Random, string(init.Entropy))
		}
		if init.Hostname != "" {
			s.Hostname = init.Hostname
		}
		if init.MachineID != "" {
			s.MachineID = init.MachineID
		}
		return nil
	})
	if err == nil && init.Thaw {
		err = g.thaw(ctx, addr)
	}
	return sandbox.BootReport{
		EnvdVersion: "0.6.0", InitAt: 10 * time.Millisecond, EnvdAt: 20 * time.Millisecond, NowAt: 25 * time.Millisecond,
	}, err
}

func (g guest) Freeze(ctx context.Context, addr netip.Addr, token string) error {
	return g.call(ctx, addr, nil, "guest.freeze", func(m *Machine) error {
		if m.guest.Token != token {
			return errors.New("envd answers 401: missing or wrong access token")
		}
		m.guest.Frozen = true
		return nil
	})
}

func (g guest) thaw(ctx context.Context, addr netip.Addr) error {
	return g.call(ctx, addr, nil, "guest.thaw", func(m *Machine) error {
		if !m.guest.Own {
			g.h.breakRule("the processes of " + filepath.Base(m.dir) + " ran before clock and randomness were its own")
		}
		m.guest.Frozen = false
		return nil
	})
}

func digest(parts ...string) string {
	sum := sha256.Sum256([]byte(fmt.Sprintf("%q", parts)))
	return hex.EncodeToString(sum[:])
}

// Self is who a guest is.
type Self struct {
	Hostname, MachineID, Random string
	// Clock is the guest's own time.
	Clock time.Time
	// PID is of a user's process that has run since the first boot.
	PID int
}

// use does something in the guest of a sandbox, as its user would.
func (h *Host) use(id string, do func(*Machine) error) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for dir, m := range h.machines {
		if filepath.Base(dir) != id {
			continue
		}
		if !m.running || m.guest.Frozen {
			return fmt.Errorf("the processes of %s stand still", id)
		}
		return do(m)
	}
	return fmt.Errorf("no machine of %s", id)
}

// Write lets a user's program keep a value in its memory and on its disk; an empty one is erased, which zeroes
// the page.
func (h *Host) Write(id, key, value string) error {
	return h.use(id, func(m *Machine) error {
		m.memory[key], m.dirty[key] = value, true
		if value == "" {
			delete(m.memory, key)
		}
		_, err := m.onDisk(func(content pages) {
			content[key] = value
			if value == "" {
				delete(content, key)
			}
		})
		return err
	})
}

// Read returns what a user's program finds in memory and on disk.
func (h *Host) Read(id, key string) (inMemory, onDisk string, err error) {
	err = h.use(id, func(m *Machine) error {
		content, err := m.onDisk(nil)
		inMemory, onDisk = m.memory[key], content[key]
		return err
	})
	return inMemory, onDisk, err
}

// Self returns who the guest of a sandbox is. Its randomness moves on.
func (h *Host) Self(id string) (self Self, err error) {
	err = h.use(id, func(m *Machine) error {
		g := &m.guest
		g.Random = digest(g.Random)
		self = Self{Hostname: g.Hostname, MachineID: g.MachineID, Random: g.Random, PID: g.PID, Clock: time.Now().Add(-g.Lag)}
		return nil
	})
	return self, err
}
