package network

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
)

// rulesVersion goes into every seal: a later version of the program that writes other rules for the same
// policy raises it, and so replaces what it finds.
const rulesVersion = 1

// sealPrefix begins the name of an empty chain of the egress table that says what the table was written
// from. It comes and goes with the rules in one transaction, so it is never wrong.
const sealPrefix = "sealed-"

// seal is the name of that chain.
func (s *site) seal(policy Policy) string {
	// The fields are plain, so that encoding them cannot fail.
	text, err := json.Marshal(struct {
		Version   int
		Policy    Policy
		Resolvers []netip.Addr
	}{rulesVersion, policy, s.resolvers})
	if err != nil {
		panic(err)
	}
	sum := sha256.Sum256(text)
	return sealPrefix + hex.EncodeToString(sum[:16])
}

// sealed runs in the namespace and reports whether its egress rules are those of the policy.
func (s *site) sealed(policy Policy) (bool, error) {
	conn, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("opening nftables: %w", err)
	}
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return false, fmt.Errorf("listing the egress rules: %w", err)
	}
	want := s.seal(policy)
	return slices.ContainsFunc(chains, func(c *nftables.Chain) bool {
		return c.Table.Name == egressTable && c.Name == want
	}), nil
}
