package controlplane

import (
	"encoding/base64"
	"net/http"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/store"
)

func TestU01_ListFiltersAndOrders(t *testing.T) {
	p, a := startWithAgent(t)
	a.with(func() { a.templates = []string{"base", "other"} })
	first := p.create(map[string]any{"metadata": map[string]string{"user": "ann", "n": "1"}})
	middle := time.Now()
	second := p.create(map[string]any{"metadata": map[string]string{"user": "ann"}, "templateID": "other"})
	third := p.create(nil)

	for query, want := range map[string][]string{
		"":                             {third.SandboxID, second.SandboxID, first.SandboxID},
		"?order=desc":                  {third.SandboxID, second.SandboxID, first.SandboxID},
		"?order=asc":                   {first.SandboxID, second.SandboxID, third.SandboxID},
		"?metadata=user%3Dann":         {second.SandboxID, first.SandboxID},
		"?metadata=user%3Dann%26n%3D1": {first.SandboxID},
		"?metadata=user%3Dbob":         {},
		"?metadata=nobody%3D":          {},
		"?state=paused":                {},
		"?state=running":               {third.SandboxID, second.SandboxID, first.SandboxID},
		"?state=running,paused":        {third.SandboxID, second.SandboxID, first.SandboxID},
		"?template=other":              {second.SandboxID},
		"?template=other:default":      {second.SandboxID},
		"?limit=2":                     {third.SandboxID, second.SandboxID},
		"?startedAfter=" + url.QueryEscape(middle.Format(time.RFC3339Nano)): {third.SandboxID, second.SandboxID},
	} {
		got, _ := p.list(query)
		assert.Equal(t, want, got, query)
	}
	var v1 []listedSandbox
	p.do("GET", "/sandboxes?metadata=user%3Dann", nil).into(t, http.StatusOK, &v1)
	require.Len(t, v1, 2)
	assert.Equal(t, second.SandboxID, v1[0].SandboxID)
	assert.Equal(t, map[string]string{"user": "ann"}, v1[0].Metadata)
	p.do("GET", "/sandboxes", nil).into(t, http.StatusOK, &v1)
	assert.NotNil(t, v1[0].Metadata)
	assert.Len(t, v1, 3)
}

// The SDK encodes each key and value, makes a query string of them, which encodes again, and sends that as a
// parameter, which encodes once more.
func TestU01_ListReadsMetadataAsSDKsEncodeIt(t *testing.T) {
	p, _ := startWithAgent(t)
	sb := p.create(map[string]any{"metadata": map[string]string{"k y": "v&1", "+": "ü=%"}})
	p.create(map[string]any{"metadata": map[string]string{"k y": "v"}})
	got, _ := p.list("?metadata=k%252520y%3Dv%2525261")
	assert.Equal(t, []string{sb.SandboxID}, got)
	inner := url.Values{url.QueryEscape("+"): {url.PathEscape("ü=%")}}.Encode()
	got, _ = p.list("?metadata=" + url.QueryEscape(inner))
	assert.Equal(t, []string{sb.SandboxID}, got)
}

func TestU01_ListPagesMeetEverySandboxOnce(t *testing.T) {
	p, _ := startWithAgent(t)
	ids := []string{}
	for range 7 {
		ids = append(ids, p.create(map[string]any{"metadata": map[string]string{"a": "b"}}).SandboxID)
		p.create(nil)
	}
	for _, order := range []string{"asc", "desc"} {
		want := slices.Clone(ids)
		if order == "desc" {
			slices.Reverse(want)
		}
		for limit, pages := range map[string]int{"1": 7, "3": 3, "7": 1, "100": 1} {
			got, count, token := []string{}, 0, ""
			for count == 0 || token != "" {
				// A later page keeps its order by the cursor alone.
				page, header := p.list("?metadata=a%3Db&limit=" + limit + map[bool]string{true: "&order=" + order, false: "&nextToken=" + token}[count == 0])
				got = append(got, page...)
				token, count = header.Get("X-Next-Token"), count+1
				assert.Equal(t, "7", header.Get("X-Total-Running"))
				require.LessOrEqual(t, count, 8)
			}
			assert.Equal(t, want, got, "%s %s", order, limit)
			assert.Equal(t, pages, count, "%s %s", order, limit)
		}
	}
	// A sandbox that ends between two pages takes no other with it.
	page, header := p.list("?metadata=a%3Db&limit=3&order=asc")
	require.Equal(t, http.StatusNoContent, p.do("DELETE", "/sandboxes/"+page[2], nil).code)
	page, _ = p.list("?metadata=a%3Db&limit=3&nextToken=" + header.Get("X-Next-Token"))
	assert.Equal(t, ids[3:6], page)
}

func TestU01_ListCursorIsTheOneThatSDKsKnow(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	cursor := encodeCursor(store.Sandbox{ID: "iabc", StartedAt: at}, true)
	raw, err := base64.URLEncoding.DecodeString(cursor)
	require.NoError(t, err)
	assert.Equal(t, "2026-01-02T03:04:05.000000006Z__iabc__asc", string(raw))
	pos, ascending, err := decodeCursor(cursor)
	require.NoError(t, err)
	assert.True(t, ascending)
	assert.Equal(t, store.Position{StartedAt: at, ID: "iabc"}, *pos)
}

func FuzzDecodeCursor(f *testing.F) {
	f.Add(encodeCursor(store.Sandbox{ID: "iabc", StartedAt: time.Unix(1, 2)}, false))
	f.Add("")
	f.Fuzz(func(t *testing.T, token string) {
		pos, ascending, err := decodeCursor(token)
		if err != nil {
			return
		}
		again, ascending2, err := decodeCursor(encodeCursor(store.Sandbox{ID: pos.ID, StartedAt: pos.StartedAt}, ascending))
		require.NoError(t, err)
		assert.True(t, pos.StartedAt.Equal(again.StartedAt))
		assert.Equal(t, pos.ID, again.ID)
		assert.Equal(t, ascending, ascending2)
	})
}
