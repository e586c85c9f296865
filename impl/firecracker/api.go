package firecracker

// The types below hold the fields that Wrenn sends or reads, no more: Firecracker refuses a field that
// it does not know, so each one added here ties Wrenn to the version that introduced it.

// MachineConfig is the body of PUT /machine-config.
type MachineConfig struct {
	// VCPUCount is the number of virtual CPUs, 1 to 32 (Firecracker's limit).
	VCPUCount int `json:"vcpu_count"`
	// MemSizeMiB is the guest's memory in MiB, at least 1.
	MemSizeMiB int `json:"mem_size_mib"`
	// TrackDirtyPages makes diff snapshots exact; it costs a write fault per page and interval.
	TrackDirtyPages bool `json:"track_dirty_pages,omitempty"`
}

// BootSource is the body of PUT /boot-source. The files are opened during the call.
type BootSource struct {
	// KernelImagePath names an uncompressed ELF vmlinux.
	KernelImagePath string `json:"kernel_image_path"`
	// InitrdPath names the initramfs; empty for none.
	InitrdPath string `json:"initrd_path,omitempty"`
	// BootArgs is the kernel's command line; empty for Firecracker's default, which has no console.
	BootArgs string `json:"boot_args,omitempty"`
}

// Drive is the body of PUT /drives/{id}. The file is opened during the call.
type Drive struct {
	// DriveID is letters, digits and underscores only.
	DriveID    string `json:"drive_id"`
	PathOnHost string `json:"path_on_host"`
	// IsRootDevice puts the drive first (/dev/vda) and adds root=/dev/vda to the command line.
	IsRootDevice bool `json:"is_root_device"`
	IsReadOnly   bool `json:"is_read_only"`
	// CacheType is "Unsafe" (the default: the guest's flushes are ignored) or "Writeback".
	CacheType string `json:"cache_type,omitempty"`
	// RateLimiter bounds bytes and requests; nil for no limit.
	RateLimiter *RateLimiter `json:"rate_limiter,omitempty"`
}

// NetworkInterface is the body of PUT /network-interfaces/{id}. The TAP must exist in the VMM's network
// namespace and is attached during the call.
type NetworkInterface struct {
	// IfaceID is letters, digits and underscores only.
	IfaceID     string `json:"iface_id"`
	HostDevName string `json:"host_dev_name"`
	// GuestMAC is the guest's address, "06:00:ac:10:00:02"; empty lets the guest choose one.
	GuestMAC string `json:"guest_mac,omitempty"`
	// RxRateLimiter limits what the guest receives, TxRateLimiter what it sends; nil for no limit.
	RxRateLimiter *RateLimiter `json:"rx_rate_limiter,omitempty"`
	TxRateLimiter *RateLimiter `json:"tx_rate_limiter,omitempty"`
}

// NetworkInterfacePatch is the body of PATCH /network-interfaces/{id}. A bucket that is given replaces the
// former one and starts full; one of size 0 and refill time 0 lifts the limit; the others stay.
type NetworkInterfacePatch struct {
	IfaceID       string       `json:"iface_id"`
	RxRateLimiter *RateLimiter `json:"rx_rate_limiter,omitempty"`
	TxRateLimiter *RateLimiter `json:"tx_rate_limiter,omitempty"`
}

// Entropy is the body of PUT /entropy, which gives the guest a virtio-rng device.
type Entropy struct {
	RateLimiter *RateLimiter `json:"rate_limiter,omitempty"`
}

// State is the state of a microVM as GET / tells it.
type State string

// The states of a microVM.
const (
	StateNotStarted State = "Not started"
	StateRunning    State = "Running"
	StatePaused     State = "Paused"
)

// InstanceInfo is the answer of GET /.
type InstanceInfo struct {
	ID         string `json:"id"`
	State      State  `json:"state"`
	VMMVersion string `json:"vmm_version"`
	AppName    string `json:"app_name"`
}

// VMConfig is the part of the answer of GET /vm/config that Wrenn reads.
type VMConfig struct {
	Machine           MachineConfig      `json:"machine-config"`
	BootSource        BootSource         `json:"boot-source"`
	Drives            []Drive            `json:"drives"`
	NetworkInterfaces []NetworkInterface `json:"network-interfaces"`
}
