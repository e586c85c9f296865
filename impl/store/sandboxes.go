package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// State is what the control plane knows of a sandbox. A sandbox that is gone has no row.
type State string

// The states.
const (
	// Creating: an agent was, or is about to be, asked for it; nobody has been told of it yet.
	Creating State = "creating"
	Running  State = "running"
	Paused   State = "paused"
	// Destroying: somebody wants it gone and its agent has not yet said that it is.
	Destroying State = "destroying"
)

// Sandbox is one row.
type Sandbox struct {
	ID, Template, Agent string
	State               State
	Metadata            map[string]string
	// CreatedAt is when the row was made, StartedAt when the guest was up (before that, CreatedAt), EndAt
	// when the sandbox's time is over. Kept to the nanosecond, UTC.
	CreatedAt, StartedAt, EndAt time.Time
	// OnTimeout is "kill" or "pause". PauseFilesOnly says that such a pause keeps files alone.
	OnTimeout      string
	PauseFilesOnly bool
	// AutoResume says that traffic resumes it.
	AutoResume bool
	// Timeout is the life that it was created with, 0 where that is not known.
	Timeout time.Duration
	// FilesOnly says that the pause it is in has kept files alone.
	FilesOnly bool
	// AllowInternet, AllowOut and DenyOut are what it may reach.
	AllowInternet     bool
	AllowOut, DenyOut []string
	// PrivateTraffic: its ports ask for the traffic token. MaskRequestHost is what it sees as Host instead
	// of its public name, or empty.
	PrivateTraffic     bool
	MaskRequestHost    string
	VCPUs              uint32
	MemoryMiB, DiskMiB uint64
	EnvdVersion        string
	// Version counts the row's changes, from 1. The store sets it.
	Version int64
}

const columns = `id, template, agent, state, metadata, created_at, started_at, end_at, on_timeout, allow_internet,
	vcpus, memory_mib, disk_mib, envd_version, version, network, pause_files_only, auto_resume, timeout, files_only`

// network is how the column of that name is written.
type network struct {
	AllowOut []string `json:"allowOut,omitempty"`
	DenyOut  []string `json:"denyOut,omitempty"`
	Private  bool     `json:"privateTraffic,omitempty"`
	Mask     string   `json:"maskRequestHost,omitempty"`
}

// values returns sb in the order of columns.
func (sb Sandbox) values() ([]any, error) {
	metadata, err := json.Marshal(sb.Metadata)
	if err != nil {
		return nil, fmt.Errorf("encode metadata of sandbox %s: %w", sb.ID, err)
	}
	lists, err := json.Marshal(network{AllowOut: sb.AllowOut, DenyOut: sb.DenyOut, Private: sb.PrivateTraffic, Mask: sb.MaskRequestHost})
	if err != nil {
		return nil, fmt.Errorf("encode network of sandbox %s: %w", sb.ID, err)
	}
	return []any{
		sb.ID, sb.Template, sb.Agent, string(sb.State), string(metadata),
		sb.CreatedAt.UnixNano(), sb.StartedAt.UnixNano(), sb.EndAt.UnixNano(), sb.OnTimeout, sb.AllowInternet,
		int64(sb.VCPUs), int64(sb.MemoryMiB), int64(sb.DiskMiB), sb.EnvdVersion, sb.Version, string(lists),
		sb.PauseFilesOnly, sb.AutoResume, int64(sb.Timeout), sb.FilesOnly,
	}, nil
}

func scan(row interface{ Scan(...any) error }) (Sandbox, error) {
	var sb Sandbox
	var metadata, lists string
	var created, started, end int64
	err := row.Scan(&sb.ID, &sb.Template, &sb.Agent, &sb.State, &metadata, &created, &started, &end, &sb.OnTimeout,
		&sb.AllowInternet, &sb.VCPUs, &sb.MemoryMiB, &sb.DiskMiB, &sb.EnvdVersion, &sb.Version, &lists,
		&sb.PauseFilesOnly, &sb.AutoResume, &sb.Timeout, &sb.FilesOnly)
	if err != nil {
		return Sandbox{}, err
	}
	if err := json.Unmarshal([]byte(metadata), &sb.Metadata); err != nil {
		return Sandbox{}, fmt.Errorf("decode metadata of sandbox %s: %w", sb.ID, err)
	}
	var n network
	if err := json.Unmarshal([]byte(lists), &n); err != nil {
		return Sandbox{}, fmt.Errorf("decode network of sandbox %s: %w", sb.ID, err)
	}
	sb.AllowOut, sb.DenyOut, sb.PrivateTraffic, sb.MaskRequestHost = n.AllowOut, n.DenyOut, n.Private, n.Mask
	sb.CreatedAt, sb.StartedAt, sb.EndAt = time.Unix(0, created).UTC(), time.Unix(0, started).UTC(), time.Unix(0, end).UTC()
	return sb, nil
}

