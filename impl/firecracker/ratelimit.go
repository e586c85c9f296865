package firecracker

import (
	"errors"
	"fmt"
	"math"
)

// RateLimiter bounds a drive or one direction of a network interface. A nil bucket sets no limit.
type RateLimiter struct {
	// Bandwidth counts bytes.
	Bandwidth *TokenBucket `json:"bandwidth,omitempty"`
	// Ops counts requests or frames.
	Ops *TokenBucket `json:"ops,omitempty"`
}

// TokenBucket is Firecracker's bucket: it starts full with Size tokens and gains Size tokens every
// RefillTime milliseconds. OneTimeBurst tokens are spent before the first of them, once.
type TokenBucket struct {
	Size         int64 `json:"size"`
	RefillTime   int64 `json:"refill_time"`
	OneTimeBurst int64 `json:"one_time_burst,omitempty"`
}

// minRefill is the shortest useful refill time in milliseconds. A blocked limiter of Firecracker sleeps
// for a fixed 100 ms, whatever the bucket says; a bucket that is full again sooner overflows during that
// sleep and the rate collapses (2 MB every 10 ms, meant as 200 MB/s, gives 20).
const minRefill = 100

// ErrRateLimit marks settings that Firecracker's bucket cannot express.
var ErrRateLimit = errors.New("rate limit cannot be expressed")

// Bandwidth returns the bucket that sustains rate bytes per second and lets burst bytes pass at once
// after idling: size = burst, refill time = 1000 × burst / rate. Rounding to whole milliseconds changes
// the rate by at most 0.5 %. It fails with ErrRateLimit where rate or burst is not positive, where burst
// is under a tenth of a second of rate, or where the refill time does not fit 64 bits.
func Bandwidth(rate, burst int64) (TokenBucket, error) {
	if rate <= 0 || burst <= 0 {
		return TokenBucket{}, fmt.Errorf("%w: rate %d B/s and burst %d B must be positive", ErrRateLimit, rate, burst)
	}
	refill := math.Round(1000 * float64(burst) / float64(rate))
	if refill < minRefill {
		return TokenBucket{}, fmt.Errorf("%w: burst %d B is under 100 ms of rate %d B/s; use at least %d B",
			ErrRateLimit, burst, rate, rate/10+1)
	}
	if refill >= math.MaxInt64 {
		return TokenBucket{}, fmt.Errorf("%w: burst %d B at %d B/s takes too long to refill", ErrRateLimit, burst, rate)
	}
	return TokenBucket{Size: burst, RefillTime: int64(refill)}, nil
}
