package ground

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"

	"wrenn/bench/h2c"
	"wrenn/bench/load"
	"wrenn/impl/envdclient"
	"wrenn/impl/transport"
)

// Design is a way to a terminal and to a user's ports beside it.
type Design struct {
	Name string
	// Open makes what a client keeps open. It is closed by the caller.
	Open func(ctx context.Context, g *Ground, l Link) (*Client, error)
}

// Client is one client of one design.
type Client struct {
	// Terminal opens a terminal that echoes; it prints "ready" first.
	Terminal func(ctx context.Context) (io.ReadWriteCloser, error)
	// Door leads to the servers beside it. Port leads to any port of the guest, and is nil where the design has no guest.
	Door load.Door
	Port func(port int) load.Door

	ground *Ground
	link   Link
	close  []func()
}

// Close gives up the client's connections.
func (c *Client) Close() {
	for _, end := range c.close {
		end()
	}
}

// The designs. Isolated is Wrenn, the real programs, with a terminal as E2B's SDKs have one, and IsolatedWS the same
// with a terminal as Wrenn's own page and command line have one. Shared is what it replaces: one HTTP/2 connection per hop
// for terminals and ports. The others are rulers; load beside TCP, SSHOwn and SSHHops goes through Wrenn's programs, so that the
// machine and the link have as much to do, and load beside the web terminal and the other two of ssh to a server on
// the control plane's host.
var (
	Isolated   = Design{"isolated", openIsolated}
	IsolatedWS = Design{"isolated-ws", openIsolatedWS}
	Shared     = Design{"shared", openShared}
	SSH        = Design{"ssh", func(ctx context.Context, g *Ground, l Link) (*Client, error) { return openSSH(ctx, g, l, true) }}
	SSHSecond  = Design{"ssh-second", func(ctx context.Context, g *Ground, l Link) (*Client, error) { return openSSH(ctx, g, l, false) }}
	SSHOwn     = Design{"ssh-own", openSSHOwn}
	SSHHops    = Design{"ssh-hops", openSSHHops}
	WebTTY     = Design{"terminado", openWebTTY}
	TCP        = Design{"tcp", openTCP}
	TCPHops    = Design{"tcp-hops", openTCPHops}
	Designs    = []Design{Isolated, IsolatedWS, Shared, SSH, SSHSecond, SSHOwn, SSHHops, WebTTY, TCP, TCPHops}
)

// script makes a terminal echo each byte at once, by the kernel's line discipline, with nothing behind it that
// takes part.
const script = `stty raw echo; echo ready; exec cat >/dev/null`

func httpURL(addr netip.AddrPort) *url.URL { return &url.URL{Scheme: "http", Host: addr.String()} }

// throughEnvd opens terminals by the daemon's RPC, as E2B's SDKs do.
func throughEnvd(base string, rt http.RoundTripper, header http.Header, token string) (func(ctx context.Context) (io.ReadWriteCloser, error), error) {
	c, err := envdclient.New(envdclient.Config{BaseURL: base, HTTPClient: &http.Client{Transport: rt}, Headers: header, AccessToken: token})
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) (io.ReadWriteCloser, error) {
		s, err := c.PTY(ctx, envdclient.PTYRequest{Cmd: "sh", Args: []string{"-c", script}})
		if err != nil {
			return nil, err
		}
		return killing{s}, nil
	}, nil
}

// killing ends the program with the session, which would otherwise go on.
type killing struct{ *envdclient.Session }

func (k killing) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), killWait)
	defer cancel()
	_ = k.Kill(ctx) // a blocked design cannot; the sandbox's end will
	return k.Session.Close()
}

func openIsolated(_ context.Context, g *Ground, l Link) (*Client, error) {
	streams, bulk := transport.NewStreamTransport(), transport.NewProxyTransport()
	streams.DialContext, bulk.DialContext = l.DialContext, l.DialContext
	base := httpURL(netip.AddrPortFrom(l.Head, proxyPort))
	header := func(port int) http.Header {
		return http.Header{"E2b-Sandbox-Id": {g.Box.SandboxID}, "E2b-Sandbox-Port": {strconv.Itoa(port)}}
	}
	terminal, err := throughEnvd(base.String(), streams, header(envdPort), g.Box.EnvdAccessToken)
	if err != nil {
		return nil, err
	}
	door := func(port int) load.Door { return load.HTTP1{Transport: bulk, URL: base, Header: header(port)} }
	return &Client{
		Terminal: terminal, Door: door(httpPort), Port: door, ground: g, link: l,
		close: []func(){streams.CloseIdleConnections, bulk.CloseIdleConnections},
	}, nil
}

// ToEnvd is a client on the agent's host that calls the daemon itself, without any hop.
func (g *Ground) ToEnvd() (*Client, error) {
	return g.inside(httpURL(netip.AddrPortFrom(g.Guest, envdPort)).String(), nil)
}

