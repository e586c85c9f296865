// Package agentclient is the control plane's view of one agent: typed calls over the CONTROL plane, each
// with its deadline, and errors that callers can decide on.
package agentclient

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"wrenn/impl/transport"
	hostagentv1 "wrenn/proto/gen/hostagent/v1"
	"wrenn/proto/gen/hostagent/v1/hostagentv1connect"
)

// Deadlines of the calls. Reads answer from memory; a destroy waits for a VMM to end and for its disk and
// network to be removed; a create waits for a guest to boot, which under emulation on a loaded machine
// takes tens of seconds.
const (
	ReadTimeout    = 10 * time.Second
	DestroyTimeout = time.Minute
	CreateTimeout  = 5 * time.Minute
	// ReclaimTimeout covers all 32767 slots at the 7 ms that one takes on a loaded machine.
	ReclaimTimeout = 5 * time.Minute
)

// readLimit bounds a reply: a list of 32767 sandboxes, the most that a host can hold, with a kilobyte of
// metadata each.
const readLimit = 64 << 20

// Config names an agent.
type Config struct {
	// Name is what the store remembers a sandbox's agent by; it never changes for a host.
	Name string
	// URL is the agent's scheme, host and port, such as http://127.0.0.1:3003.
	URL string
	// Token is the agent's credential, sent in transport.AgentTokenHeader on every call.
	Token string
	// Dial connects to the agent; nil dials its address.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Client calls one agent. It is safe for concurrent use.
type Client struct {
	name      string
	base      *url.URL
	token     string
	transport *http.Transport
	rpc       hostagentv1connect.HostAgentServiceClient
}

// New returns a client of the agent that cfg names, with a connection pool of its own. It does not connect
// yet. Close frees the pool.
func New(cfg Config) (*Client, error) {
	base, err := url.Parse(cfg.URL)
	if err != nil || base.Host == "" || (base.Scheme != "http" && base.Scheme != "https") {
		return nil, fmt.Errorf("agent %q: URL %q must be http://host:port or https://host:port", cfg.Name, cfg.URL)
	}
	if cfg.Name == "" || cfg.Token == "" {
		return nil, fmt.Errorf("agent at %s: name and token must not be empty", cfg.URL)
	}
	c := &Client{name: cfg.Name, base: &url.URL{Scheme: base.Scheme, Host: base.Host}, token: cfg.Token, transport: transport.NewRPCTransport()}
	if cfg.Dial != nil {
		c.transport.DialContext = cfg.Dial
	}
	c.rpc = hostagentv1connect.NewHostAgentServiceClient(
		&http.Client{Transport: c.transport}, // no total timeout: each call has its own deadline
		c.base.String(),
		connect.WithReadMaxBytes(readLimit),
		connect.WithInterceptors(connect.UnaryInterceptorFunc(c.authenticate)),
	)
	return c, nil
}

func (c *Client) authenticate(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		req.Header().Set(transport.AgentTokenHeader, c.token)
		return next(ctx, req)
	}
}

// Name returns the agent's name.
func (c *Client) Name() string { return c.name }

// URL returns a copy of the agent's scheme and host.
func (c *Client) URL() *url.URL {
	u := *c.base
	return &u
}

// Token returns the agent's credential, for the port proxy.
func (c *Client) Token() string { return c.token }

// Close closes idle connections. Calls under way go on.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// Ping asks what the host is and how full it is.
func (c *Client) Ping(ctx context.Context) (Host, error) {
	res, err := call(ctx, ReadTimeout, c.rpc.Ping, &hostagentv1.PingRequest{})
	if err != nil {
		return Host{}, c.fail("ping", err)
	}
	return hostFromWire(res), nil
}

// Create makes a sandbox and returns when its daemon answers. Errors: ErrInvalid, ErrNotFound (the
// template), ErrExists (the id), ErrExhausted, ErrUnavailable, ErrUnreachable, ErrInternal.
func (c *Client) Create(ctx context.Context, r CreateRequest) (Sandbox, error) {
	res, err := call(ctx, CreateTimeout, c.rpc.CreateSandbox, createToWire(r))
	if err != nil {
		return Sandbox{}, c.fail("create sandbox "+r.ID, err)
	}
	return sandboxFromWire(res.GetSandbox()), nil
}

