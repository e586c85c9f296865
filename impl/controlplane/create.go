package controlplane

import (
	"context"
	"crypto/rand"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"wrenn/impl/agentclient"
	"wrenn/impl/egress"
	"wrenn/impl/safename"
	"wrenn/impl/store"
)

const (
	// defaultTimeoutV1 and defaultTimeoutV2 are E2B's: SDKs that send no timeout rely on them.
	defaultTimeoutV1 = 15 * time.Second
	defaultTimeoutV2 = 300 * time.Second

	// maxKey bounds a key of metadata and a name of an environment variable, in bytes.
	maxKey = 256

	// maxPairBytes bounds metadata and environment variables each, keys and values together; agents have
	// the same bound.
	maxPairBytes = 64 << 10

	// settleTimeout bounds what is done after a create went wrong, for a client that no longer waits.
	settleTimeout = agentclient.DestroyTimeout + agentclient.ReadTimeout
)

// create returns the handler of a create whose default timeout is given.
func (s *server) create(timeout time.Duration) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		begin := time.Now()
		var body newSandbox
		if err := decode(r, &body); err != nil {
			return err
		}
		template, err := checkCreate(body)
		if err != nil {
			return err
		}
		if body.Timeout != nil {
			timeout := time.Duration(*body.Timeout) * time.Second
			return s.createSandbox(w, r, begin, body, template, timeout)
		}
		return s.createSandbox(w, r, begin, body, template, timeout)
	}
}

// checkCreate refuses what the contract's document cannot express, and what is not built. It returns the
// template's name.
func checkCreate(body newSandbox) (template string, err error) {
	if template, err = templateName("templateID", body.TemplateID); err != nil {
		return "", err
	}
	for field, pairs := range map[string]map[string]string{"metadata": body.Metadata, "envVars": body.EnvVars} {
		bytes := 0
		for k, v := range pairs {
			bytes += len(k) + len(v)
		}
		if bytes > maxPairBytes {
			return "", refuse(http.StatusBadRequest, "%s: all keys and values together have %d bytes, at most %d are allowed", field, bytes, maxPairBytes)
		}
	}
	for key := range body.Metadata {
		if key == "" || len(key) > maxKey {
			return "", refuse(http.StatusBadRequest, "metadata: key %.80q must have 1 to %d bytes", key, maxKey)
		}
	}
	for name, value := range body.EnvVars {
		if name == "" || len(name) > maxKey || strings.ContainsAny(name, "=\x00") {
			return "", refuse(http.StatusBadRequest, "envVars: name %.80q must have 1 to %d bytes without '=' and NUL", name, maxKey)
		}
		if strings.Contains(value, "\x00") {
			return "", refuse(http.StatusBadRequest, "envVars: the value of %q must not contain NUL", name)
		}
	}
	if body.AutoPauseMemory != nil && !*body.AutoPauseMemory && (!body.AutoPause || body.AutoResume.Enabled) {
		return "", refuse(http.StatusBadRequest, "autoPauseMemory: false needs autoPause and excludes autoResume")
	}
	for _, missing := range []struct {
		asked bool
		what  string
	}{
		{body.AutoPause, "autoPause: pausing at the end of the timeout"},
		{body.AutoResume.Enabled, "autoResume: waking a paused sandbox by traffic"},
		{len(body.MCP) > 0, "mcp: an MCP gateway in the sandbox"},
		{len(body.IAM) > 0, "iam: identity tokens"},
		{len(body.VolumeMounts) > 0, "volumeMounts: volumes"},
	} {
		if missing.asked {
			return "", refuse(http.StatusNotImplemented, "%s: not available in this version of Wrenn", missing.what)
		}
	}
	if _, err := body.Network.check("network.", body.rules().AllowInternet); err != nil {
		return "", err
	}
	return template, nil
}

// rules are what the sandbox may reach. Access to the internet is the default.
func (b newSandbox) rules() egress.Rules {
	return egress.Rules{
		AllowInternet: b.AllowInternet == nil || *b.AllowInternet, AllowOut: b.Network.AllowOut, DenyOut: b.Network.DenyOut,
	}
}

// templateName takes the tag off a template's name. Templates have no versions yet, so "default" and "latest"
// name the one there is.
func templateName(field, value string) (string, error) {
	name, tag, tagged := strings.Cut(value, ":")
	if err := safename.Check(field, name); err != nil {
		return "", refuse(http.StatusBadRequest, "%v", err)
	}
	if !tagged {
		return name, nil
	}
	if err := safename.Check("the tag of "+field, tag); err != nil {
		return "", refuse(http.StatusBadRequest, "%v", err)
	}
	if !slices.Contains([]string{"default", "latest"}, tag) {
		return "", refuse(http.StatusNotFound, "template %q has no tag %q", name, tag)
	}
	return name, nil
}

