package controlplane

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestV01_HostileSnapshotNamesAreRefusedEverywhere(t *testing.T) {
	p, a := startWithAgent(t)
	id := p.create(nil).SandboxID
	var asked []string
	a.with(func() {
		a.before = func(call, _ string) error {
			if !strings.HasPrefix(call, "list") {
				asked = append(asked, call)
			}
			return nil
		}
	})
	for _, name := range append([]string{"", ":", "mine:", "mine:../x", "mine:a b", ":default", "a:b:c", "team/mine"}, hostileNames...) {
		message := p.do("POST", "/sandboxes/"+id+"/snapshots", map[string]any{"name": name}).refused(t, http.StatusBadRequest)
		assert.Contains(t, message, "name", "%q", name)
		if name == "" {
			continue
		}
		message = p.do("GET", "/snapshots?name="+url.QueryEscape(name), nil).refused(t, http.StatusBadRequest)
		assert.Contains(t, message, "name", "%q", name)
		message = p.do("DELETE", "/templates/"+url.PathEscape(name), nil).refused(t, http.StatusBadRequest)
		assert.Contains(t, message, "templateID", "%q", name)
	}
	for _, name := range []string{"..", "../x", "../../health", "a/../b", "%2e%2e", "%2e%2e%2fhealth", "..%2f..%2fetc", "%252e", "a;b", "*", "%00"} {
		r := p.do("DELETE", "/templates/"+name, nil)
		assert.Contains(t, []int{400, 404, 405}, r.code, "%q: %s", name, r.body)
	}
	for _, sandbox := range []string{"..", "A", "a-b", strings.Repeat("a", 33), "a\x00", "%2e"} {
		assert.Contains(t, p.do("GET", "/snapshots?sandboxID="+url.QueryEscape(sandbox), nil).refused(t, http.StatusBadRequest), "sandboxID")
	}
	assert.Empty(t, asked, "the agent heard of a hostile name")
	p.do("DELETE", "/templates/none", nil).refused(t, http.StatusNotFound)
	p.do("DELETE", "/templates/none%3Av2", nil).refused(t, http.StatusNotFound)
	p.do("DELETE", "/templates/base", nil).refused(t, http.StatusNotImplemented)
}

func TestV03_PauseAndSnapshotsNameTheFieldThatIsWrong(t *testing.T) {
	p, a := startWithAgent(t)
	id := p.create(nil).SandboxID
	at := "/sandboxes/" + id
	for _, tc := range []struct{ path, body, want string }{
		{at + "/pause", `{"memory":"no"}`, "memory"}, {at + "/pause", `{"memory":0}`, "memory"}, {at + "/pause", `{"keepMemory":true}`, "keepMemory"}, {at + "/pause", `[]`, "object"},
		{at + "/pause", `{`, "JSON"}, {at + "/pause", `{"memory":true}{}`, "JSON"},
		{at + "/resume", `{"timeout":-1}`, "timeout"}, {at + "/resume", `{"timeout":"5"}`, "timeout"}, {at + "/resume", `{"timeout":2592001}`, "timeout"}, {at + "/resume", `{"autoPause":1}`, "autoPause"},
		{at + "/resume", `{"x":1}`, "x"}, {"/v2" + at + "/connect", `{"memory":[]}`, "memory"}, {"/v2" + at + "/connect", `{"autoPause":true}`, "autoPause"},
		{at + "/snapshots", `{"name":7}`, "name"}, {at + "/snapshots", `{"name":[]}`, "name"}, {at + "/snapshots", `{"tag":"x"}`, "tag"}, {at + "/snapshots", `"mine"`, "object"},
		{at + "/fork", `{"count":0}`, "count"}, {at + "/fork", `{"count":101}`, "count"}, {at + "/fork", `{"count":1.5}`, "count"}, {at + "/fork", `{"count":"2"}`, "count"},
		{at + "/fork", `{"timeout":-1}`, "timeout"}, {at + "/fork", `{"timeout":2592001}`, "timeout"}, {at + "/fork", `{"templateID":"x"}`, "templateID"},
	} {
		assert.Contains(t, p.do("POST", tc.path, tc.body).refused(t, http.StatusBadRequest), tc.want, "%s %s", tc.path, tc.body)
	}
	for query, want := range map[string]string{
		"?limit=0": "limit", "?limit=101": "limit", "?limit=x": "limit", "?nextToken=xyz": "nextToken", "?nextToken=YQ==": "nextToken", "?nextToken=YV9fYQ==": "nextToken", "?tag=x": "tag", "?sort=up": "sort",
	} {
		assert.Contains(t, p.do("GET", "/snapshots"+query, nil).refused(t, http.StatusBadRequest), want, query)
	}
	big := `{"name":"` + strings.Repeat("x", maxBody) + `"}`
	for _, path := range []string{"/pause", "/resume", "/snapshots", "/fork"} {
		p.do("POST", at+path, big).refused(t, http.StatusRequestEntityTooLarge)
	}
	assert.Equal(t, isRunning, a.state(id))
	assert.Empty(t, a.snapshotIDs())
	assert.Len(t, a.ids(), 1)
}
