package qemu

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// privateMemory maps a memory file privately in this process, which plays QEMU, and returns the mapping.
func privateMemory(t testing.TB, path string, size int64) (*memory, []byte) {
	t.Helper()
	m, err := openMemory(path, size)
	require.NoError(t, err)
	t.Cleanup(m.close)
	pages, err := unix.Mmap(int(m.file.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, unix.Munmap(pages)) })
	return m, pages
}

func sharedMemory(t testing.TB, size int64) (*memory, []byte) {
	t.Helper()
	m, err := newMemory(size)
	require.NoError(t, err)
	t.Cleanup(m.close)
	pages, err := unix.Mmap(int(m.file.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, unix.Munmap(pages)) })
	return m, pages
}

func save(t testing.TB, m *memory, diff bool, path string) {
	t.Helper()
	file, err := openMemoryFile(path, m.size)
	require.NoError(t, err)
	require.NoError(t, m.save(os.Getpid(), diff, file))
	require.NoError(t, file.close(true))
}

// layer is a memory file as a reader of layers sees it: data by page, holes absent.
func layer(t testing.TB, path string, size int64) map[int64][]byte {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	pages := map[int64][]byte{}
	for at := int64(0); at < size; {
		start, end, err := nextData(f, at, size)
		require.NoError(t, err)
		for ; start < end; start += pageSize {
			page := make([]byte, pageSize)
			require.NoError(t, readFull(f, page, start))
			pages[start] = page
		}
		at = end
	}
	return pages
}

func requireContent(t testing.TB, want []byte, path string) {
	t.Helper()
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Len(t, got, len(want))
	for at := 0; at < len(want); at += pageSize {
		require.True(t, bytes.Equal(want[at:at+pageSize], got[at:at+pageSize]), "page %d of %s differs", at/pageSize, path)
	}
}

// scribble reads, fills and zeroes pages, and returns which ones it wrote.
func scribble(random *rand.Rand, pages []byte, times int) map[int64]bool {
	wrote := map[int64]bool{}
	var sink byte
	for range times {
		at := int64(random.IntN(len(pages)/pageSize)) * pageSize
		run := min(int64(1+random.IntN(3))*pageSize, int64(len(pages))-at)
		switch random.IntN(4) {
		case 0: // a page that is only read is not changed
			sink += pages[at]
			continue
		case 1:
			clear(pages[at : at+run])
		default:
			for i := at; i < at+run; i++ {
				pages[i] = byte(random.Uint32())
			}
		}
		for p := at; p < at+run; p += pageSize {
			wrote[p] = true
		}
	}
	_ = sink
	return wrote
}

const someMemory = 5<<20 + 3*pageSize // no multiple of what is read at once

// TestS07_PrivateMemory: what is written is exactly what was changed, zeroed pages included, and the file below
// stays as it is.
func TestS07_PrivateMemory(t *testing.T) {
	random := seeded(t)
	dir := t.TempDir()
	base := filepath.Join(dir, "base")
	booted, content := sharedMemory(t, someMemory)
	scribble(random, content, 200)
	clear(content[1<<20 : 3<<20]) // more than what is read at once is a hole of the file
	save(t, booted, false, base)
	requireContent(t, content, base)

	m, pages := privateMemory(t, base, someMemory)
	require.Equal(t, content, pages)
	// QEMU's mapping may be in pieces: advice about a part of it splits it.
	require.NoError(t, unix.Madvise(pages[2*pageSize:2<<20], unix.MADV_DONTFORK))
	wrote := map[int64]bool{}
	for round := range 4 {
		for at := range scribble(random, pages, 30) {
			wrote[at] = true
		}
		diff, full := filepath.Join(dir, fmt.Sprintf("diff%d", round)), filepath.Join(dir, fmt.Sprintf("full%d", round))
		save(t, m, true, diff)
		got := layer(t, diff, someMemory)
		require.Equal(t, len(wrote), len(got), "pages in the diff, round %d", round)
		for at := range wrote {
			require.True(t, bytes.Equal(pages[at:at+pageSize], got[at]), "page %d", at/pageSize)
		}
		save(t, m, false, full)
		requireContent(t, pages, full)
		// In place, over what was there: the last Full again, over a Full that is all data.
		require.NoError(t, os.WriteFile(full, bytes.Repeat([]byte{0xaa}, someMemory), 0o600))
		save(t, m, false, full)
		requireContent(t, pages, full)
		for at, page := range layer(t, full, someMemory) {
			require.False(t, bytes.Equal(page, zeroPage[:]), "zeros at page %d of a Full take room", at/pageSize)
		}
		requireContent(t, content, base)
	}
	// A Diff onto a copy of the base is a merge.
	merged := filepath.Join(dir, "merged")
	require.NoError(t, exec.Command("cp", base, merged).Run())
	save(t, m, true, merged)
	requireContent(t, pages, merged)
	// And so is one onto the very file below: the machine sees its own pages, and those are what it holds.
	save(t, m, true, base)
	requireContent(t, pages, base)
}

