# SPDX-License-Identifier: GPL-2.0-or-later
"""
A back-end changes, comes or restarts at some moment of a transfer
"""
import contextlib
import os
import signal
import socket
import struct
import time
from pathlib import Path
from select import select
from typing import Dict

from lab.machines.chain import (COPY, IGNORE_SHARED, Chain, migration_error,
                                migration_status, wait_end)
from lab.machines.disks import Disk, Load
from lab.machines.relay import Relay, send
from lab.machines.vm import VM
from lab.machines.watch import wait_for

from .testcase import TestCase, main


class ResizedDisk(TestCase):
    """A disk that grows when the VM has stopped to be handed over"""

    def set_up(self) -> VM:
        """Grow it; the migration waits, and the source has not seen it."""
        self.backend = self.scope.daemon()
        self.chain = Chain(self.scope, Disk(self.backend))
        self.source = self.chain.boot()
        dest = self.chain.send_half(self.source)
        self.backend.cmd('block_resize', **{'node-name': 'disk',
                                            'size': 32 << 20})
        return dest

    def check(self) -> None:
        """The guest must see it."""
        self.chain.guest.wait_until(
            f'[ $(cat /sys/block/vda/size) = {(32 << 20) // 512} ]', 20)

    def test_moves(self) -> None:
        """The VM goes on at the destination."""
        dest = self.set_up()
        self.source.cmd('migrate-continue', state='pre-switchover')
        self.chain.arrive(self.source, dest)
        self.check()

    def test_stays(self) -> None:
        """The VM goes on at the source."""
        self.set_up()
        self.source.cmd('migrate_cancel')
        self.check()


class NoLog(Relay):
    """Stands before a back-end, and hides that it can log"""
    HIDDEN = {1: 1 << 26, 15: 1 << 1}       # bits of what it can, by request

    def _run(self) -> None:
        while not select([self._woken], [], [], 0)[0]:
            with contextlib.suppress(ConnectionError):  # the next one comes
                super()._run()

    def _pass_on(self, end: socket.socket, source: socket.socket,
                 dest: socket.socket) -> bool:
        # A message at a time: files go with the header of one
        header, fds, _, _ = socket.recv_fds(end, 12, 8,
                                            socket.MSG_CMSG_CLOEXEC)
        if not header:
            raise ConnectionError('the end of the connection')
        request, _, size = struct.unpack('<III', header)
        data = end.recv(size, socket.MSG_WAITALL) if size else b''
        if end is dest and request in self.HIDDEN:
            value, = struct.unpack('<Q', data)
            data = struct.pack('<Q', value & ~self.HIDDEN[request])
        send(source if end is dest else dest, header + data, fds)
        return True


class UnloggedBackend(TestCase):
    """A back-end that cannot say which memory it has written to"""

    def connect(self) -> NoLog:
        """Have it listen."""
        relay = NoLog(self.scope.path('relay'), self.backend.path)
        self.scope.callback(relay.close)
        return relay

    def test_comes_while_memory_is_copied(self) -> None:
        """It may not write to it then."""
        self.backend = self.scope.daemon()
        relay = self.connect()
        chain = Chain(self.scope, mode=COPY, args=(
            '-chardev', f'socket,id=c-d,path={relay.path},reconnect-ms=100',
            '-device', 'vhost-user-blk-pci,id=d,chardev=c-d'))
        source = chain.boot()
        chain.guest.verify('vda', count=100)
        target: Dict[str, object] = {'uri': 'exec:cat >/dev/null'}
        self.assertIn('LOG', str(source.qmp('migrate', target)))

        relay.close()
        wait_for('it is gone', lambda:
                 source.chardev('c-d')['state'] != 'connected')
        source.cmd('migrate-set-parameters', {'max-bandwidth': 1 << 20})
        source.cmd('migrate', target)
        self.connect()
        wait_for('it is refused', lambda:
                 'disallowing migration blocker' in source.output())
        source.cmd('migrate_cancel')
        chain.guest.verify('vda', count=100, seed=2)


