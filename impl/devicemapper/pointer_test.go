package devicemapper

import "unsafe"

// pointerTo keeps the range in memory that does not move, since globals do not.
func pointerTo(r [2]uint64) uintptr {
	discardRange = r
	return uintptr(unsafe.Pointer(&discardRange[0]))
}

var discardRange [2]uint64
