package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Query says which sandboxes to list, and how. Zero fields do not restrict.
type Query struct {
	States   []State
	Agent    string
	Template string
	// Metadata are pairs that must all be there.
	Metadata map[string]string
	// StartedFrom is the earliest start, inclusive.
	StartedFrom time.Time
	// LiveAt leaves out running sandboxes whose end lies at or before it, unless they are paused at their end.
	LiveAt time.Time
	// Ascending orders by start from the oldest; else from the newest. Ties are ordered by id.
	Ascending bool
	// After continues a list behind its last sandbox.
	After *Position
	// Limit is the most sandboxes to return; 0 means all.
	Limit int
}

// Position is a place in a list ordered by start.
type Position struct {
	StartedAt time.Time
	ID        string
}

// List returns the sandboxes that q asks for.
func (s *Store) List(ctx context.Context, q Query) (list []Sandbox, err error) {
	text, args := q.sql()
	rows, err := s.read.QueryContext(ctx, text, args...)
	if err != nil {
		return nil, fmt.Errorf("list sandboxes: %w", err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() && (q.Limit == 0 || len(list) < q.Limit) {
		sb, err := scan(rows)
		if err != nil {
			return nil, fmt.Errorf("list sandboxes: %w", err)
		}
		if contains(sb.Metadata, q.Metadata) {
			list = append(list, sb)
		}
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list sandboxes: %w", err)
	}
	return list, nil
}

// sql builds the statement. Metadata is compared by the caller, row by row: how SQL looks into JSON differs
// between back ends.
func (q Query) sql() (text string, args []any) {
	conditions := []string{"1 = 1"}
	arg := func(v any) string {
		args = append(args, v)
		return fmt.Sprintf("$%d", len(args))
	}
	if len(q.States) > 0 {
		var in []string
		for _, st := range slices.Compact(slices.Sorted(slices.Values(q.States))) {
			in = append(in, arg(string(st)))
		}
		conditions = append(conditions, "state IN ("+strings.Join(in, ", ")+")")
	}
	if q.Agent != "" {
		conditions = append(conditions, "agent = "+arg(q.Agent))
	}
	if q.Template != "" {
		conditions = append(conditions, "template = "+arg(q.Template))
	}
	if !q.StartedFrom.IsZero() {
		conditions = append(conditions, "started_at >= "+arg(q.StartedFrom.UnixNano()))
	}
	if !q.LiveAt.IsZero() {
		conditions = append(conditions, "(state <> "+arg(string(Running))+" OR on_timeout = 'pause' OR end_at > "+arg(q.LiveAt.UnixNano())+")")
	}
	order, direction := "<", "DESC"
	if q.Ascending {
		order, direction = ">", "ASC"
	}
	if q.After != nil {
		at, id := arg(q.After.StartedAt.UnixNano()), arg(q.After.ID)
		conditions = append(conditions, fmt.Sprintf("(started_at %[1]s %[2]s OR (started_at = %[2]s AND id %[1]s %[3]s))", order, at, id))
	}
	return fmt.Sprintf("SELECT %s FROM sandboxes WHERE %s ORDER BY started_at %[3]s, id %[3]s",
		columns, strings.Join(conditions, " AND "), direction), args
}

// contains says whether all has every pair of some.
func contains(all, some map[string]string) bool {
	for k, want := range some {
		if v, ok := all[k]; !ok || v != want {
			return false
		}
	}
	return true
}
