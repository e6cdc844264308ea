# SPDX-License-Identifier: GPL-2.0-or-later
"""
What functional tests share: resources that go away with the test, and TAP
"""
import os
import signal
import socket
import sys
import tempfile
import unittest
from typing import Any, List, Optional

import pycotap

from guest.backend import Backend, SampleBackend, StorageDaemon, make_disk
from guest.vm import VM

from .evidence import describe_all


class Server:
    """A UNIX socket server for one client, which is QEMU."""

    def __init__(self, path: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(1)
        self._listener.settimeout(30)
        self._client = socket.socket()

    def accept(self) -> None:
        """Take the connection that QEMU has made."""
        self._client, _ = self._listener.accept()
        self._client.settimeout(30)

    def send(self, text: str) -> None:
        """Send to QEMU."""
        self._client.sendall(text.encode())

    def expect(self, text: str) -> None:
        """Wait until QEMU has sent this, whatever comes before it."""
        received = b''
        while text.encode() not in received:
            data = self._client.recv(4096)
            if not data:
                raise EOFError(f'expected {text!r} from QEMU, got '
                               f'{received!r} and the end')
            received += data

    def close(self) -> None:
        """Close the sockets."""
        self._client.close()
        self._listener.close()


class TestCase(unittest.TestCase):
    """A test whose processes, sockets and files go away with it."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix='qemu-functional-')
        self.addCleanup(folder.cleanup)
        self._folder = folder.name
        self._vms: List[VM] = []

    def run(self, result: Optional[unittest.TestResult] = None
            ) -> Optional[unittest.TestResult]:
        try:
            return super().run(result)
        except KeyboardInterrupt:
            self.doCleanups()       # which unittest leaves out
            raise

    def doCleanups(self) -> None:
        outcome: Any = getattr(self, '_outcome')
        if outcome and not outcome.success:
            self.keep_evidence()
        super().doCleanups()

    def evidence(self) -> str:
        """What can be seen of its processes."""
        return describe_all(self._vms)

    def keep_evidence(self) -> None:
        """The test has failed."""
        print(self.evidence(), file=sys.stderr)

    def path(self, name: str) -> str:
        """A path in the test's own folder."""
        return os.path.join(self._folder, name)

    def vm(self, *args: str, **options: Any) -> VM:
        """A VM that is not started yet; see guest.vm.VM."""
        vm = VM(*args, **options)
        self._vms.append(vm)
        self.addCleanup(vm.shutdown)
        return vm

    def _backend(self, backend: Backend) -> Backend:
        self.addCleanup(backend.__exit__, None, None, None)
        return backend

    def storage_daemon(self, name: str = 'disk') -> Backend:
        """A qemu-storage-daemon that is not started yet."""
        return self._backend(StorageDaemon(
            self.path(f'{name}.sock'), make_disk(self.path(f'{name}.img'))))

    def sample_backend(self, name: str = 'disk') -> Backend:
        """A contrib/vhost-user-blk that is not started yet."""
        return self._backend(SampleBackend(
            self.path(f'{name}.sock'), make_disk(self.path(f'{name}.img'))))

    def server(self, name: str) -> Server:
        """A socket server that listens at path(name)."""
        server = Server(self.path(name))
        self.addCleanup(server.close)
        return server


def end_on_signals() -> None:
    """Have SIGTERM, too, end what we have started before it ends us."""
    for number in signal.SIGINT, signal.SIGTERM:
        signal.signal(number, signal.default_int_handler)


def main() -> None:
    """Run the tests of the module that was started, with TAP on stdout."""
    end_on_signals()
    unittest.main(testRunner=pycotap.TAPTestRunner(
        message_log=pycotap.LogMode.LogToError,
        test_output_log=pycotap.LogMode.LogToError))
