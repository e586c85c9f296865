package qemu

import (
	"net"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// openTAP attaches to an existing TAP of the process's network namespace, with the flags of Firecracker.
// Errors carry Firecracker's words. Unlike Firecracker it refuses a name that does not exist: as root the
// kernel would create that TAP, unconnected to anything, and the mistake would stay hidden.
func openTAP(name string) (*os.File, error) {
	if name == "" || len(name) >= unix.IFNAMSIZ {
		return nil, faultf("Invalid interface name")
	}
	if _, err := net.InterfaceByName(name); err != nil {
		return nil, tapError(unix.ENODEV, name)
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, faultf("Couldn't open /dev/net/tun: %s", osText(err))
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		_ = unix.Close(fd) // nothing was attached
		return nil, tapError(err, name)
	}
	return os.NewFile(uintptr(fd), "tap "+name), nil
}

func tapError(err error, name string) error {
	return faultf("Error while creating ifreq structure: %s. Invalid TUN/TAP Backend provided by %s. "+
		"Check our documentation on setting up the network devices.", osText(err), name)
}

func sameMAC(a, b string) bool { return strings.EqualFold(a, b) }
