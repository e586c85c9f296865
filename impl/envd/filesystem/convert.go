package filesystem

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	"wrenn/impl/envd/account"
	pb "wrenn/proto/gen/envd/filesystem"
)

func infoOf(e Entry) *pb.EntryInfo {
	kind := pb.FileType_FILE_TYPE_UNSPECIFIED
	switch {
	case e.Mode.IsRegular():
		kind = pb.FileType_FILE_TYPE_FILE
	case e.Mode.IsDir():
		kind = pb.FileType_FILE_TYPE_DIRECTORY
	case e.Mode&fs.ModeSymlink != 0: // it leads nowhere
		kind = pb.FileType_FILE_TYPE_SYMLINK
	}
	return &pb.EntryInfo{
		Name: e.Name, Type: kind, Path: e.Path, Size: e.Size,
		Mode: uint32(e.Mode.Perm()), Permissions: e.Mode.String(), Owner: e.Owner, Group: e.Group,
		ModifiedTime: timestamppb.New(e.Modified), SymlinkTarget: e.Target, Metadata: e.Metadata,
	}
}

func opOf(op Op) pb.EventType {
	switch op {
	case Create:
		return pb.EventType_EVENT_TYPE_CREATE
	case Write:
		return pb.EventType_EVENT_TYPE_WRITE
	case Remove:
		return pb.EventType_EVENT_TYPE_REMOVE
	case Rename:
		return pb.EventType_EVENT_TYPE_RENAME
	case Chmod:
		return pb.EventType_EVENT_TYPE_CHMOD
	}
	return pb.EventType_EVENT_TYPE_UNSPECIFIED
}

func invalid(format string, args ...any) error {
	return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf(format, args...))
}

// wireError gives an error of this package its code.
func wireError(err error) error {
	code := connect.CodeInternal
	var coded *connect.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &coded):
		return err
	case errors.Is(err, account.ErrUnknown), errors.Is(err, account.ErrCredentials):
		code = connect.CodeUnauthenticated
	case errors.Is(err, account.ErrPath), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EISDIR),
		errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENAMETOOLONG), errors.Is(err, unix.ELOOP):
		code = connect.CodeInvalidArgument
	case errors.Is(err, ErrLost), errors.Is(err, ErrWatches), errors.Is(err, unix.ENOSPC):
		code = connect.CodeResourceExhausted
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, ErrRootGone):
		code = connect.CodeNotFound
	case errors.Is(err, unix.ENOTEMPTY), errors.Is(err, unix.EXDEV), errors.Is(err, unix.EBUSY), errors.Is(err, unix.EROFS):
		code = connect.CodeFailedPrecondition
	case errors.Is(err, fs.ErrExist):
		code = connect.CodeAlreadyExists
	case errors.Is(err, fs.ErrPermission):
		code = connect.CodePermissionDenied
	case errors.Is(err, context.DeadlineExceeded):
		code = connect.CodeDeadlineExceeded
	case errors.Is(err, context.Canceled):
		code = connect.CodeCanceled
	}
	return connect.NewError(code, err)
}
