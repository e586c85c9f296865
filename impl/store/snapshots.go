package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"
)

// DefaultTag is the tag of a snapshot that was named without one.
const DefaultTag = "default"

// Snapshot is what a sandbox can start from: memory and disk of another one. Rows never change.
type Snapshot struct {
	// ID is what its agent calls it; unique.
	ID string
	// Name and Tag are what users call it; unique together. Name is empty where nobody has named it.
	Name, Tag string
	Agent     string
	// SandboxID is of which sandbox it was taken, Template that one's template.
	SandboxID, Template string
	// CreatedAt is kept to the nanosecond, UTC.
	CreatedAt          time.Time
	VCPUs              uint32
	MemoryMiB, DiskMiB uint64
	// SizeBytes is what it took on its host at first.
	SizeBytes uint64
}

const snapshotColumns = `id, name, tag, agent, sandbox_id, template, created_at, vcpus, memory_mib, disk_mib, size_bytes`

// SnapshotQuery says which snapshots to list. Zero fields do not restrict.
type SnapshotQuery struct {
	Agent, SandboxID string
	// Name is a snapshot's name or id; Tag its tag.
	Name, Tag string
	// After continues a list behind the snapshot made then, with that id.
	After *Position
	// Limit is the most snapshots to return; 0 means all.
	Limit int
}

// PutSnapshot adds a snapshot. Its name is taken from the one that had it, which loses its row and is
// returned. The same snapshot may be put twice: the second time can only name it.
func (s *Store) PutSnapshot(ctx context.Context, sn Snapshot) (replaced []Snapshot, err error) {
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("add snapshot %s: %w", sn.ID, err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("add snapshot %s: %w", sn.ID, errors.Join(err, tx.Rollback()))
		}
	}()
	if sn.Name != "" {
		replaced, err = scanSnapshots(tx.QueryContext(ctx, `SELECT `+snapshotColumns+` FROM snapshots WHERE name = $1 AND tag = $2 AND id <> $3`, sn.Name, sn.Tag, sn.ID))
		if err != nil {
			return nil, err
		}
		if _, err = tx.ExecContext(ctx, `DELETE FROM snapshots WHERE name = $1 AND tag = $2 AND id <> $3`, sn.Name, sn.Tag, sn.ID); err != nil {
			return nil, err
		}
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO snapshots (`+snapshotColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
		ON CONFLICT (id) DO UPDATE SET name = excluded.name, tag = excluded.tag WHERE excluded.name <> ''`,
		sn.ID, sn.Name, sn.Tag, sn.Agent, sn.SandboxID, sn.Template, sn.CreatedAt.UnixNano(),
		int64(sn.VCPUs), int64(sn.MemoryMiB), int64(sn.DiskMiB), int64(sn.SizeBytes))
	if err != nil {
		return nil, err
	}
	if err = tx.Commit(); err != nil {
		return nil, err
	}
	return replaced, nil
}

// FindSnapshot returns the snapshot of that name (or id) and tag, or ErrNotFound.
func (s *Store) FindSnapshot(ctx context.Context, name, tag string) (Snapshot, error) {
	list, err := s.ListSnapshots(ctx, SnapshotQuery{Name: name, Tag: tag})
	if err != nil {
		return Snapshot{}, err
	}
	for _, sn := range list {
		if sn.Name == name { // somebody may have named one like another's id
			return sn, nil
		}
	}
	if len(list) == 0 {
		return Snapshot{}, fmt.Errorf("snapshot %s:%s: %w", name, tag, ErrNotFound)
	}
	return list[0], nil
}

// ListSnapshots returns the snapshots that q asks for, from the newest on. Ties are ordered by id.
func (s *Store) ListSnapshots(ctx context.Context, q SnapshotQuery) ([]Snapshot, error) {
	conditions := []string{"1 = 1"}
	var args []any
	arg := func(v any) string {
		args = append(args, v)
		return fmt.Sprintf("$%d", len(args))
	}
	if q.Agent != "" {
		conditions = append(conditions, "agent = "+arg(q.Agent))
	}
	if q.SandboxID != "" {
		conditions = append(conditions, "sandbox_id = "+arg(q.SandboxID))
	}
	if q.Name != "" {
		name := arg(q.Name)
		conditions = append(conditions, "(name = "+name+" OR id = "+name+")")
	}
	if q.Tag != "" {
		conditions = append(conditions, "tag = "+arg(q.Tag))
	}
	if q.After != nil {
		at, id := arg(q.After.StartedAt.UnixNano()), arg(q.After.ID)
		conditions = append(conditions, fmt.Sprintf("(created_at < %[1]s OR (created_at = %[1]s AND id < %[2]s))", at, id))
	}
	text := `SELECT ` + snapshotColumns + ` FROM snapshots WHERE ` + strings.Join(conditions, " AND ") + ` ORDER BY created_at DESC, id DESC`
	if q.Limit > 0 {
		text += " LIMIT " + arg(q.Limit)
	}
	list, err := scanSnapshots(s.read.QueryContext(ctx, text, args...))
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	return list, nil
}

// DeleteSnapshot removes a snapshot's row. One that is not there is no error.
func (s *Store) DeleteSnapshot(ctx context.Context, id string) error {
	if _, err := s.write.ExecContext(ctx, `DELETE FROM snapshots WHERE id = $1`, id); err != nil {
		return fmt.Errorf("delete snapshot %s: %w", id, err)
	}
	return nil
}

// scanSnapshots reads all rows; err is the query's.
func scanSnapshots(rows *sql.Rows, err error) (list []Snapshot, _ error) {
	if err != nil {
		return nil, err
	}
	for rows.Next() {
		var sn Snapshot
		var created int64
		err := rows.Scan(&sn.ID, &sn.Name, &sn.Tag, &sn.Agent, &sn.SandboxID, &sn.Template, &created,
			&sn.VCPUs, &sn.MemoryMiB, &sn.DiskMiB, &sn.SizeBytes)
		if err != nil {
			return nil, errors.Join(err, rows.Close())
		}
		sn.CreatedAt = time.Unix(0, created).UTC()
		list = append(list, sn)
	}
	return list, errors.Join(rows.Err(), rows.Close())
}
