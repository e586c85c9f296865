package nameserver

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	// tryTimeout bounds one question to one upstream. Resolver libraries wait 5 s for us (RES_TIMEOUT in
	// resolv.h); in that time a second upstream must have had its chance.
	tryTimeout = 2 * time.Second
	// queryTimeout bounds the whole of a query; afterwards nobody waits for the answer.
	queryTimeout = 4500 * time.Millisecond
)

// ask puts the question to one upstream after the other until one answers it. It returns that answer and
// the id under which it was asked.
func ask(ctx context.Context, upstreams []netip.AddrPort, q query) (msg []byte, id uint16, err error) {
	if len(upstreams) == 0 {
		return nil, 0, errors.New("this host has no resolver to ask")
	}
	// Each query has an id and a source port of its own that a forger would have to guess.
	var random [2]byte
	_, _ = rand.Read(random[:])
	id = binary.BigEndian.Uint16(random[:])
	packed, err := q.upstream(id)
	if err != nil {
		return nil, 0, err
	}
	var errs []error
	for _, upstream := range upstreams {
		answer, err := askOne(ctx, upstream, q, id, packed)
		if err == nil {
			return answer, id, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", upstream, err))
	}
	return nil, 0, errors.Join(errs...)
}

// askOne asks by UDP, and by TCP for what does not fit. A failure of the upstream is an error, so that
// the next is asked.
func askOne(ctx context.Context, upstream netip.AddrPort, q query, id uint16, packed []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	answer, err := exchange(ctx, "udp", upstream, q, id, packed)
	if err != nil {
		return nil, err
	}
	if truncated(answer) {
		if answer, err = exchange(ctx, "tcp", upstream, q, id, packed); err != nil {
			return nil, err
		}
	}
	var p dnsmessage.Parser
	header, err := p.Start(answer)
	if err == nil && header.RCode != dnsmessage.RCodeSuccess && header.RCode != dnsmessage.RCodeNameError {
		err = fmt.Errorf("it answers %s", header.RCode)
	}
	return answer, err
}

func exchange(ctx context.Context, network string, upstream netip.AddrPort, q query, id uint16, packed []byte) ([]byte, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, upstream.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()                                          //nolint:errcheck // the answer has been read, or nobody wants it
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })() // ends the read
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return nil, err
		}
	}
	if network == "tcp" {
		if err := writeFrame(conn, packed); err != nil {
			return nil, err
		}
		answer, err := readFrame(conn, maxMessage)
		if err == nil && !answers(answer, q, id) {
			err = errForeign
		}
		return answer, err
	}
	if _, err := conn.Write(packed); err != nil {
		return nil, err
	}
	for buf := make([]byte, maxQuery); ; {
		n, err := conn.Read(buf)
		if err != nil {
			return nil, err
		}
		if answers(buf[:n], q, id) {
			return buf[:n], nil // what is not an answer may be a forger's; the true one may still come
		}
	}
}

func answers(msg []byte, q query, id uint16) bool {
	var p dnsmessage.Parser
	header, err := p.Start(msg)
	if err != nil || !header.Response || header.ID != id {
		return false
	}
	question, err := p.Question()
	return err == nil && sameQuestion(question, q.question)
}

func truncated(msg []byte) bool {
	var p dnsmessage.Parser
	header, err := p.Start(msg)
	return err == nil && header.Truncated
}

// readFrame reads a message with its length in front, as on TCP, RFC 1035 section 4.2.2.
func readFrame(r io.Reader, limit int) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(length[:]))
	if n > limit {
		return nil, fmt.Errorf("a message of %d bytes is longer than %d", n, limit)
	}
	msg := make([]byte, n)
	_, err := io.ReadFull(r, msg)
	return msg, err
}

func writeFrame(w io.Writer, msg []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...))
	return err
}
