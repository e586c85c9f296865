// Command failures repeats, after a long run, what its tests failed on, without the logs that buried it:
//
//	failures build/e2e/native.json
//
// reads what `go test -json` printed and writes every assertion that did not hold and every panic, each below the name
// of its test. It fails on nothing but a file that it cannot read.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: failures FILE  (of `go test -json`)")
		os.Exit(2)
	}
	f, err := os.Open(os.Args[1])
	if err == nil {
		err = report(f, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "failures:", err)
		os.Exit(1)
	}
}

// event is one line of `go test -json` (see `go doc test2json`).
type event struct{ Action, Package, Test, Output string }

// maxLines is how many lines of one assertion or panic are worth repeating.
const maxLines = 40

// report writes what failed, in the order in which it did.
func report(r io.Reader, w io.Writer) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 16<<20)
	left := map[string]int{} // by test, how many lines more of what it is at
	said := ""
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil || e.Action != "output" {
			continue // a build's error is plain text
		}
		test := e.Package + " " + e.Test
		text := strings.TrimSpace(e.Output)
		if strings.HasPrefix(text, "Error Trace:") || strings.HasPrefix(text, "panic: ") {
			left[test] = maxLines
		}
		if left[test] == 0 {
			continue
		}
		left[test]--
		if test != said {
			said = test
			if _, err := fmt.Fprintf(w, "\n=== %s\n", test); err != nil {
				return err
			}
		}
		if _, err := io.WriteString(w, e.Output); err != nil {
			return err
		}
		if strings.HasPrefix(text, "Test:") {
			left[test] = 1 // perhaps "Messages:"
		}
	}
	return lines.Err()
}
