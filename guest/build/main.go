// Build makes the guest image: kernel, initramfs and the templates' disks. It is what "make image" runs.
//
//	go run ./guest/build --out build/image
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"wrenn/guest/image"
)

func main() {
	out := flag.String("out", "build/image", "output `folder`")
	templates := flag.String("templates", "guest/templates", "`folder` with one folder per recipe")
	envd := flag.String("envd", "", "a ready envd `binary`; built from source when empty")
	asJSON := flag.Bool("json", false, "print the report as JSON on standard output")
	flag.Parse()

	// The modes of what is written into images must not depend on who builds.
	syscall.Umask(0o022)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	report, err := image.Build(ctx, image.Config{Out: *out, Templates: *templates, Envd: *envd, Progress: os.Stderr})
	if err != nil {
		fmt.Fprintf(os.Stderr, "make image: %v\n", err)
		stop()
		os.Exit(1) //nolint:gocritic // stop has been called
	}
	if !*asJSON {
		report.Print(os.Stderr)
		return
	}
	e := json.NewEncoder(os.Stdout)
	e.SetIndent("", "  ")
	if err := e.Encode(report); err != nil {
		fmt.Fprintf(os.Stderr, "make image: print the report: %v\n", err)
		os.Exit(1)
	}
}
