// Package proto holds the contracts on the wire: the protocol buffer sources, whose generated code is in
// gen, and the description of the public REST API.
package proto

import _ "embed" // for OpenAPI

// OpenAPI is openapi.yaml, the description of the public REST API against which requests are validated.
//
//go:embed openapi.yaml
var OpenAPI []byte
