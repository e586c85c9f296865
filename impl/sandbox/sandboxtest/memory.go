package sandboxtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"os"
	"path/filepath"

	"wrenn/impl/sandbox"
	"wrenn/impl/snapshot"
)

// pages is a guest's memory by name of the page. In a layer an empty page is one that was zeroed.
type pages map[string]string

// header is what memory writes beside a layer.
type header struct {
	CRC uint32 `json:"crc"`
	// Parent is the CRC of the layer below; a base has none.
	Parent     *uint32 `json:"parent,omitempty"`
	Generation uint64  `json:"generation"`
}

// memory keeps layers as small files with checksums, each chained to the one below.
type memory struct{ h *Host }

func (m memory) Diffs() bool { return true }

func (m memory) Describe(ctx context.Context, dir string, n int, layer sandbox.Layer) error {
	data, err := os.ReadFile(filepath.Join(dir, snapshot.LayerName(n)))
	if err != nil {
		return err
	}
	hdr := header{CRC: crc32.ChecksumIEEE(data), Generation: layer.Generation}
	if n > 0 {
		var below header
		if err := readJSON(filepath.Join(dir, snapshot.HeaderName(n-1)), &below); err != nil {
			return err
		}
		hdr.Parent = &below.CRC
	}
	return errors.Join(writeJSON(filepath.Join(dir, snapshot.HeaderName(n)), hdr), m.h.failing("memory.describe"), ctx.Err())
}

func (m memory) Verify(ctx context.Context, dir string, n int) error {
	_, err := flatten(dir, n)
	return errors.Join(err, m.h.failing("memory.verify"), ctx.Err())
}

// flatten reads n layers, which must fit each other.
func flatten(dir string, n int) (pages, error) {
	flat := pages{}
	var below *uint32
	for i := range n {
		path := filepath.Join(dir, snapshot.LayerName(i))
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		var hdr header
		if err := readJSON(filepath.Join(dir, snapshot.HeaderName(i)), &hdr); err != nil {
			return nil, err
		}
		if hdr.CRC != crc32.ChecksumIEEE(data) || (hdr.Parent == nil) != (below == nil) || below != nil && *below != *hdr.Parent {
			return nil, fmt.Errorf("%w: %s does not fit its header", snapshot.ErrDamaged, path)
		}
		var layer pages
		if err := json.Unmarshal(data, &layer); err != nil {
			return nil, err
		}
		maps.Copy(flat, layer)
		below = &hdr.CRC
	}
	maps.DeleteFunc(flat, func(_, content string) bool { return content == "" })
	return flat, nil
}

func (m memory) Provide(ctx context.Context, use sandbox.MemoryUse) (sandbox.MemorySource, error) {
	flat, err := flatten(use.From, use.Layers)
	if err != nil {
		return sandbox.MemorySource{}, err
	}
	m.h.mu.Lock()
	m.h.pagers[use.ID] = true
	m.h.mu.Unlock()
	path := filepath.Join(use.Dir, snapshot.FlatName)
	return sandbox.MemorySource{Path: path}, errors.Join(writeJSON(path, flat), m.h.failing("memory.provide"), ctx.Err())
}

func (m memory) Release(_ context.Context, id, dir string) error {
	m.h.mu.Lock()
	defer m.h.mu.Unlock()
	if m.h.machines[dir] != nil {
		m.h.breakRule("the memory of " + id + " was let go of under its machine")
	}
	if err := m.h.fail["memory.release"]; err != nil {
		return err
	}
	delete(m.h.pagers, id)
	return nil
}

func (m memory) Merge(ctx context.Context, from string, n int, to string) error {
	flat, err := flatten(from, n)
	if err != nil {
		return err
	}
	if err := writeJSON(filepath.Join(to, snapshot.LayerName(0)), flat); err != nil {
		return err
	}
	return errors.Join(m.Describe(ctx, to, 0, sandbox.Layer{}), m.h.failing("memory.merge"))
}

func readJSON(path string, into any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, into)
}

func writeJSON(path string, from any) error {
	data, err := json.Marshal(from)
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}
