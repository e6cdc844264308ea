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
from typing import Any, List, Optional, Union

import pycotap

from lab.machines.backend import (Backend, SampleBackend, StorageDaemon,
                                  make_disk)
from lab.machines.evidence import describe_all
from lab.machines.vm import VM


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
        """A VM that is not started yet; see vm.VM."""
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


class Result(pycotap.TAPTestResult):    # type: ignore[misc]
    """TAP, in which a test with a subtest that fails is "not ok"."""

    def __init__(self, count: int) -> None:
        errors = pycotap.LogMode.LogToError
        super().__init__(sys.stdout, sys.stderr, errors, errors)
        self._subtests_failed = False
        # First, so that it is seen if the run ends before its end.
        self.print_raw(f'1..{count}\n')

    def startTest(self, test: unittest.TestCase) -> None:
        self._subtests_failed = False
        super().startTest(test)

    def addSubTest(self, test: unittest.TestCase,
                   subtest: unittest.TestCase, err: Any) -> None:
        super().addSubTest(test, subtest, err)
        if err:
            self._subtests_failed = True
            kind = self.failures if issubclass(err[0], test.failureException) \
                else self.errors
            self.message.write(f'{subtest}\n{kind[-1][1]}\n')

    def ok(self, test: unittest.TestCase,
           directive: Optional[str] = None) -> None:
        """It did not fail by itself."""
        if not self._subtests_failed:
            super().ok(test, directive)

    def not_ok(self, test: unittest.TestCase) -> None:
        """It failed by itself."""
        self._subtests_failed = False
        super().not_ok(test)

    def stopTest(self, test: unittest.TestCase) -> None:
        if self._subtests_failed:       # then unittest says no more of it
            self.not_ok(test)
        super().stopTest(test)

    def printErrors(self) -> None:
        self._reset_streams()


class Runner:
    """Runs tests, with TAP on stdout."""

    @staticmethod
    def run(test: Union[unittest.TestSuite, unittest.TestCase]
            ) -> unittest.TestResult:
        """Run them all."""
        result = Result(test.countTestCases())
        test(result)
        result.printErrors()
        return result


def main() -> None:
    """Run the tests of the module that was started, with TAP on stdout."""
    end_on_signals()
    unittest.main(testRunner=Runner)