class RestartedBackend(TestCase):
    """A back-end with an inflight region that restarts at a bad moment"""

    def set_up(self, mode: str = IGNORE_SHARED, *args: str) -> None:
        """Boot a guest and put load on its disk."""
        self.backend = self.scope.sample_backend()
        self.disk = Disk(self.backend, chardev=',reconnect-ms=100')
        self.chain = Chain(self.scope, self.disk, mode=mode)
        self.source = self.chain.boot(*args)
        self.load = Load(self.chain.guest, depth=32)

    def set_up_switchover(self) -> VM:
        """Migrate until the VM has stopped and nothing is handed over yet."""
        self.set_up()
        return self.chain.send_half(self.source)

    def restart(self, vm: VM) -> None:
        """Restart the back-end; the VM must connect again."""
        self.backend.kill()
        self.disk.wait_connected(vm, False)
        self.backend.start()
        self.disk.wait_connected(vm)

    def check(self) -> None:
        """The guest goes on, and no request is lost."""
        self.load.advance(300)
        self.load.stop()

    def test_before_transfer(self) -> None:
        """It has restarted at the source, which then hands it over."""
        self.set_up()
        self.backend.kill()
        self.backend.start()
        self.load.advance(300)
        self.chain.transfer(self.source)
        self.check()

    def test_gone_before_switchover(self) -> None:
        """It is gone when it is to be handed over: the source goes on."""
        dest = self.set_up_switchover()
        self.backend.kill()
        self.disk.wait_connected(self.source, False)
        self.source.cmd('migrate-continue', state='pre-switchover')
        wait_end(self.source, 'failed')
        self.assertIn('not connected', migration_error(self.source))
        dest.shutdown()
        self.backend.start()
        self.check()

    def test_before_switchover(self) -> None:
        """The VM has stopped, its rings have not."""
        dest = self.set_up_switchover()
        self.restart(self.source)
        self.source.cmd('migrate-continue', state='pre-switchover')
        self.chain.arrive(self.source, dest)
        self.check()

    def test_while_memory_is_copied(self) -> None:
        """The next back-end, too, must say which memory it writes to."""
        set_log_base = 'vhost_user_write req:6 '
        self.set_up(COPY, '-trace', 'vhost_user_write')
        self.source.cmd('migrate-set-parameters', {'max-bandwidth': 1 << 20})
        dest = self.chain.destination()
        self.chain.send(self.source, dest)
        wait_for('the first back-end logs',
                 lambda: set_log_base in self.source.output())
        printed = len(self.source.output())
        self.restart(self.source)
        self.load.advance(300)
        self.assertIn(set_log_base, self.source.output()[printed:])
        self.source.cmd('migrate-set-parameters', {'max-bandwidth': 1 << 40})
        self.chain.arrive(self.source, dest)
        self.check()

    def test_paused(self) -> None:
        """The VM is paused."""
        self.set_up()
        self.source.cmd('stop')
        self.restart(self.source)
        dest = self.chain.destination()
        self.chain.send(self.source, dest)
        self.chain.settle(self.source, dest)
        dest.take_guest()
        dest.cmd('cont')
        self.check()

    def arrive_stopped(self) -> VM:
        """The VM has moved and not started; the back-end restarts."""
        self.set_up()
        dest = self.chain.destination('-S')
        self.chain.send(self.source, dest)
        self.chain.settle(self.source, dest)
        self.backend.kill()
        self.disk.wait_connected(dest, False)
        self.backend.start()
        return dest

    def test_arrived(self) -> None:
        """Nobody owns it; the destination goes on."""
        dest = self.arrive_stopped()
        dest.take_guest()
        dest.cmd('cont')
        self.check()

    def test_arrived_and_taken_back(self) -> None:
        """Nobody owns it; the source goes on, the destination lets it."""
        dest = self.arrive_stopped()
        self.source.cmd('cont')
        self.check()
        self.assertIn('error', dest.qmp('cont'))

    def test_killed_while_drained(self) -> None:
        """It dies while its ring is drained: nobody waits for it."""
        log = self.scope.path('log')
        self.set_up(COPY, '-trace', 'vhost_user_transfer_mode', '-D', log)
        self.source.cmd('migrate-set-parameters', {'max-bandwidth': 1})
        dest = self.chain.destination()
        self.chain.send(self.source, dest)
        wait_for('memory is copied',
                 lambda: migration_status(self.source) == 'active')
        os.kill(self.backend.pid, signal.SIGSTOP)
        self.source.cmd('migrate-set-parameters', {'max-bandwidth': 1 << 32})
        # The monitor does not answer meanwhile.
        wait_for('it drains', lambda:
                 'restart' in Path(log).read_text('utf-8'))
        started = time.monotonic()
        self.backend.kill()
        self.backend.start()
        wait_end(self.source, 'failed')
        self.assertLess(time.monotonic() - started, 10)
        self.check()


if __name__ == '__main__':
    main()
