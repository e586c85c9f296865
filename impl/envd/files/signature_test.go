package files

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"wrenn/impl/envd/settings"
)

func TestSignKnownAnswers(t *testing.T) {
	// Computed with another program (node's crypto).
	assert.Equal(t, "v1_hk0aEWR4wBa+DtsaOzR8pgsnKyh9zeGmBhkraHJK1kA", Sign("/a b/ü", "read", "", "tok", ""))
	assert.Equal(t, "v1_R9QcUztUt4kyTONHx8e5/B887SiuSCE16e8V9BZNbjQ", Sign("x", "write", "user", "tok", "1700000000"))
}

func TestG04_FilesNeedTheTokenOrASignature(t *testing.T) {
	s := newServer(t)
	s.put("f", "secret")
	token := "tok"
	s.settings.Apply(settings.Update{Token: &token})
	link := func(path, user, op, tok string, expiry int64) string {
		q := url.Values{"path": {path}}
		at := ""
		if expiry != 0 {
			at = strconv.FormatInt(expiry, 10)
			q.Set("signature_expiration", at)
		}
		if user != "" {
			q.Set("username", user)
		}
		q.Set("signature", Sign(path, op, user, tok, at))
		return "/files?" + q.Encode()
	}
	octets := "Content-Type: application/octet-stream"
	now := time.Now().Unix()
	assert.Equal(t, 200, s.get("f", "X-Access-Token: tok").status)
	assert.Equal(t, 200, s.do(http.MethodGet, link("f", "", "read", "tok", 0), nil).status)
	assert.Equal(t, 200, s.do(http.MethodGet, link("f", "root", "read", "tok", now+60), nil).status)
	assert.Equal(t, 200, s.do(http.MethodPost, link("g", "", "write", "tok", 0), strings.NewReader("x"), octets).status)
	const wrong = "missing or wrong"
	s.get("f").requireError(t, 401, wrong)
	s.get("f", "X-Access-Token: tok2").requireError(t, 401, wrong)
	s.do(http.MethodGet, link("f", "", "write", "tok", 0), nil).requireError(t, 401, wrong)
	s.do(http.MethodPost, link("f", "", "read", "tok", 0), strings.NewReader("x"), octets).requireError(t, 401, wrong)
	s.do(http.MethodGet, link("f", "", "read", "other", 0), nil).requireError(t, 401, wrong)
	s.do(http.MethodGet, link("f", "", "read", "tok", 0)+"&username=root", nil).requireError(t, 401, wrong)
	s.do(http.MethodGet, strings.Replace(link("f", "", "read", "tok", 0), "path=f", "path=g", 1), nil).requireError(t, 401, wrong)
	s.do(http.MethodGet, link("f", "", "read", "other", now-60), nil).requireError(t, 401, wrong)
	r := s.do(http.MethodGet, link("f", "", "read", "tok", now-60), nil)
	assert.JSONEq(t, `{"code":401,"message":"signature is already expired"}`, r.body)
	later := strings.Replace(link("f", "", "read", "tok", now-60), strconv.FormatInt(now-60, 10), strconv.FormatInt(now+60, 10), 1)
	s.do(http.MethodGet, later, nil).requireError(t, 401, wrong)
}

func FuzzSignature(f *testing.F) {
	f.Add("v1_", "p", "read", "", "1")
	f.Add(Sign("p", "read", "u", "tok", ""), "p", "read", "u", "")
	f.Fuzz(func(t *testing.T, given, path, op, user, expiry string) {
		want := Sign(path, op, user, "tok", expiry)
		err := checkSignature(given, path, op, user, "tok", expiry, time.Unix(1e9, 0))
		if given != want {
			require.ErrorIs(t, err, errSignature)
			return
		}
		if expiry == "" {
			require.NoError(t, err)
		}
	})
}

func FuzzEncoding(f *testing.F) {
	f.Add("gzip, deflate;q=0.5, *;q=0")
	f.Fuzz(func(t *testing.T, header string) {
		if zip, ok := encoding(header); zip && !ok {
			t.Fatalf("%q: to be compressed and not acceptable", header)
		}
	})
}
