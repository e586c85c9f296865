package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"wrenn/impl/agent"
	"wrenn/impl/agentclient"
)

// stock is what `wrenn doctor --network` prints.
type stock struct {
	// Agent is "answers", "does not answer" or "does not run".
	Agent string `json:"agent"`
	// Dir is whose journals say what is owned where no agent answers.
	Dir     string                `json:"dir"`
	Objects []agent.NetworkObject `json:"objects"`
	// Orphans are the slots that nobody has, and Notes what keeps the list from being sure.
	Orphans []int    `json:"orphans"`
	Notes   []string `json:"notes,omitempty"`

	client *agentclient.Client
}

const (
	agentAnswers = "answers"
	agentIsMute  = "does not answer"
	agentIsOff   = "does not run"
)

// needsRoot is for commands that look into other namespaces.
func needsRoot(command string) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("namespaces can only be looked into by root: run `sudo %s`", command)
	}
	return nil
}

// doctorNetwork is `wrenn doctor --network`.
func doctorNetwork(cmd *cobra.Command, o *options) error {
	if err := needsRoot("wrenn doctor --network"); err != nil {
		return err
	}
	s, err := o.takeStock(cmd.Context())
	if err != nil {
		return err
	}
	defer s.close()
	if o.json {
		err = printJSON(cmd.OutOrStdout(), s)
	} else {
		err = s.print(cmd.OutOrStdout())
	}
	if err == nil && len(s.Orphans) > 0 {
		err = fmt.Errorf("networks that belong to nobody: %d; `wrenn reclaim` shows them, and clears them with --yes", len(s.Orphans))
	}
	return err
}

func reclaimCommand(o *options) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "reclaim",
		Short: "Clear the networks that no sandbox has, or show which those are (as root)",
		Long: `Show which networks no sandbox has, and with --yes remove them: what is left of a crash, or what somebody
made by hand under one of Wrenn's names. What belongs to a sandbox, running or not, is never touched.

An agent clears such networks by itself when it starts. While one runs it is the agent that removes them,
since it alone knows which slots it is about to use; while none runs, this command keeps any from starting
until it is done, goes by the journals of the sandboxes, and where there is no sandbox at all also takes
back the rules that they share and puts ip_forward back.`,
		Example: "  sudo wrenn reclaim          # look\n  sudo wrenn reclaim --yes    # and do",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needsRoot("wrenn reclaim"); err != nil {
				return err
			}
			s, err := o.takeStock(cmd.Context())
			if err != nil {
				return err
			}
			defer s.close()
			s.Objects = slices.DeleteFunc(s.Objects, func(n agent.NetworkObject) bool { return n.Role != agent.RoleOrphan })
			if !yes {
				return s.printPlan(cmd.OutOrStdout(), o.json)
			}
			done, err := s.reclaim(cmd.Context(), slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil)))
			if err != nil {
				return err
			}
			return printReclaimed(cmd.OutOrStdout(), done, o.json)
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "remove them instead of showing them")
	return cmd
}

// agentDir is the directory of this machine's agent: below --dir if that was given, else that of the agent
// that runs here or ran last.
func (o *options) agentDir(last string) string {
	if o.dir == "" && last != "" {
		return last
	}
	dir := o.dataDir()
	if exists(filepath.Join(dir, "sandboxes")) { // a wrenn-agent's
		return dir
	}
	return filepath.Join(dir, "agent")
}

// takeStock lists what there is and whose it is. An agent that runs is asked; where none does, the journals
// say.
func (o *options) takeStock(ctx context.Context) (*stock, error) {
	addr, last, runs, err := agent.Running()
	if err != nil {
		return nil, err
	}
	s := &stock{Agent: agentIsOff, Dir: o.agentDir(last), Orphans: []int{}}
	var asked error
	if runs {
		s.Agent, s.Dir = agentAnswers, last
		if s.client, asked = localAgent(addr, last); asked != nil {
			s.Agent = agentIsMute
		}
	}
	owners, err := s.owners(ctx)
	if err != nil {
		return nil, err
	}
	objects, err := agent.NetworkObjects(ctx, owners, agent.RoleOrphan)
	if err != nil {
		return nil, err
	}
	// A sandbox that came or went meanwhile is found in one of two looks.
	again, err := s.owners(ctx)
	if err != nil {
		return nil, err
	}
	s.judge(objects, owners, again, asked)
	return s, nil
}

// owners asks the agent if there is one that can be asked, and reads the journals otherwise.
func (s *stock) owners(ctx context.Context) (map[int]agent.Owner, error) {
	if s.Agent == agentAnswers {
		networks, err := s.client.Networks(ctx)
		if err == nil {
			owners := make(map[int]agent.Owner, len(networks))
			for _, n := range networks {
				owners[n.Slot] = agent.Owner{Sandbox: n.SandboxID, State: string(n.State), Ready: n.SandboxID == ""}
			}
			return owners, nil
		}
		s.Agent = agentIsMute
		s.Notes = append(s.Notes, oneLine(err.Error()))
	}
	owners, broken, err := agent.Journaled(s.Dir)
	if len(broken) > 0 {
		note := "the journals of these sandboxes cannot be read: " + strings.Join(broken, ", ")
		if !slices.Contains(s.Notes, note) {
			s.Notes = append(s.Notes, note)
		}
	}
	return owners, err
}

