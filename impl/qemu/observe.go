package qemu

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"
)

// logSink is where the shim's own messages go: stderr until /logger or --log-path names a file.
type logSink struct {
	mu  sync.Mutex
	out *os.File
}

func (s *logSink) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.Write(p)
}

func (s *logSink) open(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.out != os.Stderr {
		_ = s.out.Close() // what was logged is written
	}
	s.out = f
	return nil
}

// parseLevel understands Firecracker's level names, in any case.
func parseLevel(name string) (slog.Level, error) {
	switch strings.ToLower(name) {
	case "off":
		return slog.LevelError + 4, nil
	case "error":
		return slog.LevelError, nil
	case "warn", "warning":
		return slog.LevelWarn, nil
	case "info":
		return slog.LevelInfo, nil
	case "debug", "trace":
		return slog.LevelDebug, nil
	}
	return 0, fmt.Errorf("invalid value for logger level: %s. Possible values: [Error, Warning, Info, Debug]", name)
}

func (m *machine) putLogger(c loggerConfig) error {
	if err := m.beforeStart(); err != nil {
		return err
	}
	if c.Level != nil {
		level, err := parseLevel(*c.Level)
		if err != nil {
			return faultf("Logger error: %s", err)
		}
		m.cfg.level.Set(level)
	}
	if c.LogPath != nil {
		if err := m.cfg.sink.open(*c.LogPath); err != nil {
			return faultf("Logger error: Failed to open target file: %s", osText(err))
		}
	}
	m.logger = &c
	return nil
}

func (m *machine) putMetrics(c metricsConfig) error {
	if err := m.beforeStart(); err != nil {
		return err
	}
	if m.metrics != nil {
		return faultf("Metrics error: Cannot initialize the metrics system: Reinitialization of metrics not allowed.")
	}
	f, err := os.OpenFile(c.MetricsPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return faultf("Metrics error: Cannot initialize the metrics system: %s", osText(err))
	}
	if err := f.Close(); err != nil {
		return faultf("Metrics error: %s", osText(err))
	}
	m.metrics = &c
	return nil
}

// flushMetrics appends one line with the time, which is all that emulation has to tell.
func (m *machine) flushMetrics() error {
	if m.metrics == nil {
		return faultf("Internal VMM error: Metrics error: the metrics system is not initialized.")
	}
	line, err := json.Marshal(map[string]any{"utc_timestamp_ms": time.Now().UnixMilli()})
	if err != nil {
		return faultf("Internal VMM error: %s", err)
	}
	f, err := os.OpenFile(m.metrics.MetricsPath, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return faultf("Internal VMM error: %s", osText(err))
	}
	_, err = f.Write(append(line, '\n'))
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return faultf("Internal VMM error: %s", osText(err))
	}
	return nil
}
