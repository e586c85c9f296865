package controlplane

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"

	"wrenn/proto"
)

// notYet is the extension of an operation that is part of the contract but not built.
const notYet = "x-not-yet"

// handler serves one operation whose request has been checked. An error is answered by its caller.
type handler func(w http.ResponseWriter, r *http.Request) error

// operation is one method of one path of the contract.
type operation struct {
	route    routers.Route
	segments []string // "{name}" matches one segment, anything else itself
	handle   handler
	// query are the names of the parameters that a query may have.
	query []string
	// open: needs no key.
	open bool
}

// contract is openapi.yaml with a handler behind each operation.
type contract struct{ operations []*operation }

// newContract loads the contract and joins it with handlers, by operationId. It is an error if an operation
// has no handler or a handler no operation.
func newContract(ctx context.Context, handlers map[string]handler) (*contract, error) {
	doc, err := openapi3.NewLoader().LoadFromData(proto.OpenAPI)
	if err != nil {
		return nil, fmt.Errorf("load openapi.yaml: %w", err)
	}
	if err := doc.Validate(ctx, openapi3.AllowExtensionsWithRef()); err != nil {
		return nil, fmt.Errorf("validate openapi.yaml: %w", err)
	}
	left := maps.Clone(handlers)
	c := &contract{}
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			o := &operation{
				route:    routers.Route{Spec: doc, Path: path, PathItem: item, Method: method, Operation: op},
				segments: strings.Split(path, "/"),
				open:     op.Security != nil && len(*op.Security) == 0,
			}
			for _, p := range op.Parameters {
				if p.Value.In == openapi3.ParameterInQuery {
					o.query = append(o.query, p.Value.Name)
				}
			}
			if what, ok := op.Extensions[notYet]; ok {
				o.handle = func(http.ResponseWriter, *http.Request) error {
					return refuse(http.StatusNotImplemented, "%v is not available in this version of Wrenn", what)
				}
			} else if o.handle = left[op.OperationID]; o.handle == nil {
				return nil, fmt.Errorf("operation %q of openapi.yaml has no handler", op.OperationID)
			}
			delete(left, op.OperationID)
			c.operations = append(c.operations, o)
		}
	}
	if len(left) > 0 {
		return nil, fmt.Errorf("handlers without an operation in openapi.yaml: %v", slices.Sorted(maps.Keys(left)))
	}
	return c, nil
}

// find returns the operation of a request and its path parameters, decoded. The path is compared segment by
// segment as it came, without cleaning, so that "..", "//" and an encoded slash stay what they are: part of a
// parameter, to be refused there.
func (c *contract) find(r *http.Request) (*operation, map[string]string, error) {
	segments := strings.Split(r.URL.EscapedPath(), "/")
	var best *operation
	var methods []string
	for _, o := range c.operations {
		if !o.matches(segments) {
			continue
		}
		if o.route.Method != r.Method {
			methods = append(methods, o.route.Method)
		} else if best == nil || o.moreSpecific(best) {
			best = o
		}
	}
	switch {
	case best == nil && len(methods) > 0:
		slices.Sort(methods)
		return nil, nil, refuse(http.StatusMethodNotAllowed, "method %s is not allowed here, only %s", r.Method, strings.Join(slices.Compact(methods), ", "))
	case best == nil:
		return nil, nil, refuse(http.StatusNotFound, "path %.100q was not found", r.URL.Path)
	}
	params := map[string]string{}
	for i, s := range best.segments {
		if !isParam(s) {
			continue
		}
		value, err := url.PathUnescape(segments[i])
		if err != nil {
			return nil, nil, refuse(http.StatusBadRequest, "path segment %.100q is not percent-encoded correctly", segments[i])
		}
		params[s[1:len(s)-1]] = value
	}
	return best, params, nil
}

func isParam(segment string) bool { return strings.HasPrefix(segment, "{") }

func (o *operation) matches(segments []string) bool {
	if len(segments) != len(o.segments) {
		return false
	}
	for i, s := range o.segments {
		if s != segments[i] && (!isParam(s) || segments[i] == "") {
			return false
		}
	}
	return true
}

// moreSpecific says whether o names its first differing segment where other has a parameter.
func (o *operation) moreSpecific(other *operation) bool {
	for i, s := range o.segments {
		if isParam(s) != isParam(other.segments[i]) {
			return !isParam(s)
		}
	}
	return false
}

// check holds a request against its operation. What it returns is a refusal that names the field.
func (o *operation) check(r *http.Request, params map[string]string) error {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return refuse(http.StatusBadRequest, "the query is not encoded correctly")
	}
	for name := range query {
		if !slices.Contains(o.query, name) {
			return refuse(http.StatusBadRequest, "query parameter %.100q is unknown", name)
		}
	}
	err = openapi3filter.ValidateRequest(r.Context(), &openapi3filter.RequestValidationInput{
		Request: r, PathParams: params, Route: &o.route,
		Options: &openapi3filter.Options{
			AuthenticationFunc:  openapi3filter.NoopAuthenticationFunc, // done before
			SkipSettingDefaults: true,                                  // handlers set them
		},
	})
	if err != nil {
		return refuse(http.StatusBadRequest, "%s", explain(err))
	}
	return nil
}

// explain turns a validation error into one sentence: the field and what is wrong with it.
func explain(err error) string {
	field, reason := "", err.Error()
	var request *openapi3filter.RequestError
	if errors.As(err, &request) {
		if request.Parameter != nil {
			field = request.Parameter.In + " parameter " + request.Parameter.Name
		} else {
			field = "body"
		}
		reason = request.Reason
		if request.Err != nil {
			reason = request.Err.Error()
		}
	}
	var schema *openapi3.SchemaError
	if request != nil && errors.As(err, &schema) {
		// A field of a body is named by itself; of a parameter, the parameter's name says enough.
		if path := strings.Join(schema.JSONPointer(), "."); path != "" && request.Parameter == nil {
			field = path
		}
		reason = schema.Reason
		switch bounds := schema.Schema; {
		case schema.SchemaField == "maximum" && bounds.Max != nil:
			reason = "number must be at most " + strconv.FormatFloat(*bounds.Max, 'f', -1, 64)
		case schema.SchemaField == "minimum" && bounds.Min != nil:
			reason = "number must be at least " + strconv.FormatFloat(*bounds.Min, 'f', -1, 64)
		}
	}
	var parse *openapi3filter.ParseError
	if errors.As(err, &parse) && schema == nil {
		reason = "value is not valid"
		if parse.Reason != "" {
			reason = parse.Reason
		}
	}
	reason, _, _ = strings.Cut(reason, "\n")
	if len(reason) > 300 {
		reason = reason[:300] + "..."
	}
	if len(field) > 100 {
		field = field[:100] + "..."
	}
	if field == "" {
		return reason
	}
	return field + ": " + reason
}
