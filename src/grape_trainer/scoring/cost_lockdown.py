"""What the cost worker gives up before it reads a program's text: files, network, processes.

The interpreter knows no way to a file or a socket. This is the wall behind it, for a fault in the
interpreter, in the parser or in numpy:

- resource limits: no new file descriptor, no byte to a file, no new process, no core dump, memory
  as it is plus a margin, processor time;
- as root: an empty folder as root directory, then an unprivileged user, since root is not bound by
  the limit on processes;
- no new privileges, and a seccomp filter (Linux on x86-64 and 64-bit ARM) that lets through what
  an interpreter needs that computes: memory, locks, clocks, reading its requests and writing its
  answers. Every other system call fails with EPERM, executable memory included.

What a machine cannot do is left out and is said in the worker's first message.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
import sys

NOBODY = 65534

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_ALLOW, _DENY, _KILL = 0x7FFF0000, 0x00050001, 0x80000000  # _DENY: EPERM
_LOAD, _EQUAL, _MASKED, _RETURN = 0x20, 0x15, 0x45, 0x06  # classic BPF
_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16
_PROT_EXEC = 4

# machine -> (AUDIT_ARCH, read, write, mmap, mprotect, calls without conditions)
_CALLS = {
    'x86_64': (
        0xC000003E, 0, 1, 9, 10,
        # munmap brk rt_sigaction rt_sigprocmask rt_sigreturn mremap madvise exit exit_group
        # futex clock_gettime gettimeofday restart_syscall sched_yield getrandom sigaltstack
        # getpid gettid
        (11, 12, 13, 14, 15, 25, 28, 60, 231, 202, 228, 96, 219, 24, 318, 131, 39, 186),
    ),
    'aarch64': (
        0xC00000B7, 63, 64, 222, 226,
        (215, 214, 134, 135, 139, 216, 233, 93, 94, 98, 113, 169, 128, 124, 278, 132, 172, 178),
    ),
}  # fmt: skip


class _Filter(ctypes.Structure):
    _fields_ = (('length', ctypes.c_ushort), ('program', ctypes.c_char_p))


def lock_down(read_fd: int, write_fd: int, memory_bytes: int, cpu_s: int) -> dict[str, bool]:
    """Give up everything but two file descriptors; return which walls stand.

    Args:
        read_fd: where requests come from.
        write_fd: where answers go to.
        memory_bytes: address space above what is in use now.
        cpu_s: processor seconds of the process's whole life; a guard for when nobody watches.

    """
    walls = {'unprivileged': os.geteuid() != 0, 'empty_root': False}
    machine = platform.machine()
    _limit(resource.RLIMIT_AS, _address_space_bytes() + memory_bytes)
    if os.geteuid() == 0:
        os.chroot('.')
        walls['empty_root'] = True
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        walls['unprivileged'] = True
    _limit(resource.RLIMIT_CPU, cpu_s)
    for kind in ('CORE', 'FSIZE', 'NPROC', 'NOFILE', 'MEMLOCK'):
        _limit(getattr(resource, f'RLIMIT_{kind}'), 0)
    walls['seccomp'] = _filter_system_calls(machine, read_fd, write_fd)
    return walls


def _limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(kind, (value, value))


def _address_space_bytes() -> int:
    with open('/proc/self/statm', 'rb') as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _filter_system_calls(machine: str, read_fd: int, write_fd: int) -> bool:
    if not sys.platform.startswith('linux') or machine not in _CALLS:
        return False
    program = _filter_program(machine, read_fd, write_fd)
    content = b''.join(struct.pack('<HBBI', *instruction) for instruction in program)
    libc = ctypes.CDLL(None, use_errno=True)
    zeros = (ctypes.c_ulong(0),) * 3
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), *zeros):
        return False
    description = _Filter(len(program), content)
    return not libc.prctl(
        _PR_SET_SECCOMP,
        ctypes.c_ulong(_SECCOMP_MODE_FILTER),
        ctypes.byref(description),
        *zeros[:2],
    )


def _filter_program(machine: str, read_fd: int, write_fd: int) -> list[tuple[int, int, int, int]]:
    """Return the filter as (code, jump if true, jump if false, value)."""
    architecture, read, write, mmap, mprotect, plain = _CALLS[machine]
    program = [
        (_LOAD, 0, 0, _ARCH_AT),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
    ]
    for call, fd in ((read, read_fd), (write, write_fd)):
        program += [
            (_EQUAL, 0, 4, call),
            (_LOAD, 0, 0, _ARGUMENTS_AT),
            (_EQUAL, 0, 1, fd),
            (_RETURN, 0, 0, _ALLOW),
            (_RETURN, 0, 0, _DENY),
        ]
    for call in (mmap, mprotect):
        program += [
            (_EQUAL, 0, 4, call),
            (_LOAD, 0, 0, _ARGUMENTS_AT + 2 * 8),
            (_MASKED, 0, 1, _PROT_EXEC),
            (_RETURN, 0, 0, _DENY),
            (_RETURN, 0, 0, _ALLOW),
        ]
    for call in plain:
        program += [(_EQUAL, 0, 1, call), (_RETURN, 0, 0, _ALLOW)]
    return [*program, (_RETURN, 0, 0, _DENY)]
