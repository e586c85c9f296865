package settings

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestNewerUpdateWins(t *testing.T) {
	s := &Settings{}
	str := func(v string) *string { return &v }
	at := time.Unix(100, 0)
	assert.True(t, s.Apply(Update{Timestamp: at, Token: str("a"), User: str("u"), Workdir: str("/w"), Env: map[string]string{"A": "1"}}))
	assert.False(t, s.Apply(Update{Timestamp: at, Token: str("b")}), "the same again")
	assert.False(t, s.Apply(Update{Timestamp: at.Add(-1), Token: str("b")}), "an older one")
	assert.Equal(t, "a", s.Token())
	assert.True(t, s.Apply(Update{Timestamp: at.Add(1), Env: map[string]string{"B": "2"}}))
	assert.Equal(t, map[string]string{"B": "2"}, s.Env(), "the environment is replaced")
	assert.Equal(t, "a", s.Token(), "what is not named stays")
	assert.Equal(t, []string{"u", "/w"}, []string{s.User(), s.Workdir()})
	assert.True(t, s.Apply(Update{Token: str("")}))
	assert.True(t, s.Allows("anything"))
}

func TestG04_Allows(t *testing.T) {
	s := &Settings{}
	assert.True(t, s.Allows(""))
	token := "secret"
	s.Apply(Update{Token: &token})
	assert.True(t, s.Allows("secret"))
	for _, wrong := range []string{"", "secre", "secret ", "Secret", "secretsecret"} {
		assert.False(t, s.Allows(wrong), wrong)
	}
}

func TestEnvIsACopy(t *testing.T) {
	s := &Settings{}
	mine := map[string]string{"A": "1"}
	s.Apply(Update{Env: mine})
	mine["A"] = "2"
	s.Env()["A"] = "3"
	assert.Equal(t, "1", s.Env()["A"])
}
