package controlplane

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"wrenn/impl/agentclient"
	"wrenn/impl/safename"
	"wrenn/impl/store"
)

// reference is a template or a snapshot as clients name it: a name (or a snapshot's id) and a tag.
type reference struct{ name, tag string }

// String leaves the default tag out, as rows and lists do.
func (r reference) String() string {
	if r.tag == store.DefaultTag {
		return r.name
	}
	return r.full()
}

// full is the reference with its tag.
func (r reference) full() string { return r.name + ":" + r.tag }

// parseReference reads name or name:tag. "latest" is the default tag.
func parseReference(field, value string) (reference, error) {
	name, tag, tagged := strings.Cut(value, ":")
	if err := safename.Check(field, name); err != nil {
		return reference{}, refuse(http.StatusBadRequest, "%v", err)
	}
	if tagged {
		if err := safename.Check("the tag of "+field, tag); err != nil {
			return reference{}, refuse(http.StatusBadRequest, "%v", err)
		}
	}
	if !tagged || tag == "latest" {
		tag = store.DefaultTag
	}
	return reference{name, tag}, nil
}

// origin is what a new sandbox starts from, and where.
type origin struct {
	agent *agentclient.Client
	// name is what the sandbox shows as its template.
	name string
	// template or snapshot is what the agent knows it by; the other one is empty.
	template, snapshot string
}

// resolve finds what ref names: a snapshot, on the host that holds it, or a template, on the least loaded
// host that has it.
func (s *server) resolve(ctx context.Context, ref reference) (origin, error) {
	sn, err := s.store.FindSnapshot(ctx, ref.name, ref.tag)
	switch {
	case err == nil:
		agent := s.agent(sn.Agent)
		if agent == nil {
			return origin{}, refuse(http.StatusServiceUnavailable, "the host of snapshot %q is not configured here", ref)
		}
		return origin{agent: agent, name: ref.String(), snapshot: sn.ID}, nil
	case !errors.Is(err, store.ErrNotFound):
		return origin{}, err
	case ref.tag != store.DefaultTag: // templates have no versions yet
		return origin{}, refuse(http.StatusNotFound, "template %q has no tag %q", ref.name, ref.tag)
	}
	agent, err := s.place(ctx, ref.name)
	return origin{agent: agent, name: ref.name, template: ref.name}, err
}
