# SPDX-License-Identifier: GPL-2.0-or-later
"""
A guest and a back-end see each other's stores in the right order

TCG executes the guest's instructions.  Atomic ones must be memory barriers
for other processes, too, even if the VM has one vCPU only.  On stock QEMU 10.2
they are not: an interrupt of a vhost-user device can get lost, and the guest
then waits for its disk for ever.
"""
import os
import subprocess
from pathlib import Path

from lab import ROOT, existing

from .testcase import TestCase, main

# Without the fix, 22 of 1,000,000 rounds were seen to go wrong.
ROUNDS = 500_000
PROGRAM = Path(os.environ.get(
    'STOREBUFFER', ROOT / 'build/meson/lab/guest/storebuffer'))


class MemoryOrder(TestCase):
    """lab/guest/storebuffer.c, with one side in the guest"""

    def test_atomic_instructions(self) -> None:
        """Each of two processes stores, executes a barrier, and loads."""
        program = existing(PROGRAM, 'run meson compile -C build/meson')
        memory = self.scope.memory()
        vm = self.scope.vm(
            ram=f'memory-backend-file,share=on,mem-path={memory}').boot()
        for barrier in 'lock', 'xchg':
            with self.subTest(barrier):
                address = vm.guest.run(
                    f'storebuffer guest {ROUNDS} {barrier} >/out 2>&1 '
                    '3>&- 4>&- & until [ -s /out ]; do usleep 10000; done; '
                    'cat /out; rm /out').strip()
                host = subprocess.run(
                    [program, 'host', memory, address], check=True, text=True,
                    capture_output=True, timeout=300)
                self.assertEqual(int(host.stdout), 0)


if __name__ == '__main__':
    main()
