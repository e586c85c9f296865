package sdk

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"wrenn/e2e/harness"
)

// pauseTimeout bounds one run of pause.test.mjs: some thirty pauses and resumes, each of which may take half
// a minute where guests are emulated.
const pauseTimeout = 20 * time.Minute

// TestU01_SDKPausesByURL runs pause.test.mjs with one URL for all sandboxes.
func TestU01_SDKPausesByURL(t *testing.T) {
	sdk := needSDK(t)
	before := harness.Take(t)
	s := harness.Start(t, harness.Dir(t))
	sdk.file("pause.test.mjs", pauseTimeout, "E2B_API_URL="+s.APIURL, "E2B_SANDBOX_URL="+s.SandboxURL, "E2B_API_KEY="+s.APIKey)
	s.Stop()
	before.Same(t)
}

// TestU01_SDKPausesByName runs pause.test.mjs with a name for each sandbox and port, by TLS.
func TestU01_SDKPausesByName(t *testing.T) {
	sdk := needSDK(t)
	before := harness.Take(t)
	front := listenTLS(t, "sandboxes.test")
	s := harness.Start(t, harness.Dir(t), "--domain", front.domain)
	target, err := url.Parse(s.SandboxURL)
	require.NoError(t, err)
	front.serve(target.Host)
	sdk.file("pause.test.mjs", pauseTimeout, "E2B_API_URL="+s.APIURL, "E2B_DOMAIN="+front.domain, "E2B_API_KEY="+s.APIKey, "WRENN_TEST_NAMES=1", "NODE_EXTRA_CA_CERTS="+front.certificate)
	front.close()
	s.Stop()
	before.Same(t)
}

// tlsFront is what an operator puts in front of the sandbox proxy: TLS for a wildcard name. It offers HTTP/1.1
// alone.
type tlsFront struct {
	// domain is the name with the port, certificate the file of who signed its certificate.
	domain, certificate string

	t        *testing.T
	listener net.Listener
	wg       sync.WaitGroup
	mu       sync.Mutex
	closed   bool
	open     map[net.Conn]bool
}

// listenTLS listens on a port of this machine for any name below name.
func listenTLS(t *testing.T, name string) *tlsFront {
	t.Helper()
	f := &tlsFront{t: t, certificate: filepath.Join(t.TempDir(), "ca.pem"), open: map[net.Conn]bool{}}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"*." + name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(f.certificate, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	f.listener, err = tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, NextProtos: []string{"http/1.1"}, MinVersion: tls.VersionTLS12,
	})
	require.NoError(t, err)
	t.Cleanup(f.close)
	_, port, err := net.SplitHostPort(f.listener.Addr().String())
	require.NoError(t, err)
	f.domain = name + ":" + port
	return f
}

// serve carries connections to target until close.
func (f *tlsFront) serve(target string) {
	f.wg.Go(func() {
		for {
			conn, err := f.listener.Accept()
			if err != nil {
				return
			}
			f.wg.Go(func() { f.carry(conn, target) })
		}
	})
}

func (f *tlsFront) carry(client net.Conn, target string) {
	server, err := net.DialTimeout("tcp", target, 10*time.Second)
	if err != nil {
		_ = client.Close()
		return
	}
	if !f.hold(client, server) {
		return
	}
	done := make(chan struct{}, 2)
	for _, way := range [][2]net.Conn{{server, client}, {client, server}} {
		go func() {
			_, _ = io.Copy(way[0], way[1])
			done <- struct{}{}
		}()
	}
	<-done
	f.drop(client, server)
	<-done
}

// hold notes connections for close; false says that they came too late, and are closed.
func (f *tlsFront) hold(conns ...net.Conn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range conns {
		if f.closed {
			_ = c.Close()
		} else {
			f.open[c] = true
		}
	}
	return !f.closed
}

func (f *tlsFront) drop(conns ...net.Conn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range conns {
		_ = c.Close()
		delete(f.open, c)
	}
}

// close ends it and all connections. It may be called twice.
func (f *tlsFront) close() {
	_ = f.listener.Close()
	f.mu.Lock()
	f.closed = true
	for c := range f.open {
		_ = c.Close()
	}
	f.mu.Unlock()
	f.wg.Wait()
}
