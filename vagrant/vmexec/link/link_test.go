package link_test

import (
	"bytes"
	"io"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/vagrant/vmexec/link"
)

func TestFramesComeOutAsTheyWentIn(t *testing.T) {
	var line bytes.Buffer
	w := link.NewWriter(&line)
	big := bytes.Repeat([]byte{0, 1, 0xff, 'x'}, link.MaxPayload/4+100)
	require.NoError(t, w.Send(link.Ready, nil))
	n, err := link.Stream{Kind: link.Output, To: w}.Write(big)
	require.NoError(t, err)
	assert.Equal(t, len(big), n)
	status := link.Status{Code: 137, Signal: "SIGKILL", Left: []string{"12 sleep"}}
	require.NoError(t, w.Exit(status))

	var kinds []link.Kind
	var output, last []byte
	for {
		kind, payload, err := link.Receive(&line)
		if err != nil {
			require.ErrorIs(t, err, io.EOF)
			break
		}
		kinds, last = append(kinds, kind), payload
		if kind == link.Output {
			output = append(output, payload...)
		}
	}
	assert.Equal(t, []link.Kind{link.Ready, link.Output, link.Output, link.Exit}, kinds)
	assert.True(t, bytes.Equal(big, output))
	got, err := link.ParseStatus(last)
	require.NoError(t, err)
	assert.Equal(t, status, got)
}

func TestABrokenLine(t *testing.T) {
	var line bytes.Buffer
	require.NoError(t, link.NewWriter(&line).Send(link.Output, []byte("hello")))
	whole := line.Bytes()
	for n := range whole {
		_, _, err := link.Receive(bytes.NewReader(whole[:n]))
		want := io.ErrUnexpectedEOF
		if n == 0 {
			want = io.EOF
		}
		assert.ErrorIs(t, err, want, "%d bytes", n)
	}
	_, _, err := link.Receive(bytes.NewReader([]byte{'o', 0xff, 0, 0, 0}))
	assert.ErrorContains(t, err, "more than 65536")
	_, err = link.ParseStatus([]byte("{"))
	assert.Error(t, err)
}
