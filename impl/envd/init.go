package envd

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"wrenn/impl/envd/account"
	"wrenn/impl/envd/answer"
	"wrenn/impl/envd/identity"
	"wrenn/impl/envd/settings"
)

// Bounds of /init.
const (
	maxInit  = 1 << 20   // bytes of the body
	maxToken = 4096      // bytes
	maxVars  = 4096      // environment variables
	maxVar   = 128 << 10 // bytes of one KEY=value: more fits no process (the kernel's MAX_ARG_STRLEN)
)

// The clock is set when the guest's is this far behind or ahead of the host's: a resumed guest is behind;
// one slightly ahead is left alone, since time that runs backwards breaks programs.
const (
	clockBehind = 50 * time.Millisecond
	clockAhead  = 5 * time.Second
)

type initRequest struct {
	Timestamp      *time.Time        `json:"timestamp"`
	EnvVars        map[string]string `json:"envVars"`
	AccessToken    *string           `json:"accessToken"`
	DefaultUser    *string           `json:"defaultUser"`
	DefaultWorkdir *string           `json:"defaultWorkdir"`

	// Wrenn's own. Resumed says that the guest was stopped, or restored from a snapshot: its clock is set
	// however little it is off, and connections of before are cut. The others give a restored guest what it
	// may not share with its snapshot: randomness (base64), a name, a machine-id; empty leaves it.
	Resumed   bool   `json:"wrennResumed"`
	Entropy   []byte `json:"wrennEntropy"`
	Hostname  string `json:"wrennHostname"`
	MachineID string `json:"wrennMachineID"`
	// Thaw is sent by a host that made this content when it was asked for it ("100 Continue"), so that its
	// timestamp is not older than that. Frozen processes go on then, once all else is done, unless it took so
	// long to come that the clock may be off; the answer says which.
	Thaw bool `json:"wrennThaw"`
}

// thawSlack is how long a timestamp may have been on its way whose clock processes are let go on with; S05 allows
// 500 ms.
const thawSlack = 200 * time.Millisecond

// postInit takes the host's settings. While a token is set, the request must carry it: in the header, or
// as the token that it sets again.
func (d *daemon) postInit(w http.ResponseWriter, r *http.Request) {
	var req initRequest
	asked := time.Now()
	body := http.MaxBytesReader(w, r.Body, maxInit)
	if err := json.NewDecoder(body).Decode(&req); err != nil {
		status := http.StatusBadRequest
		var tooBig *http.MaxBytesError
		if errors.As(err, &tooBig) {
			status = http.StatusRequestEntityTooLarge
		}
		answer.Error(w, status, "read body: "+err.Error())
		return
	}
	came := time.Now()
	if !d.settings.Allows(r.Header.Get(tokenHeader)) &&
		(req.AccessToken == nil || !d.settings.Allows(*req.AccessToken)) {
		answer.Error(w, http.StatusUnauthorized, "missing or wrong access token")
		return
	}
	if err := req.check(); err != nil {
		answer.Error(w, http.StatusBadRequest, err.Error())
		return
	}
	update := settings.Update{Token: req.AccessToken, User: req.DefaultUser, Workdir: req.DefaultWorkdir, Env: req.EnvVars}
	if req.Timestamp != nil && !req.Resumed {
		update.Timestamp = *req.Timestamp
	}
	if d.settings.Apply(update) && d.guest && req.Timestamp != nil {
		d.setClock(req.Timestamp.Add(time.Since(came)), req.Resumed)
	}
	err := d.becomeOwn(r, req)
	if err == nil && req.Thaw && came.Sub(asked) <= thawSlack {
		w.Header().Set("X-Wrenn-Thawed", "1")
		if err = d.freezer.Thaw(); err == nil {
			d.rehearsal()
		}
	}
	if err != nil {
		d.log.Error("a restored guest is not one of its own", "error", err)
		answer.Error(w, http.StatusInternalServerError, err.Error())
		return
	}
	w.Header().Set("X-Envd-Version", Version)
	w.Header().Set("X-Wrenn-Boot", d.bootTimes())
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusNoContent)
}

