// Package firecracker drives one Firecracker process: its HTTP API over the Unix socket, its start, its
// identity across a restart of the agent, and its end. It does not know whether Firecracker itself or
// the stand-in on QEMU answers; both pass the suite in firecrackertest.
package firecracker

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"wrenn/impl/transport"
)

// Deadlines of calls, on top of whatever deadline the caller's context has.
const (
	// CallTimeout bounds a configuration or state call. Firecracker answers in about a millisecond; its
	// stand-in on a loaded machine that is itself emulated has been seen to take over 5 s.
	CallTimeout = 20 * time.Second
	// StartTimeout bounds InstanceStart, which loads the kernel from disk before it answers; the stand-in
	// starts QEMU in it, whose own bounds are 30 s and 20 s.
	StartTimeout = 60 * time.Second
)

// maxAnswer bounds an answer's body: Firecracker's largest is its configuration, a few KiB.
const maxAnswer = 1 << 20

// Client speaks to one VMM. Its methods may be called concurrently; the VMM serves them one at a time.
// A refusal by the VMM is an *APIError.
type Client struct {
	http *http.Client
}

// NewClient returns a client of the API socket at socketPath. It does not connect yet.
func NewClient(socketPath string) *Client {
	return &Client{http: &http.Client{Transport: transport.NewUnix(socketPath)}}
}

// Close releases the idle connection. The client may be used again afterwards.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// PutMachineConfig sets CPUs and memory. Only before Start.
func (c *Client) PutMachineConfig(ctx context.Context, m MachineConfig) error {
	return c.call(ctx, CallTimeout, http.MethodPut, "/machine-config", m, nil)
}

// PutBootSource sets kernel, initramfs and command line. Only before Start.
func (c *Client) PutBootSource(ctx context.Context, b BootSource) error {
	return c.call(ctx, CallTimeout, http.MethodPut, "/boot-source", b, nil)
}

// PutDrive adds or replaces a drive. Only before Start.
func (c *Client) PutDrive(ctx context.Context, d Drive) error {
	return c.call(ctx, CallTimeout, http.MethodPut, "/drives/"+url.PathEscape(d.DriveID), d, nil)
}

// PutNetworkInterface adds or replaces a network interface. Only before Start.
func (c *Client) PutNetworkInterface(ctx context.Context, n NetworkInterface) error {
	return c.call(ctx, CallTimeout, http.MethodPut, "/network-interfaces/"+url.PathEscape(n.IfaceID), n, nil)
}

// PutEntropy gives the guest a source of randomness. Only before Start.
func (c *Client) PutEntropy(ctx context.Context, e Entropy) error {
	return c.call(ctx, CallTimeout, http.MethodPut, "/entropy", e, nil)
}

// Start powers the guest on. It returns when the virtual CPUs run, not when the guest is up.
func (c *Client) Start(ctx context.Context) error {
	return c.action(ctx, StartTimeout, "InstanceStart")
}

// CtrlAltDel asks the guest to reboot, which ends the VMM if the guest complies.
func (c *Client) CtrlAltDel(ctx context.Context) error {
	return c.action(ctx, CallTimeout, "SendCtrlAltDel")
}

// Pause stops the guest's virtual CPUs. Pausing twice is not an error.
func (c *Client) Pause(ctx context.Context) error { return c.setState(ctx, "Paused") }

// Resume lets the guest's virtual CPUs go on. Resuming twice is not an error.
func (c *Client) Resume(ctx context.Context) error { return c.setState(ctx, "Resumed") }

// PatchNetworkInterface changes the rate limits of an interface. Only after Start or LoadSnapshot.
func (c *Client) PatchNetworkInterface(ctx context.Context, n NetworkInterfacePatch) error {
	return c.call(ctx, CallTimeout, http.MethodPatch, "/network-interfaces/"+url.PathEscape(n.IfaceID), n, nil)
}

// Info tells the microVM's id and state.
func (c *Client) Info(ctx context.Context) (InstanceInfo, error) {
	var info InstanceInfo
	err := c.call(ctx, CallTimeout, http.MethodGet, "/", nil, &info)
	return info, err
}

// Version tells which version of Firecracker answers, such as "1.16.1".
func (c *Client) Version(ctx context.Context) (string, error) {
	var v struct {
		Version string `json:"firecracker_version"`
	}
	err := c.call(ctx, CallTimeout, http.MethodGet, "/version", nil, &v)
	return v.Version, err
}

// VMConfig tells the configuration as the VMM holds it.
func (c *Client) VMConfig(ctx context.Context) (VMConfig, error) {
	var v VMConfig
	err := c.call(ctx, CallTimeout, http.MethodGet, "/vm/config", nil, &v)
	return v, err
}

func (c *Client) action(ctx context.Context, limit time.Duration, kind string) error {
	body := struct {
		Type string `json:"action_type"`
	}{kind}
	return c.call(ctx, limit, http.MethodPut, "/actions", body, nil)
}

func (c *Client) setState(ctx context.Context, state string) error {
	body := struct {
		State string `json:"state"`
	}{state}
	return c.call(ctx, CallTimeout, http.MethodPatch, "/vm", body, nil)
}

// call sends one request and decodes the answer into out, if out is not nil.
func (c *Client) call(ctx context.Context, limit time.Duration, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var body io.Reader
	if in != nil {
		raw, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode %s %s: %w", method, path, err)
		}
		// A bytes.Reader makes net/http send Content-Length: Firecracker does not decode chunks.
		body = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://localhost"+path, body)
	if err != nil {
		return fmt.Errorf("build %s %s: %w", method, path, err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("Accept", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("firecracker %s %s: %w", method, path, err)
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("read answer of %s %s: %w", method, path, err)
	}
	if resp.StatusCode >= 300 {
		return newAPIError(method, path, resp.StatusCode, raw)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(raw, out); err != nil {
		return fmt.Errorf("decode answer of %s %s: %w", method, path, err)
	}
	return nil
}
