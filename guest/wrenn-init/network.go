package main

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// setUpNetwork raises lo and gives eth0 its address and default route. The kernel's ioctls are used
// and not netlink: three calls against a library that costs more to start than the whole of this.
func setUpNetwork(c config) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return errors.New("open a socket to set up the network: " + err.Error())
	}
	defer unix.Close(fd) //nolint:errcheck // a socket that carried no data
	if err := raise(fd, "lo"); err != nil {
		return err
	}
	if !c.address.IsValid() {
		return nil
	}
	if err := setAddress(fd, "eth0", c.address); err != nil {
		return err
	}
	if err := raise(fd, "eth0"); err != nil {
		return err
	}
	if !c.gateway.IsValid() {
		return nil
	}
	return addDefaultRoute(fd, c.gateway)
}

func raise(fd int, link string) error {
	ifr, err := unix.NewIfreq(link)
	if err == nil {
		err = unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, ifr)
	}
	if err == nil {
		ifr.SetUint16(ifr.Uint16() | unix.IFF_UP)
		err = unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
	}
	if err != nil {
		return errors.New("raise " + link + ": " + err.Error())
	}
	return nil
}

func setAddress(fd int, link string, p netip.Prefix) error {
	mask := make([]byte, 4)
	binary.BigEndian.PutUint32(mask, ^uint32(0)<<(32-p.Bits()))
	for _, a := range []struct {
		request uint
		value   []byte
	}{
		{unix.SIOCSIFADDR, p.Addr().AsSlice()},
		{unix.SIOCSIFNETMASK, mask},
	} {
		ifr, err := unix.NewIfreq(link)
		if err == nil {
			err = ifr.SetInet4Addr(a.value)
		}
		if err == nil {
			err = unix.IoctlIfreq(fd, a.request, ifr)
		}
		if err != nil {
			return errors.New("set address " + p.String() + " on " + link + ": " + err.Error())
		}
	}
	return nil
}

// rtentry is struct rtentry of linux/route.h on a 64-bit machine.
type rtentry struct {
	_                         uint64
	destination, gateway, net unix.RawSockaddrInet4
	flags                     uint16
	_                         int16
	_, _                      uint64
	_                         [4]uint16
	_                         uint64
	_, _                      uint64
	_                         uint16
}

const routeUp, routeGateway = 0x1, 0x2 // RTF_UP, RTF_GATEWAY of linux/route.h

func addDefaultRoute(fd int, gateway netip.Addr) error {
	inet := unix.RawSockaddrInet4{Family: unix.AF_INET}
	r := rtentry{destination: inet, gateway: inet, net: inet, flags: routeUp | routeGateway}
	r.gateway.Addr = gateway.As4()
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCADDRT, uintptr(unsafe.Pointer(&r))) //nolint:gosec // an ioctl takes a pointer
	if errno != 0 {
		return errors.New("add default route by " + gateway.String() + ": " + errno.Error())
	}
	return nil
}
