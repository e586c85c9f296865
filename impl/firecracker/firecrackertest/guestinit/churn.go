//go:build linux

package main

import (
	"encoding/binary"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	pageSize = 4096
	// churned is how many pages are kept in motion: 16 MiB. In a tick, changes of them change and checks of
	// them are checked, so that each is looked at every 16 ticks.
	churned, changes, checks = 4096, 64, 256
)

// churner keeps memory in motion and knows what must be in it: pages are filled, filled again and zeroed. A
// page that a snapshot lost, mixed up or brought back from the past is found within 16 ticks.
type churner struct {
	memory   []byte
	contents []uint64 // of each page; 0 for zeros
	random   uint64
	next     int
}

// churn ticks like "count", with every change and check in between, and writes each tick to the first disk, if
// there is one.
func churn() {
	memory, err := unix.Mmap(-1, 0, churned*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	report(err)
	c := &churner{memory: memory, contents: make([]uint64, churned), random: 88172645463325252}
	for page := range churned {
		c.fill(page, uint64(page)+1)
	}
	disk, err := os.OpenFile("/dev/vda", os.O_RDWR|os.O_SYNC, 0)
	hasDisk := err == nil
	for tick := uint64(0); ; tick++ {
		for range changes {
			c.change(tick)
		}
		for range checks {
			c.check(tick)
		}
		if hasDisk {
			_, err := disk.WriteAt(binary.LittleEndian.AppendUint64(nil, tick), pageSize)
			report(err)
		}
		say("tick %d", tick)
		time.Sleep(50 * time.Millisecond)
	}
}

// change zeroes one page of three and fills the others anew.
func (c *churner) change(tick uint64) {
	c.random ^= c.random << 13
	c.random ^= c.random >> 7
	c.random ^= c.random << 17
	page := int(c.random % churned)
	if c.random>>32%3 == 0 {
		clear(c.page(page))
		c.contents[page] = 0
		return
	}
	c.fill(page, churned+tick)
}

func (c *churner) fill(page int, content uint64) {
	c.contents[page] = content
	for at, words := 0, c.page(page); at < pageSize; at += 8 {
		binary.LittleEndian.PutUint64(words[at:], word(page, at, content))
	}
}

func (c *churner) check(tick uint64) {
	page := c.next
	c.next = (c.next + 1) % churned
	for at, words := 0, c.page(page); at < pageSize; at += 8 {
		want := uint64(0)
		if c.contents[page] != 0 {
			want = word(page, at, c.contents[page])
		}
		if got := binary.LittleEndian.Uint64(words[at:]); got != want {
			say("corrupt in tick %d: page %d of content %d holds %#x at %d, not %#x", tick, page, c.contents[page], got, at, want)
			return
		}
	}
}

func (c *churner) page(n int) []byte { return c.memory[n*pageSize : (n+1)*pageSize] }

// word differs by page, place and content, and is never 0.
func word(page, at int, content uint64) uint64 {
	return (uint64(page)<<40|content<<12|uint64(at))*0x9e3779b97f4a7c15 | 1
}
