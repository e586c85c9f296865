// Package image builds everything that a VMM boots: kernel, initramfs and the templates' disks. It
// keeps what it made under the output folder, by the hash of what it was made from, so a second run
// does only what changed.
//
// The output folder holds
//
//	vmlinuz, vmlinux        the kernel as bzImage and as ELF
//	initramfs.cpio.gz       wrenn-init and the virtio modules
//	templates/NAME/         rootfs.ext4 and template.json
//	image.json              the report of the last run
//	cache/                  what the next run reuses
package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"wrenn/guest/rootfs"
)

// Config says what to build.
type Config struct {
	Out       string    // output folder, made if missing
	Templates string    // folder with one folder per recipe
	Envd      string    // a ready envd binary; empty builds wrenn/impl/cmd/envd
	Progress  io.Writer // one line per stage, for people
}

// builder is one run.
type builder struct {
	Config
	report Report
	// keep names the cache entries that this run used; the others go at its end.
	keep map[string]bool
}

// Build makes or refreshes the image and reports on it. Two runs on one output folder wait for each
// other. On an error the output folder still holds the former state of each artefact.
func Build(ctx context.Context, c Config) (Report, error) {
	out, err := filepath.Abs(c.Out)
	if err != nil {
		return Report{}, fmt.Errorf("build the image in %s: %w", c.Out, err)
	}
	c.Out = out
	b := &builder{Config: c, keep: map[string]bool{lockName: true}}
	if err := os.MkdirAll(b.cache(), 0o755); err != nil {
		return Report{}, fmt.Errorf("build the image: %w", err)
	}
	unlock, err := lock(ctx, b.cache(lockName), c.Progress)
	if err != nil {
		return Report{}, fmt.Errorf("build the image: %w", err)
	}
	defer unlock()
	start := time.Now()
	if err := b.build(ctx); err != nil {
		return b.report, err
	}
	b.report.Seconds = time.Since(start).Seconds()
	if err := b.finish(); err != nil {
		return b.report, fmt.Errorf("build the image: %w", err)
	}
	return b.report, nil
}

func (b *builder) build(ctx context.Context) error {
	kernel, err := b.kernel(ctx)
	if err != nil {
		return err
	}
	if err := b.initramfs(ctx, kernel); err != nil {
		return err
	}
	envd, err := b.envd(ctx)
	if err != nil {
		return err
	}
	recipes, err := filepath.Glob(filepath.Join(b.Templates, "*", "recipe.json"))
	if err != nil {
		return fmt.Errorf("list recipes: %w", err)
	}
	if len(recipes) == 0 {
		return fmt.Errorf("list recipes: none in %s (want NAME/recipe.json)", b.Templates)
	}
	for _, path := range recipes {
		r, err := rootfs.LoadRecipe(filepath.Dir(path))
		if err != nil {
			return err
		}
		if err := b.template(ctx, r, envd, kernel.Release()); err != nil {
			return err
		}
	}
	return nil
}

// finish measures the artefacts, writes the report and empties the cache of what was not used.
func (b *builder) finish() error {
	if err := b.report.measure(b.Out); err != nil {
		return err
	}
	if err := b.writeJSON(filepath.Join(b.Out, "image.json"), b.report); err != nil {
		return err
	}
	entries, err := os.ReadDir(b.cache())
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if !b.keep[e.Name()] {
			errs = append(errs, os.RemoveAll(b.cache(e.Name())))
		}
	}
	return errors.Join(errs...)
}

// cache is a path in the cache.
func (b *builder) cache(name ...string) string {
	return filepath.Join(append([]string{b.Out, "cache"}, name...)...)
}

// cached makes the cache entry name with build, unless it is there, and reports the stage.
func (b *builder) cached(stage, name string, build func(path string) error) (path string, err error) {
	path, start := b.cache(name), time.Now()
	b.keep[name] = true
	_, err = os.Lstat(path)
	reused := err == nil
	if !reused {
		err = build(path)
	}
	if err != nil {
		return "", err
	}
	b.done(stage, name, start, reused)
	return path, nil
}

// done reports a stage that is over.
func (b *builder) done(name, detail string, start time.Time, reused bool) {
	s := Stage{Name: name, Seconds: time.Since(start).Seconds(), Reused: reused}
	b.report.Stages = append(b.report.Stages, s)
	how := "built"
	if reused {
		how = "reused"
	}
	fmt.Fprintf(b.Progress, "%-22s %-6s %6.1f s  %s\n", name, how, s.Seconds, detail)
}