// Get returns the sandbox, or ErrNotFound.
func (c *Client) Get(ctx context.Context, id string) (Sandbox, error) {
	res, err := call(ctx, ReadTimeout, c.rpc.GetSandbox, &hostagentv1.GetSandboxRequest{Id: id})
	if err != nil {
		return Sandbox{}, c.fail("get sandbox "+id, err)
	}
	return sandboxFromWire(res.GetSandbox()), nil
}

// List returns all sandboxes that the host holds, whatever their state.
func (c *Client) List(ctx context.Context) ([]Sandbox, error) {
	res, err := call(ctx, ReadTimeout, c.rpc.ListSandboxes, &hostagentv1.ListSandboxesRequest{})
	if err != nil {
		return nil, c.fail("list sandboxes", err)
	}
	all := make([]Sandbox, 0, len(res.GetSandboxes()))
	for _, s := range res.GetSandboxes() {
		all = append(all, sandboxFromWire(s))
	}
	return all, nil
}

// Destroy returns when nothing of the sandbox is left on the host, or ErrNotFound.
func (c *Client) Destroy(ctx context.Context, id string) error {
	_, err := call(ctx, DestroyTimeout, c.rpc.DestroySandbox, &hostagentv1.DestroySandboxRequest{Id: id})
	return c.fail("destroy sandbox "+id, err)
}

// SetDeadline moves the sandbox's end to timeout from now and returns it; with extendOnly a later end is
// left as it is. Errors: ErrNotFound, ErrConflict.
func (c *Client) SetDeadline(ctx context.Context, id string, timeout time.Duration, extendOnly bool) (time.Time, error) {
	res, err := call(ctx, ReadTimeout, c.rpc.SetSandboxDeadline, &hostagentv1.SetSandboxDeadlineRequest{
		Id: id, Timeout: durationpb.New(timeout), ExtendOnly: extendOnly,
	})
	if err != nil {
		return time.Time{}, c.fail("set the end of sandbox "+id, err)
	}
	return timeFromWire(res.GetDeadline()), nil
}

// SetNetwork replaces what a running sandbox may reach, and returns when that is in force. Errors:
// ErrInvalid, ErrNotFound, ErrConflict.
func (c *Client) SetNetwork(ctx context.Context, id string, rules NetworkRules) error {
	_, err := call(ctx, ReadTimeout, c.rpc.SetSandboxNetwork, &hostagentv1.SetSandboxNetworkRequest{Id: id, Network: rulesToWire(rules)})
	return c.fail("set the network rules of sandbox "+id, err)
}

// Logs returns at most limit of the last bytes of the guest's console (1 to 1 MiB; 0 means 64 KiB), or
// ErrNotFound.
func (c *Client) Logs(ctx context.Context, id string, limit uint32) ([]byte, error) {
	res, err := call(ctx, ReadTimeout, c.rpc.GetSandboxLogs, &hostagentv1.GetSandboxLogsRequest{Id: id, Limit: limit})
	if err != nil {
		return nil, c.fail("get the logs of sandbox "+id, err)
	}
	return res.GetConsole(), nil
}

// Networks returns the slots in use and who has them.
func (c *Client) Networks(ctx context.Context) ([]Network, error) {
	res, err := call(ctx, ReadTimeout, c.rpc.ListNetworks, &hostagentv1.ListNetworksRequest{})
	if err != nil {
		return nil, c.fail("list networks", err)
	}
	all := make([]Network, 0, len(res.GetNetworks()))
	for _, n := range res.GetNetworks() {
		all = append(all, Network{Slot: int(n.GetSlot()), SandboxID: n.GetSandboxId(), State: stateFromWire(n.GetState())})
	}
	return all, nil
}

// ReclaimNetworks has the networks removed that nobody has, and returns their slots.
func (c *Client) ReclaimNetworks(ctx context.Context) ([]int, error) {
	res, err := call(ctx, ReclaimTimeout, c.rpc.ReclaimNetworks, &hostagentv1.ReclaimNetworksRequest{})
	if err != nil {
		return nil, c.fail("reclaim networks", err)
	}
	slots := make([]int, 0, len(res.GetSlots()))
	for _, s := range res.GetSlots() {
		slots = append(slots, int(s))
	}
	return slots, nil
}

// call runs one unary RPC under a deadline of its own.
func call[Req, Res any](
	ctx context.Context, timeout time.Duration,
	rpc func(context.Context, *connect.Request[Req]) (*connect.Response[Res], error), req *Req,
) (*Res, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	res, err := rpc(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, err
	}
	return res.Msg, nil
}
