package nameserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/net/dns/dnsmessage"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const maxTTL = time.Hour

func name(s string) dnsmessage.Name { return dnsmessage.MustNewName(s) }

func record(owner string, ttl uint32, body dnsmessage.ResourceBody) dnsmessage.Resource {
	return dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: name(owner), Class: dnsmessage.ClassINET, TTL: ttl}, Body: body}
}

func address(s string) *dnsmessage.AResource {
	return &dnsmessage.AResource{A: netip.MustParseAddr(s).As4()}
}

// ask4 is a query for type A.
func ask4(owner string) dnsmessage.Message {
	return dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 4711, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: name(owner), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}},
	}
}

func packed(tb testing.TB, m dnsmessage.Message) []byte {
	tb.Helper()
	msg, err := m.Pack()
	require.NoError(tb, err)
	return msg
}

// fixture is a server without sockets, which allows names below "ok." and remembers what it learned.
type fixture struct {
	*Server
	mu       sync.Mutex
	learned  map[string][]Address
	learnErr error
}

// newFixture has upstreams answer with the records; a nil answer is a failure.
func newFixture(answer func(q query) *dnsmessage.Message) *fixture {
	f := &fixture{learned: map[string][]Address{}}
	f.Server = newServer(Config{
		Allowed: func(n string) bool { return strings.HasSuffix(strings.ToLower(n), ".ok.") },
		Learn: func(n string, found []Address) error {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.learned[n] = append(f.learned[n], found...)
			return f.learnErr
		},
		Ceiling: maxTTL, Logger: slog.New(slog.DiscardHandler),
	})
	f.ask = func(_ context.Context, _ []netip.AddrPort, q query) ([]byte, uint16, error) {
		m := answer(q)
		if m == nil {
			return nil, 0, errors.New("no answer")
		}
		m.ID, m.Response, m.Questions = 99, true, []dnsmessage.Question{q.question}
		msg, err := m.Pack()
		return msg, 99, err
	}
	return f
}

func (f *fixture) reply(t *testing.T, q dnsmessage.Message) dnsmessage.Message {
	t.Helper()
	var m dnsmessage.Message
	require.NoError(t, m.Unpack(f.answer(packed(t, q), false)))
	assert.Equal(t, q.ID, m.ID)
	assert.True(t, m.Response)
	assert.Equal(t, q.Questions, m.Questions)
	return m
}

func TestN09_OnlyTheChainIsPassedOnAndLearned(t *testing.T) {
	f := newFixture(func(query) *dnsmessage.Message {
		return &dnsmessage.Message{
			Answers: []dnsmessage.Resource{
				record("end.test.", 7200, address("192.0.2.3")), // before its CNAME, as some servers send it
				record("a.ok.", 300, &dnsmessage.CNAMEResource{CNAME: name("hop.test.")}),
				record("hop.test.", 60, &dnsmessage.CNAMEResource{CNAME: name("END.test.")}),
				record("bank.test.", 300, address("192.0.2.66")),
				record("a.ok.", 300, &dnsmessage.TXTResource{TXT: []string{"stray"}}),
			},
			Authorities: []dnsmessage.Resource{record("test.", 300, &dnsmessage.NSResource{NS: name("ns.bank.test.")})},
			Additionals: []dnsmessage.Resource{record("ns.bank.test.", 300, address("192.0.2.67"))},
		}
	})
	m := f.reply(t, ask4("a.ok."))
	assert.Len(t, m.Answers, 3)
	for _, r := range m.Answers {
		assert.NotContains(t, r.Header.Name.String(), "bank")
		assert.LessOrEqual(t, r.Header.TTL, uint32(3600))
	}
	assert.Empty(t, m.Authorities)
	assert.Empty(t, m.Additionals)
	assert.Equal(t, map[string][]Address{"a.ok.": {{netip.MustParseAddr("192.0.2.3"), time.Minute}}}, f.learned)
}

func TestN09_ChainsWithoutEnd(t *testing.T) {
	loop := []dnsmessage.Resource{
		record("a.ok.", 1, &dnsmessage.CNAMEResource{CNAME: name("b.test.")}),
		record("b.test.", 1, &dnsmessage.CNAMEResource{CNAME: name("a.ok.")}),
	}
	assert.Len(t, follow(loop, name("a.ok.")), 2)
	var long []dnsmessage.Resource
	for i := range 100 {
		long = append(long, record(fmt.Sprintf("c%d.", i), 1, &dnsmessage.CNAMEResource{CNAME: name(fmt.Sprintf("c%d.", i+1))}))
	}
	assert.Len(t, follow(long, name("c0.")), maxChain+1)
}