// ToAgent is a client on the agent's host that calls the agent, one hop.
func (g *Ground) ToAgent() (*Client, error) {
	agent := g.Nodes[0].Agent
	return g.inside(fmt.Sprintf("http://%s/proxy/%s/%d", agent.Listen, g.Box.SandboxID, envdPort), http.Header{transport.AgentTokenHeader: {agent.Token}})
}

func (g *Ground) inside(base string, header http.Header) (*Client, error) {
	streams := transport.NewStreamTransport()
	streams.DialContext = g.Inside().DialContext
	terminal, err := throughEnvd(base, streams, header, g.Box.EnvdAccessToken)
	return &Client{Terminal: terminal, close: []func(){streams.CloseIdleConnections}}, err
}

// naming sets the host that requests name.
type naming struct {
	http.RoundTripper
	host string
}

func (n naming) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Host = n.host
	return n.RoundTripper.RoundTrip(r)
}

func openShared(_ context.Context, g *Ground, l Link) (*Client, error) {
	g.do("shared", func() {
		agent := netip.MustParseAddrPort(g.Nodes[0].Agent.Listen).Addr()
		host := netip.AddrPortFrom(agent, sharedPort)
		g.Play(g.Node(), host, "host", "--listen", host.String(), "--guest", g.Guest.String())
		g.Play(g.Head, netip.AddrPortFrom(g.HeadAddr, sharedPort), "edge", "--listen", fmt.Sprintf("0.0.0.0:%d", sharedPort), "--host", host.String())
	})
	rt := h2c.NewTransport(l.DialContext)
	base := httpURL(netip.AddrPortFrom(l.Head, sharedPort))
	terminal, err := throughEnvd(base.String(), naming{rt, strconv.Itoa(envdPort) + "-box"}, nil, g.Box.EnvdAccessToken)
	if err != nil {
		return nil, err
	}
	door := func(port int) load.Door {
		return load.HTTP2{HTTP1: load.HTTP1{Transport: rt, URL: base, Host: strconv.Itoa(port) + "-box"}}
	}
	return &Client{Terminal: terminal, Door: door(httpPort), Port: door, ground: g, link: l, close: []func(){rt.CloseIdleConnections}}, nil
}

// prompted is a connection whose other end echoes from the start.
type prompted struct {
	net.Conn
	said bool
}

func (p *prompted) Read(b []byte) (int, error) {
	if !p.said {
		p.said = true
		return copy(b, "ready"), nil
	}
	return p.Conn.Read(b)
}

func (g *Ground) tcp(l Link, port uint16, prompt bool) (*Client, error) {
	// Load beside it goes its usual way, so that the processors have as much to do.
	c, err := openIsolated(g.tb.Context(), g, l)
	if err != nil {
		return nil, err
	}
	c.Terminal = func(ctx context.Context) (io.ReadWriteCloser, error) {
		conn, err := l.DialContext(ctx, "tcp", netip.AddrPortFrom(l.Head, port).String())
		if err != nil {
			return nil, err
		}
		return &prompted{conn, !prompt}, nil
	}
	return c, nil
}

func openTCP(_ context.Context, g *Ground, l Link) (*Client, error) {
	g.headServers()
	return g.tcp(l, echoPort, true)
}

// headServers starts the guest's servers on the control plane's host, for rulers without a guest.
func (g *Ground) headServers() {
	g.do("head servers", func() { g.Play(g.Head, netip.AddrPortFrom(g.HeadAddr, httpPort), "guest") })
}

func (g *Ground) relay(port, guestPort uint16) {
	g.do(fmt.Sprint("relay ", port), func() {
		agent := netip.AddrPortFrom(netip.MustParseAddrPort(g.Nodes[0].Agent.Listen).Addr(), port)
		g.Play(g.Node(), agent, "relay", "--listen", agent.String(), "--to", netip.AddrPortFrom(g.Guest, guestPort).String())
		g.Play(g.Head, netip.AddrPortFrom(g.HeadAddr, port), "relay", "--listen", fmt.Sprintf("0.0.0.0:%d", port), "--to", agent.String())
	})
}

func openTCPHops(_ context.Context, g *Ground, l Link) (*Client, error) {
	g.relay(rawPort, echoPort)
	return g.tcp(l, rawPort, true)
}

// TCPGuest is TCP from the agent's host to the guest.
func (g *Ground) TCPGuest() (*Client, error) {
	l := g.Inside()
	l.Head = g.Guest
	return g.tcp(l, echoPort, true)
}

// TCPTerminal is TCP over the same hops to a terminal, without the daemon.
func (g *Ground) TCPTerminal(l Link) (*Client, error) {
	g.relay(rawPTYPort, echoPTYPort)
	return g.tcp(l, rawPTYPort, false)
}
