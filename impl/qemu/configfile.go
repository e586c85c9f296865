package qemu

import (
	"encoding/json"
	"errors"
	"fmt"
)

// applyFile configures the machine from a --config-file and starts it.
func (m *machine) applyFile(raw []byte) error {
	var c fullConfig
	if err := decodeConfigFile(raw, &c); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var errs []error
	if c.Logger != nil {
		errs = append(errs, m.putLogger(*c.Logger))
	}
	if c.Metrics != nil {
		errs = append(errs, m.putMetrics(*c.Metrics))
	}
	if c.Machine != nil {
		errs = append(errs, m.putMachineConfig(*c.Machine))
	}
	if c.BootSource != nil {
		errs = append(errs, m.putBootSource(*c.BootSource))
	}
	for _, d := range c.Drives {
		errs = append(errs, m.putDrive(d))
	}
	for _, n := range c.NICs {
		errs = append(errs, m.putNIC(n))
	}
	if c.Entropy != nil {
		errs = append(errs, m.putEntropy(*c.Entropy))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("apply the configuration file: %w", err)
	}
	return m.start()
}

// decodeConfigFile reads the sections that are supported; each is as strict as its call.
func decodeConfigFile(raw []byte, c *fullConfig) error {
	sections, err := splitObject(raw)
	if err != nil {
		return fmt.Errorf("parse: %w", err)
	}
	err = errors.Join(
		one(sections, "boot-source", &c.BootSource),
		one(sections, "machine-config", &c.Machine),
		one(sections, "logger", &c.Logger),
		one(sections, "metrics", &c.Metrics),
		one(sections, "entropy", &c.Entropy),
		list(sections, "drives", &c.Drives),
		list(sections, "network-interfaces", &c.NICs),
	)
	for name, section := range sections {
		if string(section) != "null" {
			err = errors.Join(err, fmt.Errorf("section %q is not supported by firecracker-qemu", name))
		}
	}
	return err
}

// one takes a section that is an object.
func one[T any](sections map[string]json.RawMessage, name string, dst **T) error {
	section, ok := take(sections, name)
	if !ok {
		return nil
	}
	*dst = new(T)
	return decode(section, *dst)
}

// list takes a section that is an array of objects.
func list[T any](sections map[string]json.RawMessage, name string, dst *[]T) error {
	section, ok := take(sections, name)
	if !ok {
		return nil
	}
	var items []json.RawMessage
	if err := json.Unmarshal(section, &items); err != nil {
		return fmt.Errorf("section %q: %w", name, err)
	}
	*dst = make([]T, len(items))
	for i, item := range items {
		if err := decode(item, &(*dst)[i]); err != nil {
			return err
		}
	}
	return nil
}

func take(sections map[string]json.RawMessage, name string) (json.RawMessage, bool) {
	section, ok := sections[name]
	delete(sections, name)
	return section, ok && string(section) != "null"
}
