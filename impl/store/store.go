// Package store keeps what must outlive a control plane: API keys and the sandboxes that were promised to
// somebody. What a call has acknowledged survives a kill of the process and a crash of the machine.
//
// The back end is SQLite. The SQL is kept to what PostgreSQL reads as well, and storetest holds the suite
// that every back end passes.
package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"

	"github.com/pressly/goose/v3"
	_ "modernc.org/sqlite" // registers the driver "sqlite"
)

// Errors of this package, for errors.Is.
var (
	// ErrNotFound: no such row.
	ErrNotFound = errors.New("not found in the store")
	// ErrExists: the id is taken.
	ErrExists = errors.New("already in the store")
	// ErrConflict: somebody else has changed the row.
	ErrConflict = errors.New("changed by somebody else")
)

// readers is how many reads run at once. They are short and the pages are in memory, so more than a few
// per core would only queue inside SQLite.
const readers = 4

//go:embed migrations/*.sql
var migrations embed.FS

// Store is safe for concurrent use. Open makes one, Close ends it.
type Store struct {
	write *sql.DB // one connection: SQLite has one writer, and waiting in Go beats SQLITE_BUSY
	read  *sql.DB

	recent recent
}

// Open opens the SQLite file at path, made with mode 0600 if it is not there, and brings its tables up to
// date. The file's folder must exist.
func Open(ctx context.Context, path string) (*Store, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("store at %s: %w", path, err)
	}
	f, err := os.OpenFile(abs, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make store: %w", err)
	}
	if err := f.Close(); err != nil {
		return nil, fmt.Errorf("make store: %w", err)
	}
	s := &Store{}
	if s.write, err = open(abs, 1, "_txlock=immediate"); err != nil {
		return nil, err
	}
	if s.read, err = open(abs, readers, "_pragma=query_only(1)"); err != nil {
		return nil, errors.Join(err, s.write.Close())
	}
	if err := s.migrate(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("bring store %s up to date: %w", abs, err), s.Close())
	}
	return s, nil
}

// open sets what durability and concurrency rest on: WAL lets reads go on beside the writer,
// synchronous=FULL makes each commit reach the disk before it is acknowledged (WAL's default would lose
// the last ones in a power cut), and busy_timeout (10 s) waits for another process, such as a backup.
func open(path string, conns int, extra string) (*sql.DB, error) {
	dsn := url.URL{Scheme: "file", Path: path, RawQuery: "_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&" + extra}
	db, err := sql.Open("sqlite", dsn.String())
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", path, err)
	}
	db.SetMaxOpenConns(conns)
	db.SetMaxIdleConns(conns)
	return db, nil
}

func (s *Store) migrate(ctx context.Context) error {
	dir, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, s.write, dir, goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return err
	}
	_, err = p.Up(ctx)
	return err
}

// Close ends the store.
func (s *Store) Close() error {
	return errors.Join(s.read.Close(), s.write.Close())
}
