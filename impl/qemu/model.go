package qemu

// The bodies of Firecracker's API. Pointers are optional members; `need:"yes"` marks required ones.

type machineConfig struct {
	VCPUCount       int    `json:"vcpu_count" need:"yes"`
	MemSizeMiB      int    `json:"mem_size_mib" need:"yes"`
	SMT             bool   `json:"smt"`
	CPUTemplate     string `json:"cpu_template,omitempty"`
	TrackDirtyPages bool   `json:"track_dirty_pages"`
	HugePages       string `json:"huge_pages"`
}

type machinePatch struct {
	VCPUCount       *int    `json:"vcpu_count"`
	MemSizeMiB      *int    `json:"mem_size_mib"`
	SMT             *bool   `json:"smt"`
	CPUTemplate     *string `json:"cpu_template"`
	TrackDirtyPages *bool   `json:"track_dirty_pages"`
	HugePages       *string `json:"huge_pages"`
}

type bootSource struct {
	KernelImagePath string  `json:"kernel_image_path" need:"yes"`
	InitrdPath      *string `json:"initrd_path,omitempty"`
	BootArgs        *string `json:"boot_args,omitempty"`
}

// tokenBucket holds size tokens (bytes or operations) when full and gains size of them every refill_time
// milliseconds. Firecracker accepts unknown members here, and so do we.
type tokenBucket struct {
	Size         uint64  `json:"size"`
	OneTimeBurst *uint64 `json:"one_time_burst,omitempty"`
	RefillTime   uint64  `json:"refill_time"`
}

// limits tells whether the bucket limits anything: a size or refill time of 0 switches it off.
func (b *tokenBucket) limits() bool { return b != nil && b.Size > 0 && b.RefillTime > 0 }

// perSecond is the sustained rate in tokens per second.
func (b *tokenBucket) perSecond() uint64 {
	return uint64(float64(b.Size) * 1000 / float64(b.RefillTime))
}

type rateLimiter struct {
	Bandwidth *tokenBucket `json:"bandwidth,omitempty" lax:"yes"`
	Ops       *tokenBucket `json:"ops,omitempty" lax:"yes"`
}

// merge takes over the buckets that an update names; the others stay.
func (l *rateLimiter) merge(update *rateLimiter) *rateLimiter {
	if update == nil {
		return l
	}
	merged := rateLimiter{}
	if l != nil {
		merged = *l
	}
	if update.Bandwidth != nil {
		merged.Bandwidth = update.Bandwidth
	}
	if update.Ops != nil {
		merged.Ops = update.Ops
	}
	return &merged
}

type drive struct {
	DriveID      string       `json:"drive_id" need:"yes"`
	PartUUID     *string      `json:"partuuid,omitempty"`
	IsRootDevice bool         `json:"is_root_device" need:"yes"`
	CacheType    string       `json:"cache_type"`
	IsReadOnly   bool         `json:"is_read_only"`
	PathOnHost   string       `json:"path_on_host" need:"yes"`
	RateLimiter  *rateLimiter `json:"rate_limiter,omitempty"`
	IOEngine     string       `json:"io_engine"`
	Socket       *string      `json:"socket,omitempty"`
}

type drivePatch struct {
	DriveID     string       `json:"drive_id" need:"yes"`
	PathOnHost  *string      `json:"path_on_host"`
	RateLimiter *rateLimiter `json:"rate_limiter"`
}

type nic struct {
	IfaceID       string       `json:"iface_id" need:"yes"`
	HostDevName   string       `json:"host_dev_name" need:"yes"`
	GuestMAC      *string      `json:"guest_mac,omitempty"`
	MTU           *int         `json:"mtu,omitempty"`
	RxRateLimiter *rateLimiter `json:"rx_rate_limiter,omitempty"`
	TxRateLimiter *rateLimiter `json:"tx_rate_limiter,omitempty"`
}

type nicPatch struct {
	IfaceID       string       `json:"iface_id" need:"yes"`
	RxRateLimiter *rateLimiter `json:"rx_rate_limiter"`
	TxRateLimiter *rateLimiter `json:"tx_rate_limiter"`
}

type entropy struct {
	RateLimiter *rateLimiter `json:"rate_limiter,omitempty"`
}

type loggerConfig struct {
	LogPath       *string `json:"log_path,omitempty"`
	Level         *string `json:"level,omitempty"`
	ShowLevel     *bool   `json:"show_level,omitempty"`
	ShowLogOrigin *bool   `json:"show_log_origin,omitempty"`
	Module        *string `json:"module,omitempty"`
}

type metricsConfig struct {
	MetricsPath string `json:"metrics_path" need:"yes"`
}

type action struct {
	ActionType string `json:"action_type" need:"yes"`
}

type vmState struct {
	State string `json:"state" need:"yes"`
}

type snapshotCreate struct {
	SnapshotType string `json:"snapshot_type"`
	SnapshotPath string `json:"snapshot_path" need:"yes"`
	MemFilePath  string `json:"mem_file_path" need:"yes"`
}

type snapshotLoad struct {
	SnapshotPath        string            `json:"snapshot_path" need:"yes"`
	MemFilePath         *string           `json:"mem_file_path"`
	MemBackend          *memBackend       `json:"mem_backend"`
	EnableDiffSnapshots bool              `json:"enable_diff_snapshots"`
	TrackDirtyPages     bool              `json:"track_dirty_pages"`
	ResumeVM            bool              `json:"resume_vm"`
	NetworkOverrides    []networkOverride `json:"network_overrides"`
	VsockOverride       *vsockOverride    `json:"vsock_override" lax:"yes"`
	ClockRealtime       bool              `json:"clock_realtime"`
}

type memBackend struct {
	BackendPath string `json:"backend_path" need:"yes"`
	BackendType string `json:"backend_type" need:"yes"`
}

// networkOverride may hold unknown members, as Firecracker's may.
type networkOverride struct {
	IfaceID     *string `json:"iface_id"`
	HostDevName *string `json:"host_dev_name"`
}

type vsockOverride struct {
	UDSPath string `json:"uds_path"`
}

// fullConfig is the answer of GET /vm/config, and the content of --config-file.
type fullConfig struct {
	Balloon    *struct{}      `json:"balloon"`
	Drives     []drive        `json:"drives"`
	BootSource *bootSource    `json:"boot-source"`
	CPUConfig  *struct{}      `json:"cpu-config"`
	Logger     *loggerConfig  `json:"logger"`
	Machine    *machineConfig `json:"machine-config"`
	Metrics    *metricsConfig `json:"metrics"`
	MMDS       *struct{}      `json:"mmds-config"`
	NICs       []nic          `json:"network-interfaces"`
	Vsock      *struct{}      `json:"vsock"`
	Entropy    *entropy       `json:"entropy"`
}
