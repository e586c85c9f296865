package agent

import (
	"fmt"

	"wrenn/impl/firecracker"
	"wrenn/impl/sandbox"
)

// limits are those of sandboxes that ask for none, and the most that one can ask for.
func (c Config) limits() sandbox.Limits {
	limit := func(rate, burst int64) sandbox.Limit {
		if rate == 0 {
			return sandbox.Limit{}
		}
		return sandbox.Limit{Rate: rate, Burst: burst}
	}
	return sandbox.Limits{Egress: limit(c.EgressRate, c.EgressBurst), Ingress: limit(c.IngressRate, c.IngressBurst)}
}

// checkLimits refuses what the VMM's buckets cannot express.
func (c Config) checkLimits() error {
	for name, l := range map[string]sandbox.Limit{"egress": c.limits().Egress, "ingress": c.limits().Ingress} {
		if _, err := limiter(l); err != nil {
			return fmt.Errorf("agent: %s-rate %d B/s with a %s-burst of %d B: %w", name, l.Rate, name, l.Burst, err)
		}
	}
	return nil
}

// limiter is the VMM's; nil where nothing is limited.
func limiter(l sandbox.Limit) (*firecracker.RateLimiter, error) {
	if l.Rate == 0 {
		return nil, nil
	}
	bucket, err := firecracker.Bandwidth(l.Rate, l.Burst)
	if err != nil {
		return nil, err
	}
	return &firecracker.RateLimiter{Bandwidth: &bucket}, nil
}
