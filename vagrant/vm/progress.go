package main

import (
	"bytes"
	"io"
	"regexp"
)

// progress passes lines on, less those that only show how far a copy has come, of which Vagrant writes
// hundreds with or without a terminal, and those that list the machine's every setting.
type progress struct {
	out  io.Writer
	line []byte
}

var noise = regexp.MustCompile(`Progress: *\d+%|^==> \w+:  -- |^\s*$`)

// Write passes on each line that p completes; carriage returns count as line ends.
func (p *progress) Write(data []byte) (int, error) {
	p.line = append(p.line, data...)
	for {
		i := bytes.IndexAny(p.line, "\r\n")
		if i < 0 {
			return len(data), nil
		}
		line := bytes.ReplaceAll(p.line[:i], []byte("\x1b[K"), nil)
		p.line = p.line[i+1:]
		if noise.Match(line) {
			continue
		}
		if _, err := p.out.Write(append(bytes.Clone(line), '\n')); err != nil {
			return 0, err
		}
	}
}
