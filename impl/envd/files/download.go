package files

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"wrenn/impl/envd/answer"
)

// Get answers the content of a file, whole or in part.
func (h *Handler) Get(w http.ResponseWriter, r *http.Request) {
	if err := h.authorize(r, opRead); err != nil {
		h.fail(w, r, err)
		return
	}
	t, err := h.find(r)
	if err == nil && t.path == "" {
		err = bad("path: is needed")
	}
	if err != nil {
		h.fail(w, r, err)
		return
	}
	f, info, err := openRegular(t.path)
	if err != nil {
		h.fail(w, r, err)
		return
	}
	defer func() { _ = f.Close() }()
	zip, ok := encoding(r.Header.Get("Accept-Encoding"))
	if !ok {
		answer.Error(w, http.StatusNotAcceptable, "Accept-Encoding: only identity and gzip are served")
		return
	}
	head := w.Header()
	head.Set("Content-Disposition", mime.FormatMediaType("inline", map[string]string{"filename": filepath.Base(t.path)}))
	head.Set("Content-Type", typeOf(t.path))
	head.Set("Vary", "Accept-Encoding")
	partial := r.Header.Get("Range") != "" || r.Header.Get("If-Range") != ""
	switch {
	case info.Size() == 0:
		serveUnsized(w, r, f)
	case zip && !partial && r.Method == http.MethodGet:
		serveZipped(w, f, info)
	default:
		http.ServeContent(w, r, "", info.ModTime(), f)
	}
}

// openRegular opens a regular file. It never waits, as opening a pipe without a writer would.
func openRegular(path string) (*os.File, fs.FileInfo, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, nil, fmt.Errorf("open: %w", err)
	}
	if err := regular(path, info); err != nil {
		return nil, nil, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open: %w", err)
	}
	if info, err = f.Stat(); err == nil {
		err = regular(path, info)
	}
	if err != nil {
		_ = f.Close()
		return nil, nil, err
	}
	return f, info, nil
}

func regular(path string, info fs.FileInfo) error {
	switch {
	case info.IsDir():
		return bad("path: %q is a directory", path)
	case !info.Mode().IsRegular():
		return bad("path: %q is not a regular file", path)
	}
	return nil
}

// typeOf goes by the name alone: sniffing the content would let a page's script run under another type.
func typeOf(path string) string {
	if t := mime.TypeByExtension(filepath.Ext(path)); t != "" {
		return t
	}
	return "application/octet-stream"
}

// serveUnsized sends a file that says it is empty. One below /proc says so and is not: its content goes
// out as it comes. A truly empty one gets Content-Length: 0, which clients tell it by.
func serveUnsized(w http.ResponseWriter, r *http.Request, f *os.File) {
	buf := make([]byte, 32<<10)
	n, err := f.Read(buf)
	if err != nil && !errors.Is(err, io.EOF) {
		answer.Error(w, statusOf(err), "read: "+err.Error())
		return
	}
	if n == 0 {
		w.Header().Set("Content-Length", "0")
		w.WriteHeader(http.StatusOK)
		return
	}
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return
	}
	if _, err := w.Write(buf[:n]); err == nil {
		_, err = io.Copy(w, f)
		abortOn(err)
	}
}

// serveZipped sends a whole file compressed: quickly rather than well, for the guest has other work.
func serveZipped(w http.ResponseWriter, f *os.File, info fs.FileInfo) {
	w.Header().Set("Content-Encoding", "gzip")
	w.Header().Set("Last-Modified", info.ModTime().UTC().Format(http.TimeFormat))
	w.WriteHeader(http.StatusOK)
	z, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
	if err == nil {
		_, err = io.Copy(z, f)
	}
	if err == nil {
		err = z.Close()
	}
	abortOn(err)
}

// abortOn breaks the connection off, so that a reply cut short is not taken for a whole one.
func abortOn(err error) {
	if err != nil {
		panic(http.ErrAbortHandler)
	}
}

// encoding reads an Accept-Encoding header: whether to compress, and whether anything can be served.
//
// Compression is for clients that name gzip and no other coding, as E2B's do when their caller asks for
// it. The lists that HTTP libraries send by themselves ("gzip, deflate, br") say what they can read, not
// that somebody wants the guest's processor spent on it.
func encoding(header string) (zip, ok bool) {
	quality := map[string]float64{}
	coded := 0
	for item := range strings.SplitSeq(header, ",") {
		name, params, _ := strings.Cut(strings.TrimSpace(item), ";")
		name = strings.ToLower(strings.TrimSpace(name))
		if name == "" {
			continue
		}
		q := 1.0
		if v, found := strings.CutPrefix(strings.ReplaceAll(params, " ", ""), "q="); found {
			q, _ = strconv.ParseFloat(v, 64)
		}
		quality[name] = q
		if name != "identity" && q > 0 {
			coded++
		}
	}
	gz, named := quality["gzip"]
	plain, plainNamed := quality["identity"]
	others, othersNamed := quality["*"]
	mayGzip := named && gz > 0 || !named && others > 0
	mayPlain := plainNamed && plain > 0 || !plainNamed && (!othersNamed || others > 0)
	if !mayPlain {
		return mayGzip, mayGzip
	}
	return named && gz > 0 && coded == 1 && (!plainNamed || gz >= plain), true
}
