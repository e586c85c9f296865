package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"wrenn/guest/initramfs"
	"wrenn/vagrant/vmexec/link"
	"wrenn/vagrant/vmexec/machine"
	"wrenn/vagrant/vmexec/pack"
)

// Size of a machine unless the package or the environment says otherwise: room for a test program with
// the race detector, its files, which are in memory too, and a nested guest.
const (
	defaultMemory = 2048 // MiB
	defaultCPUs   = 2
)

// prepare packs everything for one run.
func prepare(ctx context.Context, argv []string) (*run, error) {
	if len(argv) == 0 {
		return nil, errors.New("usage: go test -exec vmexec [packages], or vmexec PROGRAM [ARGUMENT...]")
	}
	dir, err := os.Getwd()
	if err != nil {
		return nil, fmt.Errorf("find the package's folder: %w", err)
	}
	root, err := moduleRoot(dir)
	if err != nil {
		return nil, err
	}
	ask, err := readAsk(dir)
	if err != nil {
		return nil, err
	}
	program, err := filepath.Abs(argv[0])
	if err != nil {
		return nil, fmt.Errorf("find the test program: %w", err)
	}
	flags, err := readFlags(argv[1:], dir)
	if err != nil {
		return nil, err
	}
	k, err := findKernel(ctx, filepath.Join(root, cacheFolder))
	if err != nil {
		return nil, err
	}
	r := &run{
		machine: machine.Config{Kernel: k.image, Memory: ask.Memory, CPUs: ask.CPUs},
		job: link.Job{
			Args: append([]string{program}, argv[1:]...), Dir: dir, Out: flags.out,
			Env: environment(os.Environ(), dir, ask.Without),
		},
		boot: bootLimit,
	}
	if flags.timeout > 0 {
		r.limit = flags.timeout + slack
	}
	if r.machine.KVM, err = kvmWorks(ctx, filepath.Join(root, cacheFolder), k); err != nil {
		return nil, err
	}
	return r, r.pack(ctx, k, ask, root, flags.folders)
}

// readAsk reads what the package asks for, and then what the environment does, which wins.
func readAsk(dir string) (pack.Ask, error) {
	ask := pack.Ask{Memory: defaultMemory, CPUs: defaultCPUs}
	f, err := os.Open(filepath.Join(dir, pack.AskFile))
	if err == nil {
		defer f.Close()
		err = ask.ReadAsk(f, dir)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return ask, fmt.Errorf("read %s: %w", pack.AskFile, err)
	}
	lines := strings.ReplaceAll(os.Getenv(askEnv), ";", "\n")
	if err := ask.ReadAsk(strings.NewReader(lines), dir); err != nil {
		return ask, fmt.Errorf("read %s: %w", askEnv, err)
	}
	return ask, nil
}

// pack writes the initramfs with all that the tests may use.
func (r *run) pack(ctx context.Context, k kernelFiles, ask pack.Ask, root string, folders []string) error {
	tree := pack.NewTree()
	if err := tree.AddDefaults(); err != nil {
		return err
	}
	if err := tree.AddAsked(ask); err != nil {
		return err
	}
	if err := addPackage(tree, r.job.Args[0], r.job.Dir, root); err != nil {
		return fmt.Errorf("pack the package: %w", err)
	}
	for _, out := range r.job.Out {
		tree.AddFolder(filepath.Dir(out))
	}
	for _, folder := range folders {
		tree.AddFolder(folder)
	}
	return r.seal(ctx, tree, k, slices.Concat(pack.DefaultModules, ask.Modules, []string{kvmModule(r.machine.KVM)}))
}

// seal adds init, modules and job, and writes the initramfs.
func (r *run) seal(ctx context.Context, tree *pack.Tree, k kernelFiles, wanted []string) error {
	if err := addInit(tree); err != nil {
		return fmt.Errorf("pack vmexec itself: %w", err)
	}
	modules, err := initramfs.Modules(ctx, k.modules, append(wanted, lineModules...))
	if err != nil {
		return err
	}
	for _, m := range modules {
		tree.AddData("/modules/"+m.Name+".ko", 0o644, m.Data)
		r.job.Modules = append(r.job.Modules, m.Name+".ko")
	}
	job, err := json.Marshal(r.job)
	if err != nil {
		return fmt.Errorf("encode the job: %w", err)
	}
	tree.AddData(link.JobPath, 0o600, job)
	r.machine.Initramfs, err = machine.Memory("vmexec-initramfs")
	if err != nil {
		return err
	}
	return tree.Write(r.machine.Initramfs)
}

// lineModules drive the line between the machine and us.
var lineModules = []string{"virtio_pci", "virtio_console"}

// addInit makes vmexec itself the machine's init. It goes in as a program, with its libraries where it was
// built with cgo.
func addInit(tree *pack.Tree) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if err := tree.AddProgram(self); err != nil {
		return err
	}
	tree.AddLink("/init", self)
	return nil
}

// addPackage adds the test program and what it may look at: the files of its folder, its testdata, and
// the module's go.mod, by which some tests find the module's root.
func addPackage(tree *pack.Tree, program, dir, root string) error {
	if err := tree.AddProgram(program); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	tree.AddFolder(dir)
	for _, e := range entries {
		if e.IsDir() && e.Name() != "testdata" {
			continue
		}
		if err := tree.Add(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return tree.Add(filepath.Join(root, "go.mod"))
}

// askEnv holds lines for pack.Ask, separated by semicolons.
const askEnv = "VMEXEC_ASK"
