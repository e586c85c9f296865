package sandbox

import (
	"errors"
	"fmt"
	"time"

	"wrenn/impl/safename"
)

// Bounds of a CreateRequest.
const (
	// MaxVCPUs is Firecracker's own bound.
	MaxVCPUs = 32
	// MinMemoryMiB is what the guest's kernel, init and daemon need with some room.
	MinMemoryMiB = 128
	// MaxMemoryMiB is a choice: no sandbox should take a whole host.
	MaxMemoryMiB = 65536
	// MaxDiskMiB is a choice: 1 TiB.
	MaxDiskMiB = 1 << 20
	// MinTimeout and MaxTimeout bound a sandbox's life from now; both are choices.
	MinTimeout = time.Second
	MaxTimeout = 30 * 24 * time.Hour
	// maxPairs and maxPairBytes bound metadata and environment each; both fit in a journal that is
	// rewritten in milliseconds.
	maxPairs     = 256
	maxPairBytes = 64 << 10
)

func (r CreateRequest) validate() error {
	if err := validateID(r.ID); err != nil {
		return err
	}
	if err := r.validateOrigin(); err != nil {
		return err
	}
	if r.VCPUs < 0 || r.VCPUs > MaxVCPUs {
		return fmt.Errorf("%w: vcpus %d must be 1 to %d", ErrInvalid, r.VCPUs, MaxVCPUs)
	}
	if r.MemoryMiB != 0 && (r.MemoryMiB < MinMemoryMiB || r.MemoryMiB > MaxMemoryMiB) {
		return fmt.Errorf("%w: memory of %d MiB must be %d to %d", ErrInvalid, r.MemoryMiB, MinMemoryMiB, MaxMemoryMiB)
	}
	if err := validateTimeout(r.Timeout); err != nil {
		return err
	}
	if err := validatePairs("metadata", r.Metadata); err != nil {
		return err
	}
	return validatePairs("envVars", r.EnvVars)
}

// validateOrigin checks what the sandbox starts from: a template or a snapshot.
func (r CreateRequest) validateOrigin() error {
	if r.Snapshot != "" {
		return validateSnapshotName(r.Snapshot)
	}
	if err := safename.Check("template", r.Template); err != nil {
		return invalid(err)
	}
	if r.DiskMiB < 0 || r.DiskMiB > MaxDiskMiB {
		return fmt.Errorf("%w: disk of %d MiB must be at most %d", ErrInvalid, r.DiskMiB, MaxDiskMiB)
	}
	return nil
}

func validateSnapshotName(name string) error {
	if err := safename.Check("snapshot", name); err != nil {
		return invalid(err)
	}
	return nil
}

func validateID(id string) error {
	if err := safename.CheckSandboxID("sandboxID", id); err != nil {
		return invalid(err)
	}
	return nil
}

func validateTimeout(timeout time.Duration) error {
	if timeout < MinTimeout || timeout > MaxTimeout {
		return fmt.Errorf("%w: timeout %v must be %v to %v", ErrInvalid, timeout, MinTimeout, MaxTimeout)
	}
	return nil
}

func validatePairs(field string, pairs map[string]string) error {
	if len(pairs) > maxPairs {
		return fmt.Errorf("%w: %s has %d entries, at most %d are allowed", ErrInvalid, field, len(pairs), maxPairs)
	}
	bytes := 0
	for k, v := range pairs {
		if k == "" {
			return fmt.Errorf("%w: %s has an empty key", ErrInvalid, field)
		}
		bytes += len(k) + len(v)
	}
	if bytes > maxPairBytes {
		return fmt.Errorf("%w: %s has %d bytes, at most %d are allowed", ErrInvalid, field, bytes, maxPairBytes)
	}
	return nil
}

// invalid makes an error of a floor package answer to ErrInvalid too.
func invalid(err error) error { return errors.Join(ErrInvalid, err) }
