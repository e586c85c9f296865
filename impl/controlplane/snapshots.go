package controlplane

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"wrenn/impl/agentclient"
	"wrenn/impl/safename"
	"wrenn/impl/store"
)

// snapshotReply describes a snapshot.
type snapshotReply struct {
	SnapshotID string         `json:"snapshotID"`
	Names      []string       `json:"names"`
	Wrenn      snapshotDetail `json:"wrenn"`
}

// snapshotDetail is Wrenn's own part.
type snapshotDetail struct {
	SandboxID  string    `json:"sandboxID"`
	TemplateID string    `json:"templateID"`
	CreatedAt  time.Time `json:"createdAt"`
	CPUCount   uint32    `json:"cpuCount"`
	MemoryMB   uint64    `json:"memoryMB"`
	DiskSizeMB uint64    `json:"diskSizeMB"`
	SizeBytes  uint64    `json:"sizeBytes"`
}

func describeSnapshot(sn store.Snapshot) snapshotReply {
	out := snapshotReply{SnapshotID: reference{sn.ID, sn.Tag}.full(), Names: []string{}, Wrenn: snapshotDetail{
		SandboxID: sn.SandboxID, TemplateID: sn.Template, CreatedAt: sn.CreatedAt,
		CPUCount: sn.VCPUs, MemoryMB: sn.MemoryMiB, DiskSizeMB: sn.DiskMiB, SizeBytes: sn.SizeBytes,
	}}
	if sn.Name != "" {
		out.SnapshotID = reference{sn.Name, sn.Tag}.full()
		out.Names = append(out.Names, out.SnapshotID)
	}
	return out
}

// newSnapshotID makes the name that an agent knows a snapshot by.
func newSnapshotID() string { return "s" + newID()[1:] }

// snapshot keeps a sandbox's memory and disk, to start others from. A name that is taken goes over to it.
func (s *server) snapshot(w http.ResponseWriter, r *http.Request) error {
	begin := time.Now()
	var body struct {
		Name *string `json:"name"`
	}
	if err := decode(r, &body); err != nil {
		return err
	}
	ref := reference{tag: store.DefaultTag}
	if body.Name != nil {
		var err error
		if ref, err = parseReference("name", *body.Name); err != nil {
			return err
		}
		if err := s.refuseTemplateName(r.Context(), ref.name); err != nil {
			return err
		}
	}
	id := r.PathValue("sandboxID")
	row, agent, made, phases, err := s.takeSnapshot(r.Context(), id, newSnapshotID())
	if err != nil {
		return err
	}
	sn := store.Snapshot{Name: ref.name, Tag: ref.tag}
	fill(&sn, agent.Name(), made)
	sn.Template = row.Template
	ctx := context.WithoutCancel(r.Context())
	replaced, err := s.store.PutSnapshot(ctx, sn)
	if err != nil {
		return err // reconciling finds the snapshot and lists it without a name
	}
	for _, old := range replaced {
		s.dropSnapshot(ctx, old.Agent, old.ID)
	}
	s.cfg.Logger.InfoContext(ctx, "snapshot taken", "sandbox", id, "snapshot", sn.ID, "name", sn.Name, "took", time.Since(begin), "phases", phases)
	setTimings(w, phases, time.Since(begin))
	answer(w, http.StatusCreated, describeSnapshot(sn))
	return nil
}

// fill copies what the agent says of a snapshot.
func fill(sn *store.Snapshot, agent string, made agentclient.Snapshot) {
	sn.ID, sn.Agent, sn.SandboxID, sn.Template, sn.CreatedAt = made.Name, agent, made.SandboxID, made.Template, made.CreatedAt
	if sn.CreatedAt.IsZero() {
		sn.CreatedAt = time.Now().UTC()
	}
	sn.VCPUs, sn.MemoryMiB, sn.DiskMiB, sn.SizeBytes = made.VCPUs, made.MemoryMiB, made.DiskMiB, made.SizeBytes
}

// refuseTemplateName keeps a snapshot from standing in front of a template.
func (s *server) refuseTemplateName(ctx context.Context, name string) error {
	hosts, err := s.ping(ctx)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(hosts, func(h seen) bool { return slices.Contains(h.host.Templates, name) }) {
		return refuse(http.StatusConflict, "name: %q is a template", name)
	}
	return nil
}

// takeSnapshot has the agent of a sandbox keep it under a name of the agent's. If the answer was lost, the
// agent is asked what came of it.
func (s *server) takeSnapshot(client context.Context, id, name string) (store.Sandbox, *agentclient.Client, agentclient.Snapshot, []agentclient.Stage, error) {
	done, err := s.turns.take(client, id)
	if err != nil {
		return store.Sandbox{}, nil, agentclient.Snapshot{}, nil, err
	}
	defer done()
	row, agent, err := s.live(client, id)
	if err != nil {
		return row, agent, agentclient.Snapshot{}, nil, err
	}
	ctx := context.WithoutCancel(client)
	made, phases, err := agent.Snapshot(ctx, id, name)
	if errors.Is(err, agentclient.ErrConflict) { // its agent is pausing it, at its end
		if row, err = s.catchUp(client, agent, row); err != nil {
			return row, agent, made, nil, err
		}
		made, phases, err = agent.Snapshot(ctx, id, name)
	}
	if errors.Is(err, agentclient.ErrUnreachable) {
		_, _ = s.settled(ctx, agent, id) // it may be at it still; whatever became of the sandbox, the list tells
		if found, ok := findSnapshot(ctx, agent, name); ok {
			return row, agent, found, nil, nil
		}
	}
	if err != nil {
		return row, agent, made, nil, s.forget(ctx, id, err)
	}
	return row, agent, made, phases, nil
}

