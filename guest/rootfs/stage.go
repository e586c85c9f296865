package rootfs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Suite is the Debian release that every template is made of.
const Suite = "bookworm"

// stopGrace is how long mmdebstrap gets to remove its own files after an interrupt.
const stopGrace = 20 * time.Second

// leanPaths are not unpacked: a sandbox copies its template's disk, so every page nobody reads costs
// again and again. Licences stay. The choice is recorded in the image (dpkg.cfg.d), so that what a user
// installs later is as lean.
var leanPaths = []string{
	"path-exclude=/usr/share/man/*",
	"path-exclude=/usr/share/info/*",
	"path-exclude=/usr/share/lintian/*",
	"path-exclude=/usr/share/doc/*",
	"path-include=/usr/share/doc/*/copyright",
	"path-exclude=/usr/share/locale/*",
	"path-include=/usr/share/locale/locale.alias",
}

// identity is what mmdebstrap copied from the build machine or what must differ between two guests,
// as it stands in every image. wrenn-init fills it in at boot.
var identity = map[string]string{
	"etc/hostname":    "wrenn\n",
	"etc/hosts":       "127.0.0.1\tlocalhost\n127.0.1.1\twrenn\n::1\tlocalhost ip6-localhost ip6-loopback\n",
	"etc/resolv.conf": "",
	"etc/machine-id":  "",
}

// dropped is removed from every image: secrets and histories of the build.
var dropped = []string{
	"etc/ssh/ssh_host_*", "var/lib/systemd/random-seed", "var/lib/dbus/machine-id",
	"var/cache/apt/*.bin", "var/cache/debconf/*-old", "var/lib/dpkg/*-old", "etc/*-",
	"var/log/*.log", "var/log/apt/*", "var/log/btmp", "var/log/wtmp", "var/log/lastlog", "var/log/faillog",
}

// Key identifies the staged system of a recipe: the same key means the same inputs (recipe, options,
// tools). What the Debian mirror offers on a given day is not part of it.
func Key(ctx context.Context, r Recipe) (string, error) {
	content, err := r.hashContent()
	if err != nil {
		return "", err
	}
	version, err := exec.CommandContext(ctx, "mmdebstrap", "--version").Output()
	if err != nil {
		return "", missingTool("mmdebstrap", "mmdebstrap", err)
	}
	inputs, err := json.Marshal([]any{content, string(version), bootstrapArgs(r, ""), identity, dropped})
	if err != nil {
		return "", fmt.Errorf("describe recipe %s: %w", r.Name, err)
	}
	sum := sha256.Sum256(inputs)
	return hex.EncodeToString(sum[:]), nil
}

// Stage makes the recipe's system in dir, which must not exist, and appears whole or not at all. It
// takes half a minute and the network (APT's sources of this machine's mmdebstrap), and needs root for
// the ownership of the files, but mounts nothing outside mmdebstrap's own namespace.
func Stage(ctx context.Context, r Recipe, dir string) error {
	if os.Geteuid() != 0 {
		return errors.New("stage a template: needs root for the ownership of its files (sudo make image)")
	}
	work, err := os.MkdirTemp(filepath.Dir(dir), ".stage-")
	if err != nil {
		return fmt.Errorf("stage template %s: %w", r.Name, err)
	}
	defer os.RemoveAll(work) //nolint:errcheck // a leftover in the cache goes at the next build's end
	// mmdebstrap works as another user in its namespace and must be able to pass through.
	if err := os.Chmod(work, 0o711); err != nil {
		return fmt.Errorf("stage template %s: %w", r.Name, err)
	}
	archive, tree := filepath.Join(work, "system.tar"), filepath.Join(work, "tree")
	if err := installApp(ctx, r, appDir(archive)); err != nil {
		return fmt.Errorf("stage template %s: %w", r.Name, err)
	}
	if err := bootstrap(ctx, r, work, archive); err != nil {
		return fmt.Errorf("stage template %s: %w", r.Name, err)
	}
	if err := os.Mkdir(tree, 0o755); err != nil {
		return fmt.Errorf("stage template %s: %w", r.Name, err)
	}
	if err := runTool(ctx, "tar", "tar", "--numeric-owner", "-xpf", archive, "-C", tree); err != nil {
		return fmt.Errorf("stage template %s: %w", r.Name, err)
	}
	if err := anonymize(tree); err != nil {
		return fmt.Errorf("stage template %s: %w", r.Name, err)
	}
	if err := os.Rename(tree, dir); err != nil {
		return fmt.Errorf("stage template %s: %w", r.Name, err)
	}
	return nil
}

