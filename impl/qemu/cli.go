package qemu

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
)

// Exit codes of Firecracker.
const (
	exitOK        = 0
	exitError     = 1
	exitBadConfig = 152
	exitBadArgs   = 153
)

// Variables for what Firecracker has no flag for.
const (
	// EnvQEMU names the QEMU program; default qemu-system-x86_64.
	EnvQEMU = "WRENN_QEMU_BIN"
	// EnvAccel is "kvm" or "tcg" (emulation, the default).
	EnvAccel = "WRENN_QEMU_ACCEL"
)

// flags of Firecracker, and whether each takes a value. Those that have no meaning here are accepted.
var flags = map[string]bool{
	"api-sock": true, "id": true, "config-file": true, "no-api": false,
	"log-path": true, "level": true, "module": true, "show-level": false, "show-log-origin": false,
	"metrics-path": true, "no-seccomp": false, "seccomp-filter": true, "boot-timer": false,
	"start-time-us": true, "start-time-cpu-us": true, "parent-cpu-time-us": true,
	"http-api-max-payload-size": true, "mmds-size-limit": true,
	"version": false, "help": false,
}

// parseArgs splits the command line into flags with their values.
func parseArgs(args []string) (map[string]string, error) {
	given := map[string]string{}
	for i := 0; i < len(args); i++ {
		name, dashes := strings.CutPrefix(args[i], "--")
		takesValue, known := flags[name]
		if !dashes || !known {
			return nil, faultf("Found argument '%s' which wasn't expected, or isn't valid in this context.", args[i])
		}
		if _, twice := given[name]; twice {
			return nil, faultf("The argument '%s' was provided more than once.", name)
		}
		if !takesValue {
			given[name] = "true"
			continue
		}
		if i++; i == len(args) {
			return nil, faultf("The argument '%s' requires a value, but none was supplied.", name)
		}
		given[name] = args[i] //nolint:gosec // the line above checked the index
	}
	if _, ok := given["config-file"]; given["no-api"] != "" && !ok {
		return nil, faultf("Argument 'config-file' required, but not found.")
	}
	if given["seccomp-filter"] != "" && given["no-seccomp"] != "" {
		return nil, faultf("Argument 'no-seccomp' cannot be used together with argument 'seccomp-filter'.")
	}
	return given, nil
}

var instanceID = regexp.MustCompile(`^[A-Za-z0-9-]{1,64}$`)

// settings turns flags and variables into a Config.
func settings(given map[string]string, getenv func(string) string) (Config, error) {
	cfg := Config{
		SocketPath: "/run/firecracker.socket",
		ID:         "anonymous-instance",
		QEMU:       "qemu-system-x86_64",
		Accel:      "tcg",
		BodyLimit:  defaultBodyLimit,
		NoAPI:      given["no-api"] != "",
		ConfigFile: given["config-file"],
		LogPath:    given["log-path"],
		Level:      given["level"],
		Metrics:    given["metrics-path"],
	}
	setIfGiven(&cfg.SocketPath, given["api-sock"])
	setIfGiven(&cfg.ID, given["id"])
	setIfGiven(&cfg.QEMU, getenv(EnvQEMU))
	setIfGiven(&cfg.Accel, getenv(EnvAccel))
	if !instanceID.MatchString(cfg.ID) {
		return cfg, faultf("Invalid instance ID: %q: letters, digits and hyphens, 1 to 64", cfg.ID)
	}
	if cfg.Accel != "kvm" && cfg.Accel != "tcg" {
		return cfg, faultf("%s is %q, must be kvm or tcg", EnvAccel, cfg.Accel)
	}
	if text := given["http-api-max-payload-size"]; text != "" {
		limit, err := strconv.ParseInt(text, 10, 64)
		if err != nil || limit < 0 {
			return cfg, faultf("'http-api-max-payload-size' parameter expected to be of 'usize' type.")
		}
		cfg.BodyLimit = limit
	}
	return cfg, nil
}

func setIfGiven(dst *string, value string) {
	if value != "" {
		*dst = value
	}
}

// Main is the program firecracker-qemu: Firecracker's command line and API, with QEMU underneath. It
// returns the exit code when the guest has ended: 0 if the guest did so itself, 1 if the VMM broke, 152
// for a bad configuration file, 153 for bad arguments. stdin and stdout become the guest's console.
func Main(args []string, getenv func(string) string, stdin, stdout, stderr *os.File) int {
	given, err := parseArgs(args)
	if err != nil {
		fmt.Fprintf(stderr, "Arguments parsing error: %s \n\nFor more information try --help.\n", err)
		return exitBadArgs
	}
	if given["help"] != "" || given["version"] != "" {
		fmt.Fprintf(stdout, "Firecracker v%s\n\n(firecracker-qemu: Firecracker's API and command line on QEMU)\n", Version)
		return exitOK
	}
	cfg, err := settings(given, getenv)
	if err != nil {
		fmt.Fprintln(stderr, "Error:", err)
		return exitBadArgs
	}
	cfg.Stdin, cfg.Stdout = stdin, stdout
	code, err := Run(cfg)
	if err != nil {
		fmt.Fprintln(stderr, "Error:", err)
	}
	return code
}
