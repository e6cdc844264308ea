# SPDX-License-Identifier: GPL-2.0-or-later
"""
What a process may not do, whoever it runs as

A QEMU is given no more rights than the one before it, since a guest may have
taken that one over, and no fewer, since it might need them.
"""
import ctypes
import os
import re
import struct
from pathlib import Path
from typing import Iterator, List

# Of prctl()
SET_KEEPCAPS, CAPBSET_DROP, SET_NO_NEW_PRIVS, CAP_AMBIENT = 8, 24, 38, 47
AMBIENT_RAISE = 2
# The form in which the kernel takes 64 capabilities
CAPABILITY_VERSION = 0x20080522


def _prctl(*arguments: int) -> None:
    # What this cannot change is seen when the result is looked at.
    ctypes.CDLL(None).prctl(*(
        ctypes.c_ulong(word) for word in (*arguments, 0, 0, 0, 0)[:5]))


def _set_inheritable(wanted: int) -> None:
    """Set the inheritable capabilities; leave the others as they are."""
    libc = ctypes.CDLL(None)
    header = ctypes.create_string_buffer(
        struct.pack('Ii', CAPABILITY_VERSION, 0))
    data = ctypes.create_string_buffer(24)
    if libc.capget(header, data) == 0:
        words = list(struct.unpack('6I', data.raw[:24]))
        words[2], words[5] = wanted & 0xffffffff, wanted >> 32
        libc.capset(header, struct.pack('6I', *words))


class Confinement:
    """
    What confines a process.

    @param status: what the kernel says in its file "status"
    @param label: that of a security module, such as SELinux; '': none
    """
    def __init__(self, status: str, label: str) -> None:
        self.words = dict(re.findall(r'(?m)^(\w+):\s*(.*)', status))
        self.label = label

    @classmethod
    def of(cls, pid: int) -> 'Confinement':
        """That of a process."""
        proc = Path(f'/proc/{pid}')
        try:
            label = (proc / 'attr/current').read_text('utf-8').strip('\0\n')
        except OSError:
            label = ''          # there is no security module
        return cls((proc / 'status').read_text('utf-8'), label)

    def _bits(self, name: str) -> int:
        return int(self.words.get(name, '0'), 16)

    def _all(self, name: str) -> Iterator[int]:
        """The numbers of the capabilities in a set."""
        return (number for number in range(64)
                if self._bits(name) >> number & 1)

    def confine(self) -> None:
        """Confine this process in the same way, but for its user."""
        _set_inheritable(self._bits('CapInh'))
        present = set(self._all('CapBnd'))
        for number in range(64):
            if number not in present:
                _prctl(CAPBSET_DROP, number)
        if self._bits('CapAmb'):
            _prctl(SET_KEEPCAPS, 1)     # while the user changes

    def finish(self) -> None:
        """The rest, when the user is the right one."""
        for number in self._all('CapAmb'):
            _prctl(CAP_AMBIENT, AMBIENT_RAISE, number)
        if self.words.get('NoNewPrivs') == '1':
            _prctl(SET_NO_NEW_PRIVS, 1)

    def filters(self) -> int:
        """How many filters of system calls there are; at least."""
        return int(self.words.get('Seccomp_filters') or
                   self.words.get('Seccomp', '0') != '0')

    def differences(self, other: 'Confinement', drops: bool = False,
                    sandbox: bool = False) -> List[str]:
        """
        How another QEMU would be confined otherwise, in words.

        @param drops: does QEMU give privileges away by itself later?
        @param sandbox: does it confine itself later?
        """
        found = []
        names = ['CapInh', 'CapBnd', 'NoNewPrivs']
        if not drops:
            names += ['CapPrm', 'CapEff', 'CapAmb']
        for name in names:
            ours, theirs = (one.words.get(name) for one in (self, other))
            if ours != theirs:
                found.append(f'{name} {theirs} in place of {ours}')
        if self.filters() - sandbox > other.filters():
            found.append('without its filter of system calls (seccomp)')
        if self.label != other.label:
            found.append(f'with the label "{other.label}" in place of '
                         f'"{self.label}"')
        return found


class Turn:
    """When a process, or a thread, gets a processor, and which."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.processors = os.sched_getaffinity(pid)
        self.nice = os.getpriority(os.PRIO_PROCESS, pid)
        self.policy = os.sched_getscheduler(pid)
        self.priority = os.sched_getparam(pid)

    def give(self, pid: int) -> None:
        """Give another one the same (0: this process); OSError: cannot."""
        other = Turn(pid)
        if other.processors != self.processors:
            os.sched_setaffinity(pid, self.processors)
        if (other.policy, other.priority) != (self.policy, self.priority):
            os.sched_setscheduler(pid, self.policy, self.priority)
        if other.nice != self.nice:
            os.setpriority(os.PRIO_PROCESS, pid, self.nice)