// Insert adds a sandbox as version 1, or returns ErrExists.
func (s *Store) Insert(ctx context.Context, sb Sandbox) error {
	sb.Version = 1
	values, err := sb.values()
	if err != nil {
		return err
	}
	defer s.recent.forget(sb.ID)()
	res, err := s.write.ExecContext(ctx, `INSERT INTO sandboxes (`+columns+`)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20) ON CONFLICT (id) DO NOTHING`, values...)
	return changed(res, err, "insert", sb.ID, ErrExists)
}

// Get returns a sandbox, or ErrNotFound.
func (s *Store) Get(ctx context.Context, id string) (Sandbox, error) {
	sb, err := scan(s.read.QueryRowContext(ctx, `SELECT `+columns+` FROM sandboxes WHERE id = $1`, id))
	if errors.Is(err, sql.ErrNoRows) {
		return Sandbox{}, fmt.Errorf("sandbox %s: %w", id, ErrNotFound)
	}
	if err != nil {
		return Sandbox{}, fmt.Errorf("read sandbox %s: %w", id, err)
	}
	return sb, nil
}

// modifyAttempts bounds how often Modify starts again after losing to another writer. Each loss means that
// another one won, so ten in a row do not happen by chance.
const modifyAttempts = 10

// Modify reads a sandbox, lets change alter it and writes it back, all as one step: if somebody else writes
// in between, it starts again. An error of change is returned as it is and nothing is written. It returns
// the row as written, or ErrNotFound, or ErrConflict after ten lost attempts.
func (s *Store) Modify(ctx context.Context, id string, change func(*Sandbox) error) (Sandbox, error) {
	for range modifyAttempts {
		sb, err := s.Get(ctx, id)
		if err != nil {
			return Sandbox{}, err
		}
		if err := change(&sb); err != nil {
			return Sandbox{}, err
		}
		err = s.update(ctx, sb)
		sb.Version++
		if !errors.Is(err, ErrConflict) {
			return sb, err
		}
	}
	return Sandbox{}, fmt.Errorf("modify sandbox %s: %w", id, ErrConflict)
}

// update writes sb unless the row's version is another than sb's.
func (s *Store) update(ctx context.Context, sb Sandbox) error {
	values, err := sb.values()
	if err != nil {
		return err
	}
	defer s.recent.forget(sb.ID)()
	res, err := s.write.ExecContext(ctx, `UPDATE sandboxes SET template = $2, agent = $3, state = $4, metadata = $5,
		created_at = $6, started_at = $7, end_at = $8, on_timeout = $9, allow_internet = $10, vcpus = $11,
		memory_mib = $12, disk_mib = $13, envd_version = $14, version = $15 + 1, network = $16,
		pause_files_only = $17, auto_resume = $18, timeout = $19, files_only = $20 WHERE id = $1 AND version = $15`, values...)
	return changed(res, err, "update", sb.ID, ErrConflict)
}

// Delete removes a sandbox's row. One that is not there is no error.
func (s *Store) Delete(ctx context.Context, id string) error {
	defer s.recent.forget(id)()
	if _, err := s.write.ExecContext(ctx, `DELETE FROM sandboxes WHERE id = $1`, id); err != nil {
		return fmt.Errorf("delete sandbox %s: %w", id, err)
	}
	return nil
}

// DeleteVersion removes a sandbox's row if it is still of that version, else it returns ErrConflict.
func (s *Store) DeleteVersion(ctx context.Context, id string, version int64) error {
	defer s.recent.forget(id)()
	res, err := s.write.ExecContext(ctx, `DELETE FROM sandboxes WHERE id = $1 AND version = $2`, id, version)
	return changed(res, err, "delete", id, ErrConflict)
}

// changed turns the result of a statement that should change one row into an error; none is what it means
// if no row was changed.
func changed(res sql.Result, err error, op, id string, none error) error {
	if err != nil {
		return fmt.Errorf("%s sandbox %s: %w", op, id, err)
	}
	n, err := res.RowsAffected()
	if err != nil {
		return fmt.Errorf("%s sandbox %s: %w", op, id, err)
	}
	if n == 0 {
		return fmt.Errorf("%s sandbox %s: %w", op, id, none)
	}
	return nil
}
