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
type guestPart struct{}

func (guestPart) Init(ctx context.Context, addr netip.Addr, init sandbox.GuestInit, died <-chan struct{}) (sandbox.BootReport, error) {
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
	defer rt.CloseIdleConnections()
	client, err := envdclient.New(envdclient.Config{
		BaseURL: "http://" + netip.AddrPortFrom(addr, portproxy.EnvdPort).String(), HTTPClient: &http.Client{Transport: rt},
	})
	if err != nil {
		return sandbox.BootReport{}, err
	}
	user := defaultUser
	result, err := client.InitWhenReady(ctx, envdclient.InitRequest{AccessToken: &init.AccessToken, DefaultUser: &user, Env: init.EnvVars})
	if err != nil {
		return sandbox.BootReport{}, fmt.Errorf("start the guest's daemon: %w", errors.Join(context.Cause(ctx), err))
	}
	return sandbox.BootReport{EnvdVersion: firstBytes(result.Version), InitAt: result.Boot.Init, EnvdAt: result.Boot.Envd, NowAt: result.Boot.Now}, nil
}