// TestS07_SharedMemory: the first Diff of a machine that booted can be loaded as it is; a later one tells of
// zeroed pages, since there is something below it by then.
func TestS07_SharedMemory(t *testing.T) {
	random := seeded(t)
	dir := t.TempDir()
	m, pages := sharedMemory(t, someMemory)
	scribble(random, pages, 300)
	clear(pages[7*pageSize : 9*pageSize])
	first, second := filepath.Join(dir, "first"), filepath.Join(dir, "second")
	save(t, m, true, first)
	requireContent(t, pages, first)
	for at, page := range layer(t, first, someMemory) {
		require.False(t, bytes.Equal(page, zeroPage[:]), "zeros at page %d of the first take room", at/pageSize)
	}
	clear(pages[someMemory/2:])
	scribble(random, pages, 10)
	save(t, m, true, second)
	merged, err := os.ReadFile(first)
	require.NoError(t, err)
	for at, page := range layer(t, second, someMemory) {
		copy(merged[at:], page)
	}
	require.True(t, bytes.Equal(pages, merged), "a page that was zeroed comes back")

	// A Diff of another machine that booted, onto a file that holds something: nothing of it may be lost either.
	other, pages := sharedMemory(t, someMemory)
	pages[0] = 1
	clear(pages[pageSize : 2*pageSize]) // touched, and zero
	require.NoError(t, os.WriteFile(first, bytes.Repeat([]byte{0xaa}, someMemory), 0o600))
	save(t, other, true, first)
	got, err := os.ReadFile(first)
	require.NoError(t, err)
	assert.Equal(t, pages[:2*pageSize], got[:2*pageSize])
	assert.Equal(t, byte(0xaa), got[2*pageSize], "what was never touched is unchanged")
	save(t, other, false, first)
	requireContent(t, pages, first)
}

func TestMemoryFiles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "memory")
	_, err := openMemory(path, 4096)
	require.ErrorContains(t, err, "Failed to load guest memory: No such file or directory (os error 2)")
	require.NoError(t, os.WriteFile(path, make([]byte, 8192), 0o600))
	for _, size := range []int64{4096, 12288} {
		_, err = openMemory(path, size)
		require.ErrorContains(t, err, fmt.Sprintf("memory file %s has 8192 bytes, the machine of the snapshot has %d", path, size))
	}
	fifo := filepath.Join(dir, "fifo")
	require.NoError(t, unix.Mkfifo(fifo, 0o600))
	_, err = openMemory(fifo, 4096)
	require.ErrorContains(t, err, "has 0 bytes")
	_, err = openMemoryFile("/nonexistent/memory", 4096)
	require.ErrorContains(t, err, "Cannot perform open on the memory backing file: No such file or directory (os error 2)")
	_, err = openMemoryFile("/dev/null", 4096)
	require.ErrorContains(t, err, "Cannot perform set_length on the memory backing file: Invalid argument (os error 22)")

	// One of another size is made anew, one of the same size is not.
	require.NoError(t, os.WriteFile(path, []byte("something"), 0o600))
	file, err := openMemoryFile(path, 8192)
	require.NoError(t, err)
	assert.True(t, file.fresh)
	require.NoError(t, file.write(4096, []byte("kept")))
	require.NoError(t, file.close(true))
	requireContent(t, append(make([]byte, 4096), append([]byte("kept"), make([]byte, 4092)...)...), path)
	file, err = openMemoryFile(path, 8192)
	require.NoError(t, err)
	assert.False(t, file.fresh)
	require.NoError(t, file.close(true))

	m, _ := privateMemory(t, path, 8192)
	file, err = openMemoryFile(filepath.Join(dir, "out"), 8192)
	require.NoError(t, err)
	require.Error(t, m.save(1<<22, true, file), "no such process")
	require.ErrorContains(t, m.save(os.Getppid(), true, file), "not mapped", "a process that has not mapped it")
	require.NoError(t, file.close(false))
	readOnly, err := os.Open(path)
	require.NoError(t, err)
	defer readOnly.Close()
	booted, pages := sharedMemory(t, 8192)
	pages[0] = 1
	require.Error(t, booted.save(os.Getpid(), false, &memoryFile{f: readOnly, fresh: true}), "what cannot be written is told")
	assert.False(t, booted.saved)
	short, err := os.Open(path)
	require.NoError(t, err)
	defer short.Close()
	require.ErrorContains(t, readFull(short, make([]byte, 4096), 6000), "unexpected EOF")
}

// BenchmarkSave measures what a snapshot's memory costs on this disk, sync included, beside cp. A quarter of the
// memory holds something, as after a boot; a diff has one page of eight, in runs of four.
func BenchmarkSave(b *testing.B) {
	const size = 256 << 20
	dir := b.TempDir()
	base, out := filepath.Join(dir, "base"), filepath.Join(dir, "out")
	booted, pages := sharedMemory(b, size)
	for at := 0; at < size; at += 4 << 20 {
		for i := at; i < at+1<<20; i += 64 {
			pages[i] = byte(i/64) | 1
		}
	}
	save(b, booted, false, base)
	loaded, private := privateMemory(b, base, size)
	for at := 0; at < size; at += 32 * pageSize {
		for page := range 4 {
			private[at+page*pageSize] = 1
		}
	}
	for _, test := range []struct {
		name  string
		bytes int64
		run   func() error
	}{
		{"booted/full", size / 4, func() error { return saveTo(booted, false, out) }},
		{"loaded/full", size / 4, func() error { return saveTo(loaded, false, out) }},
		{"loaded/diff", size / 8, func() error { return saveTo(loaded, true, out) }},
		{"cp", size / 4, func() error {
			memfd := "/proc/" + strconv.Itoa(os.Getpid()) + "/fd/" + strconv.Itoa(int(booted.file.Fd()))
			return exec.Command("sh", "-c", `cp --sparse=always "$0" "$1" && sync "$1"`, memfd, out).Run()
		}},
	} {
		b.Run(test.name, func(b *testing.B) {
			b.SetBytes(test.bytes)
			for b.Loop() {
				b.StopTimer()
				require.NoError(b, os.RemoveAll(out))
				b.StartTimer()
				require.NoError(b, test.run())
			}
		})
	}
}

func saveTo(m *memory, diff bool, path string) error {
	file, err := openMemoryFile(path, m.size)
	if err != nil {
		return err
	}
	if err := m.save(os.Getpid(), diff, file); err != nil {
		return err
	}
	return file.close(true)
}
