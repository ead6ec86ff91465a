// SPDX-License-Identifier: Apache-2.0

// Command prober makes one network attempt, or serves as the other end of one, and says in JSON what happened.
//
// It is static and needs nothing but a kernel, so it runs in any container and in any network namespace. Attempts use raw system
// calls wherever the Go runtime would choose for us. Each prints one line
//
//	{"ok":true,"data":{...}}  or  {"ok":false,"err":"connect: ...","errno":"EPERM","data":{...}}
//
// and exits 0 or 1; wrong usage exits 2. Servers (serve, sink, listen, origdst-server) print one such line for each event.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sort"
	"syscall"
)

// A command runs with its arguments and returns what to print. A nil result prints nothing: servers print on their own.
type command struct {
	help string
	run  func(ctx context.Context, args []string) (*result, error)
}

var commands = map[string]command{
	"http":           {"GET a page and report both addresses of the connection", runHTTP},
	"download":       {"GET a file, count and hash it", runDownload},
	"tcp":            {"connect, send a nonce and wait for its echo", runTCP},
	"udp":            {"send a datagram and wait for its echo", runUDP},
	"ping":           {"send an ICMP echo request and wait for the reply", runPing},
	"rawtcp":         {"send a SYN through a raw socket", runRawTCP},
	"rawip":          {"send a packet of any IP protocol through a raw socket", runRawIP},
	"rawudp":         {"send a UDP datagram through a raw socket", runRawUDP},
	"packet":         {"send a UDP datagram as a whole Ethernet frame (AF_PACKET)", runPacket},
	"tunnel":         {"send a UDP datagram through a device of its own making", runTunnel},
	"xdp":            {"send a UDP datagram as a whole Ethernet frame (AF_XDP)", runXDP},
	"listen":         {"bind, listen, accept and echo", runListen},
	"serve":          {"serve HTTP that tells each client both addresses of its connection", runServe},
	"origdst-server": {"accept, and report SO_ORIGINAL_DST of each connection", runOrigDst},
	"splice":         {"move bytes from a socket into a pipe by splice(2)", runSplice},
	"shell":          {"run other commands, given on stdin", runShell},
	"sockopt":        {"report the answers of many getsockopt calls", runSockopt},
	"sink":           {"be the outside: echo servers and a recorder of packets", runSink},
	"joiner":         {"try every simple way out, one after the other", runJoiner},
	"dns":            {"ask a name server for the nonce", runDNS},
	"family":         {"make a socket of any family", runFamily},
	"smc":            {"connect by AF_SMC and send a nonce", runSMC},
	"dccp":           {"connect by DCCP", runDCCP},
	"l2tp":           {"send a nonce by IPPROTO_L2TP", runL2TP},
	"vsock":          {"connect by AF_VSOCK on this machine, or listen", runVSOCK},
	"alg":            {"hash by AF_ALG", runALG},
	"hold":           {"open many sockets and hold them", runHold},
	"hammer":         {"make the same attempt again and again", runHammer},
	"forkbomb":       {"make processes that send a nonce, as fast as it goes", runForkbomb},
	"handover-serve": {"give sockets to clients of a UNIX socket", runHandoverServe},
	"handover-take":  {"take a socket from handover-serve and use it", runHandoverTake},
	"inherited":      {"use a socket that this process was given", runInherited},
	"unix":           {"send a text to a UNIX socket", runUNIX},
	"steal":          {"take a listening socket of another process", runSteal},
	"ptrace":         {"let another process connect and send a nonce", runPtrace},
	"nft":            {"delete all rules of nftables", runNFT},
	"routes":         {"change routing", runRoutes},
	"address":        {"give a device another address", runAddress},
	"simopen":        {"connect to an end that connects too", runSimopen},
	"everyway":       {"send a nonce in every way from a device", runEveryWay},
	"in":             {"go to another cgroup, namespace or user, and run a command there", runIn},
	"echo":           {"echo over all connections until a signal", runEcho},
	"keep":           {"keep a connection, and echo over it until a signal", runKeep},
	"later":          {"connect, and send a nonce when stdin ends", runLater},
	"reap":           {"kill processes by name, for a while", runReap},
	"sniff":          {"read a nonce off the device", runSniff},
	"hands":          {"make system calls on sockets, given on stdin", runHands},
	"hands-child":    {"make one of them in a process of its own", runHandsChild},
	"relay":          {"be a proxy by io.Copy", runRelay},
	"tamper":         {"try to change what enforces, and to get away from it", runTamper},
}

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run executes one command and returns the exit status.
func run(args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		usage(stderr)
		return 2
	}
	cmd, ok := commands[args[0]]
	if !ok {
		fmt.Fprintf(stderr, "prober: unknown command %q\n", args[0])
		usage(stderr)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()

	res, err := cmd.run(ctx, args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if u := (*usageError)(nil); errors.As(err, &u) {
		fmt.Fprintln(stderr, "prober:", err)
		return 2
	}
	if res == nil && err == nil {
		return 0
	}
	res = res.withError(err)
	res.print(stdout)
	if !res.OK {
		return 1
	}
	return 0
}

func usage(w io.Writer) {
	fmt.Fprintln(w, "usage: prober COMMAND [flags]")
	names := make([]string, 0, len(commands))
	for name := range commands {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		fmt.Fprintf(w, "  %-15s %s\n", name, commands[name].help)
	}
}

// usageError is a mistake in the command line.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// parse parses args and turns a mistake into a usageError. No command takes positional arguments.
func parse(fs *flag.FlagSet, args []string) error {
	fs.SetOutput(io.Discard)
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fs.SetOutput(os.Stderr)
			fs.Usage()
			return err
		}
		return &usageError{fmt.Errorf("%s: %w", fs.Name(), err)}
	}
	if fs.NArg() > 0 {
		return &usageError{fmt.Errorf("%s: unexpected argument %q", fs.Name(), fs.Arg(0))}
	}
	return nil
}
