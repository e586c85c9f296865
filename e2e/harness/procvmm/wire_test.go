package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

// TestN07_TheBucketSustainsItsRateAfterItsBurst sends frames as fast as the bucket lets them pass.
func TestN07_TheBucketSustainsItsRateAfterItsBurst(t *testing.T) {
	const frame, mega = 64 << 10, 1e6
	// 100 MB at once, 200 MB/s afterwards, and 20 MB more the first time.
	start := time.Unix(0, 0)
	b := newBucket(&limiter{Bandwidth: &tokenBucket{Size: 100 * mega, RefillTime: 500, OneTimeBurst: 20 * mega}}, start)
	now := start
	burst := func() (sent int64) {
		for {
			sent += frame
			if wait := b.take(frame, now); wait > 0 {
				now = now.Add(wait)
				return sent
			}
		}
	}
	assert.InDelta(t, 120*mega, burst(), frame, "the first burst")
	began, sent := now, int64(0)
	for sent < 1000*mega {
		now = now.Add(b.take(frame, now))
		sent += frame
	}
	assert.InDelta(t, 5, now.Sub(began).Seconds(), 0.01, "1 GB at 200 MB/s")
	now = now.Add(time.Hour)
	assert.InDelta(t, 100*mega, burst(), frame, "after a rest")
}

func TestNoLimitNeverWaits(t *testing.T) {
	for name, l := range map[string]*limiter{
		"none": nil, "no bucket": {}, "no size": {Bandwidth: &tokenBucket{RefillTime: 100}}, "no time": {Bandwidth: &tokenBucket{Size: 1}},
	} {
		assert.Zero(t, newBucket(l, time.Now()).take(1<<40, time.Now()), name)
	}
}

func TestSnapshotsAreRefused(t *testing.T) {
	for _, path := range []string{"/snapshot/create", "/snapshot/load"} {
		w := httptest.NewRecorder()
		(&machine{}).routes().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPut, path, strings.NewReader("{}")))
		assert.Equal(t, http.StatusBadRequest, w.Code)
		assert.JSONEq(t, `{"fault_message":"The requested operation is not supported: procvmm has no PUT `+path+`."}`, w.Body.String())
	}
}

func TestBootArg(t *testing.T) {
	const line = "quiet wrenn.ip=192.0.2.1/30 wrenn.ipx=no wrenn.gw=a  wrenn.gw=b\n"
	assert.Equal(t, "192.0.2.1/30", bootArg(line, "wrenn.ip"))
	assert.Equal(t, "b", bootArg(line, "wrenn.gw"), "the last one counts")
	assert.Empty(t, bootArg(line, "wrenn"))
	assert.Empty(t, bootArg(line, "quiet"))
}
