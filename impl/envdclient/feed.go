package envdclient

import (
	"context"

	"connectrpc.com/connect"

	pb "wrenn/proto/gen/envd/process"
)

// Feed hands input to a program by one call that stays open, so that a key costs a write on each hop and not a
// request with its answer. It belongs to one goroutine.
type Feed struct {
	program *Program
	ctx     context.Context //nolint:containedctx // it is that of the call, which outlives each Write
	stream  *connect.ClientStreamForClient[pb.StreamInputRequest, pb.StreamInputResponse]
}

// Feed returns a Feed whose call begins with its first input, and ends with ctx at the latest.
func (p *Program) Feed(ctx context.Context) *Feed { return &Feed{program: p, ctx: ctx} }

// Input sends data on its way to the program, in order. It waits where the program takes nothing and all that lies
// between is full: some MiB. Errors are of this or of earlier input, or come with Flush: ErrNoInput, or that the way to
// the guest broke.
func (f *Feed) Input(data []byte) error {
	for len(data) > 0 {
		n := min(len(data), inputSize)
		in := stdinOf(data[:n])
		if f.program.terminal {
			in = ptyOf(data[:n])
		}
		if err := f.send(in); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

func (f *Feed) send(in *pb.ProcessInput) error {
	if f.stream == nil {
		f.stream = f.program.client.procs.StreamInput(f.ctx)
		err := f.stream.Send(&pb.StreamInputRequest{Event: &pb.StreamInputRequest_Start{
			Start: &pb.StreamInputRequest_StartEvent{Process: byPID(f.program.PID)},
		}})
		if err != nil {
			return f.failed(err)
		}
	}
	if err := f.stream.Send(&pb.StreamInputRequest{Event: &pb.StreamInputRequest_Data{Data: &pb.StreamInputRequest_DataEvent{Input: in}}}); err != nil {
		return f.failed(err)
	}
	return nil
}

// failed says why the call has ended, which its answer tells better than a failed write.
func (f *Feed) failed(sent error) error {
	if err := f.Flush(); err != nil {
		return err
	}
	return inputError("write to program", sent)
}

// Flush returns when the program has taken all input. Errors as those of Input. The next input begins another call.
func (f *Feed) Flush() error {
	if f.stream == nil {
		return nil
	}
	stream := f.stream
	f.stream = nil
	if _, err := stream.CloseAndReceive(); err != nil {
		return inputError("write to program", err)
	}
	return nil
}
