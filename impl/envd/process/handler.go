package process

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"wrenn/impl/envd/account"
	"wrenn/impl/envd/settings"
	"wrenn/impl/envd/stream"
	pb "wrenn/proto/gen/envd/process"
	"wrenn/proto/gen/envd/process/processconnect"
)

// Handler speaks process.Process for a Table.
type Handler struct {
	processconnect.UnimplementedProcessHandler
	table    *Table
	settings *settings.Settings
}

// NewHandler makes the handler of the processes in table.
func NewHandler(table *Table, s *settings.Settings) *Handler {
	return &Handler{table: table, settings: s}
}

// List returns the running processes.
func (h *Handler) List(context.Context, *connect.Request[pb.ListRequest]) (*connect.Response[pb.ListResponse], error) {
	out := &pb.ListResponse{}
	for _, p := range h.table.List() {
		out.Processes = append(out.Processes, infoOf(p))
	}
	return connect.NewResponse(out), nil
}

// Start starts a process and streams its events. The request's deadline is the process's too; the end
// of the request otherwise is not.
func (h *Handler) Start(ctx context.Context, req *connect.Request[pb.StartRequest], out *connect.ServerStream[pb.StartResponse]) error {
	if err := checkStart(req.Msg); err != nil {
		return err
	}
	u, err := account.OfRequest(req.Header(), "", h.settings.User())
	if err != nil {
		return wireError(err)
	}
	spec, err := h.specOf(req.Msg, u)
	if err != nil {
		return err
	}
	if at, ok := ctx.Deadline(); ok {
		spec.Deadline = at
	}
	p, sub, err := h.table.Start(spec)
	if err != nil {
		return wireError(err)
	}
	return relay(ctx, req.Header(), p, sub, func(ev *pb.ProcessEvent) error {
		return out.Send(&pb.StartResponse{Event: ev})
	})
}

// Connect streams the events of a process that was started before.
func (h *Handler) Connect(ctx context.Context, req *connect.Request[pb.ConnectRequest], out *connect.ServerStream[pb.ConnectResponse]) error {
	sel, err := selectorOf(req.Msg.GetProcess())
	if err != nil {
		return err
	}
	p, sub, err := h.table.Attach(sel)
	if err != nil {
		return wireError(err)
	}
	return relay(ctx, req.Header(), p, sub, func(ev *pb.ProcessEvent) error {
		return out.Send(&pb.ConnectResponse{Event: ev})
	})
}

// relay sends start at once (a client waits for it, and with it for the headers), what the terminal
// showed before, then events as they come, and a keepalive after each quiet interval. A short event is sent by whoever has
// read it of the process, where that needs no waiting.
func relay(ctx context.Context, header http.Header, p *Process, sub *Subscription, send func(*pb.ProcessEvent) error) error {
	defer sub.Close()
	defer stream.CutOffWhen(ctx, sub.Cut())()
	if err := send(startEvent(p)); err != nil {
		return err
	}
	for rest := sub.Replay; len(rest) > 0; {
		n := min(len(rest), readSize)
		if err := send(eventOf(Event{Kind: Terminal, Data: rest[:n]})); err != nil {
			return err
		}
		rest = rest[n:]
	}
	sub.path.Open(func(ev Event) error {
		if ctx.Err() != nil { // the request's deadline, by which the process was killed, is the news, and not its end
			return wireError(ctx.Err())
		}
		return send(eventOf(ev))
	}, stream.RoomOf(ctx))
	interval := stream.Keepalive(header)
	quiet := time.NewTicker(interval)
	defer quiet.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return wireError(ctx.Err())
		case <-quiet.C: // of the queue at least
			err = sub.path.Beside(func() error { return send(keepaliveEvent()) })
		case ev, ok := <-sub.Events():
			if !ok {
				return wireError(sub.Err())
			}
			err = sub.path.Send(ev)
			quiet.Reset(interval)
		}
		if err != nil {
			return err
		}
	}
}

