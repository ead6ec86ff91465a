// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// readListeners returns the TCP listeners in the network namespace of pid. It opens no socket there.
func readListeners(pid int) ([]netip.AddrPort, error) {
	var all []netip.AddrPort
	for _, file := range []string{"tcp", "tcp6"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, file))
		if errors.Is(err, fs.ErrNotExist) && file == "tcp6" {
			continue
		}
		if err != nil {
			return nil, err
		}
		listeners, err := parseListeners(string(b))
		if err != nil {
			return nil, fmt.Errorf("/proc/net/%s: %w", file, err)
		}
		all = append(all, listeners...)
	}
	return all, nil
}

// parseListeners reads the listening sockets out of a listing of /proc/net/tcp or tcp6.
func parseListeners(listing string) ([]netip.AddrPort, error) {
	const stateListen = "0A"
	var all []netip.AddrPort
	for line := range strings.Lines(listing) {
		// slot, local address, remote address, state, ...
		fields := strings.Fields(line)
		if len(fields) < 4 || fields[3] != stateListen {
			continue
		}
		addr, port, _ := strings.Cut(fields[1], ":")
		raw, err := hex.DecodeString(addr)
		if err != nil {
			return nil, err
		}
		// Words of 32 bits in the machine's byte order.
		for i := 0; i+4 <= len(raw); i += 4 {
			binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
		}
		ip, ok := netip.AddrFromSlice(raw)
		if !ok {
			return nil, fmt.Errorf("address %q", addr)
		}
		p, err := strconv.ParseUint(port, 16, 16)
		if err != nil {
			return nil, err
		}
		all = append(all, netip.AddrPortFrom(ip, uint16(p)))
	}
	return all, nil
}
