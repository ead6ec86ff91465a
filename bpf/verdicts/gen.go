// SPDX-License-Identifier: Apache-2.0

// Package verdicts is for tests alone: it runs the pure
// functions of src/verdict.h, those of src/common.h that ask the tables, and
// the packet parser, in the kernel. Nothing that is shipped imports it.
package verdicts

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -Wall -Wextra -Werror -mcpu=v3 -I/usr/include/x86_64-linux-gnu -I../src" -type sg_case -type sg_query -type sg_inside_query -type sg_end -type sg_outside -type sg_addr -type sg_ports -type sg_flow -type sg_packet -type sg_policy -type sg_container -type sg_sock -type sg_role -type sg_action -type sg_counter -type sg_steer -type sg_inside -type sg_cost verdicts src/verdicts.bpf.c
