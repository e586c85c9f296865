package controlplane

import (
	"context"
	"crypto/rand"
	"errors"
	"net/http"
	"strings"
	"time"

	"wrenn/impl/agentclient"
	"wrenn/impl/egress"
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
		ref, err := checkCreate(body)
		if err != nil {
			return err
		}
		if body.Timeout != nil {
			timeout := time.Duration(*body.Timeout) * time.Second
			return s.createSandbox(w, r, begin, body, ref, timeout)
		}
		return s.createSandbox(w, r, begin, body, ref, timeout)
	}
}

// checkCreate refuses what the contract's document cannot express, and what is not built. It returns what the
// sandbox starts from.
func checkCreate(body newSandbox) (ref reference, err error) {
	if ref, err = parseReference("templateID", body.TemplateID); err != nil {
		return ref, err
	}
	for field, pairs := range map[string]map[string]string{"metadata": body.Metadata, "envVars": body.EnvVars} {
		bytes := 0
		for k, v := range pairs {
			bytes += len(k) + len(v)
		}
		if bytes > maxPairBytes {
			return ref, refuse(http.StatusBadRequest, "%s: all keys and values together have %d bytes, at most %d are allowed", field, bytes, maxPairBytes)
		}
	}
	for key := range body.Metadata {
		if key == "" || len(key) > maxKey {
			return ref, refuse(http.StatusBadRequest, "metadata: key %.80q must have 1 to %d bytes", key, maxKey)
		}
	}
	for name, value := range body.EnvVars {
		if name == "" || len(name) > maxKey || strings.ContainsAny(name, "=\x00") {
			return ref, refuse(http.StatusBadRequest, "envVars: name %.80q must have 1 to %d bytes without '=' and NUL", name, maxKey)
		}
		if strings.Contains(value, "\x00") {
			return ref, refuse(http.StatusBadRequest, "envVars: the value of %q must not contain NUL", name)
		}
	}
	if body.pauseFilesOnly() && (!body.AutoPause || body.AutoResume.Enabled) {
		return ref, refuse(http.StatusBadRequest, "autoPauseMemory: false needs autoPause and excludes autoResume")
	}
	for _, missing := range []struct {
		asked bool
		what  string
	}{
		{len(body.MCP) > 0, "mcp: an MCP gateway in the sandbox"},
		{len(body.IAM) > 0, "iam: identity tokens"},
		{len(body.VolumeMounts) > 0, "volumeMounts: volumes"},
	} {
		if missing.asked {
			return ref, refuse(http.StatusNotImplemented, "%s: not available in this version of Wrenn", missing.what)
		}
	}
	if _, err := body.Network.check("network.", body.rules().AllowInternet); err != nil {
		return ref, err
	}
	return ref, nil
}

// rules are what the sandbox may reach. Access to the internet is the default.
func (b newSandbox) rules() egress.Rules {
	return egress.Rules{
		AllowInternet: b.AllowInternet == nil || *b.AllowInternet, AllowOut: b.Network.AllowOut, DenyOut: b.Network.DenyOut,
	}
}

// pauseFilesOnly says whether a pause at the end of the timeout leaves the memory out.
func (b newSandbox) pauseFilesOnly() bool { return b.AutoPauseMemory != nil && !*b.AutoPauseMemory }

// createSandbox makes a sandbox and answers with it.
func (s *server) createSandbox(w http.ResponseWriter, r *http.Request, begin time.Time, body newSandbox, ref reference, timeout time.Duration) error {
	from, err := s.resolve(r.Context(), ref)
	if err != nil {
		return err
	}
	if from.snapshot != "" && (body.CPUCount != 0 || body.MemoryMB != 0) {
		return refuse(http.StatusBadRequest, "cpuCount and memoryMB: %q is a snapshot, and a machine goes on as it was", ref)
	}
	row := store.Sandbox{
		Template: from.name, Metadata: body.Metadata, Timeout: timeout, OnTimeout: onTimeoutKill,
		PauseFilesOnly: body.pauseFilesOnly(), AutoResume: body.AutoResume.Enabled,
		PrivateTraffic: body.Network.private(), MaskRequestHost: body.Network.mask(),
	}
	if body.AutoPause {
		row.OnTimeout = onTimeoutPause
	}
	setRules(&row, body.rules())
	row, made, err := s.makeSandbox(r.Context(), from, row, agentclient.CreateRequest{
		VCPUs: body.CPUCount, MemoryMiB: body.MemoryMB, EnvVars: body.EnvVars, Limits: body.Wrenn.limits(),
	})
	if err != nil {
		return err
	}
	s.cfg.Logger.InfoContext(r.Context(), "sandbox created", "sandbox", row.ID, "template", row.Template, "agent", row.Agent,
		"boot", made.BootPath, "took", time.Since(begin))
	out := s.reply(row)
	out.Wrenn = report(made.BootPath, made.Stages, time.Since(begin))
	answer(w, http.StatusCreated, out)
	return nil
}

// makeSandbox makes the sandbox that row and req describe, with an id of its own. The row comes first:
// whatever happens afterwards, the store knows that there may be something to clean up.
func (s *server) makeSandbox(client context.Context, from origin, row store.Sandbox, req agentclient.CreateRequest) (store.Sandbox, agentclient.Sandbox, error) {
	now := time.Now().UTC()
	row.ID, row.Agent, row.State = newID(), from.agent.Name(), store.Creating
	row.CreatedAt, row.StartedAt, row.EndAt = now, now, now.Add(row.Timeout)
	req.ID, req.Template, req.Snapshot = row.ID, from.template, from.snapshot
	req.Timeout, req.Metadata, req.EnvdAccessToken = row.Timeout, row.Metadata, s.envdToken(row.ID)
	req.Network, req.Lifecycle = toAgent(rulesOf(row)), lifecycleOf(row)
	// What has begun is brought to an end, even if the client hangs up.
	ctx := context.WithoutCancel(client)
	if err := s.store.Insert(ctx, row); err != nil {
		return row, agentclient.Sandbox{}, err
	}
	made, err := s.askAgent(ctx, from.agent, req)
	if err == nil {
		err = client.Err() // nobody has learned the id: it would only burn its time
	}
	id := row.ID
	if err == nil {
		row, err = s.store.Modify(ctx, id, func(sb *store.Sandbox) error {
			sb.State = store.Running
			follow(sb, made)
			return nil
		})
	}
	if err != nil {
		s.abandon(ctx, from.agent, id)
	}
	return row, made, err
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