// Update resizes the terminal of a process.
func (h *Handler) Update(_ context.Context, req *connect.Request[pb.UpdateRequest]) (*connect.Response[pb.UpdateResponse], error) {
	p, err := h.find(req.Msg.GetProcess())
	if err != nil {
		return nil, err
	}
	if req.Msg.GetPty() != nil {
		size, err := sizeOf(req.Msg.GetPty())
		if err != nil {
			return nil, err
		}
		if err := p.Resize(size); err != nil {
			return nil, wireError(err)
		}
	}
	return connect.NewResponse(&pb.UpdateResponse{}), nil
}

// SendInput writes to a process and answers once the process has taken all of it.
func (h *Handler) SendInput(ctx context.Context, req *connect.Request[pb.SendInputRequest]) (*connect.Response[pb.SendInputResponse], error) {
	p, err := h.find(req.Msg.GetProcess())
	if err != nil {
		return nil, err
	}
	if err := write(ctx, p, req.Msg.GetInput()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&pb.SendInputResponse{}), nil
}

// StreamInput writes to a process in the order of the messages, the first of which names it.
func (h *Handler) StreamInput(ctx context.Context, in *connect.ClientStream[pb.StreamInputRequest]) (*connect.Response[pb.StreamInputResponse], error) {
	var p *Process
	for in.Receive() {
		switch ev := in.Msg().GetEvent().(type) {
		case *pb.StreamInputRequest_Start:
			if p != nil {
				return nil, invalid("start: sent twice")
			}
			var err error
			if p, err = h.find(ev.Start.GetProcess()); err != nil {
				return nil, err
			}
		case *pb.StreamInputRequest_Data:
			if p == nil {
				return nil, invalid("data: sent before start")
			}
			if err := write(ctx, p, ev.Data.GetInput()); err != nil {
				return nil, err
			}
		}
	}
	if err := in.Err(); err != nil {
		return nil, err
	}
	return connect.NewResponse(&pb.StreamInputResponse{}), nil
}

func write(ctx context.Context, p *Process, in *pb.ProcessInput) error {
	data, terminal, err := inputOf(in)
	if err != nil {
		return err
	}
	return wireError(p.Write(ctx, data, terminal))
}

// SendSignal signals a process's whole group.
func (h *Handler) SendSignal(_ context.Context, req *connect.Request[pb.SendSignalRequest]) (*connect.Response[pb.SendSignalResponse], error) {
	var sig unix.Signal
	switch req.Msg.GetSignal() {
	case pb.Signal_SIGNAL_SIGTERM:
		sig = unix.SIGTERM
	case pb.Signal_SIGNAL_SIGKILL:
		sig = unix.SIGKILL
	default:
		return nil, invalid("signal: want SIGNAL_SIGTERM or SIGNAL_SIGKILL, not %s", fmt.Sprint(req.Msg.GetSignal()))
	}
	p, err := h.find(req.Msg.GetProcess())
	if err != nil {
		return nil, err
	}
	if err := p.signal(sig); err != nil {
		return nil, wireError(err)
	}
	return connect.NewResponse(&pb.SendSignalResponse{}), nil
}

// CloseStdin ends the standard input of a process.
func (h *Handler) CloseStdin(ctx context.Context, req *connect.Request[pb.CloseStdinRequest]) (*connect.Response[pb.CloseStdinResponse], error) {
	p, err := h.find(req.Msg.GetProcess())
	if err != nil {
		return nil, err
	}
	if err := p.CloseStdin(ctx); err != nil {
		return nil, wireError(err)
	}
	return connect.NewResponse(&pb.CloseStdinResponse{}), nil
}

func (h *Handler) find(s *pb.ProcessSelector) (*Process, error) {
	sel, err := selectorOf(s)
	if err != nil {
		return nil, err
	}
	p, err := h.table.Find(sel)
	return p, wireError(err)
}
