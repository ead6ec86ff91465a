// SPDX-License-Identifier: Apache-2.0

package bpf

// The objects and their Go types are committed, so that building needs Go
// alone. `make generate` runs this with the clang that scripts/deps.sh
// installs.
//
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -Wall -Wextra -Werror -mcpu=v3 -I/usr/include/x86_64-linux-gnu" -no-global-types -type sg_counters -type sg_policy -type sg_policy_info -type sg_prefix_key -type sg_subject_key -type sg_executable -type sg_seen -type sg_seen_unix -type sg_seen_count -type sg_rule_info -type sg_rule_info_key -type sg_addr -type sg_container -type sg_ports -type sg_pod -type sg_pod_addr -type sg_rule_key -type sg_listener_key -type sg_container_info -type sg_pod_info -type sg_counter -type sg_role -type sg_slot -type sg_sock -type sg_tuple -type sg_unix_key -type sg_unix_rule -type sg_orig -type sg_conn_key -type sg_accel_counter -type sg_accel_counters -type sg_accel_info -type sg_route -type sg_tls_keys -type sg_tls_ring -type sg_tls_policy_key -type sg_tls_policy -type sg_tls_target -type sg_event -type sg_event_text -type sg_emit_args -type sg_attach_times -type sg_event_control -type sg_event_source -type sg_event_budget node src/sidegate.bpf.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -Wall -Wextra -Werror -mcpu=v3 -I/usr/include/x86_64-linux-gnu" pod src/pod.bpf.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -Wall -Wextra -Werror -mcpu=v3 -I/usr/include/x86_64-linux-gnu" -type sg_unix_set -type sg_event_unix unix src/unix.bpf.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -Wall -Wextra -Werror -mcpu=v3 -I/usr/include/x86_64-linux-gnu" lsm src/lsm.bpf.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -Wall -Wextra -Werror -mcpu=v3 -I/usr/include/x86_64-linux-gnu" -type sg_endpoint_drop endpoint src/endpoint.bpf.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -Wall -Wextra -Werror -mcpu=v3 -I/usr/include/x86_64-linux-gnu" -no-global-types accel src/accel.bpf.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -Wall -Wextra -Werror -mcpu=v3 -I/usr/include/x86_64-linux-gnu" -no-global-types selftest src/selftest.bpf.c
