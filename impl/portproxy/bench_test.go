package portproxy_test

import (
	"bufio"
	"bytes"
	"cmp"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const (
	// rounds is how often each way is measured, in turn, so that a machine that slows down does so for all.
	rounds = 5
	// parallel is how many clients there are at once: more than cores, as with browsers.
	parallel = 16
	bigFile  = 64 << 20
)

// way is one way to the same upstream.
type way struct {
	name, addr, host string
	sinkHost         string // of a server that takes uploads, for us; nginx has it at /up
	pids             []int  // of what stands between client and upstream
	rates, costs     []float64
}

// ways starts an upstream and what leads to it: directly, through us, through nginx once and twice.
func ways(b *testing.B) []*way {
	b.Helper()
	up, one, inner, outer := freePort(b), freePort(b), freePort(b), freePort(b)
	dir, _ := startNginx(b, fmt.Sprintf("127.0.0.1:%d", up), fmt.Sprintf(
		`sendfile on; server { listen 127.0.0.1:%d; location = /small { return 200 "0123456789"; } location / { root DIR; } }`, up))
	sink := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		_, _ = fmt.Fprint(w, n)
	}))
	b.Cleanup(sink.Close)
	require.NoError(b, os.Truncate(touch(b, filepath.Join(dir, "big")), bigFile))
	// The outer hop keeps connections to the inner one, as our edge does to the agent. That to the upstream is made
	// anew for each request, as nginx does unless it is told otherwise, or kept ("kept"), as our agent does for a
	// quarter second. Bodies pass unbuffered in both directions.
	sinkAt := func(to int) string { // the inner hop leads to the sink, the outer to the inner
		if to == up {
			return sink.Listener.Addr().String()
		}
		return fmt.Sprintf("127.0.0.1:%d", to)
	}
	hop := func(listen, to, keep int) string {
		keepalive := ""
		if keep > 0 {
			keepalive = fmt.Sprintf("keepalive %d;", keep)
		}
		connection := `"close"`
		if keep > 0 {
			connection = `""`
		}
		return fmt.Sprintf(`upstream u%d { server 127.0.0.1:%d; %s }
		server { listen 127.0.0.1:%d; proxy_http_version 1.1; proxy_set_header Connection %s; proxy_set_header Host $http_host;
			proxy_set_header X-Forwarded-For $remote_addr; proxy_request_buffering off; proxy_buffering off;
			location / { proxy_pass http://u%d; } location /up { proxy_pass http://%s; } }
		`, listen, to, keepalive, listen, connection, listen, sinkAt(to))
	}
	_, onePID := startNginx(b, fmt.Sprintf("127.0.0.1:%d", one), hop(one, up, 0))
	_, innerPID := startNginx(b, fmt.Sprintf("127.0.0.1:%d", inner), hop(inner, up, 0))
	_, outerPID := startNginx(b, fmt.Sprintf("127.0.0.1:%d", outer), hop(outer, inner, 1024))
	keptIn, keptOut := freePort(b), freePort(b)
	_, keptInPID := startNginx(b, fmt.Sprintf("127.0.0.1:%d", keptIn), hop(keptIn, up, 1024))
	_, keptOutPID := startNginx(b, fmt.Sprintf("127.0.0.1:%d", keptOut), hop(keptOut, keptIn, 1024))
	edge, agent := startChain(b)
	host := fmt.Sprintf("%d-abc.localhost", up)
	sinkHost := fmt.Sprintf("%d-abc.localhost", sink.Listener.Addr().(*net.TCPAddr).Port)
	return []*way{
		{name: "direct", addr: fmt.Sprintf("127.0.0.1:%d", up), host: host},
		{name: "wrenn", addr: edge.addr, host: host, sinkHost: sinkHost, pids: []int{edge.pid, agent.pid}},
		{name: "nginx1", addr: fmt.Sprintf("127.0.0.1:%d", one), host: host, pids: []int{onePID}},
		{name: "nginx2", addr: fmt.Sprintf("127.0.0.1:%d", outer), host: host, pids: []int{innerPID, outerPID}},
		{name: "nginx2kept", addr: fmt.Sprintf("127.0.0.1:%d", keptOut), host: host, pids: []int{keptInPID, keptOutPID}},
	}
}

func touch(b *testing.B, path string) string {
	b.Helper()
	require.NoError(b, os.WriteFile(path, nil, 0o644))
	return path
}

// compare measures each way in turn with measure, which returns how much was done in how long, and reports
// the medians: what was done per second, the processor's time for each, and ours against nginx's.
func compare(b *testing.B, unit string, measure func(w *way) (amount float64, took time.Duration)) {
	b.Helper()
	all := ways(b)
	if unit == "MB-up" {
		all = slices.DeleteFunc(all, func(w *way) bool { return w.name == "direct" })
	}
	run := func(w *way) {
		before := w.processor()
		amount, took := measure(w)
		w.rates = append(w.rates, amount/took.Seconds())
		w.costs = append(w.costs, float64((w.processor()-before).Microseconds())/amount)
	}
	for _, w := range all {
		run(w)
		w.rates, w.costs = nil, nil // it was the warming
	}
	for b.Loop() {
		for range rounds {
			for _, w := range all {
				run(w)
			}
		}
	}
	rate, cost := map[string]float64{}, map[string]float64{}
	for _, w := range all {
		slices.Sort(w.rates)
		slices.Sort(w.costs)
		rate[w.name], cost[w.name] = w.rates[len(w.rates)/2], w.costs[len(w.costs)/2]
		b.ReportMetric(rate[w.name], w.name+"-"+unit+"/s")
		if w.pids != nil {
			b.ReportMetric(cost[w.name], w.name+"-cpu-us/"+unit)
		}
	}
	for _, other := range []string{"nginx1", "nginx2", "nginx2kept"} {
		b.ReportMetric(rate["wrenn"]/rate[other], "rate/"+other)
		b.ReportMetric(cost["wrenn"]/cost[other], "cpu/"+other)
	}
	b.ReportMetric(0, "ns/op")
}

