package filesystem

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

var (
	// ErrLost says that a watch could not keep up: its reader, or the kernel's queue.
	ErrLost = errors.New("changes came faster than they were read; some were lost, watch again")
	// ErrRootGone says that the watched directory was removed or moved away.
	ErrRootGone = errors.New("the watched directory is gone")
	// ErrWatches says that the kernel's number of watches is used up.
	ErrWatches = errors.New("no more watches (fs.inotify.max_user_watches, max_user_instances)")
)

const (
	// queueLen is how many changes wait for the reader of a stream, as in every stream of the product.
	queueLen = 256
	// patience is how long a reader with a full queue may take nothing; the kernel queues some 16,000
	// more changes meanwhile.
	patience = 5 * time.Second
	// batch holds about 1000 changes with short names.
	batch = 64 << 10
)

// Op is a kind of change.
type Op int

// The kinds of change. Rename is told of the old name, as Create of the new one.
const (
	Create Op = iota
	Write
	Remove
	Rename
	Chmod
)

// Change is one change below a watched directory.
type Change struct {
	Name string // relative to the watched directory
	Op   Op
}

const watchMask = unix.IN_CREATE | unix.IN_MODIFY | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO |
	unix.IN_ATTRIB | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR

// watch reports what changes in a directory and, if recursive, below it. What appears in a new
// subdirectory before the kernel watches it is reported as created all the same.
type watch struct {
	root      string
	recursive bool
	changes   chan Change   // closed at the end, after which err is set
	lost      chan struct{} // closed when the reader was too slow
	stop      chan struct{}
	once      sync.Once
	over      chan struct{}
	err       error

	f    *os.File
	fd   int
	dirs map[int]string // watch descriptor → directory relative to root, "" for root itself
	// scanned is what a look into a new directory has reported, until the kernel's own reports from
	// before that look have been read.
	scanned map[string]bool
}

// newWatch starts to watch root, an absolute path without links.
func newWatch(root string, recursive bool) (*watch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch: %w", watchError(err))
	}
	w := &watch{
		root: root, recursive: recursive, fd: fd, f: os.NewFile(uintptr(fd), "inotify"),
		changes: make(chan Change, queueLen), lost: make(chan struct{}),
		stop: make(chan struct{}), over: make(chan struct{}),
		dirs: map[int]string{}, scanned: map[string]bool{},
	}
	if err := w.add("", false); err != nil {
		_ = w.f.Close()
		return nil, fmt.Errorf("watch: %w", err)
	}
	go w.run()
	return w, nil
}

// close ends the watch and waits until it has.
func (w *watch) close() {
	w.once.Do(func() { close(w.stop) })
	_ = w.f.SetReadDeadline(time.Unix(1, 0))
	<-w.over
}

func (w *watch) run() {
	defer close(w.over)
	defer func() { _ = w.f.Close() }()
	defer close(w.changes)
	buf := make([]byte, batch)
	for {
		n, err := w.f.Read(buf)
		if err == nil {
			err = w.handleAll(buf[:n])
		}
		if err != nil {
			w.err = err
			return
		}
		if waiting, err := unix.IoctlGetInt(w.fd, unix.TIOCINQ); err == nil && waiting == 0 {
			clear(w.scanned)
		}
	}
}

func (w *watch) handleAll(buf []byte) error {
	for len(buf) >= unix.SizeofInotifyEvent {
		ev := (*unix.InotifyEvent)(unsafe.Pointer(&buf[0])) //nolint:gosec // the kernel's own layout
		end := unix.SizeofInotifyEvent + int(ev.Len)
		name := string(bytes.TrimRight(buf[unix.SizeofInotifyEvent:end], "\x00"))
		if err := w.handle(int(ev.Wd), ev.Mask, name); err != nil {
			return err
		}
		buf = buf[end:]
	}
	return nil
}

