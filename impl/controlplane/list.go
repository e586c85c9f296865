package controlplane

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"wrenn/impl/safename"
	"wrenn/impl/store"
)

const (
	headerNextToken    = "X-Next-Token"
	headerTotalRunning = "X-Total-Running"

	// defaultLimit and the contract's maximum are both 100, as E2B's are.
	defaultLimit = 100
)

// cursorAscending ends a cursor of a list from the oldest on.
const cursorAscending = "asc"

func (s *server) listV1(w http.ResponseWriter, r *http.Request) error {
	q, err := listQuery(r.URL.Query(), []store.State{store.Running})
	if err != nil {
		return err
	}
	q.Limit = 0
	rows, err := s.store.List(r.Context(), q)
	if err != nil {
		return err
	}
	answerList(w, rows)
	return nil
}

func (s *server) listV2(w http.ResponseWriter, r *http.Request) error {
	q, err := listQuery(r.URL.Query(), []store.State{store.Running, store.Paused})
	if err != nil {
		return err
	}
	limit := q.Limit
	q.Limit++ // one more tells whether the list goes on
	rows, err := s.store.List(r.Context(), q)
	if err != nil {
		return err
	}
	running, err := s.store.List(r.Context(), store.Query{States: []store.State{store.Running}, Metadata: q.Metadata, LiveAt: q.LiveAt})
	if err != nil {
		return err
	}
	w.Header().Set(headerTotalRunning, strconv.Itoa(len(running)))
	if len(rows) > limit {
		rows = rows[:limit]
		w.Header().Set(headerNextToken, encodeCursor(rows[limit-1], q.Ascending))
	}
	answerList(w, rows)
	return nil
}

func answerList(w http.ResponseWriter, rows []store.Sandbox) {
	out := make([]listedSandbox, 0, len(rows))
	for _, row := range rows {
		out = append(out, listed(row))
	}
	answer(w, http.StatusOK, out)
}

// listQuery reads the query of either version of the list; the contract has checked types and limits.
func listQuery(values url.Values, states []store.State) (q store.Query, err error) {
	q = store.Query{States: states, LiveAt: time.Now(), Limit: defaultLimit, Ascending: values.Get("order") == cursorAscending}
	if list := values.Get("state"); list != "" {
		q.States = nil
		for name := range strings.SplitSeq(list, ",") {
			q.States = append(q.States, store.State(name))
		}
	}
	if limit := values.Get("limit"); limit != "" {
		if q.Limit, err = strconv.Atoi(limit); err != nil {
			return q, refuse(http.StatusBadRequest, "query parameter limit: %v", err)
		}
	}
	if after := values.Get("startedAfter"); after != "" {
		if q.StartedFrom, err = time.Parse(time.RFC3339, after); err != nil {
			return q, refuse(http.StatusBadRequest, "query parameter startedAfter: %.64q is not a time of RFC 3339", after)
		}
	}
	if template := values.Get("template"); template != "" {
		ref, err := parseReference("query parameter template", template)
		if err != nil {
			return q, err
		}
		q.Template = ref.String()
	}
	if q.Metadata, err = decodeMetadata(values.Get("metadata")); err != nil {
		return q, refuse(http.StatusBadRequest, "query parameter metadata: %v", err)
	}
	if token := values.Get("nextToken"); token != "" {
		if q.After, q.Ascending, err = decodeCursor(token); err != nil {
			return q, refuse(http.StatusBadRequest, "query parameter nextToken: %v", err)
		}
	}
	return q, nil
}

// decodeMetadata reads the pairs of a filter. SDKs encode each key and value, build a query string of them,
// and encode that again as a parameter, which has been undone already.
func decodeMetadata(encoded string) (map[string]string, error) {
	if encoded == "" {
		return nil, nil
	}
	values, err := url.ParseQuery(encoded)
	if err != nil {
		return nil, errors.New("must be a query string such as key=value&key2=value2")
	}
	pairs := make(map[string]string, len(values))
	for k, v := range values {
		key, errKey := url.PathUnescape(k)
		value, errValue := url.PathUnescape(v[0])
		if len(v) > 1 {
			return nil, fmt.Errorf("key %.80q is there twice", k)
		}
		if errKey != nil || errValue != nil {
			return nil, fmt.Errorf("key %.80q or its value is not percent-encoded correctly", k)
		}
		pairs[key] = value
	}
	return pairs, nil
}

// encodeCursor names the place behind row: base64url of start__id, with __asc where the list ascends.
func encodeCursor(row store.Sandbox, ascending bool) string {
	cursor := row.StartedAt.UTC().Format(time.RFC3339Nano) + "__" + row.ID
	if ascending {
		cursor += "__" + cursorAscending
	}
	return base64.URLEncoding.EncodeToString([]byte(cursor))
}

func decodeCursor(token string) (*store.Position, bool, error) {
	raw, err := base64.URLEncoding.DecodeString(token)
	parts := strings.Split(string(raw), "__")
	ascending := len(parts) == 3 && parts[2] == cursorAscending
	if err != nil || (len(parts) != 2 && !ascending) {
		return nil, false, errors.New("is not one that a list has returned")
	}
	at, err := time.Parse(time.RFC3339Nano, parts[0])
	if err != nil || safename.CheckSandboxID("id", parts[1]) != nil {
		return nil, false, errors.New("is not one that a list has returned")
	}
	return &store.Position{StartedAt: at, ID: parts[1]}, ascending, nil
}
