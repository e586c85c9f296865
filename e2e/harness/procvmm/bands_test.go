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
	b.pass = func([]byte) bool {
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
