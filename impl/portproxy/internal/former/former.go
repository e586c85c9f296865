// Package former names defects that proxies of this kind have had, so that suites can show that they would
// find them. Only package portproxytest turns them on; no program can.
package former

// Defects are those that are on.
type Defects struct {
	// JoinPath cleans the path that was asked for, as path.Join does: a trailing slash, repeated slashes
	// and dots are lost, and encoded bytes are decoded.
	JoinPath bool
	// LeaveReferences passes Location, Refresh and Set-Cookie on as the guest sent them.
	LeaveReferences bool
}