func (w *watch) handle(wd int, mask uint32, name string) error {
	dir, known := w.dirs[wd]
	switch {
	case mask&unix.IN_Q_OVERFLOW != 0:
		close(w.lost)
		return ErrLost
	case !known:
		return nil
	case mask&unix.IN_IGNORED != 0:
		delete(w.dirs, wd)
		return nil
	case name == "":
		if dir == "" && mask&(unix.IN_DELETE_SELF|unix.IN_MOVE_SELF|unix.IN_UNMOUNT) != 0 {
			return ErrRootGone
		}
		return nil // the parent tells the same with a name
	}
	name = filepath.Join(dir, name)
	isDir := mask&unix.IN_ISDIR != 0
	switch {
	case mask&unix.IN_CREATE != 0:
		if w.scanned[name] {
			delete(w.scanned, name)
			return nil
		}
		return w.created(name, isDir, true)
	case mask&unix.IN_MOVED_TO != 0:
		return w.created(name, isDir, false)
	case mask&unix.IN_MOVED_FROM != 0:
		w.forget(name, isDir)
		return w.emit(name, Rename)
	case mask&unix.IN_DELETE != 0:
		w.forget(name, false)
		return w.emit(name, Remove)
	case mask&unix.IN_MODIFY != 0:
		return w.emit(name, Write)
	case mask&unix.IN_ATTRIB != 0:
		return w.emit(name, Chmod)
	}
	return nil
}

// created reports a new name; below a new directory that is watched too, scan reports what it holds.
func (w *watch) created(name string, isDir, scan bool) error {
	if err := w.emit(name, Create); err != nil || !isDir || !w.recursive {
		return err
	}
	return w.add(name, scan)
}

// add watches a directory and, if recursive, those below it. With report, what it holds is new. A
// directory below root that has vanished meanwhile is no error.
func (w *watch) add(dir string, report bool) error {
	flags := uint32(watchMask)
	if dir != "" {
		flags |= unix.IN_DONT_FOLLOW
	}
	wd, err := unix.InotifyAddWatch(w.fd, filepath.Join(w.root, dir), flags)
	switch {
	case dir != "" && isAny(err, unix.ENOENT, unix.ENOTDIR, unix.EACCES, unix.ELOOP):
		return nil
	case err != nil:
		return watchError(err)
	}
	w.dirs[wd] = dir
	if !w.recursive {
		return nil
	}
	found, err := os.ReadDir(filepath.Join(w.root, dir))
	if err != nil {
		return nil //nolint:nilerr // it went, or was closed, while we looked; its own watch tells
	}
	for _, d := range found {
		name := filepath.Join(dir, d.Name())
		if report {
			w.scanned[name] = true
			if err := w.emit(name, Create); err != nil {
				return err
			}
		}
		if d.IsDir() {
			if err := w.add(name, report); err != nil {
				return err
			}
		}
	}
	return nil
}

// forget drops what is known of a name that is gone; of a directory moved away, the watches below it.
func (w *watch) forget(name string, movedDir bool) {
	delete(w.scanned, name)
	if !movedDir {
		return
	}
	for wd, dir := range w.dirs {
		if dir == name || strings.HasPrefix(dir, name+"/") {
			delete(w.dirs, wd)
			_, _ = unix.InotifyRmWatch(w.fd, uint32(wd))
		}
	}
}

func (w *watch) emit(name string, op Op) error {
	c := Change{Name: name, Op: op}
	select {
	case w.changes <- c:
		return nil
	default:
	}
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case w.changes <- c:
		return nil
	case <-w.stop:
		return os.ErrClosed
	case <-t.C:
		close(w.lost)
		return ErrLost
	}
}

func isAny(err error, codes ...unix.Errno) bool {
	return slices.ContainsFunc(codes, func(code unix.Errno) bool { return errors.Is(err, code) })
}

func watchError(err error) error {
	if isAny(err, unix.ENOSPC, unix.EMFILE) {
		return fmt.Errorf("%w: %w", ErrWatches, err)
	}
	return err
}

// onNetwork reports whether path lies on a file system of another machine or program, whose changes the
// kernel here does not see.
func onNetwork(path string) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return false, fmt.Errorf("find the file system: %w", err)
	}
	switch uint32(st.Type) {
	case unix.NFS_SUPER_MAGIC, unix.SMB_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC,
		unix.V9FS_MAGIC, unix.CEPH_SUPER_MAGIC, unix.AFS_SUPER_MAGIC, unix.CODA_SUPER_MAGIC, unix.FUSE_SUPER_MAGIC:
		return true, nil
	}
	return false, nil
}
