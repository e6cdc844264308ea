# SPDX-License-Identifier: GPL-2.0-or-later
"""
Command lines that people use, with the QEMU that is built here

A line is possible, and the VM is updated, or the dry run refuses it.  Unit
tests have all lines, with the reasons; here are those whose programs and
devices the tests have.
"""
import contextlib
import secrets
import shlex
import socket
import subprocess
from typing import Dict, Iterator, List

from qemu.live_update.vm.cmdline import CommandLine

from lab import OBJ, ROOT
from lab.machines.backend import StorageDaemon, make_disk
from lab.machines.monitor import Monitor
from lab.machines.tool import Tool

from .testcase import TestCase, main

BINARY = OBJ / 'qemu-system-x86_64'
LINES = ROOT / 'python/tests/live_update_lines.txt'
IMAGES = 'os.img', 'drive0', 'cd.iso'
OVERLAYS = 'os.qcow2', 'guest_os_image.qcow2', 'disk-0.qcow2'
# Sockets of the back-ends of disks
DISKS = ('vhost0.sock', 'vhost1.sock', 'vhost.1', 'vhost.socket',
         'vitastor1-user-blk.sock', 'vhost-src-blk1.sock')
# The monitors whose names differ from the others'
MONITORS = {'D17': 'VirtualBox VMs/qmp.sock'}
# What a dry run says: a word of the reason, or '' if the update is possible
OUTCOMES: Dict[str, str] = {
    'D1': '', 'D4': 'reconnect-ms', 'D5': '', 'D6': '', 'D8': '', 'D10': '',
    'D11': '', 'D12': '', 'D13': '', 'D14': 'chroot', 'D17': 'hostfwd_remove'}
# This QEMU has no VNC.
NOT_BUILT = 'vnc', 'display'


class Lines(TestCase):
    """VMs with these command lines"""

    def lines(self) -> Dict[str, List[str]]:
        """The words of each line, with paths in the test's folder."""
        text = LINES.read_text('utf-8').replace('/run/t', str(
            self.scope.folder)).replace('/dev/shm/ram0',
                                        str(self.scope.memory()))
        found = {}
        for line in text.splitlines():
            if line.startswith('#'):
                continue
            name, _, words = line.partition(' ::: ')
            options = CommandLine.parse(shlex.split(words))
            options.drop(*NOT_BUILT)
            found[name.split()[0]] = [
                *options.words(), '-display', 'none',
                *(() if any(options.named('daemonize'))
                  else ('-daemonize',))]
        return found

    @contextlib.contextmanager
    def surroundings(self) -> Iterator[None]:
        """Make the files, and start the servers, that the lines name."""
        for name in 'chroot', 'VirtualBox VMs':
            (self.scope.folder / name).mkdir()
        (self.scope.folder / 'master-key.aes').write_bytes(
            secrets.token_hex(16).encode())
        for name in IMAGES:
            make_disk(self.scope.path(name))
        for name in OVERLAYS:
            subprocess.run([OBJ / 'qemu-img', 'create', '-q', '-f', 'qcow2',
                            self.scope.path(name), '16M'], check=True)
        for name in DISKS:
            self.scope.backend(StorageDaemon(
                self.scope.path(name), make_disk(self.scope.path(
                    f'{name}.img')), options=',num-queues=2'))
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.scope.path('net0.socket'))
            listener.listen()
            yield

    def check(self, name: str, words: List[str], reason: str) -> None:
        """Start a VM with this line, and update it."""
        done = subprocess.run([BINARY, *words], stderr=subprocess.PIPE,
                              stdin=subprocess.DEVNULL, check=False)
        self.assertEqual(done.returncode, 0, done.stderr.decode())
        path = self.scope.path(MONITORS.get(name, 'qmp.sock'))
        with Monitor(path) as monitor:
            monitor.cmd('cont')
        update = ['--qmp', path, '--binary', str(BINARY)]
        outcome = Tool([*update, '--dry-run']).end()
        self.assertEqual(outcome.status, 1 if reason else 0, outcome)
        self.assertIn(reason, outcome.message)
        if not reason:
            outcome = Tool(update).end()
            self.assertEqual(outcome.status, 0, outcome)
        with Monitor(path) as monitor:
            self.assertEqual(monitor.cmd('query-status')['status'], 'running')
            monitor.cmd('quit')

    def test_lines(self) -> None:
        """All lines of which this QEMU can start a VM."""
        lines = self.lines()
        with self.surroundings():
            for name, reason in OUTCOMES.items():
                with self.subTest(name):
                    self.check(name, lines[name], reason)


if __name__ == '__main__':
    main()