// becomeOwn gives a restored guest what it may not share with its snapshot, and cuts the connections that the
// snapshot had. It comes before anything of the users' runs.
func (d *daemon) becomeOwn(r *http.Request, req initRequest) error {
	if req.Resumed {
		d.conns.cutOthers(r)
	}
	if !d.guest {
		return nil
	}
	var errs []error
	if len(req.Entropy) > 0 {
		errs = append(errs, identity.AddEntropy(req.Entropy))
	}
	if req.Hostname != "" {
		errs = append(errs, identity.SetHostname("/", req.Hostname))
	}
	if req.MachineID != "" {
		errs = append(errs, identity.SetMachineID("/", req.MachineID))
	}
	return errors.Join(errs...)
}

func (r *initRequest) check() error {
	if r.AccessToken != nil && len(*r.AccessToken) > maxToken {
		return fmt.Errorf("accessToken: longer than %d bytes", maxToken)
	}
	if r.DefaultUser != nil && *r.DefaultUser != "" {
		if _, err := account.Lookup(*r.DefaultUser); err != nil {
			return fmt.Errorf("defaultUser: %w", err)
		}
	}
	if r.DefaultWorkdir != nil {
		if _, err := account.Path(*r.DefaultWorkdir, account.User{Home: "/"}, ""); err != nil {
			return fmt.Errorf("defaultWorkdir: %w", err)
		}
	}
	if err := r.checkIdentity(); err != nil {
		return err
	}
	if len(r.EnvVars) > maxVars {
		return fmt.Errorf("envVars: more than %d", maxVars)
	}
	for k, v := range r.EnvVars {
		switch {
		case k == "" || strings.ContainsAny(k, "=\x00"):
			return fmt.Errorf("envVars: %q is no variable name", k)
		case strings.ContainsRune(v, 0):
			return fmt.Errorf("envVars[%q]: holds a NUL byte", k)
		case len(k)+len(v)+1 >= maxVar:
			return fmt.Errorf("envVars[%q]: longer than %d bytes", k, maxVar-1)
		}
	}
	return nil
}

func (r *initRequest) checkIdentity() error {
	if len(r.Entropy) > identity.MaxEntropy {
		return fmt.Errorf("wrennEntropy: more than %d bytes", identity.MaxEntropy)
	}
	if err := identity.CheckHostname(r.Hostname); err != nil {
		return fmt.Errorf("wrennHostname: %w", err)
	}
	if r.MachineID == "" {
		return nil
	}
	if err := identity.CheckMachineID(r.MachineID); err != nil {
		return fmt.Errorf("wrennMachineID: %w", err)
	}
	return nil
}

// isWrong reports whether a clock that is ahead of the host's by drift (behind, if negative) must be set.
func isWrong(drift time.Duration) bool { return drift < -clockBehind || drift > clockAhead }

// setClock sets the guest's clock to the host's where they differ by more than the bounds, or in any case.
func (d *daemon) setClock(host time.Time, anyway bool) {
	drift := time.Since(host)
	if !anyway && !isWrong(drift) {
		return
	}
	ts := unix.NsecToTimespec(host.UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		d.log.Error("set the clock", "error", err)
		return
	}
	d.log.Debug("clock set", "drift", drift) // the host is told; a line on an emulated console costs 15 ms of a resume
}

// bootTimes tells the host how the guest's start went, in seconds since its kernel's, all of one clock.
func (d *daemon) bootTimes() string {
	s := fmt.Sprintf("envd=%.6f;now=%.6f", d.listening, bootSeconds())
	if d.initAt != "" {
		s = "init=" + d.initAt + ";" + s
	}
	return s
}

// bootSeconds reads CLOCK_BOOTTIME, which does not stop while the guest sleeps.
func bootSeconds() float64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return float64(ts.Nano()) / 1e9
}
