package uffd

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"wrenn/impl/memfile"
)

// The test binary plays the VMM in a process of its own: it maps memory, hands its userfaultfd over as
// Firecracker does, and touches pages as it is told by its standard input.
const playVMM = "WRENN_TEST_VMM"

// play is what the VMM is told at its start.
type play struct {
	Socket string
	Size   int64
	Truth  string // file of what the memory should hold
	Split  bool   // two regions, the second one above a gap
	Old    bool   // the spelling before Firecracker 1.12
	Slow   bool   // the handshake comes in three pieces, the descriptor with the last
	Say    string // says this instead of the regions
	Pad    int    // and so many spaces behind it
	Hand   string // hands over: "" the userfaultfd, "none", "two", "file"
	File   string // maps this file instead of using a userfaultfd
	Seed   uint64
}

type machine struct {
	play
	parts []([]byte)
	truth []byte
	rand  *rand.Rand
}

// in is page p of the memory.
func (m *machine) in(p int64) []byte {
	at := p * memfile.PageSize
	for _, part := range m.parts {
		if at < int64(len(part)) {
			return part[at : at+memfile.PageSize]
		}
		at -= int64(len(part))
	}
	panic("no such page")
}

func (m *machine) expected(p int64) []byte {
	return m.truth[p*memfile.PageSize : (p+1)*memfile.PageSize]
}

func playMain(config string) int {
	var m machine
	err := json.Unmarshal([]byte(config), &m.play)
	if err == nil {
		m.rand = rand.New(rand.NewPCG(m.Seed, 7))
		err = m.start()
	}
	if err != nil {
		fmt.Println("failed:", err)
		return 1
	}
	fmt.Println("ready")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		words := strings.Fields(in.Text())
		n, _ := strconv.Atoi(words[1])
		// A thread that waits for a page keeps its P.
		runtime.GOMAXPROCS(n + 2)
		switch words[0] {
		case "touch":
			fmt.Println(m.touch(n))
		case "compare":
			fmt.Println(m.compare(n))
		case "first":
			fmt.Println(m.first(n))
		case "duel":
			fmt.Println(m.duel(n))
		case "race":
			fmt.Println(m.race(n))
		}
	}
	return 0
}

func (m *machine) start() error {
	truth, err := os.ReadFile(m.Truth)
	if err != nil {
		return err
	}
	m.truth = truth
	if m.File != "" {
		f, err := os.Open(m.File)
		if err != nil {
			return err
		}
		defer f.Close()
		b, err := unix.Mmap(int(f.Fd()), 0, int(m.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
		m.parts = [][]byte{b}
		return err
	}
	return m.handOver()
}

const (
	ioctlAPI      = 0xc018aa3f
	ioctlRegister = 0xc020aa00
)

func (m *machine) handOver() error {
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	if errno != 0 {
		return fmt.Errorf("userfaultfd: %w", errno)
	}
	api := [3]uint64{0xAA, 1 << 3, 0} // the feature EVENT_REMOVE
	if err := (memory{int(fd)}).ioctl(ioctlAPI, unsafe.Pointer(&api)); err != nil {
		return fmt.Errorf("uffdio_api: %w", err)
	}
	sizes := []int64{m.Size}
	if m.Split {
		first := m.Size / 3 / memfile.PageSize * memfile.PageSize
		sizes = []int64{first, m.Size - first}
	}
	var said []map[string]any
	offset := int64(0)
	for _, size := range sizes {
		b, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
		if err != nil {
			return err
		}
		address := uint64(uintptr(unsafe.Pointer(&b[0])))
		arg := [4]uint64{address, uint64(size), 1, 0} // mode MISSING
		if err := (memory{int(fd)}).ioctl(ioctlRegister, unsafe.Pointer(&arg)); err != nil {
			return fmt.Errorf("uffdio_register: %w", err)
		}
		m.parts = append(m.parts, b)
		r := map[string]any{"base_host_virt_addr": address, "size": size, "offset": offset, "page_size_kib": memfile.PageSize}
		if !m.Old {
			r["page_size"] = memfile.PageSize
		}
		said = append(said, r)
		offset += size
	}
	return m.say(said, int(fd))
}

func (m *machine) say(said any, fd int) error {
	text, err := json.Marshal(said)
	if err != nil {
		return err
	}
	if m.Say != "" {
		text = []byte(m.Say + strings.Repeat(" ", m.Pad))
	}
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: m.Socket, Net: "unix"})
	if err != nil {
		return err
	}
	var rights []byte
	switch m.Hand {
	case "":
		rights = unix.UnixRights(fd)
	case "two":
		rights = unix.UnixRights(fd, fd)
	case "file":
		rights = unix.UnixRights(1)
	}
	if m.Slow {
		for _, part := range [][]byte{text[:10], text[10 : len(text)-3]} {
			if _, err := conn.Write(part); err != nil {
				return err
			}
			time.Sleep(20 * time.Millisecond)
		}
		text = text[len(text)-3:]
	}
	_, _, err = conn.WriteMsgUnix(text, rights, nil)
	// Firecracker keeps its end open.
	runtime.KeepAlive(conn)
	kept = append(kept, conn)
	return err
}

