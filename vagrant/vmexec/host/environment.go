package host

import (
	"os"
	"slices"
	"strings"
)

// passEnv names more variables to pass on, separated by commas; a name may end in *.
const passEnv = "VMEXEC_ENV" //nolint:gosec // a name, not a credential

// passed are variables that tests may depend on wherever they run. All others, this machine's business
// and maybe secrets, stay outside.
var passed = []string{"GO111MODULE", "GODEBUG", "GOGC", "GOMAXPROCS", "GOMEMLIMIT", "GORACE", "GOTRACEBACK", "LANG", "TERM", "WRENN_*"}

// environment is the test program's: what is allowed of this process's, and what a root login has.
// WRENN_NEED says that all must run but what the package or the caller excepts.
func environment(all []string, dir string, without []string) []string {
	allowed := slices.Concat(passed, strings.FieldsFunc(os.Getenv(passEnv), func(r rune) bool { return r == ',' }))
	env := []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root", "USER=root", "SHELL=/bin/sh", "PWD=" + dir,
	}
	need := []string{"all"}
	for _, w := range without {
		need = append(need, "-"+w)
	}
	for _, kv := range all {
		key, value, _ := strings.Cut(kv, "=")
		if key == needEnv {
			for _, word := range strings.Split(value, ",") {
				if strings.HasPrefix(word, "-") {
					need = append(need, word)
				}
			}
			continue
		}
		if slices.ContainsFunc(allowed, func(pattern string) bool { return matches(pattern, key) }) {
			env = append(env, kv)
		}
	}
	return append(env, needEnv+"="+strings.Join(need, ","))
}

func matches(pattern, key string) bool {
	if prefix, found := strings.CutSuffix(pattern, "*"); found {
		return strings.HasPrefix(key, prefix)
	}
	return pattern == key
}

// needEnv is impl/need's variable.
const needEnv = "WRENN_NEED"
