package host

import (
	"fmt"
	"path/filepath"
	"strings"
	"time"
)

// flags are those of a test program that concern the machine.
type flags struct {
	timeout time.Duration // 0 for none
	out     []string      // absolute paths of what the tests may write and somebody wants
	folders []string      // those of them that the test program expects to find
}

// outFlags name files that a test program writes, outFolders folders.
var (
	outFlags   = []string{"coverprofile", "cpuprofile", "memprofile", "blockprofile", "mutexprofile", "trace"}
	outFolders = []string{"gocoverdir"}
)

// readFlags finds the time-out and the files to bring back among a test program's arguments.
func readFlags(args []string, dir string) (flags, error) {
	f, values := flags{}, map[string]string{}
	for _, a := range args {
		if name, found := strings.CutPrefix(a, "-test."); found { // go test writes them all in this way
			key, value, _ := strings.Cut(name, "=")
			values[key] = value
		}
	}
	if v, found := values["timeout"]; found {
		timeout, err := time.ParseDuration(v)
		if err != nil {
			return f, fmt.Errorf("read -test.timeout: %w", err)
		}
		f.timeout = timeout
	}
	base := dir
	if v := values["outputdir"]; v != "" {
		base = v
	}
	for _, name := range outFlags {
		if v := values[name]; v != "" {
			f.out = append(f.out, absolute(base, v))
		}
	}
	for _, name := range outFolders {
		if v := values[name]; v != "" {
			f.out = append(f.out, absolute(dir, v))
			f.folders = append(f.folders, absolute(dir, v))
		}
	}
	if v, found := values["artifacts"]; found && v != "false" {
		f.out = append(f.out, absolute(dir, filepath.Join(base, artifactFolder)))
	}
	return f, nil
}

// artifactFolder is where testing.T.ArtifactDir puts its folders, below -test.outputdir.
const artifactFolder = "_artifacts"

func absolute(dir, path string) string {
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	return filepath.Join(dir, path)
}
