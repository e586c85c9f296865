package nameserver

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/dns/dnsmessage"
)

// FuzzQuery is what a hostile guest can send.
func FuzzQuery(f *testing.F) {
	plain := ask4("a.ok.")
	extended := ask4("b.ok.")
	extended.Additionals = []dnsmessage.Resource{options([]dnsmessage.Option{{Code: 10, Data: []byte("cookie")}})}
	for _, m := range []dnsmessage.Message{plain, extended, {}} {
		f.Add(packed(f, m))
	}
	f.Add([]byte("\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0c\x00\x01\x00\x01"))
	f.Fuzz(func(t *testing.T, msg []byte) {
		server := newFixture(func(q query) *dnsmessage.Message {
			require.True(t, newFixture(nil).cfg.Allowed(q.question.Name.String()), "%v was asked for", q.question)
			return &dnsmessage.Message{Answers: []dnsmessage.Resource{{
				Header: dnsmessage.ResourceHeader{Name: q.question.Name, Class: dnsmessage.ClassINET, TTL: 1}, Body: address("192.0.2.1"),
			}}}
		})
		for _, stream := range []bool{false, true} {
			answer := server.answer(msg, stream)
			if answer == nil {
				continue
			}
			var m dnsmessage.Message
			require.NoError(t, m.Unpack(answer))
			assert.True(t, m.Response)
			assert.Equal(t, msg[:2], answer[:2], "the id")
			if !stream {
				assert.LessOrEqual(t, len(answer), safeSize)
			}
		}
	})
}

// FuzzRelay is what a hostile upstream, or a forger, can send.
func FuzzRelay(f *testing.F) {
	q := query{question: ask4("a.ok.").Questions[0]}
	good := dnsmessage.Message{
		Header: dnsmessage.Header{ID: 5, Response: true}, Questions: []dnsmessage.Question{q.question},
		Answers: []dnsmessage.Resource{
			record("a.ok.", 300, &dnsmessage.CNAMEResource{CNAME: name("b.test.")}), record("b.test.", 60, address("192.0.2.1")),
			record("b.test.", 60, &dnsmessage.MXResource{MX: name("c.test.")}),
		},
		Authorities: []dnsmessage.Resource{record("ok.", 5, &dnsmessage.SOAResource{NS: name("ns."), MBox: name("m.")})},
	}
	f.Add(packed(f, good))
	f.Add([]byte{0, 5, 0x80, 0})
	f.Fuzz(func(t *testing.T, msg []byte) {
		_ = truncated(msg)
		out, found, err := relay(q, 5, msg, maxTTL)
		if err != nil {
			return
		}
		require.True(t, answers(msg, q, 5), "the first look took it for another's")
		assert.LessOrEqual(t, len(found), len(out.Answers))
		answer, err := pack(out, maxMessage)
		if err == nil {
			var m dnsmessage.Message
			require.NoError(t, m.Unpack(answer))
		}
	})
}
