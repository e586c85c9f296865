// Command wrenn is the command line of Wrenn.
package main

import (
	"os"

	"wrenn/impl/cli"
)

func main() { os.Exit(cli.Main()) }