func TestN09_WhatIsNotAllowedIsNeverAsked(t *testing.T) {
	f := newFixture(func(q query) *dnsmessage.Message { t.Errorf("asked for %v", q.question); return nil })
	m := f.reply(t, ask4("bank.test."))
	assert.Equal(t, dnsmessage.RCodeNameError, m.RCode)
	assert.Empty(t, m.Additionals)

	q := ask4("bank.test.")
	q.Additionals = []dnsmessage.Resource{options(nil)}
	m = f.reply(t, q)
	assert.Equal(t, dnsmessage.RCodeNameError, m.RCode)
	require.Len(t, m.Additionals, 1)
	opt, ok := m.Additionals[0].Body.(*dnsmessage.OPTResource)
	require.True(t, ok)
	require.Len(t, opt.Options, 1)
	assert.EqualValues(t, 15, opt.Options[0].Code)
	assert.Contains(t, string(opt.Options[0].Data), "policy")

	for _, kind := range []dnsmessage.Type{dnsmessage.TypeAAAA, typeHTTPS, typeSVCB} {
		q := ask4("a.ok.")
		q.Questions[0].Type = kind
		m := f.reply(t, q)
		assert.Equal(t, dnsmessage.RCodeSuccess, m.RCode)
		assert.Empty(t, m.Answers)
	}
	for _, kind := range []dnsmessage.Type{dnsmessage.TypeALL, dnsmessage.TypeAXFR, typeIXFR} {
		q := ask4("a.ok.")
		q.Questions[0].Type = kind
		assert.Equal(t, dnsmessage.RCodeNotImplemented, f.reply(t, q).RCode)
	}
}

func TestN09_FailuresAreAnswered(t *testing.T) {
	f := newFixture(func(query) *dnsmessage.Message { return nil })
	assert.Equal(t, dnsmessage.RCodeServerFailure, f.reply(t, ask4("a.ok.")).RCode)
	f = newFixture(func(query) *dnsmessage.Message {
		return &dnsmessage.Message{Answers: []dnsmessage.Resource{record("a.ok.", 1, address("192.0.2.1"))}}
	})
	f.learnErr = errors.New("no room")
	m := f.reply(t, ask4("a.ok."))
	assert.Equal(t, dnsmessage.RCodeServerFailure, m.RCode)
	assert.Empty(t, m.Answers, "an address that is not open was told")
	f = newFixture(func(query) *dnsmessage.Message {
		m := dnsmessage.Message{Authorities: []dnsmessage.Resource{record("ok.", 86400, &dnsmessage.SOAResource{NS: name("ns."), MBox: name("m."), MinTTL: 5})}}
		m.RCode = dnsmessage.RCodeNameError
		return &m
	})
	m = f.reply(t, ask4("none.ok."))
	assert.Equal(t, dnsmessage.RCodeNameError, m.RCode)
	assert.Len(t, m.Authorities, 1, "by which the guest knows how long the name is not there")
}

func TestN09_MalformedQueries(t *testing.T) {
	f := newFixture(func(query) *dnsmessage.Message { t.Error("asked"); return nil })
	answer := ask4("a.ok.")
	answer.Response = true
	assert.Nil(t, f.answer(packed(t, answer), false), "an answer is not answered")
	for _, short := range []string{"", "x", "elevenbytes"} {
		assert.Nil(t, f.answer([]byte(short), false))
	}
	code := func(m dnsmessage.Message, tail string) dnsmessage.RCode {
		var out dnsmessage.Message
		require.NoError(t, out.Unpack(f.answer(append(packed(t, m), tail...), false)))
		return out.RCode
	}
	two := ask4("a.ok.")
	two.Questions = append(two.Questions, two.Questions[0])
	assert.Equal(t, dnsmessage.RCodeFormatError, code(two, ""))
	assert.Equal(t, dnsmessage.RCodeFormatError, code(dnsmessage.Message{}, ""))
	update := ask4("a.ok.")
	update.OpCode = 5
	assert.Equal(t, dnsmessage.RCodeNotImplemented, code(update, ""))
	chaos := ask4("version.bind.ok.")
	chaos.Questions[0].Class = dnsmessage.ClassCHAOS
	assert.Equal(t, dnsmessage.RCodeNotImplemented, code(chaos, ""))
	twice := ask4("a.ok.")
	twice.Additionals = []dnsmessage.Resource{options(nil), options(nil)}
	assert.Equal(t, dnsmessage.RCodeFormatError, code(twice, ""))
}

func TestN09_AnswersThatAreNotOurs(t *testing.T) {
	q := query{question: ask4("a.ok.").Questions[0]}
	good := dnsmessage.Message{Header: dnsmessage.Header{ID: 5, Response: true}, Questions: []dnsmessage.Question{q.question}}
	_, _, err := relay(q, 5, packed(t, good), maxTTL)
	require.NoError(t, err)
	for what, spoil := range map[string]func(*dnsmessage.Message){
		"another id":       func(m *dnsmessage.Message) { m.ID = 6 },
		"a query":          func(m *dnsmessage.Message) { m.Response = false },
		"another name":     func(m *dnsmessage.Message) { m.Questions[0].Name = name("b.ok.") },
		"another type":     func(m *dnsmessage.Message) { m.Questions[0].Type = dnsmessage.TypeTXT },
		"another question": func(m *dnsmessage.Message) { m.Questions = nil },
	} {
		bad := good
		bad.Questions = append([]dnsmessage.Question{}, good.Questions...)
		spoil(&bad)
		msg := packed(t, bad)
		_, _, err := relay(q, 5, msg, maxTTL)
		require.ErrorIs(t, err, errForeign, what)
		assert.False(t, answers(msg, q, 5), what)
	}
}
