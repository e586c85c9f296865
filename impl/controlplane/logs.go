package controlplane

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"wrenn/impl/store"
)

const (
	// consoleBytes is how much of the console is read: the most that an agent returns.
	consoleBytes = 1 << 20
	// defaultLogLimit is the contract's maximum of lines.
	defaultLogLimit = 1000
)

type logEntry struct {
	Timestamp time.Time         `json:"timestamp"`
	Message   string            `json:"message"`
	Level     string            `json:"level"`
	Fields    map[string]string `json:"fields"`
}

// logs returns lines of the guest's console.
func (s *server) logs(w http.ResponseWriter, r *http.Request) error {
	row, agent, err := s.live(r.Context(), r.PathValue("sandboxID"))
	if err != nil {
		return err
	}
	console, err := agent.Logs(r.Context(), row.ID, consoleBytes)
	if err != nil {
		return s.forget(r.Context(), row.ID, err)
	}
	entries, err := logEntries(row, string(console), r)
	if err != nil {
		return err
	}
	answer(w, http.StatusOK, map[string]any{"logs": entries})
	return nil
}

// logEntries picks the lines that r asks for. All bear the same time, so a cursor leaves in all or none.
func logEntries(row store.Sandbox, console string, r *http.Request) ([]logEntry, error) {
	q := r.URL.Query()
	entries := []logEntry{}
	backward := q.Get("direction") == "backward"
	limit := defaultLogLimit
	var err error
	if text := q.Get("limit"); text != "" {
		if limit, err = strconv.Atoi(text); err != nil {
			return nil, refuse(http.StatusBadRequest, "query parameter limit: %v", err)
		}
	}
	if text := q.Get("cursor"); text != "" {
		cursor, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return nil, refuse(http.StatusBadRequest, "query parameter cursor: %v", err)
		}
		at := row.StartedAt.UnixMilli()
		if (!backward && at < cursor) || (backward && at > cursor) {
			return entries, nil
		}
	}
	if level := q.Get("level"); level == "warn" || level == "error" {
		return entries, nil
	}
	for line := range strings.Lines(console) {
		line = strings.ToValidUTF8(strings.TrimRight(line, "\r\n"), "\uFFFD")
		if line != "" && strings.Contains(line, q.Get("search")) {
			entries = append(entries, logEntry{Timestamp: row.StartedAt, Message: line, Level: "info", Fields: map[string]string{}})
		}
	}
	if backward {
		slices.Reverse(entries)
	}
	return entries[:min(limit, len(entries))], nil
}
