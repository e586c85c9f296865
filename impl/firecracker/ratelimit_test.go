package firecracker

import (
	"encoding/json"
	"math"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// simulate runs a sender that can do supply bytes per second in frames of 64 KiB against Firecracker's
// limiter for the given seconds, and returns the bytes passed before the first stall, and the bytes per
// second afterwards. It models what Firecracker does: a frame takes tokens if there are enough; if not,
// the device sleeps for 100 ms, whatever the bucket has gained meanwhile, and tries again. Tokens are
// gained in proportion to the time since the last look, never beyond the size.
func simulate(b TokenBucket, supply, seconds float64) (burst, rate float64) {
	const frame, sleep = 65536.0, 0.1
	size, oneTime := float64(b.Size), float64(b.OneTimeBurst)
	perSecond := size * 1000 / float64(b.RefillTime)
	budget, passed := size, 0.0
	var now, firstStall, atFirstStall float64
	for now < seconds {
		need := frame
		if oneTime > 0 {
			used := math.Min(oneTime, need)
			oneTime, need = oneTime-used, need-used
		}
		if budget >= need {
			budget -= need
			passed += frame
			step := frame / supply
			now += step
			if oneTime == 0 {
				budget = math.Min(size, budget+perSecond*step)
			}
			continue
		}
		if firstStall == 0 {
			firstStall, atFirstStall = now, passed
		}
		now += sleep
		budget = math.Min(size, budget+perSecond*sleep)
	}
	return atFirstStall, (passed - atFirstStall) / (now - firstStall)
}

func TestN07_BandwidthIn200MBWith100MBBurst(t *testing.T) {
	b, err := Bandwidth(200_000_000, 100_000_000)
	require.NoError(t, err)
	assert.Equal(t, TokenBucket{Size: 100_000_000, RefillTime: 500}, b)
	burst, rate := simulate(b, 3e9, 20)
	t.Logf("first burst %.1f MB, then %.1f MB/s", burst/1e6, rate/1e6)
	assert.InDelta(t, 107e6, burst, 1e6, "100 MB and what 3 GB/s let refill meanwhile")
	assert.InDelta(t, 200e6, rate, 4e6)
	burst, rate = simulate(b, 1e15, 20)
	assert.InDelta(t, 100e6, burst, 65536, "a sender that takes no time finds the burst alone, to a frame")
	assert.InDelta(t, 200e6, rate, 4e6)
}

func TestN07_WrongSettingsCollapse(t *testing.T) {
	for name, test := range map[string]struct {
		bucket      TokenBucket
		burst, rate float64
	}{
		"2 MB every 10 ms":                   {TokenBucket{Size: 2_000_000, RefillTime: 10}, 2.1e6, 21e6},
		"10 MB every 50 ms":                  {TokenBucket{Size: 10_000_000, RefillTime: 50}, 10.7e6, 103e6},
		"200 MB/s and 100 MB one-time burst": {TokenBucket{Size: 200_000_000, RefillTime: 1000, OneTimeBurst: 100_000_000}, 314e6, 200e6},
	} {
		t.Run(name, func(t *testing.T) {
			burst, rate := simulate(test.bucket, 3e9, 20)
			t.Logf("first burst %.1f MB, then %.1f MB/s", burst/1e6, rate/1e6)
			assert.InEpsilon(t, test.burst, burst, 0.1)
			assert.InEpsilon(t, test.rate, rate, 0.1)
		})
	}
}

func TestN07_BandwidthRefusesWhatTheBucketCannotDo(t *testing.T) {
	for _, test := range []struct{ rate, burst int64 }{
		{0, 1}, {1, 0}, {-1, 1}, {1, -1},
		{200_000_000, 10_000_000}, // 50 ms
		{math.MaxInt64, 1},
		{1, math.MaxInt64},
	} {
		_, err := Bandwidth(test.rate, test.burst)
		require.ErrorIs(t, err, ErrRateLimit, "%+v", test)
	}
	b, err := Bandwidth(200_000_000, 20_000_000)
	require.NoError(t, err)
	assert.EqualValues(t, 100, b.RefillTime, "the shortest")
}

func TestN07_LimiterOnTheWire(t *testing.T) {
	b, err := Bandwidth(200_000_000, 100_000_000)
	require.NoError(t, err)
	raw, err := json.Marshal(NetworkInterface{IfaceID: "eth0", HostDevName: "tap0", TxRateLimiter: &RateLimiter{Bandwidth: &b}})
	require.NoError(t, err)
	assert.JSONEq(t, `{"iface_id":"eth0","host_dev_name":"tap0","tx_rate_limiter":{"bandwidth":{"size":100000000,"refill_time":500}}}`, string(raw))
}
