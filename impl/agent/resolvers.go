package agent

import (
	"net/netip"

	"wrenn/impl/network"
)

// upstreams are the name servers that the agent asks for sandboxes: the host's own, its stub on a
// loopback address included, unless others are set.
func (c Config) upstreams() ([]netip.AddrPort, error) {
	addrs := c.Resolvers
	if len(addrs) == 0 {
		var err error
		if addrs, err = network.Upstreams(); err != nil {
			return nil, err
		}
	}
	list := make([]netip.AddrPort, 0, len(addrs))
	for _, a := range addrs {
		list = append(list, netip.AddrPortFrom(a, 53))
	}
	return list, nil
}

// addResolver takes one value of the flag.
func (c *Config) addResolver(value string) error {
	addr, err := netip.ParseAddr(value)
	if err != nil {
		return err
	}
	c.Resolvers = append(c.Resolvers, addr)
	return nil
}
