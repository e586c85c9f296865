package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// setUpIdentity writes what differs between two machines of one image: resolvers, hostname,
// machine-id. A guest whose disk is full or read-only still boots, so failures are returned for the
// console and not as the end of the boot. root is "/" in a guest.
func setUpIdentity(root string, c config) []error {
	var errs []error
	try := func(what string, err error) {
		if err != nil {
			errs = append(errs, errors.New(what+": "+err.Error()))
		}
	}
	if len(c.dns) > 0 {
		try("write resolv.conf", replaceFile(filepath.Join(root, "etc/resolv.conf"), resolvConf(c), 0o644))
	}
	if c.hostname != "" {
		try("set hostname", unix.Sethostname([]byte(c.hostname)))
		try("write hostname", replaceFile(filepath.Join(root, "etc/hostname"), c.hostname+"\n", 0o644))
		try("write hosts", replaceFile(filepath.Join(root, "etc/hosts"), hosts(c.hostname), 0o644))
	}
	try("write machine-id", ensureMachineID(filepath.Join(root, "etc/machine-id")))
	return errs
}

func resolvConf(c config) string {
	var b strings.Builder
	for _, a := range c.dns {
		b.WriteString("nameserver " + a.String() + "\n")
	}
	return b.String()
}

func hosts(hostname string) string {
	return "127.0.0.1\tlocalhost\n" +
		"127.0.1.1\t" + hostname + "\n" +
		"::1\tlocalhost ip6-localhost ip6-loopback\n"
}

// ensureMachineID gives the machine an identity of its own unless the disk already carries one (a
// sandbox that boots again keeps it).
func ensureMachineID(path string) error {
	have, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if strings.TrimSpace(string(have)) != "" {
		return nil
	}
	id, err := newMachineID()
	if err != nil {
		return err
	}
	return replaceFile(path, id+"\n", 0o444)
}

// newMachineID is 16 random bytes as 32 hexadecimal digits, marked as a version 4 UUID as
// machine-id(5) asks.
func newMachineID() (string, error) {
	var raw [16]byte
	if _, err := unix.Getrandom(raw[:], 0); err != nil {
		return "", err
	}
	raw[6] = raw[6]&0x0f | 0x40
	raw[8] = raw[8]&0x3f | 0x80
	var b strings.Builder
	for _, v := range raw {
		b.WriteString(strconv.FormatUint(uint64(v>>4), 16) + strconv.FormatUint(uint64(v&0xf), 16))
	}
	return b.String(), nil
}

// replaceFile writes path anew. What was there is removed first, so that a link (resolv.conf is one
// in many images) is replaced and not followed.
func replaceFile(path, content string, mode fs.FileMode) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.WriteFile(path, []byte(content), mode)
}
