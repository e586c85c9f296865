// Command drift runs in a guest and notices when the machine under it is not the one that was there a moment
// ago: a page with old content, a timer that went astray, a socket or a child process that lost a message. It
// keeps a heap that it fills, changes and zeroes under garbage collection, files, connections, a tree of
// processes and a terminal, and knows what each of them must hold.
//
// It answers on a TCP port: GET /check looks at everything and tells what is wrong, POST /dirty?mib=N changes
// N MiB of the heap.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"time"
)

func main() {
	if os.Getenv(childEnv) != "" {
		childMain()
		return
	}
	listen := flag.String("listen", ":7000", "address of the HTTP server")
	heapMiB := flag.Int("heap", 64, "size of the heap in MiB")
	dir := flag.String("dir", "/tmp/drift", "folder of the files")
	seed := flag.Uint64("seed", 1, "of all that looks random")
	flag.Parse()
	if err := run(*listen, *dir, *heapMiB, *seed); err != nil {
		fmt.Fprintln(os.Stderr, "drift:", err)
		os.Exit(1)
	}
}

// part is something that can be checked.
type part interface {
	// check says what is wrong with it, and how often it has moved since the start.
	check() (moves int64, err error)
}

// report is the answer to /check.
type report struct {
	// Wrong are the defects found; empty is good.
	Wrong []string `json:"wrong"`
	// Moves says of each part how much it has done: what stands still proves nothing.
	Moves map[string]int64 `json:"moves"`
	// Wall is the wall clock in Unix nanoseconds, PID the process that answers.
	Wall int64 `json:"wall"`
	PID  int   `json:"pid"`
}

func run(listen, dir string, heapMiB int, seed uint64) error {
	heap := newHeap(heapMiB, seed)
	files, err := newFiles(dir)
	if err != nil {
		return err
	}
	sockets, err := newSockets()
	if err != nil {
		return err
	}
	children, err := newChildren()
	if err != nil {
		return err
	}
	terminal, err := newTerminal()
	if err != nil {
		return err
	}
	parts := map[string]part{
		"heap": heap, "files": files, "sockets": sockets, "children": children, "terminal": terminal, "timers": newTimers(),
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /check", func(w http.ResponseWriter, _ *http.Request) {
		r := report{Wrong: []string{}, Moves: map[string]int64{}, PID: os.Getpid()}
		for name, p := range parts {
			moves, err := p.check()
			r.Moves[name] = moves
			if err != nil {
				r.Wrong = append(r.Wrong, name+": "+err.Error())
			}
		}
		r.Wall = time.Now().UnixNano()
		_ = json.NewEncoder(w).Encode(r)
	})
	mux.HandleFunc("POST /dirty", func(w http.ResponseWriter, r *http.Request) {
		mib, err := strconv.Atoi(r.FormValue("mib"))
		if err != nil || mib < 0 || mib > heapMiB {
			http.Error(w, fmt.Sprintf("mib must be 0 to %d", heapMiB), http.StatusBadRequest)
			return
		}
		heap.dirty(mib)
	})
	server := &http.Server{Addr: listen, Handler: mux, ReadHeaderTimeout: time.Minute}
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
