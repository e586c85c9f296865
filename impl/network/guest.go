package network

// What every guest sees is the same in every slot, so that a snapshot fits any of them. The values
// are those that E2B uses.
const (
	// TapName is the device in the slot's namespace to which the VMM attaches the guest.
	TapName = "tap0"
	// TapIP is the guest's gateway, the address of the TAP.
	TapIP = "169.254.0.22"
	// TapMAC is fixed so that the neighbour table of a resumed guest is still right.
	TapMAC = "02:FC:00:00:00:06"
	// TapQueueLength is the length of the TAP's transmit queue in packets. The default of 1000
	// drops packets in the bursts that come while a guest's only CPU is busy.
	TapQueueLength = 5000
	// GuestIP is the guest's own address.
	GuestIP = "169.254.0.21"
	// GuestMAC is the hardware address of the guest's network card.
	GuestMAC = "02:FC:00:00:00:05"
	// GuestMask and GuestPrefixBits are the size of the net between guest and TAP.
	GuestMask       = "255.255.255.252"
	GuestPrefixBits = 30
)
