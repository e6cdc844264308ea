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
    """A disk whose size grows while the VM is stopped for a transfer"""

    def set_up(self) -> VM:
        """Resize the disk while the migration is in pre-switchover."""
        self.backend = self.scope.daemon()
        self.chain = Chain(self.scope, Disk(self.backend))
        self.source = self.chain.boot()
        dest = self.chain.send_half(self.source)
        self.backend.cmd('block_resize', **{'node-name': 'disk',
                                            'size': 32 << 20})
        return dest

    def check(self) -> None:
        """The guest must see the new size."""
        self.chain.guest.wait_until(
            f'[ $(cat /sys/block/vda/size) = {(32 << 20) // 512} ]', 20)

    def test_moves(self) -> None:
        """The VM runs in the destination."""
        dest = self.set_up()
        self.source.cmd('migrate-continue', state='pre-switchover')
        self.chain.arrive(self.source, dest)
        self.check()

    def test_stays(self) -> None:
        """The migration is cancelled: the VM runs in the source."""
        self.set_up()
        self.source.cmd('migrate_cancel')
        self.check()


class NoLog(Relay):
    """Relays the messages of a back-end without its features for logging"""
    HIDDEN = {1: 1 << 26, 15: 1 << 1}       # feature bits, by request

    def _run(self) -> None:
        while not select([self._woken], [], [], 0)[0]:
            with contextlib.suppress(ConnectionError):  # the next one comes
                super()._run()

    def _pass_on(self, end: socket.socket, source: socket.socket,
                 dest: socket.socket) -> bool:
        # One message at a time, since files come with its header
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
    """A back-end without VHOST_F_LOG_ALL and the protocol feature LOG_SHMFD"""

    def connect(self) -> NoLog:
        """Start a relay to the back-end."""
        relay = NoLog(self.scope.path('relay'), self.backend.path)
        self.scope.callback(relay.close)
        return relay

    def test_comes_while_memory_is_copied(self) -> None:
        """A disk whose back-end cannot log must not connect meanwhile."""
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
        wait_for('the connection is lost', lambda:
                 source.chardev('c-d')['state'] != 'connected')
        source.cmd('migrate-set-parameters', {'max-bandwidth': 1 << 20})
        source.cmd('migrate', target)
        self.connect()
        wait_for('the connection is refused', lambda:
                 'disallowing migration blocker' in source.output())
        source.cmd('migrate_cancel')
        chain.guest.verify('vda', count=100, seed=2)


class RestartedBackend(TestCase):
    """A back-end with an inflight region that restarts during a transfer"""

    def set_up(self, mode: str = IGNORE_SHARED, *args: str) -> None:
        """Boot a guest and put load on its disk."""
        self.backend = self.scope.sample_backend()
        self.disk = Disk(self.backend, chardev=',reconnect-ms=100')
        self.chain = Chain(self.scope, self.disk, mode=mode)
        self.source = self.chain.boot(*args)
        self.load = Load(self.chain.guest, depth=32)

    def set_up_switchover(self) -> VM:
        """Migrate until the VM is stopped, before anything is handed over."""
        self.set_up()
        return self.chain.send_half(self.source)

    def restart(self, vm: VM) -> None:
        """Restart the back-end; QEMU must reconnect."""
        self.backend.kill()
        self.disk.wait_connected(vm, False)
        self.backend.start()
        self.disk.wait_connected(vm)

    def check(self) -> None:
        """The load must advance, and no request be lost."""
        self.load.advance(300)
        self.load.stop()

    def test_before_transfer(self) -> None:
        """The back-end restarts in the source, before the transfer."""
        self.set_up()
        self.backend.kill()
        self.backend.start()
        self.load.advance(300)
        self.chain.transfer(self.source)
        self.check()

    def test_gone_before_switchover(self) -> None:
        """The back-end is killed before the switchover: the transfer fails."""
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
        """The back-end restarts before the switchover: the VM is stopped."""
        dest = self.set_up_switchover()
        self.restart(self.source)
        self.source.cmd('migrate-continue', state='pre-switchover')
        self.chain.arrive(self.source, dest)
        self.check()

    def test_while_memory_is_copied(self) -> None:
        """A restarted back-end, too, must log which memory it writes."""
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
        """The back-end restarts while the VM is paused."""
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
        """Migrate to a QEMU with -S, and restart the back-end."""
        self.set_up()
        dest = self.chain.destination('-S')
        self.chain.send(self.source, dest)
        self.chain.settle(self.source, dest)
        self.backend.kill()
        self.disk.wait_connected(dest, False)
        self.backend.start()
        return dest

    def test_arrived(self) -> None:
        """After the restart the destination is continued."""
        dest = self.arrive_stopped()
        dest.take_guest()
        dest.cmd('cont')
        self.check()

    def test_arrived_and_taken_back(self) -> None:
        """After the restart the source is continued, and owns the VM."""
        dest = self.arrive_stopped()
        self.source.cmd('cont')
        self.check()
        self.assertIn('error', dest.qmp('cont'))

    def test_killed_while_drained(self) -> None:
        """The back-end is killed while its ring is drained: no timeout."""
        log = self.scope.path('log')
        self.set_up(COPY, '-trace', 'vhost_user_transfer_mode', '-D', log)
        self.source.cmd('migrate-set-parameters', {'max-bandwidth': 1})
        dest = self.chain.destination()
        self.chain.send(self.source, dest)
        wait_for('memory is copied',
                 lambda: migration_status(self.source) == 'active')
        os.kill(self.backend.pid, signal.SIGSTOP)
        self.source.cmd('migrate-set-parameters', {'max-bandwidth': 1 << 32})
        # The monitor does not answer during that: read the log.
        wait_for('the ring is drained', lambda:
                 'restart' in Path(log).read_text('utf-8'))
        started = time.monotonic()
        self.backend.kill()
        self.backend.start()
        wait_end(self.source, 'failed')
        self.assertLess(time.monotonic() - started, 10)
        self.check()


if __name__ == '__main__':
    main()
