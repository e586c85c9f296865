package transport

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A body that ends too early must not look like a request's proper end.
func TestDirectBreaksOffWhatBreaksOff(t *testing.T) {
	got := make(chan error, 2)
	addr := script(t, func(_ int, _ net.Conn, r *bufio.Reader) {
		req, err := http.ReadRequest(r)
		if err == nil {
			_, err = io.Copy(io.Discard, req.Body)
		}
		got <- err
	})
	tr := NewProxyTransport()
	for _, length := range []int64{100, -1} {
		broken := errors.New("the client went away")
		req, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+addr, io.MultiReader(strings.NewReader("part"), errReader{broken}))
		require.NoError(t, err)
		req.ContentLength = length
		_, err = tr.RoundTrip(req)
		require.ErrorIs(t, err, broken)
		assert.ErrorIs(t, <-got, io.ErrUnexpectedEOF, "it was not left waiting")
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

// Who reads the error is told how much is missing.
func TestDirectTellsHowMuchOfABodyIsMissing(t *testing.T) {
	addr := script(t, func(_ int, _ net.Conn, r *bufio.Reader) {
		if req, err := http.ReadRequest(r); err == nil {
			_, _ = io.Copy(io.Discard, req.Body)
		}
	})
	req, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+addr, io.MultiReader(strings.NewReader("part"), strings.NewReader("s")))
	require.NoError(t, err)
	req.ContentLength = 100
	_, err = NewProxyTransport().RoundTrip(req)
	require.ErrorContains(t, err, "ended 95 bytes before its length")
}

// A guest that refuses before it has asked for the body is not sent it.
func TestDirectSendsNoBodyThatIsRefused(t *testing.T) {
	addr := script(t, func(_ int, conn net.Conn, r *bufio.Reader) {
		_, _ = http.ReadRequest(r)
		_, _ = io.WriteString(conn, "HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
		_, _ = r.ReadByte()
	})
	read := make(chan struct{}, 1)
	body := readerFunc(func(p []byte) (int, error) {
		read <- struct{}{}
		return 0, io.EOF
	})
	req, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+addr, body)
	require.NoError(t, err)
	req.ContentLength = 5
	req.Header.Set("Expect", "100-continue")
	res, err := NewProxyTransport().RoundTrip(req)
	require.NoError(t, err)
	assert.Equal(t, http.StatusRequestEntityTooLarge, res.StatusCode)
	time.Sleep(50 * time.Millisecond) // in which it would be read
	require.NoError(t, res.Body.Close())
	assert.Empty(t, read)
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// told is a body of unknown length that writes itself.
type told struct {
	io.Reader
	to     chan<- io.Writer
	ended  <-chan struct{}
	failed error
}

func (b told) Close() error { return nil }

func (b told) WriteTo(w io.Writer) (int64, error) {
	b.to <- w
	<-b.ended
	return 0, b.failed
}

// A body that writes itself is sent piece by piece as it is written, from whichever goroutine.
func TestDirectLetsABodyWriteItself(t *testing.T) {
	for _, failed := range []error{nil, errors.New("the client went away")} {
		got, rest := make(chan string), make(chan error, 1)
		addr := script(t, func(_ int, conn net.Conn, r *bufio.Reader) {
			req, err := http.ReadRequest(r)
			for buf := make([]byte, 100); err == nil; {
				var n int
				if n, err = req.Body.Read(buf); n > 0 {
					got <- string(buf[:n])
				}
			}
			rest <- err
			_, _ = io.WriteString(conn, fine)
		})
		to, ended := make(chan io.Writer, 1), make(chan struct{})
		answered := make(chan error, 1)
		go func() {
			_, _, err := exchangeOne(t, NewStreamProxyTransport(), "POST", addr, told{to: to, ended: ended, failed: failed})
			answered <- err
		}()
		w := <-to
		room, ok := w.(interface{ HasRoom() bool })
		require.True(t, ok)
		for _, piece := range []string{"a", "bc", "def"} {
			assert.True(t, room.HasRoom())
			n, err := io.WriteString(w, piece)
			require.NoError(t, err)
			assert.Equal(t, len(piece), n)
			assert.Equal(t, piece, <-got)
		}
		close(ended)
		if failed == nil {
			require.ErrorIs(t, <-rest, io.EOF)
			require.NoError(t, <-answered)
		} else {
			require.ErrorIs(t, <-rest, io.ErrUnexpectedEOF, "it does not look like the body's end")
			require.ErrorIs(t, <-answered, failed)
		}
	}
}
