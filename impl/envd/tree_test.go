package envd

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"wrenn/impl/need"
	pb "wrenn/proto/gen/envd/filesystem"
)

func TestG03_StatListMakeMoveRemove(t *testing.T) {
	d := start(t, nil)
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	made, err := d.tree.MakeDir(within(t), connect.NewRequest(&pb.MakeDirRequest{Path: in("a/b/c")}))
	require.NoError(t, err)
	assert.Equal(t, []string{"c", in("a/b/c"), "drwxr-xr-x"}, []string{made.Msg.Entry.Name, made.Msg.Entry.Path, made.Msg.Entry.Permissions})
	require.NoError(t, os.WriteFile(in("a/f"), []byte("12345"), 0o640))
	require.NoError(t, os.Symlink("f", in("a/link")))
	require.NoError(t, os.Symlink("none", in("a/broken")))

	stat, err := d.tree.Stat(within(t), connect.NewRequest(&pb.StatRequest{Path: in("a/link")}))
	require.NoError(t, err)
	e := stat.Msg.GetEntry()
	assert.Equal(t, pb.FileType_FILE_TYPE_FILE, e.GetType())
	assert.Equal(t, "-rw-r-----", e.GetPermissions())
	assert.EqualValues(t, 0o640, e.GetMode())
	assert.EqualValues(t, 1, e.GetSize(), "of the link itself")
	assert.Equal(t, in("a/f"), e.GetSymlinkTarget())
	assert.WithinDuration(t, time.Now(), e.GetModifiedTime().AsTime(), time.Hour)
	stat, err = d.tree.Stat(within(t), connect.NewRequest(&pb.StatRequest{Path: in("a/broken")}))
	require.NoError(t, err)
	assert.Equal(t, pb.FileType_FILE_TYPE_SYMLINK, stat.Msg.GetEntry().GetType())
	assert.Equal(t, "none", stat.Msg.GetEntry().GetSymlinkTarget())

	for depth, want := range map[uint32]string{
		0: "b broken f link", 1: "b broken f link", 2: "b b/c broken f link", 99: "b b/c broken f link",
	} {
		l, err := d.tree.ListDir(within(t), connect.NewRequest(&pb.ListDirRequest{Path: in("a"), Depth: depth}))
		require.NoError(t, err)
		var names []string
		for _, e := range l.Msg.GetEntries() {
			names = append(names, strings.TrimPrefix(e.GetPath(), in("a")+"/"))
		}
		assert.Equal(t, want, strings.Join(names, " "))
	}
	moved, err := d.tree.Move(within(t), connect.NewRequest(&pb.MoveRequest{Source: in("a/b"), Destination: in("x/y/z")}))
	require.NoError(t, err)
	assert.Equal(t, in("x/y/z"), moved.Msg.GetEntry().GetPath())
	for range 2 { // what is gone is no error
		_, err = d.tree.Remove(within(t), connect.NewRequest(&pb.RemoveRequest{Path: in("x")}))
		require.NoError(t, err)
	}
	_, err = d.tree.Stat(within(t), connect.NewRequest(&pb.StatRequest{Path: in("x")}))
	requireCode(t, connect.CodeNotFound, err, "no such file")
}

func TestV02_TreeRequestsThatAreRefused(t *testing.T) {
	d := start(t, nil)
	dir := t.TempDir()
	f := filepath.Join(dir, "f")
	require.NoError(t, os.WriteFile(f, nil, 0o644))
	none := filepath.Join(dir, "none")
	ctx := within(t)
	calls := map[string]func(path string) error{
		"stat": func(p string) error {
			_, err := d.tree.Stat(ctx, connect.NewRequest(&pb.StatRequest{Path: p}))
			return err
		},
		"list": func(p string) error {
			_, err := d.tree.ListDir(ctx, connect.NewRequest(&pb.ListDirRequest{Path: p}))
			return err
		},
		"make": func(p string) error {
			_, err := d.tree.MakeDir(ctx, connect.NewRequest(&pb.MakeDirRequest{Path: p}))
			return err
		},
		"move": func(p string) error {
			_, err := d.tree.Move(ctx, connect.NewRequest(&pb.MoveRequest{Source: p, Destination: f}))
			return err
		},
		"watch": func(p string) error {
			_, err := d.tree.CreateWatcher(ctx, connect.NewRequest(&pb.CreateWatcherRequest{Path: p}))
			return err
		},
		"remove": func(p string) error {
			_, err := d.tree.Remove(ctx, connect.NewRequest(&pb.RemoveRequest{Path: p}))
			return err
		},
	}
	for name, call := range calls {
		for _, bad := range []string{"~other", "a\x00b", strings.Repeat("x", 5000)} {
			requireCode(t, connect.CodeInvalidArgument, call(bad), "invalid path")
		}
		switch name {
		case "stat", "list", "move", "watch":
			requireCode(t, connect.CodeNotFound, call(none), "none")
		}
		switch name {
		case "list", "watch":
			requireCode(t, connect.CodeInvalidArgument, call(f), "not a directory")
		}
	}
	requireCode(t, connect.CodeAlreadyExists, calls["make"](dir), "exists")
	requireCode(t, connect.CodeInvalidArgument, calls["make"](f), "not a directory")
	requireCode(t, connect.CodeInvalidArgument, calls["make"](f+"/below"), "not a directory")
	requireCode(t, connect.CodeInvalidArgument, calls["remove"]("/.."), "root")
	_, err := d.tree.GetWatcherEvents(ctx, connect.NewRequest(&pb.GetWatcherEventsRequest{WatcherId: "x"}))
	requireCode(t, connect.CodeNotFound, err, "watcher")
}

