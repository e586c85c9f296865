package envdclient

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// pieces is an http.RoundTripper that gives each piece of a request's body, as it is read, to who asks.
type pieces chan []byte

func (p pieces) RoundTrip(r *http.Request) (*http.Response, error) {
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Body.Read(buf)
		if n > 0 {
			p <- bytes.Clone(buf[:n])
		}
		if err != nil {
			close(p)
			return nil, errors.New("there is nobody")
		}
	}
}

// TestT03_AKeyIsOnePiece: a message that left in two would be two packets.
func TestT03_AKeyIsOnePiece(t *testing.T) {
	seen := make(pieces, 10)
	c, err := New(Config{BaseURL: "http://guest", HTTPClient: &http.Client{Transport: seen}})
	require.NoError(t, err)
	feed := (&Program{client: c, PID: 7, terminal: true}).Feed(t.Context())
	for range 3 {
		require.NoError(t, feed.Input([]byte("k")))
	}
	for i := range 4 { // which process is meant, and three keys
		piece := <-seen
		require.Greater(t, len(piece), prefixBytes, "the prefix came alone")
		assert.Len(t, piece, prefixBytes+int(binary.BigEndian.Uint32(piece[1:])), "message %d", i)
	}
	require.Error(t, feed.Flush())
}

func TestWholeMessagesAreTheSameBytes(t *testing.T) {
	var all bytes.Buffer
	sizes := []int{0, 1, 0, 0, 5, 100, 40_000, 3}
	for _, size := range sizes {
		all.Write(binary.BigEndian.AppendUint32([]byte{0}, uint32(size)))
		all.Write(bytes.Repeat([]byte{byte(size)}, size))
	}
	together := &wholeMessages{ReadCloser: io.NopCloser(bytes.NewReader(all.Bytes()))}
	for i, size := range sizes {
		n, err := together.Read(make([]byte, 64<<10))
		require.NoError(t, err)
		require.Equal(t, prefixBytes+size, n, "message %d, and no more", i)
	}
	for _, cut := range []int{0, 1, 4, 7} { // in the middle of a message, and of a prefix
		want := all.Bytes()[:all.Len()-cut]
		for name, read := range map[string]io.Reader{
			"whole": bytes.NewReader(want), "byte by byte": iotest.OneByteReader(bytes.NewReader(want)), "end with data": iotest.DataErrReader(bytes.NewReader(want)),
		} {
			w := &wholeMessages{ReadCloser: io.NopCloser(read)}
			var got []byte
			for {
				p := make([]byte, 1+rand.IntN(50_000)*rand.IntN(2))
				n, err := w.Read(p)
				got = append(got, p[:n]...)
				if err != nil {
					require.ErrorIs(t, err, io.EOF)
					break
				}
			}
			require.True(t, bytes.Equal(want, got), "%s, %d short: %d bytes of %d", name, cut, len(got), len(want))
		}
	}
}

func TestWholeMessagesFailAsTheirBodyDoes(t *testing.T) {
	r, w := io.Pipe()
	failure := errors.New("it is over")
	go func() {
		_, _ = w.Write([]byte{0, 0, 0, 0, 9, 'x'})
		_ = w.CloseWithError(failure)
	}()
	got, err := io.ReadAll(&wholeMessages{ReadCloser: r})
	require.ErrorIs(t, err, failure)
	assert.Equal(t, []byte{0, 0, 0, 0, 9, 'x'}, got)
	r2, err := http.NewRequestWithContext(context.Background(), http.MethodPost, "http://x", bytes.NewReader([]byte("plain")))
	require.NoError(t, err)
	before := r2.Body
	gathered(r2)
	assert.Equal(t, before, r2.Body, "a call with one message is as it was")
}
