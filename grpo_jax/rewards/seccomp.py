"""The system calls that code in the sandbox must do without, as a seccomp filter in the kernel's own format.

One process without children or threads: so its limit of memory is that of all, and there is nothing to bomb with.
Limits on the number of processes would not do, because the kernel does not hold root to them.
"""

import platform
import struct

MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column below, and AUDIT_ARCH
REFUSED = {  # numbers on x86-64 and ARM64, from the kernel's unistd.h
    "fork": (57, None),
    "vfork": (58, None),
    "clone": (56, 220),
    "clone3": (435, 435),
    "socket": (41, 198),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "memfd_create": (319, 279),  # memory that RLIMIT_AS does not count
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "io_uring_setup": (425, 425),
    "userfaultfd": (323, 282),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "open_by_handle_at": (304, 265),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "kexec_load": (246, 104),
}
FOREIGN = 0x40000000  # from here on, numbers are those of the x32 interface, which would get around the list

_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050001, 0x80000000  # refused calls fail with EPERM


def filter_program(machine: str | None = None) -> bytes:
    """The filter for a machine, as `platform.machine` names it; None is this one."""
    name = platform.machine() if machine is None else machine
    if name not in MACHINES:
        raise OSError(f"The sandbox has a filter of system calls for {' and '.join(MACHINES)}; this machine is {name}.")
    column, architecture = MACHINES[name]
    numbers = [number for pair in REFUSED.values() if (number := pair[column]) is not None]
    lines = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    lines.append((_AT_LEAST, len(numbers) + 1, 0, FOREIGN))
    lines += [(_EQUAL, len(numbers) - index, 0, number) for index, number in enumerate(numbers)]
    lines += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _REFUSE)]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)
