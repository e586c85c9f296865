package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"

	"wrenn/impl/envdclient"
	"wrenn/impl/portproxy"
	"wrenn/impl/sandbox"
	"wrenn/impl/transport"
)

// defaultUser is who programs run as and where files go when a caller names nobody; every template has
// this account.
const defaultUser = "user"

// maxVersion is how much of what a guest calls its version is kept, in bytes: it goes into every list.
const maxVersion = 32

func firstBytes(s string) string { return s[:min(len(s), maxVersion)] }

// guestPart is the real sandbox.Guest.
type guestPart struct{ lines lines }

// clientOver is of the daemon in the guest at addr, over connections of rt.
func clientOver(rt http.RoundTripper, addr netip.Addr, token string) (*envdclient.Client, error) {
	return envdclient.New(envdclient.Config{
		BaseURL:    "http://" + netip.AddrPortFrom(addr, portproxy.EnvdPort).String(),
		HTTPClient: &http.Client{Transport: rt}, AccessToken: token,
	})
}

func (g *guestPart) Init(ctx context.Context, addr netip.Addr, init sandbox.GuestInit, died <-chan struct{}) (sandbox.BootReport, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	finished := make(chan struct{})
	defer close(finished)
	go func() {
		select {
		case <-died:
			cancel(errors.New("the machine ended"))
		case <-finished:
		}
	}()
	rt := transport.NewBootTransport()
	client, err := clientOver(rt, addr, init.FormerToken)
	if err != nil {
		return sandbox.BootReport{}, err
	}
	user := defaultUser
	req := envdclient.InitRequest{
		AccessToken: &init.AccessToken, DefaultUser: &user, Env: init.EnvVars,
		Resumed: init.SetClock, Entropy: init.Entropy, Hostname: init.Hostname, MachineID: init.MachineID,
		Thaw: init.Thaw,
	}
	if init.Ready != nil {
		req.Ready = func(ctx context.Context) error {
			err := init.Ready(ctx)
			if err != nil {
				cancel(err) // or it would be tried again
			}
			return err
		}
	}
	result, err := client.InitWhenReady(ctx, req)
	for try := 1; err == nil && init.Thaw && !result.Thawed && try < clockTries; try++ {
		// The timestamp was long on its way. The next finds the guest awake; what was mixed in is in.
		req.Entropy, req.Hostname, req.MachineID = nil, "", ""
		result, err = client.InitWhenReady(ctx, req)
	}
	if err == nil && init.Thaw && !result.Thawed { // a guest that stays slow, or a daemon of before there was this
		err = thaw(ctx, rt, addr, init.AccessToken)
	}
	if err != nil {
		rt.CloseIdleConnections()
		return sandbox.BootReport{}, fmt.Errorf("start the guest's daemon: %w", errors.Join(context.Cause(ctx), err))
	}
	g.lines.keep(addr, line{rt, died})
	return sandbox.BootReport{EnvdVersion: firstBytes(result.Version), InitAt: result.Boot.Init, EnvdAt: result.Boot.Envd, NowAt: result.Boot.Now}, nil
}

// clockTries bounds how often a resumed guest's clock is set, until the daemon knows it to be right to 200 ms. A guest
// that shares its processor with ten others misses that now and then; one that misses it eight times goes on all the
// same.
const clockTries = 8

func (g *guestPart) Freeze(ctx context.Context, addr netip.Addr, token string) error {
	rt := g.lines.take(addr)
	if rt == nil {
		rt = transport.NewBootTransport()
	}
	defer rt.CloseIdleConnections() // the guest is about to be stopped
	client, err := clientOver(rt, addr, token)
	if err != nil {
		return err
	}
	return client.Freeze(ctx)
}

// thaw lets the users' processes go on.
func thaw(ctx context.Context, rt http.RoundTripper, addr netip.Addr, token string) error {
	client, err := clientOver(rt, addr, token)
	if err != nil {
		return err
	}
	return client.Thaw(ctx)
}
