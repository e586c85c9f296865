package qemu

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestDecode(t *testing.T) {
	var d drive
	require.NoError(t, decode([]byte(` {"drive_id":"a","path_on_host":"/p","is_root_device":true,"partuuid":null,
		"rate_limiter":{"bandwidth":{"size":5,"refill_time":100,"color":"ignored"},"ops":null}} `), &d))
	assert.Equal(t, "a", d.DriveID)
	assert.True(t, d.IsRootDevice)
	assert.Nil(t, d.PartUUID)
	assert.Equal(t, &rateLimiter{Bandwidth: &tokenBucket{Size: 5, RefillTime: 100}}, d.RateLimiter)
}

func TestDecodeRefuses(t *testing.T) {
	const good = `"drive_id":"a","path_on_host":"/p","is_root_device":true`
	for body, want := range map[string]string{
		``:          "EOF",
		`[]`:        "expected an object",
		`"x"`:       "expected an object",
		`{`:         "EOF",
		`{"a"`:      "EOF",
		`{"a":}`:    "invalid character",
		`{} {}`:     "trailing characters",
		`{} x`:      "trailing characters",
		`{` + good:  "EOF",
		`{}`:        "missing field",
		`{"a":1}`:   "unknown field `a`",
		`{"a":1,}`:  "invalid character",
		"{\"\xff\"": "EOF",
		`{"Drive_id":"a","path_on_host":"/p","is_root_device":true}`:           "unknown field `Drive_id`",
		`{"drive_id":null,"path_on_host":"/p","is_root_device":true}`:          "invalid type: null",
		`{"drive_id":7,"path_on_host":"/p","is_root_device":true}`:             "cannot unmarshal number",
		`{` + good + `,"drive_id":"b"}`:                                        "duplicate field `drive_id`",
		`{` + good + `,"rate_limiter":{"x":1}}`:                                "unknown field `x`",
		`{` + good + `,"rate_limiter":7}`:                                      "expected an object",
		`{` + good + `,"rate_limiter":{"ops":{"size":-1,"refill_time":1}}}`:    "cannot unmarshal number -1",
		`{` + good + `,"rate_limiter":{"ops":{"size":1.5,"refill_time":1}}}`:   "cannot unmarshal number 1.5",
		`{` + good + `,"rate_limiter":{"bandwidth":[],"ops":{"size":"five"}}}`: "cannot unmarshal",
	} {
		var d drive
		err := decode([]byte(body), &d)
		require.ErrorContains(t, err, want, body)
		require.ErrorContains(t, err, "An error occurred when deserializing the json body of a request: ")
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"iface_id":"a","host_dev_name":"t","rx_rate_limiter":{"ops":{"size":1,"refill_time":2}}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var n nic
		if decode(body, &n) == nil && n.HostDevName == "" {
			// A required text may be empty, but must have been there.
			assert.Contains(t, string(body), "host_dev_name")
		}
	})
}

func TestDecodeConfigFile(t *testing.T) {
	var c fullConfig
	require.NoError(t, decodeConfigFile([]byte(`{
		"boot-source":{"kernel_image_path":"/k"},"machine-config":{"vcpu_count":2,"mem_size_mib":64},
		"drives":[{"drive_id":"a","path_on_host":"/p","is_root_device":true}],"network-interfaces":[],
		"vsock":null,"entropy":{},"logger":null}`), &c))
	assert.Equal(t, "/k", c.BootSource.KernelImagePath)
	assert.Equal(t, 2, c.Machine.VCPUCount)
	require.Len(t, c.Drives, 1)
	assert.NotNil(t, c.Entropy)
	assert.Nil(t, c.Logger)
	for body, want := range map[string]string{
		`{"vsock":{}}`:                   `section "vsock" is not supported`,
		`{"drives":{}}`:                  `section "drives"`,
		`{"drives":[{"color":1}]}`:       "unknown field `color`",
		`{"boot-source":{}}`:             "missing field `kernel_image_path`",
		`{"surprise":1,"entropy":{}}`:    `section "surprise"`,
		`not json`:                       "parse",
		`{"machine-config":{"smt":"x"}}`: "smt",
	} {
		require.ErrorContains(t, decodeConfigFile([]byte(body), &fullConfig{}), want, body)
	}
}
