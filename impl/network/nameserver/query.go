package nameserver

import (
	"errors"
	"slices"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	// maxQuery is the longest query that is read, in bytes. One question with the longest name and its
	// options has some 300; what is longer is refused before it costs anything.
	maxQuery = 4096
	// plainSize is what an answer by UDP may have where the query says nothing, RFC 1035 section 4.2.1.
	plainSize = 512
	// safeSize is the size that passes every path unfragmented (DNS flag day 2020): what is asked of
	// upstreams, and the most that an answer by UDP has.
	safeSize = 1232
	// maxMessage is the most that the length before a message on TCP can say.
	maxMessage = 65535
)

// Types of records that dnsmessage has no names for: RFC 9460, RFC 1995, RFC 5936.
const (
	typeSVCB  dnsmessage.Type = 64
	typeHTTPS dnsmessage.Type = 65
	typeIXFR  dnsmessage.Type = 251
)

// query is what a guest asks.
type query struct {
	id        uint16
	question  dnsmessage.Question
	recursion bool
	// extended says that it carried an OPT record (EDNS), so that the answer may; size is what the guest
	// takes by UDP, in bytes.
	extended bool
	size     int
}

// readQuery takes a message apart. A code other than success is the answer to give at once; the query
// is then as far as it could be read. False is for what deserves no answer: not even a query, or an
// answer, which would be answered again.
func readQuery(msg []byte) (query, dnsmessage.RCode, bool) {
	var p dnsmessage.Parser
	header, err := p.Start(msg)
	if err != nil || header.Response {
		return query{}, 0, false
	}
	q := query{id: header.ID, recursion: header.RecursionDesired, size: plainSize}
	if header.OpCode != 0 {
		return q, dnsmessage.RCodeNotImplemented, true
	}
	questions, err := p.AllQuestions()
	if err != nil || len(questions) != 1 {
		return q, dnsmessage.RCodeFormatError, true
	}
	q.question = questions[0]
	if p.SkipAllAnswers() != nil || p.SkipAllAuthorities() != nil || !q.readOptions(&p) {
		return q, dnsmessage.RCodeFormatError, true
	}
	if q.question.Class != dnsmessage.ClassINET {
		return q, dnsmessage.RCodeNotImplemented, true
	}
	// A whole zone is no answer to a guest; ANY is what RFC 8482 allows to refuse.
	if slices.Contains([]dnsmessage.Type{dnsmessage.TypeALL, dnsmessage.TypeAXFR, typeIXFR}, q.question.Type) {
		return q, dnsmessage.RCodeNotImplemented, true
	}
	return q, dnsmessage.RCodeSuccess, true
}

// readOptions looks for the OPT record; false means that the section is malformed.
func (q *query) readOptions(p *dnsmessage.Parser) bool {
	for {
		h, err := p.AdditionalHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			return true
		}
		if err != nil {
			return false
		}
		if h.Type == dnsmessage.TypeOPT {
			if q.extended {
				return false // RFC 6891 section 6.1.1: one at most
			}
			q.extended = true
			q.size = min(max(int(h.Class), plainSize), safeSize) // the class of OPT is a size
		}
		if p.SkipAdditional() != nil {
			return false
		}
	}
}

// withoutAddress says whether the question asks for an address in a way that a guest without IPv6 has no
// use for, or that would hide the address from us. An empty answer to it makes programs ask for type A.
func (q query) withoutAddress() bool {
	return slices.Contains([]dnsmessage.Type{dnsmessage.TypeAAAA, typeSVCB, typeHTTPS}, q.question.Type)
}

// upstream is the question as it is sent on: nothing of the guest's message but name and type.
func (q query) upstream(id uint16) ([]byte, error) {
	m := dnsmessage.Message{
		Header:      dnsmessage.Header{ID: id, RecursionDesired: true},
		Questions:   []dnsmessage.Question{q.question},
		Additionals: []dnsmessage.Resource{options(nil)},
	}
	return m.Pack()
}

// options is our OPT record.
func options(list []dnsmessage.Option) dnsmessage.Resource {
	r := dnsmessage.Resource{Body: &dnsmessage.OPTResource{Options: list}}
	r.Header.Name = dnsmessage.MustNewName(".")
	r.Header.Type, r.Header.Class = dnsmessage.TypeOPT, safeSize
	return r
}

// answer begins the answer to the query.
func (q query) answer(code dnsmessage.RCode) dnsmessage.Message {
	m := dnsmessage.Message{Header: dnsmessage.Header{
		ID: q.id, Response: true, RecursionDesired: q.recursion, RecursionAvailable: true, RCode: code,
	}}
	if q.question.Name.Length > 0 {
		m.Questions = []dnsmessage.Question{q.question}
	}
	if q.extended {
		m.Additionals = []dnsmessage.Resource{options(nil)}
	}
	return m
}

// extendedError is the option of RFC 8914, and blocked its code for a name that a policy refuses.
const (
	extendedError = 15
	blocked       = 15
)

// refusal is the answer for a name that is not allowed: there is no such name. REFUSED would be more
// honest, but it makes C libraries try the next server and wait, musl for seconds; a resolver that speaks
// EDNS is told the reason in words. There is no SOA record, so nothing keeps the answer after the policy
// has changed.
func (q query) refusal() dnsmessage.Message {
	m := q.answer(dnsmessage.RCodeNameError)
	if q.extended {
		reason := append([]byte{0, blocked}, "the sandbox's network policy does not allow this name"...)
		m.Additionals = []dnsmessage.Resource{options([]dnsmessage.Option{{Code: extendedError, Data: reason}})}
	}
	return m
}

// pack returns the message in at most size bytes. One that is longer loses its records and says so, upon
// which the guest asks again by TCP.
func pack(m dnsmessage.Message, size int) ([]byte, error) {
	msg, err := m.Pack()
	if err != nil || len(msg) <= size {
		return msg, err
	}
	m.Truncated, m.Answers, m.Authorities = true, nil, nil
	return m.Pack()
}
