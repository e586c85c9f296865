package main

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"time"

	"wrenn/bench/echo"
)

// insideLimit is how long one echo is waited for: the guest's processors may be anybody's.
const insideLimit = time.Minute

// typeInside types at the guest's own terminal over its loopback: what an echo takes there has nothing to do with
// how terminals are reached from outside.
func typeInside(ctx context.Context, keys int, pace time.Duration, out io.Writer) error {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", echoPTYPort))
	if err != nil {
		return err
	}
	typist, err := echo.NewTypist(conn, echo.Config{Interval: pace, Limit: insideLimit})
	if err != nil {
		return err
	}
	defer typist.Close()
	for range keys {
		if err := typist.Press(); err != nil {
			return err
		}
	}
	if err := typist.Finish(); err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(typist.Samples())
}
