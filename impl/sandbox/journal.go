package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"wrenn/impl/internal/atomicfile"
	"wrenn/impl/safename"
)

// journalVersion is written into every journal. Version 1 knew no snapshots; its journals are those of
// sandboxes that cannot be paused. A newer version is not touched: the agent refuses to start.
const journalVersion = 2

// errNewer says that a journal was written by an agent that came later.
var errNewer = errors.New("the journal is of a newer agent")

// journal is what a later life of the agent must know of a sandbox: written before the kernel is
// touched (state creating), after it was (state running, with the machine's identity), and before it
// is taken down (state destroying).
type journal struct {
	Version     int               `json:"version"`
	Info        Info              `json:"info"`
	Machine     Identity          `json:"machine"`
	AccessToken string            `json:"accessToken,omitempty"`
	EnvVars     map[string]string `json:"envVars,omitempty"`
	// Target is the ID of the snapshot that is being written, while the sandbox is pausing: once its
	// directory holds that one, it is paused.
	Target string `json:"target,omitempty"`
	// Lineage is the ID of the snapshot that the machine was restored from.
	Lineage string `json:"lineage,omitempty"`
	// Legacy machines were started without what a snapshot needs.
	Legacy    bool      `json:"legacy,omitempty"`
	WrittenAt time.Time `json:"writtenAt"`
}

const journalName = "journal"

func (m *Manager) dir(id string) string { return filepath.Join(m.cfg.Dir, id) }

// writeJournal makes the sandbox's present state durable.
func (m *Manager) writeJournal(s *owned) error { return m.write(s.journal(), atomicfile.Write) }

// putJournalOf is writeJournal for a sandbox that is being written into the snapshot target: known to the next life of
// the agent at once, and durable once syncJournal has returned.
func (m *Manager) putJournalOf(s *owned, target string) error {
	j := s.journal()
	j.Target = target
	return m.write(j, atomicfile.Put)
}

func (m *Manager) syncJournal(s *owned) error { return atomicfile.Sync(m.path(s, journalName)) }

// writeJournalAs is writeJournal for a sandbox that is to be in another state once this is durable.
func (m *Manager) writeJournalAs(s *owned, next State) error {
	j := s.journal()
	j.Info.State = next
	return m.write(j, atomicfile.Write)
}

func (s *owned) journal() journal {
	j := journal{
		Version: journalVersion, Info: s.info(), AccessToken: s.token, EnvVars: s.env, Lineage: s.lineage,
		Legacy: s.legacy, WrittenAt: time.Now(),
	}
	if s.machine != nil {
		j.Machine = s.machine.Identity()
	}
	return j
}

// write puts a journal in its place by one of atomicfile's ways.
func (m *Manager) write(j journal, by func(path string, data []byte, perm os.FileMode) error) error {
	data, err := json.MarshalIndent(j, "", "\t")
	if err != nil {
		return fmt.Errorf("encode journal of %s: %w", j.Info.ID, err)
	}
	return by(filepath.Join(m.dir(j.Info.ID), journalName), data, 0o600)
}

// makeDir makes the sandbox's directory and its name durable.
func (m *Manager) makeDir(id string) error {
	if err := os.Mkdir(m.dir(id), 0o700); err != nil {
		return fmt.Errorf("make the sandbox's directory: %w", err)
	}
	return atomicfile.SyncDir(m.cfg.Dir)
}

// removeDir removes the sandbox's directory; that it is gone is the last thing known of a sandbox.
func (m *Manager) removeDir(id string) error {
	if err := os.RemoveAll(m.dir(id)); err != nil {
		return fmt.Errorf("remove the sandbox's directory: %w", err)
	}
	return atomicfile.SyncDir(m.cfg.Dir)
}

// readJournals returns the journal of every directory, nil where there is none that can be trusted.
func (m *Manager) readJournals() (map[string]*journal, error) {
	entries, err := os.ReadDir(m.cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("read the sandboxes' directory: %w", err)
	}
	found := make(map[string]*journal)
	for _, e := range entries {
		if !e.IsDir() || safename.CheckSandboxID("id", e.Name()) != nil {
			m.cfg.Logger.Warn("leaving a foreign entry alone", "path", filepath.Join(m.cfg.Dir, e.Name()))
			continue
		}
		j, err := readJournal(filepath.Join(m.cfg.Dir, e.Name(), journalName), e.Name())
		if errors.Is(err, errNewer) {
			return nil, err
		}
		if err != nil {
			m.cfg.Logger.Warn("sandbox has no usable journal and will be undone", "sandbox", e.Name(), "error", err)
		}
		found[e.Name()] = j
	}
	return found, nil
}

func readJournal(path, id string) (*journal, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errors.New("killed before the journal was written")
	}
	if err != nil {
		return nil, fmt.Errorf("read journal: %w", err)
	}
	var j journal
	if err := json.Unmarshal(data, &j); err != nil {
		return nil, fmt.Errorf("decode %s: %w", path, err)
	}
	if j.Version > journalVersion {
		return nil, fmt.Errorf("%w: %s has version %d, this agent knows %d", errNewer, path, j.Version, journalVersion)
	}
	if j.Version < 1 {
		return nil, fmt.Errorf("%s has version %d", path, j.Version)
	}
	j.Legacy = j.Legacy || j.Version == 1
	if j.Info.ID != id {
		return nil, fmt.Errorf("%s belongs to sandbox %q", path, j.Info.ID)
	}
	return &j, nil
}

// Journaled reads what the journals below a Manager's directory say, without a Manager: which sandboxes
// there are and which slots are theirs, whether or not an agent runs. Broken are the ids of those without a
// journal that can be trusted. A directory that does not exist has none.
func Journaled(dir string) (infos []Info, broken []string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("read the sandboxes' directory: %w", err)
	}
	for _, e := range entries {
		if !e.IsDir() || safename.CheckSandboxID("id", e.Name()) != nil {
			continue
		}
		j, err := readJournal(filepath.Join(dir, e.Name(), journalName), e.Name())
		if err != nil {
			broken = append(broken, e.Name())
			continue
		}
		infos = append(infos, j.Info)
	}
	return infos, broken, nil
}
