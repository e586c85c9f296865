package qemu

import (
	"fmt"
	"slices"
)

// patchDrive exchanges the backing file or the limits of a drive while the guest runs.
func (m *machine) patchDrive(p drivePatch) error {
	if err := m.afterStart(); err != nil {
		return err
	}
	at := slices.IndexFunc(m.drives, func(d drive) bool { return d.DriveID == p.DriveID })
	if at < 0 {
		return faultf("Drive config error: Unable to patch the block device: Invalid block device ID! Please verify the request arguments.")
	}
	updated := m.drives[at]
	if p.PathOnHost != nil {
		updated.PathOnHost = *p.PathOnHost
		if err := updated.complete(); err != nil {
			return err
		}
		if err := m.guest.swapFile(updated); err != nil {
			return faultf("Drive config error: Unable to patch the block device: %s", err)
		}
		m.drives[at] = updated
	}
	if p.RateLimiter != nil {
		updated.RateLimiter = updated.RateLimiter.merge(p.RateLimiter)
		set := object{"path": "/objects/limits_" + p.DriveID, "property": "limits", "value": throttleLimits(updated.RateLimiter)}
		if err := m.guest.qmp.do("qom-set", set, nil); err != nil {
			return faultf("Drive config error: Unable to patch the block device: %s", err)
		}
		m.drives[at] = updated
	}
	return nil
}

// swapFile puts d's new backing file under the drive and tells the guest the new size.
func (g *guest) swapFile(d drive) error {
	was := g.swaps[d.DriveID]
	now := was + 1
	if err := g.qmp.do("blockdev-add", d.fileOptions(now), nil); err != nil {
		return err
	}
	raw := object{"driver": "raw", "node-name": d.rawNode(), "read-only": d.IsReadOnly, "file": d.fileNode(now)}
	if err := g.qmp.do("blockdev-reopen", object{"options": []object{raw}}, nil); err != nil {
		_ = g.qmp.do("blockdev-del", object{"node-name": d.fileNode(now)}, nil) // the first error is the one to tell
		return err
	}
	g.swaps[d.DriveID] = now
	size, err := g.sizeOf(d.fileNode(now))
	if err != nil {
		return err
	}
	if err := g.qmp.do("block_resize", object{"node-name": d.throttleNode(), "size": size}, nil); err != nil {
		return err
	}
	return g.qmp.do("blockdev-del", object{"node-name": d.fileNode(was)}, nil)
}

// sizeOf is the size in bytes of a block node's file or device, as QEMU sees it.
func (g *guest) sizeOf(node string) (int64, error) {
	var nodes []struct {
		Name  string `json:"node-name"`
		Image struct {
			Size int64 `json:"virtual-size"`
		} `json:"image"`
	}
	if err := g.qmp.do("query-named-block-nodes", object{"flat": true}, &nodes); err != nil {
		return 0, err
	}
	for _, n := range nodes {
		if n.Name == node {
			return n.Image.Size, nil
		}
	}
	return 0, fmt.Errorf("qemu does not know block node %s", node)
}

// patchNIC changes the limits of an interface while the guest runs.
func (m *machine) patchNIC(p nicPatch) error {
	if err := m.afterStart(); err != nil {
		return err
	}
	at := slices.IndexFunc(m.nics, func(n nic) bool { return n.IfaceID == p.IfaceID })
	if at < 0 {
		return faultf("Network config error: Invalid interface ID - not found.")
	}
	updated := slices.Clone(m.nics)
	updated[at].RxRateLimiter = updated[at].RxRateLimiter.merge(p.RxRateLimiter)
	updated[at].TxRateLimiter = updated[at].TxRateLimiter.merge(p.TxRateLimiter)
	if err := m.shaper.apply(updated[at : at+1]); err != nil {
		return faultf("Network config error: set the rate limits: %s", err)
	}
	m.nics = updated
	return nil
}
