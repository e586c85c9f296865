package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// Sizes of blocks in bytes: some share a page, some have several of their own.
const (
	smallBlock, largeBlock = 512, 64 << 10
	mebibyte               = 1 << 20
)

// pace is the pause between two changes of a mutator: enough to keep the collector busy without taking the
// processor for itself.
const pace = 2 * time.Millisecond

// heap is many blocks, each with content that follows from its number and version, or all zero. Two mutators
// change, zero, drop and remake them all the time.
type heap struct {
	shards []*shard
}

// shard is a part of the heap with a mutator of its own.
type shard struct {
	mu     sync.Mutex
	random *rand.Rand
	blocks []*block
	moves  int64
	wrong  error
}

type block struct {
	number, version uint64
	zero            bool
	data            []byte
	// next makes the collector follow pointers from page to page.
	next *block
}

func newHeap(mib int, seed uint64) *heap {
	const shards = 2
	h := &heap{}
	for i := range uint64(shards) {
		s := &shard{random: rand.New(rand.NewPCG(seed, i))} //nolint:gosec // it has to be the same again
		for size, number := 0, i<<32; size < mib*mebibyte/shards; number++ {
			b := &block{number: number, data: make([]byte, s.size())}
			b.fill()
			s.blocks = append(s.blocks, b)
			size += len(b.data)
		}
		for j, b := range s.blocks {
			b.next = s.blocks[(j*7+1)%len(s.blocks)]
		}
		h.shards = append(h.shards, s)
		go s.mutate()
	}
	return h
}

func (s *shard) size() int {
	return smallBlock << s.random.IntN(8) // up to largeBlock
}

// mutate changes one block after the other, for ever.
func (s *shard) mutate() {
	for {
		time.Sleep(pace)
		s.mu.Lock()
		s.change()
		s.mu.Unlock()
	}
}

// change looks at a block and makes another of it.
func (s *shard) change() {
	i := s.random.IntN(len(s.blocks))
	b := s.blocks[i]
	s.fail(b.verify())
	b.version++
	switch s.random.IntN(4) {
	case 0:
		clear(b.data)
		b.zero = true
	case 1: // another allocation in its place; the old one is garbage
		b = &block{number: b.number, version: b.version, data: make([]byte, len(b.data)), next: b.next}
		b.fill()
		s.blocks[i] = b
	case 2: // what the runtime gives is zero, and has to be
		fresh := make([]byte, largeBlock)
		if len(bytes.TrimLeft(fresh, "\x00")) != 0 {
			s.fail(errors.New("fresh memory is not zero"))
		}
		b.fill()
	default:
		b.fill()
	}
	s.moves++
}

func (s *shard) fail(err error) {
	if s.wrong == nil {
		s.wrong = err
	}
}

// fill writes what the block's number and version call for.
func (b *block) fill() {
	r := rand.NewPCG(b.number, b.version)
	for i := 0; i+8 <= len(b.data); i += 8 {
		binary.LittleEndian.PutUint64(b.data[i:], r.Uint64())
	}
	b.zero = false
}

func (b *block) verify() error {
	r := rand.NewPCG(b.number, b.version)
	for i := 0; i+8 <= len(b.data); i += 8 {
		want := r.Uint64()
		if b.zero {
			want = 0
		}
		if got := binary.LittleEndian.Uint64(b.data[i:]); got != want {
			return fmt.Errorf("block %x, version %d, zero %t, at %p+%d: %x, want %x", b.number, b.version, b.zero, &b.data[0], i, got, want)
		}
	}
	return nil
}

// dirty changes blocks of mib MiB at once.
func (h *heap) dirty(mib int) {
	for _, s := range h.shards {
		s.mu.Lock()
		left := mib * mebibyte / len(h.shards)
		for i := 0; left > 0; i = (i + 1) % len(s.blocks) {
			b := s.blocks[i]
			s.fail(b.verify())
			b.version++
			b.fill()
			left -= len(b.data)
			s.moves++
		}
		s.mu.Unlock()
	}
}

func (h *heap) check() (moves int64, err error) {
	for _, s := range h.shards {
		s.mu.Lock()
		for _, b := range s.blocks {
			s.fail(b.verify())
		}
		moves += s.moves
		err = errors.Join(err, s.wrong)
		s.mu.Unlock()
	}
	return moves, err
}