var kept []*net.UnixConn

// each calls f for all pages in random order, on n threads. A page belongs to one thread.
func (m *machine) each(n int, f func(thread int, p int64) string) string {
	order := m.rand.Perm(len(m.truth) / memfile.PageSize)
	var all sync.WaitGroup
	var bad atomic.Value
	for thread := range n {
		all.Go(func() {
			runtime.LockOSThread()
			for i := thread; i < len(order); i += n {
				if wrong := f(thread, int64(order[i])); wrong != "" {
					bad.Store(wrong)
				}
			}
		})
	}
	all.Wait()
	if wrong, ok := bad.Load().(string); ok {
		return wrong
	}
	return "ok"
}

// touch reads a byte of each page and reports how long that took: count, total, p50, p99, max, in ns.
func (m *machine) touch(n int) string {
	took := make([][]time.Duration, n)
	began := time.Now()
	m.each(n, func(thread int, p int64) string {
		at := time.Now()
		sink.Add(uint64(m.in(p)[0]))
		took[thread] = append(took[thread], time.Since(at))
		return ""
	})
	total := time.Since(began)
	all := slices.Concat(took...)
	slices.Sort(all)
	return fmt.Sprintln("ok", len(all), total.Nanoseconds(), all[len(all)/2].Nanoseconds(), all[len(all)*99/100].Nanoseconds(), all[len(all)-1].Nanoseconds())
}

var sink atomic.Uint64

func (m *machine) compare(n int) string {
	return m.each(n, func(_ int, p int64) string {
		if !bytes.Equal(m.in(p), m.expected(p)) {
			return fmt.Sprintf("page %d holds other content: %x", p, m.in(p)[:16])
		}
		return ""
	})
}

// first reads the first n pages in order.
func (m *machine) first(n int) string {
	for p := range int64(n) {
		if !bytes.Equal(m.in(p), m.expected(p)) {
			return fmt.Sprintf("page %d holds other content", p)
		}
	}
	return "ok"
}

// race gives pages away and takes them again while their neighbours, which are filled along, are touched.
func (m *machine) race(n int) string {
	var zero [memfile.PageSize]byte
	coins := make([]*rand.Rand, n)
	for i := range coins {
		coins[i] = rand.New(rand.NewPCG(m.Seed, uint64(i)))
	}
	return m.each(n, func(thread int, p int64) string {
		coin := coins[thread]
		page := m.in(p)
		if coin.IntN(2) == 0 && !bytes.Equal(page, m.expected(p)) {
			return fmt.Sprintf("page %d holds other content", p)
		}
		for range coin.IntN(3) {
			if err := unix.Madvise(page, unix.MADV_DONTNEED); err != nil {
				return err.Error()
			}
			if coin.IntN(2) == 0 {
				runtime.Gosched()
			}
			if !bytes.Equal(page, zero[:]) {
				return fmt.Sprintf("page %d was given away and came back with %x", p, page[:16])
			}
			if coin.IntN(2) == 0 {
				page[5] = 1
			}
			if err := unix.Madvise(page, unix.MADV_DONTNEED); err != nil {
				return err.Error()
			}
			if !bytes.Equal(page, zero[:]) {
				return fmt.Sprintf("page %d was given away again and came back with %x", p, page[:16])
			}
			// From now on this is what it holds.
			copy(m.expected(p), zero[:])
		}
		return ""
	})
}

// duel touches a page on one thread at the moment in which another one gives a page away, n times, and nothing
// else happens meanwhile: a fault that is refused then is followed by no further event.
func (m *machine) duel(n int) string {
	runtime.GOMAXPROCS(4)
	order := m.rand.Perm(len(m.truth) / memfile.PageSize)
	var round atomic.Int64
	var removed error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		for i := range n {
			for round.Load() < int64(i+1) { // spins, to be as fast as can be
			}
			if err := unix.Madvise(m.in(int64(order[n+i])), unix.MADV_DONTNEED); err != nil {
				removed = err
			}
			round.Store(-int64(i + 1))
			for round.Load() == -int64(i+1) {
				runtime.Gosched()
			}
		}
	}()
	for i := range n {
		round.Store(int64(i + 1))
		p := int64(order[i])
		if !bytes.Equal(m.in(p), m.expected(p)) {
			return fmt.Sprintf("page %d holds other content", p)
		}
		for round.Load() != -int64(i+1) {
			runtime.Gosched()
		}
		round.Store(0)
	}
	<-done
	if removed != nil {
		return removed.Error()
	}
	return "ok"
}
