package files

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"wrenn/impl/envd/account"
	"wrenn/impl/envd/answer"
	"wrenn/impl/envd/metadata"
)

const (
	// maxParts bounds the files of one upload; each is kept open until the form is read to its end.
	maxParts = 256
	// maxField bounds a form field that is not a file: a path.
	maxField = account.MaxPath
)

// written is what an upload answers for each file, with exactly these keys.
type written struct {
	Path     string            `json:"path"`
	Name     string            `json:"name"`
	Type     string            `json:"type"`
	Metadata map[string]string `json:"metadata,omitempty"`
}

// Post writes one file, or several from a form.
func (h *Handler) Post(w http.ResponseWriter, r *http.Request) {
	out, err := h.upload(r)
	if err != nil {
		h.fail(w, r, err)
		return
	}
	answer.JSON(w, http.StatusOK, out)
}

func (h *Handler) upload(r *http.Request) ([]written, error) {
	if err := h.authorize(r, opWrite); err != nil {
		return nil, err
	}
	t, err := h.find(r)
	if err != nil {
		return nil, err
	}
	meta, err := metadata.FromHeader(r.Header)
	if err != nil {
		return nil, err
	}
	body, err := decoded(r)
	if err != nil {
		return nil, err
	}
	up := uploader{handler: h, target: t, meta: meta}
	kind, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	switch {
	case err != nil:
		return nil, bad("Content-Type: %q: want multipart/form-data or application/octet-stream", r.Header.Get("Content-Type"))
	case kind == "multipart/form-data" && params["boundary"] != "":
		return up.form(multipart.NewReader(body, params["boundary"]))
	case kind == "application/octet-stream":
		if t.path == "" {
			return nil, bad("path: is needed for application/octet-stream")
		}
		if err := up.write(t.path, body); err != nil {
			return nil, err
		}
		return up.done, nil
	}
	return nil, bad("Content-Type: %q: want multipart/form-data or application/octet-stream", kind)
}

// decoded is the request's body without its content coding.
func decoded(r *http.Request) (io.Reader, error) {
	switch c := r.Header.Get("Content-Encoding"); c {
	case "", "identity":
		return r.Body, nil
	case "gzip":
		z, err := gzip.NewReader(r.Body)
		if err != nil {
			return nil, bad("body: not gzip: %v", err)
		}
		return z, nil
	default:
		return nil, bad("Content-Encoding: %q: want gzip or none", c)
	}
}

// uploader writes the files of one request.
type uploader struct {
	handler *Handler
	target  target
	meta    map[string]string
	path    string // of the form's "path" field, absolute
	done    []written
}

// pending is a file of a form whose path may still come, in a field after it.
type pending struct {
	spool *os.File
	name  string // the part's own
}

// form writes the files of a multipart form. Each one's path is that of the query; else of the form's
// field "path", before or after the file; else the file name of its part.
func (u *uploader) form(form *multipart.Reader) (out []written, err error) {
	var later []pending
	defer func() {
		for _, p := range later {
			err = errors.Join(err, p.spool.Close())
		}
	}()
	for n := 0; ; n++ {
		part, err := form.NextRawPart()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, bodyError(err)
		}
		if n >= maxParts {
			return nil, bad("form: more than %d parts", maxParts)
		}
		p, err := u.part(part)
		if err != nil {
			return nil, err
		}
		if p != nil {
			later = append(later, *p)
		}
	}
	for _, p := range later {
		if err := u.commit(p, len(later)); err != nil {
			return nil, err
		}
	}
	if len(u.done) == 0 {
		return nil, bad("form: it holds no part named \"file\"")
	}
	return u.done, nil
}

// part reads one part; a file without a path yet is spooled and returned.
func (u *uploader) part(part *multipart.Part) (*pending, error) {
	name, file := partNames(part)
	switch {
	case name == "path":
		raw, err := io.ReadAll(io.LimitReader(part, maxField+1))
		if err != nil {
			return nil, bodyError(err)
		}
		u.path, err = account.Path(string(raw), u.target.user, u.handler.settings.Workdir())
		return nil, err
	case name != "file":
		return nil, bad("form: unknown part %q", name)
	case u.target.path != "":
		return nil, u.write(u.target.path, part)
	case u.path != "":
		return nil, u.write(u.path, part)
	}
	f, err := spool(part)
	return &pending{spool: f, name: file}, err
}

// partNames reads a part's own name and its file's, which Part.FileName would strip of its directories.
func partNames(part *multipart.Part) (name, file string) {
	_, params, err := mime.ParseMediaType(part.Header.Get("Content-Disposition"))
	if err != nil {
		return "", ""
	}
	return params["name"], params["filename"]
}

// spool keeps a part on disk, in a file that has no name and so is never left behind.
func spool(part io.Reader) (*os.File, error) {
	f, err := os.CreateTemp("", "envd-upload-")
	if err != nil {
		return nil, fmt.Errorf("keep upload: %w", err)
	}
	err = os.Remove(f.Name())
	if err == nil {
		err = copyBody(f, part)
	}
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("keep upload: %w", err)
	}
	return f, nil
}

// commit writes a spooled file to its path.
func (u *uploader) commit(p pending, files int) error {
	path := u.path
	if path != "" && files > 1 {
		return bad("form: one \"path\" for %d files", files)
	}
	if path == "" {
		if p.name == "" {
			return bad("path: is needed: neither the query, nor a field, nor the file's name has it")
		}
		var err error
		if path, err = account.Path(p.name, u.target.user, u.handler.settings.Workdir()); err != nil {
			return err
		}
	}
	return u.write(path, p.spool)
}

// write makes or replaces the file at path.
func (u *uploader) write(path string, content io.Reader) error {
	f, err := create(path, u.target.user)
	if err != nil {
		return err
	}
	err = copyBody(f, content)
	if err == nil {
		err = metadata.Replace(int(f.Fd()), u.meta)
	}
	if cerr := f.Close(); err == nil && cerr != nil {
		err = fmt.Errorf("write %q: %w", path, cerr)
	}
	if err != nil {
		return err
	}
	u.done = append(u.done, written{Path: path, Name: filepath.Base(path), Type: "file", Metadata: u.meta})
	return nil
}

// create opens the file at path for writing, empty and owned by the user, and makes its parents.
func create(path string, u account.User) (*os.File, error) {
	info, err := os.Stat(path)
	if err == nil {
		err = regular(path, info)
	} else {
		err = account.MakeParents(filepath.Dir(path), u)
	}
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NONBLOCK, 0o666)
	if err != nil {
		return nil, fmt.Errorf("write: %w", err)
	}
	if err := u.OwnFile(f); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// copyBuffer is what a copy reads at a time: with the connection's own buffers all that an upload keeps
// in memory.
const copyBuffer = 128 << 10

// copyBody copies a request's content, telling its faults from the disk's.
func copyBody(dst *os.File, src io.Reader) error {
	if f, ok := src.(*os.File); ok {
		if _, err := io.Copy(dst, f); err != nil {
			return fmt.Errorf("write: %w", err)
		}
		return nil
	}
	buf := make([]byte, copyBuffer)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			if _, werr := dst.Write(buf[:n]); werr != nil {
				return fmt.Errorf("write: %w", werr)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return bodyError(err)
		}
	}
}

// bodyError is a body that could not be read to its end: cut off, no form, no gzip.
func bodyError(err error) error { return bad("read body: %v", err) }
