package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestWhatFailedIsRepeatedWithoutTheLogs(t *testing.T) {
	in := `{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:7: \n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"        \tError Trace:\t/a_test.go:7\n"}
{"Action":"output","Package":"p","Test":"TestB","Output":"        other words\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"        \tError:      \tNot equal\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"        \tTest:       \tTestA\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"        \tMessages:   \tthe clock\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"        process.go:1: a long log\n"}
no JSON
{"Action":"output","Package":"p","Test":"TestC","Output":"panic: oh\n"}
{"Action":"fail","Package":"p","Test":"TestC"}
`
	var out strings.Builder
	require.NoError(t, report(strings.NewReader(in), &out))
	assert.Equal(t, "\n=== p TestA\n        \tError Trace:\t/a_test.go:7\n        \tError:      \tNot equal\n        \tTest:       \tTestA\n        \tMessages:   \tthe clock\n"+
		"\n=== p TestC\npanic: oh\n", out.String())
}
