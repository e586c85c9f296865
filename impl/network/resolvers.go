package network

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
)

// MaxResolvers is how many name servers a resolver library asks (MAXNS in resolv.h).
const MaxResolvers = 3

// resolvConfs are asked in order: the second is where systemd-resolved lists the true servers when
// the first names only its own stub on a loopback address.
var resolvConfs = []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"}

// Resolvers returns the name servers of this host that a guest can use, at most MaxResolvers: those of
// the first of the files that names any. Without arguments the files are /etc/resolv.conf and
// /run/systemd/resolve/resolv.conf; those that do not exist are passed over.
//
// Loopback addresses are left out, since in a guest they would be the guest; IPv6 ones, since guests
// have none. The result is empty when nothing is left: a public server is not put in silently, for the
// names that guests ask would go to a third party.
func Resolvers(files ...string) ([]netip.Addr, error) { return find(usableResolver, files) }

// Upstreams returns the name servers that this host itself asks, at most MaxResolvers, from the same
// files: also those on loopback addresses and of IPv6.
func Upstreams(files ...string) ([]netip.Addr, error) {
	return find(func(addr netip.Addr) bool { return !addr.IsUnspecified() && !addr.IsMulticast() }, files)
}

func find(usable func(netip.Addr) bool, files []string) ([]netip.Addr, error) {
	if len(files) == 0 {
		files = resolvConfs
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("looking for resolvers: %w", err)
		}
		if found := nameservers(content, usable); len(found) > 0 {
			return found, nil
		}
	}
	return nil, nil
}

func nameservers(resolvConf []byte, usable func(netip.Addr) bool) []netip.Addr {
	var found []netip.Addr
	lines := bufio.NewScanner(bytes.NewReader(resolvConf))
	for lines.Scan() && len(found) < MaxResolvers {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		addr, err := netip.ParseAddr(fields[1])
		if err == nil && usable(addr) && !slices.Contains(found, addr) {
			found = append(found, addr)
		}
	}
	return found
}

func usableResolver(addr netip.Addr) bool {
	return addr.Is4() && !addr.IsLoopback() && !addr.IsUnspecified() && !addr.IsMulticast()
}