func TestG03_WatchDirStreams(t *testing.T) {
	d := start(t, nil)
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(within(t))
	defer cancel()
	req := connect.NewRequest(&pb.WatchDirRequest{Path: dir, IncludeEntry: true})
	req.Header().Set("Keepalive-Ping-Interval", "1")
	s, err := d.tree.WatchDir(ctx, req)
	require.NoError(t, err)
	require.True(t, s.Receive(), "%v", s.Err())
	require.NotNil(t, s.Msg().GetStart())
	require.True(t, s.Receive())
	require.NotNil(t, s.Msg().GetKeepalive())
	require.NoError(t, os.Mkdir(filepath.Join(dir, "new"), 0o755))
	require.True(t, s.Receive())
	ev := s.Msg().GetFilesystem()
	assert.Equal(t, "new", ev.GetName())
	assert.Equal(t, pb.EventType_EVENT_TYPE_CREATE, ev.GetType())
	assert.Equal(t, pb.FileType_FILE_TYPE_DIRECTORY, ev.GetEntry().GetType())
	require.NoError(t, os.RemoveAll(dir))
	for s.Receive() {
	}
	requireCode(t, connect.CodeNotFound, s.Err(), "is gone")
	_ = s.Close()
}

func TestG03_PolledWatchers(t *testing.T) {
	d := start(t, nil)
	dir := t.TempDir()
	made, err := d.tree.CreateWatcher(within(t), connect.NewRequest(&pb.CreateWatcherRequest{Path: dir, Recursive: true}))
	require.NoError(t, err)
	get := connect.NewRequest(&pb.GetWatcherEventsRequest{WatcherId: made.Msg.GetWatcherId()})
	empty, err := d.tree.GetWatcherEvents(within(t), get)
	require.NoError(t, err)
	assert.Empty(t, empty.Msg.GetEvents())
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "a/b"), 0o755))
	var names []string
	require.Eventually(t, func() bool {
		res, err := d.tree.GetWatcherEvents(within(t), get)
		require.NoError(t, err)
		for _, e := range res.Msg.GetEvents() {
			names = append(names, e.GetName())
		}
		return len(names) >= 2
	}, deadline, 5*time.Millisecond)
	assert.Equal(t, []string{"a", "a/b"}, names)
	remove := connect.NewRequest(&pb.RemoveWatcherRequest{WatcherId: made.Msg.GetWatcherId()})
	_, err = d.tree.RemoveWatcher(within(t), remove)
	require.NoError(t, err)
	_, err = d.tree.RemoveWatcher(within(t), remove)
	requireCode(t, connect.CodeNotFound, err, "watcher")
	for range 64 {
		_, err = d.tree.CreateWatcher(within(t), connect.NewRequest(&pb.CreateWatcherRequest{Path: dir}))
		require.NoError(t, err)
	}
	_, err = d.tree.CreateWatcher(within(t), connect.NewRequest(&pb.CreateWatcherRequest{Path: dir}))
	requireCode(t, connect.CodeResourceExhausted, err, "64 watchers")
}

func TestG03_MadeDirectoriesBelongToTheUser(t *testing.T) {
	need.Root(t)
	d := start(t, nil)
	dir := t.TempDir()
	req := connect.NewRequest(&pb.MakeDirRequest{Path: filepath.Join(dir, "a/b")})
	req.Header().Set("Authorization", "Basic bm9ib2R5Og==") // nobody:
	made, err := d.tree.MakeDir(within(t), req)
	require.NoError(t, err)
	assert.Equal(t, "nobody", made.Msg.GetEntry().GetOwner())
	var st unix.Stat_t
	require.NoError(t, unix.Stat(filepath.Join(dir, "a"), &st))
	assert.EqualValues(t, 65534, st.Uid)
}
