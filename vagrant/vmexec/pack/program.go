package pack

import (
	"bufio"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// libraryFolders are where Debian's dynamic linker looks by itself.
var libraryFolders = []string{"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib", "/usr/lib", "/usr/local/lib"}

// AddProgram adds a program with its interpreter and all shared libraries. A name without a slash is
// looked up in PATH, and then in the administrator's folders. What a program opens later by name is not
// seen here.
func (t *Tree) AddProgram(name string) error {
	path, err := lookUp(name)
	if err != nil {
		return err
	}
	return t.addObject(path)
}

func lookUp(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return filepath.Abs(path)
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, filepath.Base(name))); err == nil {
			return path, nil
		}
	}
	return "", err
}

// addObject adds an executable or a shared library, and what it needs to be loaded.
func (t *Tree) addObject(path string) error {
	if t.objects[path] {
		return nil
	}
	t.objects[path] = true
	if err := t.Add(path); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	object, err := elf.NewFile(f)
	var notELF *elf.FormatError
	if errors.As(err, &notELF) || errors.Is(err, io.EOF) {
		return t.addScript(f)
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return t.addNeeded(path, object)
}

// addScript adds the interpreter that a script's first line names.
func (t *Tree) addScript(f *os.File) error {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	first, err := bufio.NewReader(io.LimitReader(f, 256)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	line, found := strings.CutPrefix(first, "#!")
	if !found {
		return nil
	}
	for _, word := range strings.Fields(line) {
		if strings.HasPrefix(word, "-") {
			continue
		}
		if err := t.AddProgram(word); err != nil {
			return fmt.Errorf("interpreter of %s: %w", f.Name(), err)
		}
		if filepath.Base(word) != "env" { // whose argument is the interpreter
			break
		}
	}
	return nil
}

func (t *Tree) addNeeded(path string, object *elf.File) error {
	for _, segment := range object.Progs {
		if segment.Type != elf.PT_INTERP {
			continue
		}
		interpreter, err := io.ReadAll(segment.Open())
		if err != nil {
			return fmt.Errorf("read the interpreter of %s: %w", path, err)
		}
		if err := t.addObject(strings.TrimRight(string(interpreter), "\x00")); err != nil {
			return err
		}
	}
	needed, err := object.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("read the libraries of %s: %w", path, err)
	}
	folders := append(runPath(path, object), libraryFolders...)
	for _, name := range needed {
		library, err := find(name, folders)
		if err != nil {
			return fmt.Errorf("library of %s: %w", path, err)
		}
		if err := t.addObject(library); err != nil {
			return err
		}
	}
	return nil
}

// runPath is where the object itself says that its libraries are.
func runPath(path string, object *elf.File) []string {
	var folders []string
	for _, tag := range []elf.DynTag{elf.DT_RUNPATH, elf.DT_RPATH} {
		lists, err := object.DynString(tag)
		if err != nil {
			continue // statically linked
		}
		for _, list := range lists {
			for folder := range strings.SplitSeq(list, ":") {
				folders = append(folders, strings.ReplaceAll(folder, "$ORIGIN", filepath.Dir(path)))
			}
		}
	}
	return folders
}

func find(name string, folders []string) (string, error) {
	for _, folder := range folders {
		path := filepath.Join(folder, name)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is in none of %s", name, strings.Join(folders, " "))
}
