package qemu

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"regexp"

	"golang.org/x/sys/unix"
)

// A state file is a header of whole pages, which says what machine the state is of, and then QEMU's device
// state up to the end of the file. All numbers are little-endian:
//
//	 0  magic, 8 bytes
//	 8  version of the format
//	12  length of the header, a multiple of 4096
//	16  length of the description, JSON that starts at 64
//	20  CRC-32C of the device state
//	24  length of the device state, 8 bytes
//	32  CRC-32C of the header with this field zero
//	36  zeros
const (
	stateMagic   = "WRNNQEMU"
	stateVersion = 1
	descriptorAt = 64
)

// Limits of a state file, in bytes. Firecracker loads none above 10 MB, and QEMU's device state has some
// 20 KB; a description has 200 bytes for each of at most 19 devices.
const (
	maxHeader      = 1 << 20
	maxDeviceState = 10 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// description is what a state file says about its machine: what QEMU's command line was made of. QEMU itself
// checks little of it; a state loaded into another machine may "succeed" and never run.
type description struct {
	// QEMU is major and minor version, Machine, Accel and CPU what QEMU was started with.
	QEMU    string `json:"qemu"`
	Machine string `json:"machine"`
	Accel   string `json:"accel"`
	CPU     string `json:"cpu"`

	Config  machineConfig     `json:"machine-config"`
	Drives  []drive           `json:"drives"` // in their order, paths as they were given
	NICs    []nic             `json:"network-interfaces"`
	MACs    map[string]string `json:"macs"` // by iface_id, given or made up
	Entropy *entropy          `json:"entropy"`
}

// encodeState makes the content of a state file.
func encodeState(d description, devices []byte) ([]byte, error) {
	text, err := json.Marshal(d)
	if err != nil {
		return nil, fmt.Errorf("describe the machine: %w", err)
	}
	if len(devices) == 0 || len(devices) > maxDeviceState {
		return nil, fmt.Errorf("the device state has %d bytes, must have 1 to %d", len(devices), maxDeviceState)
	}
	length := (descriptorAt + len(text) + pageSize - 1) / pageSize * pageSize
	if length > maxHeader {
		return nil, fmt.Errorf("the description of the machine has %d bytes", len(text))
	}
	header := make([]byte, length, length+len(devices))
	copy(header, stateMagic)
	binary.LittleEndian.PutUint32(header[8:], stateVersion)
	binary.LittleEndian.PutUint32(header[12:], uint32(length))
	binary.LittleEndian.PutUint32(header[16:], uint32(len(text)))
	binary.LittleEndian.PutUint32(header[20:], crc32.Checksum(devices, castagnoli))
	binary.LittleEndian.PutUint64(header[24:], uint64(len(devices)))
	copy(header[descriptorAt:], text)
	binary.LittleEndian.PutUint32(header[32:], crc32.Checksum(header, castagnoli))
	return append(header, devices...), nil
}

// errForeign says that a file is no state file of this program.
var errForeign = errors.New("is not a state file of firecracker-qemu")

// decodeState checks the content of a state file and returns the machine and where its device state starts.
func decodeState(raw []byte) (description, int, error) {
	var d description
	if len(raw) < pageSize || string(raw[:8]) != stateMagic {
		return d, 0, errForeign
	}
	if v := binary.LittleEndian.Uint32(raw[8:]); v != stateVersion {
		return d, 0, fmt.Errorf("has version %d of the format, not %d", v, stateVersion)
	}
	length, text := int64(binary.LittleEndian.Uint32(raw[12:])), int64(binary.LittleEndian.Uint32(raw[16:]))
	if length < pageSize || length > maxHeader || length%pageSize != 0 || text > length-descriptorAt || length > int64(len(raw)) {
		return d, 0, errors.New("is torn: the header is not whole")
	}
	header := bytes.Clone(raw[:length])
	binary.LittleEndian.PutUint32(header[32:], 0)
	if crc32.Checksum(header, castagnoli) != binary.LittleEndian.Uint32(raw[32:]) {
		return d, 0, errors.New("is damaged: the checksum of its header is wrong")
	}
	devices := raw[length:]
	if want := binary.LittleEndian.Uint64(raw[24:]); want != uint64(len(devices)) {
		return d, 0, fmt.Errorf("is torn: its device state has %d bytes of %d", len(devices), want)
	}
	if crc32.Checksum(devices, castagnoli) != binary.LittleEndian.Uint32(raw[20:]) {
		return d, 0, errors.New("is damaged: the checksum of its device state is wrong")
	}
	dec := json.NewDecoder(bytes.NewReader(raw[descriptorAt : descriptorAt+text]))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&d); err != nil {
		return d, 0, fmt.Errorf("describes its machine wrongly: %w", err)
	}
	return d, int(length), nil
}

var resourceID = regexp.MustCompile(`^[A-Za-z0-9_]+$`)

// check refuses the description of a machine that this program cannot make as it was.
func (d description) check(accel string) error {
	for _, f := range []struct{ name, got, want string }{
		{"machine type", d.Machine, machineType}, {"accelerator", d.Accel, accel}, {"cpu model", d.CPU, cpuModel(accel)},
	} {
		if f.got != f.want {
			return fmt.Errorf("is of %s %q, and this machine has %q", f.name, f.got, f.want)
		}
	}
	if err := d.Config.check(); err != nil {
		return err
	}
	for _, drive := range d.Drives {
		if !resourceID.MatchString(drive.DriveID) {
			return fmt.Errorf("has a drive with the id %q", drive.DriveID)
		}
	}
	for _, n := range d.NICs {
		if !resourceID.MatchString(n.IfaceID) || !macPattern.MatchString(d.MACs[n.IfaceID]) {
			return fmt.Errorf("has an interface with the id %q and the address %q", n.IfaceID, d.MACs[n.IfaceID])
		}
	}
	return nil
}

// readState opens a state file and leaves it at its device state, for QEMU to go on reading. The caller
// closes it.
func readState(path string) (*os.File, description, error) {
	// Of a FIFO or a device there is nothing to wait for.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, description{}, fmt.Errorf("Failed to open snapshot file: %s", osText(err)) //nolint:staticcheck // Firecracker's words
	}
	d, err := readStateOf(f)
	if err != nil {
		_ = f.Close()                                                                                      // nothing was written
		return nil, description{}, fmt.Errorf("Failed to load snapshot state from file: %s %w", path, err) //nolint:staticcheck // Firecracker's words
	}
	return f, d, nil
}

func readStateOf(f *os.File) (description, error) {
	raw, err := io.ReadAll(io.LimitReader(f, maxHeader+maxDeviceState+1))
	if err != nil {
		return description{}, fmt.Errorf("cannot be read: %w", err)
	}
	if len(raw) > maxHeader+maxDeviceState {
		return description{}, fmt.Errorf("is larger than %d bytes", maxHeader+maxDeviceState)
	}
	d, start, err := decodeState(raw)
	if err != nil {
		return description{}, err
	}
	_, err = f.Seek(int64(start), io.SeekStart)
	return d, err
}

// writeState writes a state file to the disk.
func writeState(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("Cannot perform open on the snapshot backing file: %s", osText(err)) //nolint:staticcheck // Firecracker's words
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("Cannot perform sync_all on the snapshot backing file: %s", osText(err)) //nolint:staticcheck // Firecracker's words
	}
	return nil
}
