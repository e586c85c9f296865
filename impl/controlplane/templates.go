package controlplane

import (
	"maps"
	"net/http"
	"slices"
)

type templateReply struct {
	TemplateID string   `json:"templateID"`
	Aliases    []string `json:"aliases"`
	Names      []string `json:"names"`
	Public     bool     `json:"public"`
}

// templates lists what any of the hosts has.
func (s *server) templates(w http.ResponseWriter, r *http.Request) error {
	hosts, err := s.ping(r.Context())
	if err != nil {
		return err
	}
	names := map[string]bool{}
	for _, h := range hosts {
		for _, t := range h.host.Templates {
			names[t] = true
		}
	}
	out := []templateReply{}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		out = append(out, templateReply{TemplateID: name, Aliases: []string{name}, Names: []string{name}})
	}
	answer(w, http.StatusOK, out)
	return nil
}

func (s *server) templateByAlias(w http.ResponseWriter, r *http.Request) error {
	ref, err := parseReference("alias", r.PathValue("alias"))
	if err != nil {
		return err
	}
	from, err := s.resolve(r.Context(), ref)
	if err != nil {
		return err
	}
	answer(w, http.StatusOK, map[string]any{"templateID": from.name, "public": false})
	return nil
}
