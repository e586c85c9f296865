package cli

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"wrenn/impl/apiclient"
)

// networkFlags say what a sandbox may reach.
type networkFlags struct {
	allow, deny []string
	noInternet  bool
}

func (n *networkFlags) add(f *pflag.FlagSet) {
	f.StringArrayVar(&n.allow, "allow", nil, "IP address, range, name or *.name that it may reach whatever else is denied; may be repeated")
	f.StringArrayVar(&n.deny, "deny", nil, "IP address or range that it may not reach; may be repeated")
	f.BoolVar(&n.noInternet, "no-internet", false, "let it reach nothing but what --allow names")
}

// rules are nil where no flag asks for any.
func (n *networkFlags) rules() *apiclient.Network {
	if len(n.allow)+len(n.deny) == 0 {
		return nil
	}
	return &apiclient.Network{AllowOut: n.allow, DenyOut: n.deny}
}

func (n *networkFlags) access() *bool {
	if !n.noInternet {
		return nil
	}
	return new(bool)
}

// limitFlags bound a sandbox's traffic.
type limitFlags struct{ egress, ingress int64 }

func (l *limitFlags) add(f *pflag.FlagSet) {
	f.Int64Var(&l.egress, "egress-rate", 0, "bytes per second that it may send, 65536 at least (default and most: the host's)")
	f.Int64Var(&l.ingress, "ingress-rate", 0, "bytes per second that it may receive (likewise)")
}

func (l *limitFlags) limits() *apiclient.Limits {
	if l.egress == 0 && l.ingress == 0 {
		return nil
	}
	return &apiclient.Limits{EgressRate: l.egress, IngressRate: l.ingress}
}

func networkCommand(o *options) *cobra.Command {
	var network networkFlags
	var open bool
	cmd := &cobra.Command{
		Use:   "network ID",
		Short: "Show or replace what a sandbox may reach",
		Long: `Show what a sandbox may reach. With flags, replace it: at once, and for open connections too.

Every sandbox reaches the internet at first, and never other sandboxes, this host, cloud metadata or
private networks. The flags replace the rules as a whole, they are not added to what was there:

  --deny ADDRESS          closes an address or a range (198.51.100.7, 198.51.100.0/24)
  --no-internet           closes everything, like --deny 0.0.0.0/0
  --allow ADDRESS         opens an address or a range whatever is denied, private ones included
  --allow NAME            opens the public addresses that a name resolves to; needs --no-internet
  --allow '*.NAME'        the same for every name below it, not for NAME itself
  --open                  goes back to the internet and nothing else

A sandbox whose rules have names can resolve these names alone.`,
		Example: "  wrenn network ID\n  wrenn network ID --deny 203.0.113.0/24\n  wrenn network ID --no-internet --allow github.com --allow '*.githubusercontent.com'\n  wrenn network ID --open",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, _, err := o.client()
			if err != nil {
				return err
			}
			asked := network.rules() != nil || network.noInternet
			if open && asked {
				return errors.New("--open takes all rules away: give it alone")
			}
			if !open && !asked {
				d, err := client.Get(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				return o.printNetwork(cmd.OutOrStdout(), d)
			}
			update := apiclient.NetworkUpdate{AllowInternetAccess: network.access()}
			if rules := network.rules(); rules != nil {
				update.Network = *rules
			}
			return client.SetNetwork(cmd.Context(), args[0], update)
		},
	}
	network.add(cmd.Flags())
	cmd.Flags().BoolVar(&open, "open", false, "take all rules away")
	return cmd
}

// printNetwork prints the rules as flags that would make them.
func (o *options) printNetwork(w io.Writer, d apiclient.Detail) error {
	if o.json {
		return printJSON(w, struct {
			AllowInternetAccess *bool              `json:"allowInternetAccess"`
			Network             *apiclient.Network `json:"network"`
		}{d.AllowInternetAccess, d.Network})
	}
	var lines []string
	if d.AllowInternetAccess != nil && !*d.AllowInternetAccess {
		lines = append(lines, "--no-internet")
	}
	if d.Network != nil {
		for _, entry := range d.Network.DenyOut {
			lines = append(lines, "--deny "+entry)
		}
		for _, entry := range d.Network.AllowOut {
			lines = append(lines, "--allow "+entry)
		}
	}
	if len(lines) == 0 {
		lines = append(lines, "--open")
	}
	for _, line := range lines {
		if _, err := fmt.Fprintln(w, printable(line)); err != nil {
			return err
		}
	}
	return nil
}
