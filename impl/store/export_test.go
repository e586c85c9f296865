package store

import "context"

// Durability returns what SQLite says of the writer's settings synchronous and journal_mode.
func (s *Store) Durability(ctx context.Context) (synchronous, journal string) {
	_ = s.write.QueryRowContext(ctx, "PRAGMA synchronous").Scan(&synchronous)
	_ = s.write.QueryRowContext(ctx, "PRAGMA journal_mode").Scan(&journal)
	return synchronous, journal
}