func (w *way) processor() (total time.Duration) {
	for _, pid := range w.pids {
		total += processor(pid)
	}
	return total
}

// requests counts exchanges for a second over parallel connections that are kept, or made anew for each.
func requests(b *testing.B, w *way, keep bool) (float64, time.Duration) {
	b.Helper()
	connection := "keep-alive"
	if !keep {
		connection = "close"
	}
	request := []byte("GET /small HTTP/1.1\r\nHost: " + w.host + "\r\nUser-Agent: bench\r\nAccept: */*\r\nConnection: " + connection + "\r\n\r\n")
	var n atomic.Int64
	var wg sync.WaitGroup
	begin := time.Now()
	for range parallel {
		wg.Go(func() {
			for time.Since(begin) < time.Second {
				conn, err := net.Dial("tcp", w.addr)
				if err != nil {
					b.Error(err)
					return
				}
				r := bufio.NewReader(conn)
				for first := true; (first || keep) && time.Since(begin) < time.Second; first = false {
					if _, err = conn.Write(request); err == nil {
						err = skipAnswer(r)
					}
					if err != nil {
						b.Error(w.name, err)
						return
					}
					n.Add(1)
				}
				_ = conn.Close()
			}
		})
	}
	wg.Wait()
	return float64(n.Load()), time.Since(begin)
}

// skipAnswer reads one answer with a length, at little cost.
func skipAnswer(r *bufio.Reader) error {
	length := -1
	for first := true; ; first = false {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return err
		}
		if first && !bytes.Contains(line, []byte(" 200 ")) {
			return fmt.Errorf("answer %q", line)
		}
		if v, ok := bytes.CutPrefix(line, []byte("Content-Length: ")); ok {
			length, _ = strconv.Atoi(string(bytes.TrimSpace(v)))
		}
		if len(line) == 2 {
			_, err := r.Discard(length)
			return err
		}
	}
}

func BenchmarkRequests(b *testing.B) {
	compare(b, "req", func(w *way) (float64, time.Duration) { return requests(b, w, true) })
}

func BenchmarkConnections(b *testing.B) {
	compare(b, "conn", func(w *way) (float64, time.Duration) { return requests(b, w, false) })
}

// BenchmarkDownload is 64 MiB each for two clients at once.
func BenchmarkDownload(b *testing.B) {
	compare(b, "MB", func(w *way) (float64, time.Duration) {
		begin := time.Now()
		var wg sync.WaitGroup
		const clients = 2
		for range clients {
			wg.Go(func() {
				conn, err := net.Dial("tcp", w.addr)
				if err != nil {
					b.Error(err)
					return
				}
				defer conn.Close()
				_, _ = io.WriteString(conn, "GET /big HTTP/1.1\r\nHost: "+w.host+"\r\nConnection: close\r\n\r\n")
				res, err := http.ReadResponse(bufio.NewReaderSize(conn, 256<<10), nil)
				if err != nil {
					b.Error(err)
					return
				}
				buf := make([]byte, 256<<10)
				total := 0
				for {
					n, err := res.Body.Read(buf)
					total += n
					if err != nil {
						break
					}
				}
				if total != bigFile {
					b.Errorf("%s: %d bytes", w.name, total)
				}
			})
		}
		wg.Wait()
		return clients * bigFile / 1e6, time.Since(begin)
	})
}

// BenchmarkUpload is 64 MiB for two clients at once, to a server that counts them.
func BenchmarkUpload(b *testing.B) {
	compare(b, "MB-up", func(w *way) (float64, time.Duration) {
		begin := time.Now()
		var wg sync.WaitGroup
		const clients = 2
		for range clients {
			wg.Go(func() {
				conn, err := net.Dial("tcp", w.addr)
				if err != nil {
					b.Error(err)
					return
				}
				defer conn.Close()
				_, _ = fmt.Fprintf(conn, "PUT /up HTTP/1.1\r\nHost: %s\r\nConnection: close\r\nContent-Length: %d\r\n\r\n", cmp.Or(w.sinkHost, w.host), bigFile)
				buf := make([]byte, 256<<10)
				for sent := 0; sent < bigFile; sent += len(buf) {
					if _, err := conn.Write(buf); err != nil {
						b.Error(w.name, err)
						return
					}
				}
				res, err := http.ReadResponse(bufio.NewReader(conn), nil)
				if err != nil {
					b.Error(w.name, err)
					return
				}
				if body, _ := io.ReadAll(res.Body); string(body) != strconv.Itoa(bigFile) {
					b.Errorf("%s: %d %q", w.name, res.StatusCode, body)
				}
			})
		}
		wg.Wait()
		return clients * bigFile / 1e6, time.Since(begin)
	})
}
