// Package fault kills the agent at every step of what it does, and looks at what is left.
//
// The suite is built with the tag fault (`make test-fault`), which puts a hook into impl/step. It runs agents
// as real processes on hosts made of namespaces (harness.Host), so it changes nothing on the machine. The
// steps are those that the code itself lists: a new one is covered without anybody thinking of it.
package fault
