package nameserver

import (
	"errors"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// maxChain is how many CNAMEs are followed. Resolvers give up between 8 and 16 of them.
const maxChain = 16

// Address is one that a name resolves to, and for how long the answer says so.
type Address struct {
	Addr netip.Addr
	TTL  time.Duration
}

// errForeign is for a message that is no answer to what was asked: a forged or a stray one.
var errForeign = errors.New("not an answer to the query")

// relay makes the guest's answer of an upstream's, and lists the IPv4 addresses that it tells. Only
// records of the name asked for, and of those that its CNAMEs lead to, are passed on: an upstream, or who
// speaks in its name, can say nothing of other names. Times to live are cut to ceiling, so that a guest
// does not keep an address for longer than it is open.
func relay(q query, id uint16, upstream []byte, ceiling time.Duration) (dnsmessage.Message, []Address, error) {
	var in dnsmessage.Message
	if err := in.Unpack(upstream); err != nil {
		return dnsmessage.Message{}, nil, err
	}
	if !in.Response || in.ID != id || len(in.Questions) != 1 || !sameQuestion(in.Questions[0], q.question) {
		return dnsmessage.Message{}, nil, errForeign
	}
	out := q.answer(in.RCode)
	if in.RCode != dnsmessage.RCodeSuccess && in.RCode != dnsmessage.RCodeNameError {
		return out, nil, nil
	}
	chain := follow(in.Answers, q.question.Name)
	var found []Address
	for _, r := range in.Answers {
		ttl, ours := chain[canonical(r.Header.Name)]
		if !ours || r.Header.Class != dnsmessage.ClassINET ||
			r.Header.Type != q.question.Type && r.Header.Type != dnsmessage.TypeCNAME {
			continue
		}
		r.Header.TTL = min(r.Header.TTL, uint32(ceiling/time.Second))
		if a, ok := r.Body.(*dnsmessage.AResource); ok {
			found = append(found, Address{netip.AddrFrom4(a.A), time.Duration(min(ttl, r.Header.TTL)) * time.Second})
		}
		out.Answers = append(out.Answers, r)
	}
	for _, r := range in.Authorities {
		if r.Header.Type == dnsmessage.TypeSOA && len(found) == 0 {
			r.Header.TTL = min(r.Header.TTL, uint32(ceiling/time.Second))
			out.Authorities = append(out.Authorities, r)
		}
	}
	return out, found, nil
}

// follow returns the names that the CNAMEs lead to from name on, itself included, each with the least
// time to live on the way to it.
func follow(answers []dnsmessage.Resource, name dnsmessage.Name) map[string]uint32 {
	at, ttl := canonical(name), ^uint32(0)
	chain := map[string]uint32{at: ttl}
	for range maxChain {
		next := ""
		for _, r := range answers {
			if alias, ok := r.Body.(*dnsmessage.CNAMEResource); ok && canonical(r.Header.Name) == at {
				next, ttl = canonical(alias.CNAME), min(ttl, r.Header.TTL)
				break
			}
		}
		if _, again := chain[next]; next == "" || again {
			break
		}
		at = next
		chain[at] = ttl
	}
	return chain
}

func sameQuestion(a, b dnsmessage.Question) bool {
	return a.Type == b.Type && a.Class == b.Class && canonical(a.Name) == canonical(b.Name)
}

// canonical is how names are compared.
func canonical(n dnsmessage.Name) string { return strings.ToLower(n.String()) }
