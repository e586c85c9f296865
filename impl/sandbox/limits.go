package sandbox

import "fmt"

// Limits bound a sandbox's traffic by a sustained rate and what may pass at once after a rest. Zero
// rates do not limit.
type Limits struct {
	// Egress is what the guest sends, Ingress what it receives.
	Egress  Limit `json:"egress,omitzero"`
	Ingress Limit `json:"ingress,omitzero"`
}

// Limit is a rate in bytes per second and a burst in bytes.
type Limit struct {
	Rate  int64 `json:"rate"`
	Burst int64 `json:"burst"`
}

// Bounds of a Limit that a caller asks for.
const (
	// minLimit is the largest frame that a guest sends at once, in bytes: a bucket that cannot hold it
	// lets it never pass, and a rate below it would take more than a second for one.
	minLimit = 64 << 10
	// maxRate is over what any host's link carries (800 Gbit/s), in bytes per second.
	maxRate = 100_000_000_000
	// maxBurstSeconds keeps the time in which a bucket fills within what traffic control can count (its
	// field of 32 bits has 274 s in ticks of 64 ns).
	maxBurstSeconds = 60
)

// within returns the limits that a sandbox gets that asks for l on a host whose own are given. A host's
// limit is both the default and the most.
func (l Limits) within(host Limits) (Limits, error) {
	egress, err := l.Egress.within(host.Egress, "egress")
	if err != nil {
		return Limits{}, err
	}
	ingress, err := l.Ingress.within(host.Ingress, "ingress")
	return Limits{Egress: egress, Ingress: ingress}, err
}

func (l Limit) within(host Limit, direction string) (Limit, error) {
	rate, burst := "wrenn."+direction+"BytesPerSecond", "wrenn."+direction+"BurstBytes"
	if l.Rate == 0 {
		if l.Burst != 0 {
			return Limit{}, fmt.Errorf("%w: %s needs %s beside it", ErrInvalid, burst, rate)
		}
		return host, nil
	}
	most := int64(maxRate)
	if host.Rate > 0 {
		most = host.Rate
	}
	if l.Rate < minLimit || l.Rate > most {
		return Limit{}, fmt.Errorf("%w: %s %d must be %d to %d on this host", ErrInvalid, rate, l.Rate, minLimit, most)
	}
	least, most := max(minLimit, l.Rate/10+1), maxBurstSeconds*l.Rate
	if host.Rate > 0 {
		most = min(most, host.Burst)
	}
	if l.Burst == 0 {
		l.Burst = min(max(l.Rate/2, minLimit), most)
	}
	if l.Burst < least || l.Burst > most {
		return Limit{}, fmt.Errorf("%w: %s %d must be %d (100 ms of the rate) to %d on this host", ErrInvalid, burst, l.Burst, least, most)
	}
	return l, nil
}
