// Package sick is what the tests of vmexec run in a machine.
package sick

func double(n int) int {
	if n < 0 {
		return -double(-n)
	}
	return 2 * n
}
