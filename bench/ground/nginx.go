package ground

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/stretchr/testify/require"

	"wrenn/bench/load"
	"wrenn/impl/need"
	"wrenn/impl/transport"
)

// Nginx is a ruler for ports alone: nginx on the control plane's host before nginx on the agent's. Its clients
// have no terminals.
var Nginx = Design{"nginx", openNginx}

const nginxPort = 5080

// nginxConfig keeps connections to the next hop, which nginx by itself does not, and writes nothing to disk.
const nginxConfig = `
daemon off; pid %[1]s.pid; error_log stderr; user root; worker_processes auto;
events { worker_connections 4096; }
http {
	access_log off; client_body_temp_path %[1]s.tmp; proxy_temp_path %[1]s.tmp; fastcgi_temp_path %[1]s.tmp; uwsgi_temp_path %[1]s.tmp; scgi_temp_path %[1]s.tmp;
	upstream next { server %[3]s; keepalive 64; keepalive_requests 1000000; }
	server {
		listen %[2]s; keepalive_requests 1000000;
		location / { proxy_pass http://next; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_max_temp_file_size 0; }
	}
}
`

func openNginx(_ context.Context, g *Ground, l Link) (*Client, error) {
	agent := netip.AddrPortFrom(netip.MustParseAddrPort(g.Nodes[0].Agent.Listen).Addr(), nginxPort)
	g.do("nginx", func() {
		need.Program(g.tb, "nginx")
		start := func(name, listen string, to netip.AddrPort) *exec.Cmd {
			path := filepath.Join(g.dir, name)
			require.NoError(g.tb, os.WriteFile(path, fmt.Appendf(nil, nginxConfig, path, listen, to), 0o600))
			return g.command("nginx", "-c", path)
		}
		g.Node().Launch("nginx on the agent's host", start("nginx-agent", agent.String(), netip.AddrPortFrom(g.Guest, httpPort)))
		g.await(g.Node(), agent)
		g.Head.Launch("nginx on the control plane's host", start("nginx-head", fmt.Sprintf("0.0.0.0:%d", nginxPort), agent))
		g.await(g.Head, netip.AddrPortFrom(g.HeadAddr, nginxPort))
	})
	rt := transport.NewProxyTransport()
	rt.DialContext = l.DialContext
	return &Client{
		Door:  load.HTTP1{Transport: rt, URL: httpURL(netip.AddrPortFrom(l.Head, nginxPort))},
		close: []func(){rt.CloseIdleConnections},
	}, nil
}
