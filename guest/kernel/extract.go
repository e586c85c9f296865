package kernel

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os/exec"
)

// Offsets of the Linux x86 boot protocol's header in a bzImage (Documentation/arch/x86/boot.rst).
const (
	offSetupSects    = 0x1f1 // 1 byte: 512-byte sectors of real-mode code after the first
	offHeaderMagic   = 0x202 // 4 bytes: "HdrS"
	offVersion       = 0x206 // 2 bytes: protocol version
	offPayloadOffset = 0x248 // 4 bytes: payload from the start of the protected-mode code
	offPayloadLength = 0x24c // 4 bytes
	headerEnd        = 0x250

	// versionPayload is the first protocol version whose header has the payload fields.
	versionPayload = 0x0208
	sectorSize     = 512
	// sizeTrailer is the uncompressed size that the kernel's build appends to every payload whose
	// format does not carry one, gzip being the one that does.
	sizeTrailer = 4
)

var elfMagic = []byte("\x7fELF")

// compression is a way in which Debian or a distribution near it packs a kernel.
type compression struct {
	name    string
	magic   []byte
	program []string // decompresses standard input to standard output
	debian  string   // the package that has the program
	trailer int      // bytes after the compressed stream
}

var compressions = []compression{
	{"lz4", []byte{0x02, 0x21, 0x4c, 0x18}, []string{"lz4", "-dc", "-"}, "lz4", sizeTrailer},
	{"xz", []byte{0xfd, '7', 'z', 'X', 'Z', 0}, []string{"xz", "-dc"}, "xz-utils", sizeTrailer},
	{"zstd", []byte{0x28, 0xb5, 0x2f, 0xfd}, []string{"zstd", "-dc"}, "zstd", sizeTrailer},
	{"gzip", []byte{0x1f, 0x8b}, []string{"gzip", "-dc"}, "gzip", 0},
}

// ExtractELF finds the compressed kernel in a bzImage and writes it to w as the ELF file that
// Firecracker boots. It fails when the image is no bzImage, the payload's format is unknown, or what
// comes out is not an ELF file of the length that the image promises.
func ExtractELF(ctx context.Context, bzImage []byte, w io.Writer) error {
	payload, err := payload(bzImage)
	if err != nil {
		return fmt.Errorf("find the kernel in the bzImage: %w", err)
	}
	for _, c := range compressions {
		if bytes.HasPrefix(payload, c.magic) {
			return c.extract(ctx, payload, w)
		}
	}
	return fmt.Errorf("find the kernel in the bzImage: payload starts with %x, which is none of lz4, xz, zstd, gzip",
		payload[:min(len(payload), 8)])
}

// payload returns the compressed kernel of a bzImage.
func payload(image []byte) ([]byte, error) {
	if len(image) < headerEnd {
		return nil, errors.New("shorter than a boot header")
	}
	if string(image[offHeaderMagic:offHeaderMagic+4]) != "HdrS" {
		return nil, errors.New("no boot header (HdrS) at 0x202")
	}
	if v := binary.LittleEndian.Uint16(image[offVersion:]); v < versionPayload {
		return nil, fmt.Errorf("boot protocol %#x has no payload fields (2.08 is the first)", v)
	}
	setupSects := int64(image[offSetupSects])
	if setupSects == 0 {
		setupSects = 4 // the protocol's rule for old loaders
	}
	start := (setupSects+1)*sectorSize + int64(binary.LittleEndian.Uint32(image[offPayloadOffset:]))
	end := start + int64(binary.LittleEndian.Uint32(image[offPayloadLength:]))
	if end > int64(len(image)) || end-start < sizeTrailer {
		return nil, fmt.Errorf("payload %d..%d lies outside the file of %d bytes", start, end, len(image))
	}
	return image[start:end], nil
}

func (c compression) extract(ctx context.Context, payload []byte, w io.Writer) error {
	program, err := exec.LookPath(c.program[0])
	if err != nil {
		return fmt.Errorf("the kernel is compressed with %s: install Debian's package %s (make deps)", c.name, c.debian)
	}
	stream := payload[:len(payload)-c.trailer]
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, program, c.program[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stream), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("decompress the kernel with %s: %w: %s", c.name, err, bytes.TrimSpace(stderr.Bytes()))
	}
	if !bytes.HasPrefix(stdout.Bytes(), elfMagic) {
		return fmt.Errorf("decompress the kernel with %s: the result is no ELF file", c.name)
	}
	if c.trailer > 0 {
		want := binary.LittleEndian.Uint32(payload[len(stream):])
		if int64(stdout.Len()) != int64(want) {
			return fmt.Errorf("decompress the kernel with %s: %d bytes, the image promises %d", c.name, stdout.Len(), want)
		}
	}
	if _, err := stdout.WriteTo(w); err != nil {
		return fmt.Errorf("write the uncompressed kernel: %w", err)
	}
	return nil
}
