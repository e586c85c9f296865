package main

// notes explain the figures; they hold for every run.
const notes = `
## How to read this

**Keys come at their pace**, one each 5 ms, whether or not earlier ones have come back, and those that wait for one
another travel together. An SDK's terminal (isolated, shared) sends keys by a call each, and the next call waits for
the answer to the one before. So where a queue delays everything by d, an echo takes between d and 2d, where plain TCP
takes d. One by the control plane's WebSocket (isolated-ws) sends them by one call that stays open.

**What one HTTP/2 connection does.** Go's server gives a connection the receive window of one stream (1 MiB). An
upload that nobody reads fills it, at each hop, and from then on no other request's body is taken, a keystroke's
included, for good. Downloads fill the connection's socket buffer, up to the megabytes of tcp-wmem, and an echo waits
behind them, at 100 Mbit/s for hundreds of milliseconds.

**What separate connections do not separate.**
Processors: beside loads that use them up, an echo waits for its turn at every hop; tcp-hops shows how long without any
program of ours. A terminal's echo also passes a work queue of the kernel, which has no priority over anything: on a
busy machine that alone is tens of milliseconds at p99, for ssh as well. "loopback-spare" is the same where the guest may
send 100 MB/s, which leaves the processors some time.
The guest's network card: an agent limits what a guest sends (200 MB/s by default). Downloads that reach it fill its
queue, and tcp-hops waits there; what the daemon sends is marked and goes first.
The link: connections compete in its queue. This one is a plain queue of 50 ms, and as many flows as there are
connections fill it. "ssh" and "ssh-second" carry the whole load in one flow, whose share of a queue on the same machine
the kernel bounds (TCP small queues), so that they seem faster here than they would with the bottleneck elsewhere;
"ssh-own" has a connection of its own beside the same load as the isolated designs, and ends on the control plane's host;
"ssh-hops" has one over as many hops, by relays that carry nothing else, to OpenSSH in the guest. No socket option passes a plain
queue; but beside a terminal in use the control plane holds back what it sends to the same client in bulk, so that the
queue stays short. "100mbit-unpaced" is the same with that turned off. In a queue with bands (100mbit-bands: pfifo_fast behind the
same limit) a socket's priority counts. The isolated designs and OpenSSH set it, tcp-hops does not, and for a shared
connection it would be of no use. A queue per flow (fq_codel, as most Linux routers have) would let a separate terminal pass too.
`
