package main

import "os"

// kernelSettings are entries below /proc/sys. A pause writes back what the guest's file systems hold, before which
// nobody is paused; by the kernel's own 30 s that is all that was written in half a minute, so that it is done
// sooner here. What a program writes and deletes within 3 s still never reaches the disk.
var kernelSettings = [][2]string{
	{"vm/dirty_expire_centisecs", "300"},
	{"vm/dirty_writeback_centisecs", "100"},
}

// setUpKernel applies them; a kernel that does not know one works without.
func setUpKernel() {
	for _, s := range kernelSettings {
		if err := os.WriteFile("/proc/sys/"+s[0], []byte(s[1]), 0); err != nil {
			say("wrenn-init: " + err.Error())
		}
	}
}
