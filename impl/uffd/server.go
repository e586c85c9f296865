// Package uffd serves the memory of one restored VM page by page: the VMM hands its userfaultfd over, the
// kernel tells which page the guest needs, and the page is put there out of a chain of memory layers. So a
// machine runs on before its memory has been read.
//
// A page server belongs to one VMM and dies with it. A VMM whose server is gone hangs at the next page that
// is missing, for ever: therefore the server kills the VMM when it cannot serve it any longer, and Guard kills
// it when the server was killed itself. It runs in a process of its own, since it has to survive the agent.
package uffd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"wrenn/impl/memfile"
)

// Config says whose memory is served how.
type Config struct {
	// Socket is the path of the Unix socket that the VMM is told to connect to, at most 103 bytes. It must not
	// exist; when it does, the server listens. It is removed once a VMM has connected. Only the VMM may
	// connect: a peer that goes without a word is let go, every other one is taken for it.
	Socket string
	// Layers are the paths of the memory's layers, the base first.
	Layers []string
	// Batch is how many bytes around a fault are filled along with it: a power of two from 4 KiB to 2 MiB, 0
	// for DefaultBatch.
	Batch int
	// Workers is how many faults are served at a time, 1 to 64; 0 for DefaultWorkers.
	Workers int
	// WorkingSet is a file with what an earlier start needed first, which is filled in the background. Where
	// there is none yet, what this start needs is recorded there. Empty: neither.
	WorkingSet string
	// RecordFor is how long after the handshake faults are recorded; 0 for DefaultRecordFor.
	RecordFor time.Duration
	// AcceptTimeout bounds the wait for the VMM, since who started it may have died; 0 for
	// DefaultAcceptTimeout.
	AcceptTimeout time.Duration
	// Logger gets what happens; nil for none.
	Logger *slog.Logger
}

const (
	// DefaultBatch is the piece of memory that has one checksum: a page costs the reading of all of it anyway.
	DefaultBatch = memfile.PieceSize
	// DefaultWorkers lets the reads of several vCPUs' faults wait for the disk beside each other.
	DefaultWorkers = 4
	// DefaultRecordFor is long enough for a guest to go on with what it was at, and for its daemon to answer.
	DefaultRecordFor = 5 * time.Second
	// DefaultAcceptTimeout is far above what starting a VMM takes, some 10 ms.
	DefaultAcceptTimeout = time.Minute

	maxBatch   = 2 << 20
	maxWorkers = 64
	// maxSocketPath is what fits sun_path's 108 bytes with ".new" and the final zero.
	maxSocketPath = 103
)

// withDefaults checks cfg and fills in what is zero.
func (cfg Config) withDefaults() (Config, error) {
	if cfg.Batch == 0 {
		cfg.Batch = DefaultBatch
	}
	if cfg.Workers == 0 {
		cfg.Workers = DefaultWorkers
	}
	if cfg.RecordFor == 0 {
		cfg.RecordFor = DefaultRecordFor
	}
	if cfg.AcceptTimeout == 0 {
		cfg.AcceptTimeout = DefaultAcceptTimeout
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	switch {
	case cfg.Socket == "" || len(cfg.Socket) > maxSocketPath:
		return cfg, fmt.Errorf("serve pages: socket path of %d bytes, want 1 to %d", len(cfg.Socket), maxSocketPath)
	case cfg.Batch < memfile.PageSize || cfg.Batch > maxBatch || cfg.Batch&(cfg.Batch-1) != 0:
		return cfg, fmt.Errorf("serve pages: batch of %d bytes is not a power of two from %d to %d", cfg.Batch, memfile.PageSize, maxBatch)
	case cfg.Workers < 0 || cfg.Workers > maxWorkers:
		return cfg, fmt.Errorf("serve pages: %d workers, want 1 to %d", cfg.Workers, maxWorkers)
	case cfg.RecordFor < 0 || cfg.AcceptTimeout < 0:
		return cfg, errors.New("serve pages: negative time")
	}
	return cfg, nil
}

// ErrStopped says that ctx ended before the VMM did, which was then killed.
var ErrStopped = errors.New("page server stopped before its vmm ended")

// Serve serves one VMM and returns nil when that has ended by itself. Everything else ends the VMM as well:
// when Serve returns, there is no VMM that waits for pages. That goes for the end of ctx (ErrStopped), for a
// handshake that makes no sense, and for memory that cannot be read or differs from its checksum
// (memfile.ErrCorrupt). Nothing of the server is left then: no goroutine, descriptor or socket.
func Serve(ctx context.Context, cfg Config) error {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return err
	}
	chain, err := memfile.Open(cfg.Layers...)
	if err != nil {
		return fmt.Errorf("serve pages: %w", err)
	}
	defer chain.Close() //nolint:errcheck // its files were only read
	v, err := await(ctx, cfg, chain.Size())
	if v != nil {
		defer v.close()
	}
	if err == nil {
		cfg.Logger.Info("vmm connected", "vmm", v.pid, "memory", chain.Size(), "layer", chain.Top().ID.String(),
			"generation", chain.Top().Generation)
		err = serve(ctx, cfg, chain, v)
	}
	switch {
	case err == nil:
		cfg.Logger.Info("vmm ended", "vmm", v.pid)
		return nil
	case v == nil:
		return fmt.Errorf("serve pages: %w", err)
	}
	cfg.Logger.Error("vmm is killed, because its memory cannot be served", "vmm", v.pid, "reason", err.Error())
	return fmt.Errorf("serve pages of vmm %d: %w", v.pid, errors.Join(err, v.kill()))
}

// await listens until a VMM has handed its memory over. What it returns beside an error is a VMM that cannot
// be served.
func await(ctx context.Context, cfg Config, size int64) (_ *vmm, err error) {
	l, err := listen(cfg.Socket)
	if err != nil {
		return nil, err
	}
	defer func() {
		gone := os.Remove(cfg.Socket)
		if errors.Is(gone, fs.ErrNotExist) {
			gone = nil
		}
		err = errors.Join(err, l.Close(), gone)
	}()
	if err := l.SetDeadline(time.Now().Add(cfg.AcceptTimeout)); err != nil {
		return nil, fmt.Errorf("wait for the vmm: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = l.SetDeadline(time.Now()) })
	defer stop()
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return nil, fmt.Errorf("wait for the vmm: %w", errors.Join(err, ctx.Err()))
		}
		v, err := receive(ctx, conn, size)
		// Firecracker says nothing more, and versions differ in whether they keep their end: the pidfd tells
		// its end. Ours stays open, because a VMM may take its end for the server's.
		if v != nil {
			v.conn = conn
		} else {
			_ = conn.Close()
		}
		if !errors.Is(err, errNothing) {
			return v, err
		}
	}
}

// listen makes the socket appear at path when it can be connected to, and not before.
func listen(path string) (*net.UnixListener, error) {
	beside := path + ".new"
	if _, err := os.Lstat(path); err == nil {
		return nil, fmt.Errorf("listen at %s: %w", path, fs.ErrExist)
	}
	if err := os.Remove(beside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listen at %s: %w", path, err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: beside, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen at %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	err = os.Chmod(beside, 0o600)
	if err == nil {
		err = unix.Renameat2(unix.AT_FDCWD, beside, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen at %s: %w", path, err), l.Close(), os.Remove(beside))
	}
	return l, nil
}
