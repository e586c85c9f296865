package main

import (
	"errors"
	"net/netip"
	"os"
	"strings"
)

// config is what the host tells the guest on the kernel command line.
type config struct {
	root     string       // block device with the ext4 root, "/dev/vda"; empty asks for the probe
	readOnly bool         // ro
	address  netip.Prefix // wrenn.ip: address of eth0; the zero value leaves eth0 alone
	gateway  netip.Addr   // wrenn.gw: next hop of the default route; the zero value sets none
	dns      []netip.Addr // wrenn.dns: resolvers, comma separated; none leaves resolv.conf alone
	hostname string       // wrenn.hostname; empty leaves the image's own
}

func readConfig(path string) (config, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return config{}, errors.New("read the kernel command line: " + err.Error())
	}
	return parseCmdline(string(b))
}

// parseCmdline reads the arguments that wrenn-init knows and passes over the kernel's own. Of an
// argument given twice the last one counts, as in the kernel.
func parseCmdline(line string) (config, error) {
	var c config
	for arg := range strings.FieldsSeq(line) {
		key, value, _ := strings.Cut(arg, "=")
		var err error
		switch key {
		case "root":
			if !strings.HasPrefix(value, "/dev/") {
				err = errors.New("want a path under /dev")
			}
			c.root = value
		case "ro":
			c.readOnly = true
		case "rw":
			c.readOnly = false
		case "wrenn.ip":
			c.address, err = netip.ParsePrefix(value)
			if err == nil && !c.address.Addr().Is4() {
				err = errors.New("want an IPv4 address")
			}
		case "wrenn.gw":
			c.gateway, err = parseIPv4(value)
		case "wrenn.dns":
			c.dns, err = parseAddresses(value)
		case "wrenn.hostname":
			if len(value) > maxHostname {
				err = errors.New("want at most 64 bytes")
			}
			c.hostname = value
		}
		if err != nil {
			return config{}, errors.New("kernel argument " + arg + ": " + err.Error())
		}
	}
	return c, nil
}

// maxHostname is the kernel's limit of sethostname (__NEW_UTS_LEN), in bytes.
const maxHostname = 64

func parseIPv4(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err == nil && !a.Is4() {
		err = errors.New("want an IPv4 address")
	}
	return a, err
}

func parseAddresses(list string) ([]netip.Addr, error) {
	var addrs []netip.Addr
	for s := range strings.SplitSeq(list, ",") {
		if s == "" {
			continue
		}
		a, err := netip.ParseAddr(s)
		if err != nil {
			return nil, err
		}
		addrs = append(addrs, a)
	}
	return addrs, nil
}
