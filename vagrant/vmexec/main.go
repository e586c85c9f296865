// Command vmexec runs a test program as root in a throw-away virtual machine, with a kernel of its own
// in which /dev/kvm, device-mapper, loop devices, TAPs, iptables and userfaultfd work:
//
//	go test -exec vmexec ./...
//
// README.md beside it tells what a test finds there and how to ask for more.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"wrenn/vagrant/vmexec/guest"
	"wrenn/vagrant/vmexec/host"
)

func main() {
	if guest.IsInit() {
		guest.Main()
		return
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	os.Exit(host.Run(context.Background(), os.Args[1:], signals, os.Stdout, os.Stderr))
}
