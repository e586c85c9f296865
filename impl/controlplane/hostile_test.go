package controlplane

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// hostileNames are what nobody may get past any door as a name, as plain strings.
var hostileNames = []string{
	"..", ".", "../x", "../../etc/passwd", "a/../b", "/etc/passwd", "a/b", `..\x`, `a\b`, "%2e%2e", "%2e%2e%2f", "%252e%252e",
	"a\x00", "\x00", "a\nb", " a", "a b", "-rf", ".hidden", "a..b", "ａ", "é", "․․", "/proc/self/root", "$(id)", "`id`", "a;b", "a'b", `a"b`,
	strings.Repeat("a", 65), strings.Repeat("a", 5000),
}

// operationsWith returns the paths of all operations that have that path parameter, with everything else in
// them filled in.
func operationsWith(t *testing.T, param string) (calls [][2]string) {
	t.Helper()
	c, err := newContract(t.Context(), handlersOf(t))
	require.NoError(t, err)
	for _, op := range c.operations {
		if !strings.Contains(op.route.Path, "{"+param+"}") {
			continue
		}
		calls = append(calls, [2]string{op.route.Method, strings.Replace(op.route.Path, "{"+param+"}", "%s", 1)})
	}
	require.NotEmpty(t, calls)
	return calls
}

func TestV02_HostileSandboxIDsAreRefusedEverywhere(t *testing.T) {
	p, a := startWithAgent(t)
	var asked []string
	a.with(func() {
		a.before = func(call, id string) error {
			if !strings.HasPrefix(call, "list") { // reconciling asks by itself
				asked = append(asked, call+" "+id)
			}
			return nil
		}
	})
	names := append([]string{"UPPER", "a-b", "a.b", strings.Repeat("a", 33)}, hostileNames...)
	for _, call := range operationsWith(t, "sandboxID") {
		for _, name := range names {
			message := p.do(call[0], fmt.Sprintf(call[1], url.PathEscape(name)), nil).refused(t, http.StatusBadRequest)
			assert.Contains(t, message, "sandboxID", "%s %q", call, name)
			assert.Contains(t, message, "1 to 32 characters of a-z and 0-9", "%s %q", call, name)
		}
		// The same without encoding, as far as a request line can hold it: no redirect, no other resource.
		for _, name := range []string{"..", "../x", "../../health", "a/../b", "%2e%2e", "%2e%2e%2fhealth", "..%2f..%2fetc", "%252e", "a;b", "*"} {
			r := p.do(call[0], fmt.Sprintf(call[1], name), nil)
			assert.Contains(t, []int{http.StatusBadRequest, http.StatusNotFound, http.StatusMethodNotAllowed}, r.code, "%s %q: %s", call, name, r.body)
			r.refused(t, r.code)
		}
	}
	assert.Empty(t, asked, "the agent heard of a hostile id")
}

func TestV01_HostileTemplateNamesAreRefusedEverywhere(t *testing.T) {
	p, a := startWithAgent(t)
	var asked []string
	a.with(func() {
		a.before = func(call, _ string) error {
			if !strings.HasPrefix(call, "list") { // reconciling asks by itself
				asked = append(asked, call)
			}
			return nil
		}
	})
	for _, name := range append([]string{"", ":", "base:", "base:../x", "base:a b", ":default", "a:b:c"}, hostileNames...) {
		for _, path := range []string{"/sandboxes", "/v2/sandboxes"} {
			message := p.do("POST", path, map[string]any{"templateID": name}).refused(t, http.StatusBadRequest)
			assert.Contains(t, message, "templateID", "%q", name)
		}
		if name != "" {
			message := p.do("GET", "/v2/sandboxes?template="+url.QueryEscape(name), nil).refused(t, http.StatusBadRequest)
			assert.Contains(t, message, "template", "%q", name)
			r := p.do("GET", "/templates/aliases/"+url.PathEscape(name), nil)
			assert.Contains(t, r.refused(t, http.StatusBadRequest), "alias", "%q", name)
		}
	}
	assert.Empty(t, asked, "the agent heard of a hostile template")
	assert.Empty(t, p.rows())
	// Well-formed, but not there.
	p.do("POST", "/v2/sandboxes", `{"templateID":"none"}`).refused(t, http.StatusNotFound)
	p.do("POST", "/v2/sandboxes", `{"templateID":"base:v2"}`).refused(t, http.StatusNotFound)
}

