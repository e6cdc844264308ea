# SPDX-License-Identifier: GPL-2.0-or-later
"""
Capabilities, seccomp mode, no_new_privs and LSM label of a process

The new QEMU gets no more rights than the old one has, since the guest may have
taken control of the old one, and no fewer, since the new one may need them.
"""
import ctypes
from pathlib import Path
import re
import struct
from typing import Iterator, List


# Commands of prctl(2)
SET_KEEPCAPS, CAPBSET_DROP, SET_NO_NEW_PRIVS, CAP_AMBIENT = 8, 24, 38, 47
AMBIENT_RAISE = 2
# Version of the data of capset(2) that has 64 capabilities in each set
CAPABILITY_VERSION = 0x20080522


def _prctl(*arguments: int) -> None:
    # Errors are not looked at: Plan compares what the process has in the end.
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
    Capabilities, seccomp mode, no_new_privs and LSM label of a process.

    @param status: the text of /proc/PID/status
    @param label: of a Linux security module, such as SELinux; '': no label
    """
    def __init__(self, status: str, label: str) -> None:
        self.words = dict(re.findall(r'(?m)^(\w+):\s*(.*)', status))
        self.label = label

    @classmethod
    def of(cls, pid: int) -> 'Confinement':
        """Read them of a process."""
        proc = Path(f'/proc/{pid}')
        try:
            label = (proc / 'attr/current').read_text('utf-8').strip('\0\n')
        except OSError:
            label = ''          # no security module is active
        return cls((proc / 'status').read_text('utf-8'), label)

    def _bits(self, name: str) -> int:
        return int(self.words.get(name, '0'), 16)

    def _all(self, name: str) -> Iterator[int]:
        """The numbers of the capabilities in a set."""
        return (number for number in range(64)
                if self._bits(name) >> number & 1)

    def confine(self) -> None:
        """Confine this process alike; to be called before its user changes."""
        _set_inheritable(self._bits('CapInh'))
        present = set(self._all('CapBnd'))
        for number in range(64):
            if number not in present:
                _prctl(CAPBSET_DROP, number)
        if self._bits('CapAmb'):
            # The change of the user would clear all capabilities.
            _prctl(SET_KEEPCAPS, 1)

    def finish(self) -> None:
        """Complete confine(); to be called after the user has changed."""
        for number in self._all('CapAmb'):
            _prctl(CAP_AMBIENT, AMBIENT_RAISE, number)
        if self.words.get('NoNewPrivs') == '1':
            _prctl(SET_NO_NEW_PRIVS, 1)

    def filters(self) -> int:
        """The number of seccomp filters; an old kernel tells only "any"."""
        return int(self.words.get('Seccomp_filters') or
                   self.words.get('Seccomp', '0') != '0')

    def differences(self, other: 'Confinement', drops: bool = False,
                    sandbox: bool = False) -> List[str]:
        """
        How the confinement of another QEMU differs, in words.

        @param drops: will that QEMU drop privileges later (-run-with user=)?
        @param sandbox: will it add a seccomp filter later (-sandbox on)?
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
