// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// SockRow is a socket that some container of a pod made, and its record.
type SockRow = socksSgSockRow

// Flags of a socket's record (enum sg_sock_flags).
const (
	SockRedirected uint32 = 1
	SockDNS        uint32 = 2
	SockPassive    uint32 = 4
	SockSent       uint32 = 16
)

// lister is the loaded iterator. It stays for the life of the process: loading it
// reads all of the kernel's types, which is most of the time that listing takes.
var lister = sync.OnceValues(func() (*ebpf.Program, error) {
	spec, err := loadSocks()
	if err != nil {
		return nil, fmt.Errorf("parse socks object: %w", err)
	}
	var objs struct {
		List *ebpf.Program `ebpf:"sg_list_socks"`
	}
	if err := spec.LoadAndAssign(&objs, nil); err != nil {
		return nil, fmt.Errorf("load socks object: %w", err)
	}
	return objs.List, nil
})

// ListSocks returns every socket that has a record in m, the pinned map socks, of
// all network namespaces. Sockets that come and go meanwhile may be missing.
// It needs Linux 5.10 and CAP_PERFMON.
func ListSocks(m *ebpf.Map) (rows []SockRow, err error) {
	prog, err := lister()
	if err != nil {
		return nil, err
	}
	it, err := link.AttachIter(link.IterOptions{Program: prog, Map: m})
	if err != nil {
		return nil, fmt.Errorf("attach to sockets: %w", err)
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	r, err := it.Open()
	if err != nil {
		return nil, fmt.Errorf("list sockets: %w", err)
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	for b := bufio.NewReaderSize(r, 1<<16); ; {
		var row SockRow
		err := binary.Read(b, binary.NativeEndian, &row)
		if errors.Is(err, io.EOF) {
			return rows, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read sockets: %w", err)
		}
		rows = append(rows, row)
	}
}