func TestV03_CreateNamesTheFieldThatIsWrong(t *testing.T) {
	p, a := startWithAgent(t)
	many := map[string]string{}
	for i := range 300 {
		many[fmt.Sprint("k", i)] = "v"
	}
	long := strings.Repeat("x", 5000)
	for _, tc := range []struct {
		fields string
		want   string
	}{
		{`"nonsense":1`, "nonsense"},
		{`"templateId":"base"`, "templateId"},
		{`"timeout":"60"`, "timeout"}, {`"timeout":1.5`, "timeout"}, {`"timeout":-1`, "timeout"}, {`"timeout":0`, "timeout"},
		{`"timeout":2592001`, "timeout"}, {`"timeout":1e30`, "timeout"}, {`"timeout":null`, "timeout"}, {`"timeout":true`, "timeout"},
		{`"metadata":[]`, "metadata"}, {`"metadata":{"k":1}`, "metadata.k"}, {`"metadata":{"k":null}`, "metadata.k"}, {`"metadata":{"":"v"}`, "metadata"},
		{`"metadata":{"` + long + `":"v"}`, "metadata"}, {`"metadata":{"k":"` + long + `"}`, "metadata.k"}, {`"metadata":` + toJSON(t, many), "metadata"},
		{`"envVars":{"A=B":"c"}`, "envVars"}, {`"envVars":{"":"c"}`, "envVars"}, {`"envVars":{"A":"\u0000"}`, "envVars"}, {`"envVars":{"A\u0000":"b"}`, "envVars"},
		{`"envVars":{"A":7}`, "envVars.A"}, {`"envVars":` + toJSON(t, many), "envVars"}, {`"envVars":{"A":"` + strings.Repeat("x", 131073) + `"}`, "envVars.A"},
		{`"cpuCount":0`, "cpuCount"}, {`"cpuCount":33`, "cpuCount"}, {`"memoryMB":127`, "memoryMB"}, {`"memoryMB":65537`, "memoryMB"},
		{`"secure":"yes"`, "secure"}, {`"allow_internet_access":1`, "allow_internet_access"}, {`"allowInternetAccess":true`, "allowInternetAccess"},
		{`"autoResume":{"on":true}`, "on"}, {`"autoPauseMemory":false`, "autoPauseMemory"}, {`"volumeMounts":{}`, "volumeMounts"}, {`"network":"x"`, "network"},
	} {
		for _, path := range []string{"/sandboxes", "/v2/sandboxes"} {
			message := p.do("POST", path, `{"templateID":"base",`+tc.fields+`}`).refused(t, http.StatusBadRequest)
			assert.Contains(t, message, tc.want, "%.100s", tc.fields)
		}
	}
	for body, want := range map[string]string{
		``: "body", `{}`: "templateID", `[]`: "object", `null`: "", `"base"`: "object", `{`: "JSON", `{"templateID":"base"}x`: "JSON", `{"templateID":"base"}{}`: "JSON",
		`{"templateID":7}`: "templateID", `{"templateID":null}`: "templateID", "\xff\xfe": "JSON", strings.Repeat("[", 20000): "JSON",
	} {
		message := p.do("POST", "/v2/sandboxes", body).refused(t, http.StatusBadRequest)
		assert.Contains(t, message, want, "%.50s", body)
	}
	message := p.do("POST", "/v2/sandboxes", `{"templateID":"base","metadata":{"k":"`+strings.Repeat("x", maxBody)+`"}}`).refused(t, http.StatusRequestEntityTooLarge)
	assert.Contains(t, message, "1048576")
	assert.Empty(t, a.ids())
	assert.Empty(t, p.rows())
}