// judge gives each object its role by what was known before and after the list was made.
func (s *stock) judge(objects []agent.NetworkObject, before, after map[int]agent.Owner, asked error) {
	if asked != nil {
		s.Notes = append(s.Notes, oneLine(asked.Error()))
	}
	if s.Agent == agentIsMute {
		s.Notes = append(s.Notes, "the agent cannot be asked, so its ready networks look like orphans")
	}
	orphans := map[int]bool{}
	for i := range objects {
		n := &objects[i]
		owner, late := after[n.Slot]
		switch {
		case n.Role == agent.RoleHost && s.Agent == agentIsOff && len(before)+len(after)+len(s.Notes) == 0:
			n.Role = agent.RoleOrphan // rules without a sandbox that could need them
		case n.Role == agent.RoleOrphan && late && owner.Ready:
			n.Role = agent.RoleReady
		case n.Role == agent.RoleOrphan && late:
			n.Role, n.Sandbox, n.State = agent.RoleSandbox, owner.Sandbox, owner.State
		case n.Role == agent.RoleOrphan && len(s.Notes) > 0:
			n.Role = agent.RoleUnknown
		case n.Role == agent.RoleOrphan:
			orphans[n.Slot] = true
		}
	}
	s.Objects, s.Orphans = objects, slices.Sorted(maps.Keys(orphans))
	if s.Orphans == nil {
		s.Orphans = []int{}
	}
}

// localAgent returns a client of the agent that runs here. It says why where there is none.
func localAgent(addr, dir string) (*agentclient.Client, error) {
	token := os.Getenv("WRENN_AGENT_TOKEN")
	if path := filepath.Join(filepath.Dir(dir), "secrets.json"); token == "" && exists(path) {
		s, err := loadSecrets(path)
		if err != nil {
			return nil, err
		}
		token = s.AgentToken
	}
	if token == "" || addr == "" {
		return nil, errors.New("the running agent's token is not known: set WRENN_AGENT_TOKEN")
	}
	return agentclient.New(agentclient.Config{Name: "local", URL: "http://" + reachable(addr), Token: token})
}

func (s *stock) close() {
	if s.client != nil {
		s.client.Close()
	}
}

// reclaim has the agent do it, or does it in place of one.
func (s *stock) reclaim(ctx context.Context, logger *slog.Logger) (agent.Reclaimed, error) {
	switch s.Agent {
	case agentAnswers:
		slots, err := s.client.ReclaimNetworks(ctx)
		return agent.Reclaimed{Slots: slots}, err
	case agentIsMute:
		return agent.Reclaimed{}, fmt.Errorf("an agent runs and cannot be asked, and only it knows what is in use: %s", strings.Join(s.Notes, "; "))
	default:
		return agent.ReclaimNetworks(ctx, s.Dir, logger)
	}
}

func (s *stock) print(w io.Writer) error {
	if err := printObjects(w, s.Objects); err != nil {
		return err
	}
	for _, n := range s.Notes {
		_, _ = fmt.Fprintln(w, "note:", n)
	}
	slots := map[string]map[int]bool{}
	for _, n := range s.Objects {
		if slots[n.Role] == nil {
			slots[n.Role] = map[int]bool{}
		}
		slots[n.Role][n.Slot] = true
	}
	_, err := fmt.Fprintf(w, "the agent %s; networks: %d of sandboxes, %d ready, %d orphaned, %d unknown\n", s.Agent,
		len(slots[agent.RoleSandbox]), len(slots[agent.RoleReady]), len(s.Orphans), len(slots[agent.RoleUnknown]))
	return err
}

// printPlan says what reclaim would do.
func (s *stock) printPlan(w io.Writer, asJSON bool) error {
	if asJSON {
		return printJSON(w, s)
	}
	for _, n := range s.Notes {
		_, _ = fmt.Fprintln(w, "note:", n)
	}
	if len(s.Objects) == 0 {
		_, err := fmt.Fprintln(w, "nothing to reclaim")
		return err
	}
	if err := printObjects(w, s.Objects); err != nil {
		return err
	}
	_, err := fmt.Fprintln(w, "nothing was changed: `wrenn reclaim --yes` removes these")
	return err
}

func printObjects(w io.Writer, objects []agent.NetworkObject) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if len(objects) > 0 {
		_, _ = fmt.Fprintln(table, "SLOT\tKIND\tNAME\tOWNER\tDETAIL")
	}
	for _, n := range objects {
		slot, owner := fmt.Sprint(n.Slot), n.Role
		switch {
		case n.Slot == 0:
			slot = "-"
		case n.Role == agent.RoleSandbox:
			owner = fmt.Sprintf("sandbox %s (%s)", n.Sandbox, n.State)
		}
		if n.Role == agent.RoleOrphan {
			owner = "ORPHAN"
		}
		_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", slot, n.Kind, n.Name, owner, oneLine(n.Detail))
	}
	return table.Flush()
}

func printReclaimed(w io.Writer, done agent.Reclaimed, asJSON bool) error {
	if done.Slots == nil {
		done.Slots = []int{}
	}
	if asJSON {
		return printJSON(w, done)
	}
	_, err := fmt.Fprintf(w, "networks removed: %d\n", len(done.Slots))
	if done.Host {
		_, _ = fmt.Fprintln(w, "no sandbox is left, so the host is as it was before Wrenn")
	}
	return err
}
