// Package kerneltest is a Debian archive of one kernel, small and on this machine, for tests of what
// fetches, unpacks and packs kernels. The kernel does not boot, but every container around it is real:
// APT's lists, the .deb, the bzImage, the modules.
package kerneltest

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"wrenn/impl/need"
)

// What the archive offers.
const (
	Metapackage = "linux-image-cloud-amd64"
	Name        = "linux-image-9.9.9-1-cloud-amd64"
	Version     = "9.9.9-1"
	Release     = "9.9.9-1-cloud-amd64"
)

// ELF is the archive's kernel, uncompressed.
var ELF = append([]byte("\x7fELF"), bytes.Repeat([]byte("kernel "), 1000)...)

// Modules are the archive's modules: file below kernel/ and what it depends on.
var Modules = map[string]string{
	"drivers/virtio/virtio.ko":             "virtio_ring",
	"drivers/virtio/virtio_ring.ko":        "",
	"drivers/virtio/virtio_mmio.ko":        "virtio,virtio_ring",
	"drivers/block/virtio_blk.ko":          "virtio,virtio_ring",
	"drivers/net/virtio_net.ko":            "virtio,net_failover",
	"drivers/net/net_failover.ko":          "failover",
	"net/core/failover.ko":                 "",
	"drivers/char/hw_random/virtio-rng.ko": "virtio",
	"net/ipv4/inet_diag.ko":                "",
	"net/ipv4/tcp_diag.ko":                 "inet_diag",
	"drivers/not/needed.ko":                "virtio",
}

// UseArchive makes the archive and turns APT to it for the length of the test.
func UseArchive(t *testing.T) {
	t.Helper()
	need.Program(t, "apt-get", "apt-cache", "dpkg-deb", "lz4")
	dir := t.TempDir()
	for _, d := range []string{"repo", "state/lists/partial", "cache/archives/partial"} {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	var index strings.Builder
	addPackage(t, &index, dir, Metapackage, "Depends: "+Name+" (= "+Version+")\n", nil)
	addPackage(t, &index, dir, Name, "", kernelFiles(t))
	write(t, filepath.Join(dir, "repo/Packages"), index.String())
	write(t, filepath.Join(dir, "status"), "")
	write(t, filepath.Join(dir, "sources.list"), "deb [trusted=yes] file:"+dir+"/repo ./\n")
	config := filepath.Join(dir, "apt.conf")
	write(t, config, fmt.Sprintf(`Dir::State "%[1]s/state"; Dir::State::status "%[1]s/status"; Dir::Cache "%[1]s/cache";
Dir::Etc::sourcelist "%[1]s/sources.list"; Dir::Etc::sourceparts "%[1]s/none"; Dir::Etc::parts "%[1]s/none";
Dir::Etc::main "%[1]s/none"; Dir::Etc::preferencesparts "%[1]s/none"; Acquire::Languages "none";
APT::Architecture "amd64"; APT::Architectures { "amd64"; }; APT::Sandbox::User "root";
`, dir))
	t.Setenv("APT_CONFIG", config)
	run(t, "apt-get", "-q", "update")
}

func kernelFiles(t *testing.T) map[string][]byte {
	t.Helper()
	modules := "lib/modules/" + Release + "/"
	files := map[string][]byte{
		"boot/vmlinuz-" + Release:   BzImage(Compress(t, "lz4", "-l", "-c")),
		modules + "modules.builtin": []byte("kernel/fs/ext4/ext4.ko\n"),
	}
	for name, depends := range Modules {
		files[modules+"kernel/"+name] = Module(depends)
	}
	return files
}

func addPackage(t *testing.T, index *strings.Builder, dir, name, fields string, files map[string][]byte) {
	t.Helper()
	control := "Package: " + name + "\nVersion: " + Version + "\nArchitecture: amd64\n" +
		"Maintainer: Test <test@localhost>\nDescription: test\n" + fields
	tree := filepath.Join(dir, "tree", name)
	write(t, filepath.Join(tree, "DEBIAN/control"), control)
	for path, data := range files {
		write(t, filepath.Join(tree, path), string(data))
	}
	deb := filepath.Join(dir, "repo", name+".deb")
	run(t, "dpkg-deb", "--root-owner-group", "-Zgzip", "-b", tree, deb)
	data, err := os.ReadFile(deb)
	require.NoError(t, err)
	fmt.Fprintf(index, "%sFilename: ./%s.deb\nSize: %d\nSHA256: %x\n\n", control, name, len(data), sha256.Sum256(data))
}

// Compress packs ELF with a program that reads standard input, and appends the size as the kernel's
// build does, save for gzip.
func Compress(t *testing.T, program string, args ...string) []byte {
	t.Helper()
	need.Program(t, program)
	cmd := exec.Command(program, args...)
	cmd.Stdin = bytes.NewReader(ELF)
	out, err := cmd.Output()
	require.NoError(t, err)
	if program == "gzip" {
		return out
	}
	return binary.LittleEndian.AppendUint32(out, uint32(len(ELF)))
}

// BzImage wraps a payload in a boot header (protocol 2.15, three set-up sectors).
func BzImage(payload []byte) []byte {
	const sectors, offset = 3, 100
	image := make([]byte, (sectors+1)*512+offset)
	image[0x1f1] = sectors
	copy(image[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(image[0x206:], 0x020f)
	binary.LittleEndian.PutUint32(image[0x248:], offset)
	binary.LittleEndian.PutUint32(image[0x24c:], uint32(len(payload)))
	return append(append(image, payload...), "what follows the payload"...)
}

// Module is an ELF object with the section .modinfo of a module that depends on a comma-separated list.
func Module(depends string) []byte {
	const headers, names = 64, "\x00.modinfo\x00.shstrtab\x00"
	info := "license=GPL\x00depends=" + depends + "\x00intree=Y\x00"
	var b bytes.Buffer
	put := func(v any) { _ = binary.Write(&b, binary.LittleEndian, v) } // a bytes.Buffer takes everything
	put(elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_REL), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Shoff: headers, Ehsize: headers, Shentsize: 64, Shnum: 3, Shstrndx: 2,
	})
	data := uint64(headers + 3*64)
	put(elf.Section64{})
	put(elf.Section64{Name: 1, Type: uint32(elf.SHT_PROGBITS), Off: data, Size: uint64(len(info))})
	put(elf.Section64{Name: 10, Type: uint32(elf.SHT_STRTAB), Off: data + uint64(len(info)), Size: uint64(len(names))})
	b.WriteString(info + names)
	return b.Bytes()
}

func write(t *testing.T, path, content string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, []byte(content), 0o644))
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	require.NoError(t, err, "%s: %s", name, out)
}
