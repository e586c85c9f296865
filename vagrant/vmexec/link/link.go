// Package link is what vmexec says to itself across the wall of the virtual machine: the job that goes
// in with the archive, and the frames that come out by a serial line.
package link

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
)

const (
	// JobPath is where the job lies in the machine.
	JobPath = "/vmexec.json"
	// DevicePath is the machine's end of the line: the first port of the first virtio console.
	DevicePath = "/dev/vport0p1"
	// MaxPayload bounds a frame in bytes: enough that the cost of a frame, some 100 µs under emulation,
	// vanishes beside its bytes.
	MaxPayload = 64 << 10

	headerSize = 5 // kind, length
)

// Job is what the machine has to do.
type Job struct {
	Args    []string // of the test program, its path first
	Env     []string // all of its environment
	Dir     string   // its working directory
	Out     []string // files and folders that the host wants afterwards, where they exist
	Modules []string // file names of kernel modules, in loading order
}

// Kind says what a frame holds.
type Kind byte

// The kinds. A machine sends Ready, then any number of Output, then any number of Files, then Exit.
const (
	Ready  Kind = 'r' // the test program is about to be started; no payload
	Output Kind = 'o' // bytes that it wrote
	Files  Kind = 'f' // a piece of a tar archive of Job.Out
	Exit   Kind = 'x' // a Status in JSON
)

// Status is how the test program ended.
type Status struct {
	Code   int      // exit status, 128 plus the signal's number when a signal ended it
	Signal string   // the signal's name, empty when it ended by itself
	Left   []string // processes that were still there afterwards, described for people
	Error  string   // what the machine could not do, empty when all went well
}

// Writer writes frames; it may be used by several goroutines.
type Writer struct {
	mu sync.Mutex
	w  io.Writer
}

// ParseStatus reads the payload of an Exit frame.
func ParseStatus(payload []byte) (Status, error) {
	var s Status
	if err := json.Unmarshal(payload, &s); err != nil {
		return s, fmt.Errorf("decode the exit status: %w", err)
	}
	return s, nil
}

// NewWriter writes frames to w.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Send writes payload in as many frames of the kind as it takes, at least one.
func (w *Writer) Send(kind Kind, payload []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		piece := payload[:min(len(payload), MaxPayload)]
		payload = payload[len(piece):]
		frame := append(make([]byte, 0, headerSize+len(piece)), byte(kind))
		frame = binary.BigEndian.AppendUint32(frame, uint32(len(piece)))
		if _, err := w.w.Write(append(frame, piece...)); err != nil {
			return fmt.Errorf("write a frame of kind %c: %w", kind, err)
		}
		if len(payload) == 0 {
			return nil
		}
	}
}

// Exit sends the last frame.
func (w *Writer) Exit(s Status) error {
	payload, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encode the exit status: %w", err)
	}
	return w.Send(Exit, payload)
}

// Stream is an io.Writer whose bytes become frames of one kind.
type Stream struct {
	Kind Kind
	To   *Writer
}

// Write sends p.
func (s Stream) Write(p []byte) (int, error) {
	if err := s.To.Send(s.Kind, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Receive reads one frame. The error is io.EOF when the line ended between two frames, and
// io.ErrUnexpectedEOF when it ended inside one.
func Receive(r io.Reader) (Kind, []byte, error) {
	var header [headerSize]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return 0, nil, err
	}
	kind, size := Kind(header[0]), binary.BigEndian.Uint32(header[1:])
	if size > MaxPayload {
		return 0, nil, fmt.Errorf("frame of kind %q and %d bytes: more than %d", kind, size, MaxPayload)
	}
	payload := make([]byte, size)
	if _, err := io.ReadFull(r, payload); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return kind, payload, nil
}