// createSandbox makes a sandbox and answers with it. The row comes first: whatever happens afterwards, the
// store knows that there may be something to clean up.
func (s *server) createSandbox(w http.ResponseWriter, r *http.Request, begin time.Time, body newSandbox, template string, timeout time.Duration) error {
	agent, err := s.place(r.Context(), template)
	if err != nil {
		return err
	}
	rules := body.rules()
	now := time.Now().UTC()
	row := store.Sandbox{
		ID: newID(), Template: template, Agent: agent.Name(), State: store.Creating, Metadata: body.Metadata,
		CreatedAt: now, StartedAt: now, EndAt: now.Add(timeout), OnTimeout: "kill",
		PrivateTraffic: body.Network.private(), MaskRequestHost: body.Network.mask(),
	}
	setRules(&row, rules)
	// What has begun is brought to an end, even if the client hangs up.
	ctx := context.WithoutCancel(r.Context())
	if err := s.store.Insert(ctx, row); err != nil {
		return err
	}
	made, err := s.askAgent(ctx, agent, agentclient.CreateRequest{
		ID: row.ID, Template: template, VCPUs: body.CPUCount, MemoryMiB: body.MemoryMB, Timeout: timeout,
		EnvVars: body.EnvVars, Metadata: body.Metadata, EnvdAccessToken: s.envdToken(row.ID), Network: toAgent(rules), Limits: body.Wrenn.limits(),
	})
	if err == nil {
		err = r.Context().Err() // nobody has learned the id: it would only burn its time
	}
	if err == nil {
		row, err = s.store.Modify(ctx, row.ID, func(sb *store.Sandbox) error {
			sb.State = store.Running
			follow(sb, made)
			return nil
		})
	}
	if err != nil {
		s.abandon(ctx, agent, row.ID)
		return err
	}
	s.cfg.Logger.InfoContext(ctx, "sandbox created", "sandbox", row.ID, "template", template, "agent", agent.Name(),
		"boot", made.BootPath, "took", time.Since(begin))
	out := s.reply(row)
	out.Wrenn = report(made, time.Since(begin))
	answer(w, http.StatusCreated, out)
	return nil
}

// askAgent has the agent create a sandbox. If its answer was lost, the sandbox may be there all the same: the
// id is ours, so asking for it tells.
func (s *server) askAgent(ctx context.Context, agent *agentclient.Client, req agentclient.CreateRequest) (agentclient.Sandbox, error) {
	made, err := agent.Create(ctx, req)
	if !errors.Is(err, agentclient.ErrUnreachable) {
		return made, err
	}
	if found, again := agent.Get(ctx, req.ID); again == nil && found.State == agentclient.StateRunning {
		return found, nil
	}
	return agentclient.Sandbox{}, err
}

// abandon undoes a create that failed. Where the agent cannot be asked, the row says that the sandbox is
// unwanted, and reconciling finishes the work.
func (s *server) abandon(ctx context.Context, agent *agentclient.Client, id string) {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	err := agent.Destroy(ctx, id)
	if err == nil || errors.Is(err, agentclient.ErrNotFound) {
		err = s.store.Delete(ctx, id)
	} else {
		_, marked := s.store.Modify(ctx, id, func(sb *store.Sandbox) error {
			sb.State = store.Destroying
			return nil
		})
		err = errors.Join(err, marked)
	}
	if err != nil {
		s.cfg.Logger.WarnContext(ctx, "a failed create could not be cleaned up yet", "sandbox", id, "error", err)
	}
}

// follow copies what only the agent knows.
func follow(sb *store.Sandbox, made agentclient.Sandbox) {
	if !made.StartedAt.IsZero() {
		sb.StartedAt = made.StartedAt
	}
	if !made.Deadline.IsZero() {
		sb.EndAt = made.Deadline
	}
	sb.VCPUs, sb.MemoryMiB, sb.DiskMiB, sb.EnvdVersion = made.VCPUs, made.MemoryMiB, made.DiskMiB, made.EnvdVersion
}

// newID makes a sandbox id: "i" and 20 random characters of a-z and 0-9, over 100 bits.
func newID() string {
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789"
	id := make([]byte, 0, 21)
	id = append(id, 'i')
	for random := make([]byte, 1); len(id) < cap(id); {
		_, _ = rand.Read(random)
		// 252 is the largest multiple of 36 in a byte: what lies above would make some letters likelier.
		if random[0] < 252 {
			id = append(id, letters[random[0]%36])
		}
	}
	return string(id)
}