func bootstrap(ctx context.Context, r Recipe, work, archive string) error {
	cmd := exec.CommandContext(ctx, "mmdebstrap", bootstrapArgs(r, archive)...)
	cmd.Env = append(os.Environ(), "TMPDIR="+work, "LC_ALL=C", "TZ=UTC")
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopGrace
	out, err := cmd.CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return missingTool("mmdebstrap", "mmdebstrap", err)
	}
	if ctx.Err() != nil {
		return fmt.Errorf("mmdebstrap: %w", ctx.Err())
	}
	if err != nil {
		return fmt.Errorf("mmdebstrap: %w; its last lines:\n%s", err, lastLines(string(out), 15))
	}
	return nil
}

// appDir is where a recipe's app is made ready before it goes into the system.
func appDir(archive string) string { return filepath.Join(filepath.Dir(archive), fileApp) }

// installApp copies the recipe's app, an npm project, to dir and installs what its lock file names. It is
// done on the build machine, whose npm knows its network and whom to trust there; scripts of packages do
// not run, so that a recipe cannot have more effect on that machine than files in dir.
func installApp(ctx context.Context, r Recipe, dir string) error {
	if !r.has(fileApp) {
		return nil
	}
	if err := runTool(ctx, "coreutils", "cp", "-dR", "--", filepath.Join(r.Dir, fileApp), dir); err != nil {
		return err
	}
	if err := runTool(ctx, "npm", "npm", "ci", "--prefix", dir, "--ignore-scripts", "--no-audit", "--no-fund"); err != nil {
		return err
	}
	return runTool(ctx, "coreutils", "chmod", "-R", "u=rwX,go=rX", "--", dir)
}

// bootstrapArgs is mmdebstrap's command line. Mode unshare keeps its mounts in a namespace of its own.
func bootstrapArgs(r Recipe, archive string) []string {
	args := []string{"--mode=unshare", "--variant=minbase", "--format=tar"}
	for _, p := range leanPaths {
		args = append(args, "--dpkgopt="+p)
	}
	if len(r.Packages) > 0 {
		args = append(args, "--include="+strings.Join(r.Packages, ","))
	}
	// A hook is a shell's text with the system's folder as $1; the paths are quoted for it.
	if r.has(fileOverlay) {
		overlay := quote(filepath.Join(r.Dir, fileOverlay))
		// A checkout keeps of a mode the executable bit alone; the rest comes from the builder's umask.
		args = append(args, "--customize-hook=cp -dR "+overlay+` "$1"/.overlay`+
			` && chmod -R u=rwX,go=rX "$1"/.overlay`+
			` && cp -a --remove-destination "$1"/.overlay/. "$1"/ && rm -r "$1"/.overlay`)
	}
	if r.has(fileApp) {
		args = append(args, `--customize-hook=mkdir -p "$1"/srv && cp -dR `+quote(appDir(archive))+` "$1"/srv/app`)
	}
	if r.has(fileSetup) {
		setup := quote(filepath.Join(r.Dir, fileSetup))
		args = append(args, "--customize-hook=install -m 0755 "+setup+` "$1"/.setup && chroot "$1" /.setup && rm "$1"/.setup`)
	}
	return append(args, Suite, archive)
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// anonymize takes out of a staged system what it has from the build machine.
func anonymize(tree string) error {
	for _, pattern := range dropped {
		paths, err := filepath.Glob(filepath.Join(tree, pattern))
		if err != nil {
			return err
		}
		for _, p := range paths {
			if err := os.RemoveAll(p); err != nil {
				return err
			}
		}
	}
	for name, content := range identity {
		path := filepath.Join(tree, name)
		if err := os.RemoveAll(path); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// runTool runs a program of the Debian package and returns what it said when it failed.
func runTool(ctx context.Context, debian, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return missingTool(debian, name, err)
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, lastLines(string(out), 5))
	}
	return nil
}

func missingTool(debian, name string, err error) error {
	return fmt.Errorf("run %s: install Debian's package %s (make deps): %w", name, debian, err)
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
