package main

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// frameOf is one of that length with that type of service, whose last bytes are its number.
func frameOf(length int, tos byte, number uint32) []byte {
	frame := make([]byte, length)
	frame[22], frame[23], frame[25] = 0x08, 0x00, tos
	binary.BigEndian.PutUint32(frame[length-4:], number)
	return frame
}

func TestT07_MarkedFramesGoFirst(t *testing.T) {
	b := newBands(minQueue)
	for i, tos := range []byte{0, 0, 0x10, 0, 0x10} {
		b.put(frameOf(100+i, tos, uint32(i)))
	}
	b.close()
	buf := make([]byte, maxFrame)
	var order []uint32
	for n := b.take(buf); n > 0; n = b.take(buf) {
		order = append(order, binary.BigEndian.Uint32(buf[n-4:n]))
	}
	assert.Equal(t, []uint32{2, 4, 0, 1, 3}, order)
}

// TestFramesGoByOnlyWhileNothingWaits: else those of one connection would overtake each other.
func TestFramesGoByOnlyWhileNothingWaits(t *testing.T) {
	b := newBands(minQueue)
	passed, open := 0, true
	b.pass = func(_ []byte, held int) bool {
		assert.Zero(t, held)
		if open {
			passed++
		}
		return open
	}
	frame, buf := frameOf(100, 0x10, 1), make([]byte, maxFrame)
	b.put(frame)
	assert.Equal(t, 1, passed)
	open = false
	b.put(frame)
	open = true
	b.put(frame)
	assert.Equal(t, 1, passed, "one waits")
	b.take(buf)
	b.put(frame)
	assert.Equal(t, 1, passed, "one waits still")
	b.take(buf)
	b.take(buf)
	b.put(frame)
	assert.Equal(t, 1, passed, "one that was taken is not done with")
	b.close()
	assert.NotZero(t, b.take(buf))
	assert.Zero(t, b.take(buf))
	b.put(frame)
	assert.Equal(t, 2, passed)
}

// TestT07_MarkedFramesDoNotWaitForOneThatRests until the limit lets it go: what they spend is paid for
// later. Among themselves they keep their order, and those that are not marked wait.
func TestT07_MarkedFramesDoNotWaitForOneThatRests(t *testing.T) {
	b := newBands(minQueue)
	var passed []uint32
	open, want := false, 0
	b.pass = func(frame []byte, held int) bool {
		if open {
			passed = append(passed, binary.BigEndian.Uint32(frame[len(frame)-4:]))
			assert.Equal(t, want, held)
		}
		return open
	}
	buf := make([]byte, maxFrame)
	b.put(frameOf(100, 0, 1))
	require.Equal(t, 100, b.take(buf))
	open = true
	b.put(frameOf(100, 0x10, 2))
	assert.Empty(t, passed, "the one that was taken is being sent")
	require.Equal(t, 100, b.take(buf))
	b.rests(true)
	b.put(frameOf(100, 0x10, 3))
	assert.Empty(t, passed, "the one that rests is marked, too")
	b.rests(false)
	require.Equal(t, 100, b.take(buf))
	b.put(frameOf(200, 0, 4))
	require.Equal(t, 200, b.take(buf))
	b.rests(true)
	b.put(frameOf(100, 0, 5))
	assert.Empty(t, passed, "not marked")
	want = 200
	b.put(frameOf(100, 0x10, 6))
	b.put(frameOf(100, 0x10, 7))
	assert.Equal(t, []uint32{6, 7}, passed)
	open = false
	b.put(frameOf(100, 0x10, 8))
	open = true
	b.put(frameOf(100, 0x10, 9))
	assert.Equal(t, []uint32{6, 7}, passed, "one that is marked waits")
	b.close()
	var order []uint32
	for n := b.take(buf); n > 0; n = b.take(buf) {
		order = append(order, binary.BigEndian.Uint32(buf[n-4:n]))
	}
	assert.Equal(t, []uint32{8, 9, 5}, order)
}

// TestARingKeepsFramesWholeAndInOrder compares it with a list, with frames of all lengths and round its end.
func TestARingKeepsFramesWholeAndInOrder(t *testing.T) {
	r := ring{data: make([]byte, 1000)}
	var want [][]byte
	held, lost := 0, 0
	buf := make([]byte, maxFrame)
	for i := range uint32(20_000) {
		if rand.IntN(2) == 0 {
			frame := frameOf(30+rand.IntN(300), 0, i)
			room := held+lengthBytes+len(frame) <= len(r.data)
			require.Equal(t, room, r.put(frame))
			if room {
				want, held = append(want, frame), held+lengthBytes+len(frame)
			} else {
				lost++
			}
			continue
		}
		n := r.take(buf)
		if len(want) == 0 {
			require.Zero(t, n)
			continue
		}
		require.Equal(t, want[0], buf[:n])
		want, held = want[1:], held-lengthBytes-n
	}
	assert.NotZero(t, lost)
}
