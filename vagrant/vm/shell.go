package main

import (
	"context"
	"errors"
	"os"
	"strings"
)

// shell opens a shell in the machine, or runs a command in it, and leaves it up.
func (c *config) shell(ctx context.Context, command []string) error {
	m, err := c.up(ctx)
	if err != nil {
		return err
	}
	line, flags := "cd "+treeDir+" 2>/dev/null; exec bash -l", []string{"-t"}
	if len(command) > 0 {
		line, flags = strings.Join(command, " "), nil
	}
	cmd := m.ssh(ctx, flags, "sh -c "+quote(line))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	// A terminal's keys belong to the shell inside, so it must not be in another process group.
	cmd.SysProcAttr.Setpgid = false
	return errors.Join(cmd.Run(), m.leave(true))
}

// quote makes one word of s for a shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
