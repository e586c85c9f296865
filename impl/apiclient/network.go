package apiclient

import (
	"context"
	"net/http"
	"net/url"
)

// Network says what a sandbox may reach; what AllowOut names wins over DenyOut.
type Network struct {
	// AllowOut has IPv4 addresses and ranges, names and wildcards (*.example.com). Names need all other
	// traffic denied.
	AllowOut []string `json:"allowOut,omitempty"`
	// DenyOut has addresses and ranges; 0.0.0.0/0 is everything.
	DenyOut []string `json:"denyOut,omitempty"`
}

// NetworkUpdate is what SetNetwork asks for. What is left out is cleared.
type NetworkUpdate struct {
	Network
	// AllowInternetAccess nil means true.
	AllowInternetAccess *bool `json:"allow_internet_access,omitempty"`
}

// Limits bound a sandbox's traffic, in bytes per second and bytes. A rate of 0 is the host's own, which is
// also the most; a burst of 0 is half a second of the rate.
type Limits struct {
	EgressRate   int64 `json:"egressBytesPerSecond,omitempty"`
	EgressBurst  int64 `json:"egressBurstBytes,omitempty"`
	IngressRate  int64 `json:"ingressBytesPerSecond,omitempty"`
	IngressBurst int64 `json:"ingressBurstBytes,omitempty"`
}

// SetNetwork replaces what a running sandbox may reach, at once and for open connections too.
func (c *Client) SetNetwork(ctx context.Context, id string, update NetworkUpdate) error {
	_, err := c.do(ctx, http.MethodPut, "/sandboxes/"+url.PathEscape(id)+"/network", nil, update, nil)
	return err
}