func findSnapshot(ctx context.Context, agent *agentclient.Client, name string) (agentclient.Snapshot, bool) {
	all, err := agent.Snapshots(ctx)
	i := slices.IndexFunc(all, func(sn agentclient.Snapshot) bool { return sn.Name == name })
	if err != nil || i < 0 {
		return agentclient.Snapshot{}, false
	}
	return all[i], true
}

// dropSnapshot deletes a snapshot that nobody can name any more; sandboxes that were created from it keep
// what they need. Where that fails, reconciling finds it.
func (s *server) dropSnapshot(ctx context.Context, agentName, id string) {
	agent := s.agent(agentName)
	if agent == nil {
		return
	}
	if err := agent.DeleteSnapshot(ctx, id, true); err != nil && !errors.Is(err, agentclient.ErrNotFound) {
		s.cfg.Logger.WarnContext(ctx, "a snapshot could not be deleted yet", "snapshot", id, "agent", agentName, "error", err)
	}
}

func (s *server) listSnapshots(w http.ResponseWriter, r *http.Request) error {
	q, err := snapshotQuery(r.URL.Query())
	if err != nil {
		return err
	}
	limit := q.Limit
	q.Limit++ // one more tells whether the list goes on
	list, err := s.store.ListSnapshots(r.Context(), q)
	if err != nil {
		return err
	}
	if len(list) > limit {
		list = list[:limit]
		last := list[limit-1]
		w.Header().Set(headerNextToken, base64.URLEncoding.EncodeToString([]byte(last.CreatedAt.Format(time.RFC3339Nano)+"__"+last.ID)))
	}
	out := make([]snapshotReply, 0, len(list))
	for _, sn := range list {
		out = append(out, describeSnapshot(sn))
	}
	answer(w, http.StatusOK, out)
	return nil
}

// snapshotQuery reads the query of a list; the contract has checked types and limits.
func snapshotQuery(values url.Values) (q store.SnapshotQuery, err error) {
	q = store.SnapshotQuery{SandboxID: values.Get("sandboxID"), Limit: defaultLimit}
	if limit := values.Get("limit"); limit != "" {
		if q.Limit, err = strconv.Atoi(limit); err != nil {
			return q, refuse(http.StatusBadRequest, "query parameter limit: %v", err)
		}
	}
	if name := values.Get("name"); name != "" {
		ref, err := parseReference("query parameter name", name)
		if err != nil {
			return q, err
		}
		q.Name = ref.name
		if strings.Contains(name, ":") {
			q.Tag = ref.tag
		}
	}
	if token := values.Get("nextToken"); token != "" {
		if q.After, err = decodeSnapshotCursor(token); err != nil {
			return q, refuse(http.StatusBadRequest, "query parameter nextToken: %v", err)
		}
	}
	return q, nil
}

func decodeSnapshotCursor(token string) (*store.Position, error) {
	raw, err := base64.URLEncoding.DecodeString(token)
	at, id, ok := strings.Cut(string(raw), "__")
	if err != nil || !ok || safename.Check("id", id) != nil {
		return nil, errors.New("is not one that a list has returned")
	}
	created, err := time.Parse(time.RFC3339Nano, at)
	if err != nil {
		return nil, errors.New("is not one that a list has returned")
	}
	return &store.Position{StartedAt: created, ID: id}, nil
}

// deleteTemplate deletes a snapshot; templates cannot be deleted yet.
func (s *server) deleteTemplate(w http.ResponseWriter, r *http.Request) error {
	ref, err := parseReference("templateID", r.PathValue("templateID"))
	if err != nil {
		return err
	}
	sn, err := s.store.FindSnapshot(r.Context(), ref.name, ref.tag)
	if errors.Is(err, store.ErrNotFound) {
		if _, err := s.resolve(r.Context(), ref); err != nil {
			return err
		}
		return refuse(http.StatusNotImplemented, "%q is a template: deleting templates is not available in this version of Wrenn", ref)
	}
	if err != nil {
		return err
	}
	agent := s.agent(sn.Agent)
	if agent == nil {
		return refuse(http.StatusServiceUnavailable, "the host of snapshot %q is not configured here", ref)
	}
	ctx := context.WithoutCancel(r.Context())
	err = agent.DeleteSnapshot(ctx, sn.ID, false)
	switch {
	case errors.Is(err, agentclient.ErrConflict):
		return refuse(http.StatusConflict, "snapshot %q is in use: sandboxes that were created from it are there", ref)
	case errors.Is(err, agentclient.ErrNotFound): // an earlier delete, whose answer was lost
	case err != nil:
		return err
	}
	if err := s.store.DeleteSnapshot(ctx, sn.ID); err != nil {
		return err
	}
	s.cfg.Logger.InfoContext(ctx, "snapshot deleted", "snapshot", sn.ID, "name", sn.Name)
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// setTimings tells the client how long each phase took, and the whole.
func setTimings(w http.ResponseWriter, phases []agentclient.Stage, total time.Duration) {
	list := make([]string, 0, len(phases)+1)
	for _, p := range append(slices.Clone(phases), agentclient.Stage{Name: "total", Duration: total}) {
		if safename.Check("phase", p.Name) == nil { // else it would not be a token of the header
			list = append(list, fmt.Sprintf("%s;dur=%.3f", p.Name, milliseconds(p.Duration)))
		}
	}
	w.Header().Set(headerServerTiming, strings.Join(list, ", "))
}