func TestV03_OtherEndpointsNameTheFieldThatIsWrong(t *testing.T) {
	p, _ := startWithAgent(t)
	id := p.create(nil).SandboxID
	at := "/sandboxes/" + id
	for _, tc := range []struct{ method, path, body, want string }{
		{"POST", at + "/timeout", `{}`, "timeout"}, {"POST", at + "/timeout", ``, "body"}, {"POST", at + "/timeout", `{"timeout":"5"}`, "timeout"},
		{"POST", at + "/timeout", `{"timeout":-1}`, "timeout"}, {"POST", at + "/timeout", `{"timeout":99999999}`, "timeout"}, {"POST", at + "/timeout", `{"timeout":5,"x":1}`, "x"},
		{"POST", at + "/refreshes", `{"duration":3601}`, "duration"}, {"POST", at + "/refreshes", `{"time":1}`, "time"},
		{"POST", at + "/connect", `{"timeout":[]}`, "timeout"}, {"POST", "/v2" + at + "/connect", `{"memory":1}`, "memory"},
		{"GET", "/v2" + at + "/logs?limit=-1", "", "limit"}, {"GET", "/v2" + at + "/logs?limit=1001", "", "limit"}, {"GET", "/v2" + at + "/logs?direction=up", "", "direction"},
		{"GET", "/v2" + at + "/logs?cursor=x", "", "cursor"}, {"GET", "/v2" + at + "/logs?level=loud", "", "level"},
		{"GET", "/v2/sandboxes?limit=0", "", "limit"}, {"GET", "/v2/sandboxes?limit=101", "", "limit"}, {"GET", "/v2/sandboxes?limit=ten", "", "limit"},
		{"GET", "/v2/sandboxes?state=gone", "", "state"}, {"GET", "/v2/sandboxes?order=up", "", "order"}, {"GET", "/v2/sandboxes?startedAfter=yesterday", "", "startedAfter"},
		{"GET", "/v2/sandboxes?nextToken=xyz", "", "nextToken"}, {"GET", "/v2/sandboxes?nextToken=YQ==", "", "nextToken"}, {"GET", "/v2/sandboxes?metadata=%25zz", "", "metadata"},
		{"GET", "/v2/sandboxes?sate=paused", "", "sate"}, {"GET", "/v2/sandboxes?limit=%zz", "", "query"}, {"GET", "/v2/sandboxes?a;b", "", "query"},
		{"GET", "/v2/sandboxes?metadata=a%3Db%26a%3Dc", "", "metadata"},
	} {
		var body any
		if tc.body != "" || tc.method == "POST" {
			body = tc.body
		}
		message := p.do(tc.method, tc.path, body).refused(t, http.StatusBadRequest)
		assert.Contains(t, message, tc.want, "%s %s", tc.path, tc.body)
	}
	p.do("PATCH", at, nil).refused(t, http.StatusMethodNotAllowed)
	for _, path := range []string{"/", "/sandboxes/", "//sandboxes", "/v2//sandboxes", "/Sandboxes", "/sandboxes/" + id + "/", "/v9/sandboxes"} {
		p.do("GET", path, nil).refused(t, http.StatusNotFound)
	}
	req, err := http.NewRequestWithContext(t.Context(), "POST", p.api+"/v2/sandboxes", strings.NewReader("templateID=base"))
	require.NoError(t, err)
	req.Header.Set("X-Api-Key", p.key)
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	assert.Contains(t, p.send(req).refused(t, http.StatusBadRequest), "Content-Type")
}

// A body is optional where the contract says so, and its length need not be known.
func TestV03_BodiesOfUnknownLengthAndNoBodies(t *testing.T) {
	p, _ := startWithAgent(t)
	for _, contentType := range []string{"", "application/json", "application/json; charset=utf-8"} {
		req, err := http.NewRequestWithContext(t.Context(), "POST", p.api+"/v2/sandboxes", strings.NewReader(` {"templateID":"base"} `+"\n"))
		require.NoError(t, err)
		req.ContentLength = -1
		req.Header.Set("X-Api-Key", p.key)
		if contentType != "" {
			req.Header.Set("Content-Type", contentType)
		}
		assert.Equal(t, http.StatusCreated, p.send(req).code, contentType)
	}
}

func TestExplainIsOneShortSentence(t *testing.T) {
	p, _ := startWithAgent(t)
	message := p.do("POST", "/v2/sandboxes", `{"templateID":"base","`+strings.Repeat("x", 3000)+`":1}`).refused(t, http.StatusBadRequest)
	assert.Less(t, len(message), 420)
	message = p.do("POST", "/v2/sandboxes", `{"templateID":"base","timeout":"soon"}`).refused(t, http.StatusBadRequest)
	assert.Regexp(t, regexp.MustCompile(`^timeout: value must be an integer$`), message)
}

func toJSON(t *testing.T, v any) string {
	t.Helper()
	raw, err := json.Marshal(v)
	require.NoError(t, err)
	return string(raw)
}
