package memfile

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// SeedEnv makes a random run that of an earlier one.
const SeedEnv = "WRENN_TEST_SEED"

func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv(SeedEnv); s != "" {
		var err error
		seed, err = strconv.ParseUint(s, 10, 64)
		require.NoError(t, err)
	}
	t.Logf("%s=%d makes this run again", SeedEnv, seed)
	return rand.New(rand.NewPCG(seed, 1))
}

// describer is Describe, or a wrong version of it.
type describer func(context.Context, *os.File, *Header) (*Header, error)

// machine is memory that is written to, and a VMM that writes what changed into sparse files.
type machine struct {
	rand     *rand.Rand
	dir      string
	describe describer
	memory   []byte
	dirty    []bool
	layers   []string
	made     int
}

func newMachine(r *rand.Rand, dir string, pages int, describe describer) *machine {
	m := &machine{rand: r, dir: dir, describe: describe, memory: make([]byte, pages*PageSize), dirty: make([]bool, pages)}
	return m
}

// somewhere is a random range of 1 to most pages.
func (m *machine) somewhere(most int) (page, n int) {
	n = 1 + m.rand.IntN(most)
	return m.rand.IntN(len(m.dirty) - n + 1), n
}

func (m *machine) touch(page, n int) []byte {
	for i := page; i < page+n; i++ {
		m.dirty[i] = true
	}
	return m.memory[page*PageSize : (page+n)*PageSize]
}

// run lets the guest work: it fills, changes single bytes, writes what is there already, and zeroes.
func (m *machine) run() {
	for range 1 + m.rand.IntN(12) {
		page, n := m.somewhere(60)
		b := m.touch(page, n)
		for i := 0; i < len(b); i += 8 {
			b[i] = byte(m.rand.Uint32())
		}
	}
	for range m.rand.IntN(30) {
		page, _ := m.somewhere(1)
		m.touch(page, 1)[m.rand.IntN(PageSize)] ^= 0x10
	}
	page, n := m.somewhere(20)
	m.touch(page, n)
	// One page at least that was not zero is.
	for range 1 + m.rand.IntN(6) {
		page, n := m.somewhere(30)
		for i := 0; isZero(m.memory[page*PageSize:(page+1)*PageSize]) && i < 1000; i++ {
			page, n = m.somewhere(30)
		}
		clear(m.touch(page, n))
	}
}

// pause writes the next layer as the VMM and the agent do.
func (m *machine) pause(ctx context.Context) error {
	var parent *Header
	if n := len(m.layers); n > 0 {
		var err error
		if parent, err = ReadHeader(m.layers[n-1]); err != nil {
			return err
		}
	}
	path := filepath.Join(m.dir, fmt.Sprintf("memory.%d", m.made))
	m.made++
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(int64(len(m.memory))); err != nil {
		return err
	}
	for page, dirty := range m.dirty {
		if !dirty && parent != nil {
			continue
		}
		at := page * PageSize
		if _, err := f.WriteAt(m.memory[at:at+PageSize], int64(at)); err != nil {
			return err
		}
		m.dirty[page] = false
	}
	h, err := m.describe(ctx, f, parent)
	if err != nil {
		return err
	}
	m.layers = append(m.layers, path)
	return WriteHeader(path, h)
}

// check compares the layers with the memory, in one read, by small reads and by runs.
func (m *machine) check(ctx context.Context) error {
	c, err := Open(m.layers...)
	if err != nil {
		return err
	}
	defer c.Close()
	got := make([]byte, c.Size())
	if _, err := c.ReadAt(got, 0); err != nil {
		return err
	}
	if err := m.same("chain", got); err != nil {
		return err
	}
	for range 50 {
		at := m.rand.IntN(len(m.memory))
		n := m.rand.IntN(min(3*PageSize, len(m.memory)-at) + 1)
		part := make([]byte, n)
		if _, err := c.ReadAt(part, int64(at)); err != nil {
			return err
		}
		if !bytes.Equal(part, m.memory[at:at+n]) {
			return fmt.Errorf("%d bytes at %d differ", n, at)
		}
	}
	return c.Verify(ctx)
}

func (m *machine) same(what string, got []byte) error {
	if len(got) != len(m.memory) {
		return fmt.Errorf("%s has %d bytes, the memory %d", what, len(got), len(m.memory))
	}
	for at := 0; at < len(got); at += PageSize {
		if !bytes.Equal(got[at:at+PageSize], m.memory[at:at+PageSize]) {
			return fmt.Errorf("page %d of the %s differs from the memory", at/PageSize, what)
		}
	}
	return nil
}

// flatten brings a flat file up to date and compares it.
func (m *machine) flatten(ctx context.Context, dst string) (Flattened, error) {
	c, err := Open(m.layers...)
	if err != nil {
		return Flattened{}, err
	}
	defer c.Close()
	done, err := c.Flatten(ctx, dst)
	if err != nil {
		return done, err
	}
	got, err := os.ReadFile(dst)
	if err != nil {
		return done, err
	}
	return done, m.same("flat file", got)
}

// merge makes a base of the first n layers.
func (m *machine) merge(ctx context.Context, n int) (string, error) {
	c, err := Open(m.layers[:n]...)
	if err != nil {
		return "", err
	}
	defer c.Close()
	dst := filepath.Join(m.dir, fmt.Sprintf("merged.%d", m.made))
	_, err = c.Merge(ctx, dst)
	return dst, err
}

// replace puts the base that was merged of the first n layers in their place and removes them.
func (m *machine) replace(base string, n int) error {
	for _, old := range m.layers[:n] {
		if err := removeAny(old, old+HeaderSuffix); err != nil {
			return err
		}
	}
	m.layers = append([]string{base}, m.layers[n:]...)
	return nil
}
