package controlplane

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"sync"
	"time"

	"wrenn/impl/agentclient"
)

// pingTimeout is how long a create waits for a host to say how full it is; a host that takes longer is not
// where a new sandbox should go.
const pingTimeout = 3 * time.Second

// seen is an agent that answered, with what it said.
type seen struct {
	agent *agentclient.Client
	host  agentclient.Host
}

// ping asks all agents at once and returns those that answered, in the order of the configuration. If none
// did, it returns their errors.
func (s *server) ping(ctx context.Context) ([]seen, error) {
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	hosts := make([]seen, len(s.agents))
	errs := make([]error, len(s.agents))
	var wg sync.WaitGroup
	for i, a := range s.agents {
		wg.Go(func() {
			var host agentclient.Host
			if host, errs[i] = a.Ping(ctx); errs[i] == nil {
				hosts[i] = seen{a, host}
			}
		})
	}
	wg.Wait()
	hosts = slices.DeleteFunc(hosts, func(h seen) bool { return h.agent == nil })
	if len(hosts) == 0 {
		return nil, errors.Join(errs...)
	}
	return hosts, nil
}

// place picks the host for a new sandbox: of those that have the template, the one with the fewest sandboxes
// per core.
func (s *server) place(ctx context.Context, template string) (*agentclient.Client, error) {
	hosts, err := s.ping(ctx)
	if err != nil {
		return nil, err
	}
	hosts = slices.DeleteFunc(hosts, func(h seen) bool { return !slices.Contains(h.host.Templates, template) })
	if len(hosts) == 0 {
		return nil, refuse(http.StatusNotFound, "template %q was not found", template)
	}
	return slices.MinFunc(hosts, func(a, b seen) int {
		return int(a.host.Sandboxes*max(b.host.CPUs, 1)) - int(b.host.Sandboxes*max(a.host.CPUs, 1))
	}).agent, nil
}
