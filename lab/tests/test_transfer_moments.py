# SPDX-License-Identifier: GPL-2.0-or-later
"""
Transfers at moments when little stands still

Back-ends come and go while nobody runs the guest, or while nobody uses them.
"""
import contextlib
import os
import signal
import socket
import struct
import subprocess
import time
from pathlib import Path
from select import select
from typing import Dict, Tuple

from lab import OBJ
from lab.machines.chain import (COPY, IGNORE_SHARED, Line, migration_error,
                                migration_status, status, wait_end)
from lab.machines.disks import Disk, Load
from lab.machines.relay import Relay, send
from lab.machines.vm import HOTPLUG_BUSES, VM
from lab.machines.watch import wait_for

from .testcase import main
from .transfer_case import TransferTest

DRIVER = '/sys/bus/virtio/drivers/virtio_blk'


class ResizedDisk(TransferTest):
    """A disk that grows when the VM has stopped to be handed over"""

    def set_up(self) -> VM:
        """Grow it; the migration waits, and the source has not seen it."""
        self.backend = self.daemon()
        self.line = Line(self, Disk(self.backend))
        self.source = self.line.boot()
        dest = self.line.send_half(self.source)
        self.backend.cmd('block_resize', **{'node-name': 'disk',
                                            'size': 32 << 20})
        return dest

    def check(self) -> None:
        """The guest must see it."""
        self.line.guest.wait_until(
            f'[ $(cat /sys/block/vda/size) = {(32 << 20) // 512} ]', 20)

    def test_moves(self) -> None:
        """The VM goes on at the destination."""
        dest = self.set_up()
        self.source.cmd('migrate-continue', state='pre-switchover')
        self.line.arrive(self.source, dest)
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


class UnloggedBackend(TransferTest):
    """A back-end that cannot say which memory it has written to"""

    def connect(self) -> NoLog:
        """Have it listen."""
        relay = NoLog(self.path('relay'), self.backend.path)
        self.addCleanup(relay.close)
        return relay

    def test_comes_while_memory_is_copied(self) -> None:
        """It may not write to it then."""
        self.backend = self.daemon()
        relay = self.connect()
        line = Line(self, mode=COPY, args=(
            '-chardev', f'socket,id=c-d,path={relay.path},reconnect-ms=100',
            '-device', 'vhost-user-blk-pci,id=d,chardev=c-d'))
        source = line.boot()
        line.guest.verify('vda', count=100)
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
        line.guest.verify('vda', count=100, seed=2)


class RestartedBackend(TransferTest):
    """A back-end with an inflight region that restarts at a bad moment"""

    def set_up(self, mode: str = IGNORE_SHARED, *args: str) -> None:
        """Boot a guest and put load on its disk."""
        self.backend = self.sample_backend()
        self.backend.start()
        self.disk = Disk(self.backend, chardev=',reconnect-ms=100')
        self.line = Line(self, self.disk, mode=mode)
        self.source = self.line.boot(*args)
        self.load = Load(self.line.guest, depth=32)

    def set_up_switchover(self) -> VM:
        """Migrate until the VM has stopped and nothing is handed over yet."""
        self.set_up()
        return self.line.send_half(self.source)

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
        self.line.transfer(self.source)
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
        self.line.arrive(self.source, dest)
        self.check()

    def test_while_memory_is_copied(self) -> None:
        """The next back-end, too, must say which memory it writes to."""
        set_log_base = 'vhost_user_write req:6 '
        self.set_up(COPY, '-trace', 'vhost_user_write')
        self.source.cmd('migrate-set-parameters', {'max-bandwidth': 1 << 20})
        dest = self.line.destination()
        self.line.send(self.source, dest)
        wait_for('the first back-end logs',
                 lambda: set_log_base in self.source.output())
        printed = len(self.source.output())
        self.restart(self.source)
        self.load.advance(300)
        self.assertIn(set_log_base, self.source.output()[printed:])
        self.source.cmd('migrate-set-parameters', {'max-bandwidth': 1 << 40})
        self.line.arrive(self.source, dest)
        self.check()

    def test_paused(self) -> None:
        """The VM is paused."""
        self.set_up()
        self.source.cmd('stop')
        self.restart(self.source)
        dest = self.line.destination()
        self.line.send(self.source, dest)
        self.line.settle(self.source, dest)
        dest.take_guest()
        dest.cmd('cont')
        self.check()

    def arrive_stopped(self) -> VM:
        """The VM has moved and not started; the back-end restarts."""
        self.set_up()
        dest = self.line.destination('-S')
        self.line.send(self.source, dest)
        self.line.settle(self.source, dest)
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
        log = self.path('log')
        self.set_up(COPY, '-trace', 'vhost_user_transfer_mode', '-D', log)
        self.source.cmd('migrate-set-parameters', {'max-bandwidth': 1})
        dest = self.line.destination()
        self.line.send(self.source, dest)
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


class SlowPort(TransferTest):
    """
    A virtio-serial port, whose host end does not read, moves in its memory

    The old QEMU must not go on with a ring that the new one works on.
    """
    @staticmethod
    def is_throttled(vm: VM) -> bool:
        """Does the port wait for the host to read?"""
        tree = vm.cmd('human-monitor-command', {'command-line': 'info qtree'})
        return 'throttle on' in str(tree)

    def connect(self, number: int) -> socket.socket:
        """Become the host end of the port in one of the QEMUs."""
        sock = socket.socket(socket.AF_UNIX)
        self.addCleanup(sock.close)
        sock.settimeout(30)
        sock.connect(self.path(f'port{number}'))
        return sock

    def args(self, number: int) -> Tuple[str, ...]:
        """The port, for one of the QEMUs."""
        return ('-chardev', f'socket,id=slow,path={self.path(f"port{number}")}'
                            ',server=on,wait=off',
                '-device', 'virtserialport,chardev=slow,name=slow')

    @staticmethod
    def write(line: Line, numbers: str) -> int:
        """Have the guest write lines to the port, each by itself."""
        return line.guest.start(
            'for port in /sys/class/virtio-ports/*; do '
            'if [ "$(cat $port/name)" = slow ]; then '
            f'for n in $(seq {numbers}); do echo $n; done '
            '>/dev/${port##*/}; fi; done')

    @staticmethod
    def read_to(sock: socket.socket, number: int) -> bytes:
        """Read to the end of a line."""
        text = b''
        while not text.endswith(f'\n{number}\n'.encode()):
            text += sock.recv(65536)
        return text

    def check_port(self, mode: str) -> None:
        """Each line arrives once, and the port goes on to work."""
        line = Line(self, mode=mode)
        source = line.boot(*self.args(0))
        old = self.connect(0)
        written = self.write(line, '20000')
        wait_for('the port is full', lambda: self.is_throttled(source))
        dest = line.destination(*self.args(1))
        new = self.connect(1)
        line.transfer(source, dest)
        after = self.read_to(new, 20000)
        self.assertEqual(line.guest.wait(written).status, 0)

        before = b''
        while self.is_throttled(source):
            if select([old], [], [], 0.01)[0]:
                before += old.recv(65536)
        written = self.write(line, '20001 30000')
        after += self.read_to(new, 30000)
        self.assertEqual(line.guest.wait(written).status, 0)
        source.shutdown()
        while data := old.recv(65536):
            before += data
        wanted = ''.join(f'{n}\n' for n in range(1, 30001)).encode()
        self.assertTrue(wanted == before + after,
                        f'{len(before)} bytes came before and {len(after)} '
                        f'after the transfer, {len(wanted)} in all were sent')

    def test_port_without_host(self) -> None:
        """Its host end comes when the VM runs already: the port works."""
        line = Line(self)
        source = line.boot(*self.args(0))
        self.connect(0)
        written = self.write(line, '20000')
        wait_for('the port is full', lambda: self.is_throttled(source))
        line.transfer(source, line.destination(*self.args(1)))
        self.read_to(self.connect(1), 20000)
        self.assertEqual(line.guest.wait(written).status, 0)

    def test_slow_port(self) -> None:
        """RAM is a file that both QEMUs have."""
        self.check_port(IGNORE_SHARED)

    def test_slow_port_copied_memory(self) -> None:
        """Each QEMU has RAM of its own."""
        self.check_port(COPY)


class Moments(TransferTest):
    """Snapshots, idle disks, settings that change"""

    def check_idle(self, mode: str) -> None:
        """Nobody uses the disk while the guest moves."""
        line = Line(self, Disk(self.daemon()), mode=mode)
        source = line.boot()
        line.guest.wait_until('[ -b /dev/vda ]')
        line.guest.verify('vda', count=100, seed=2)
        line.guest.run(f'dev=$(basename $(readlink -f /sys/block/vda/device));'
                       f'echo $dev >/tmp/dev; echo $dev >{DRIVER}/unbind')
        dest = line.transfer(source)
        line.guest.run(f'echo $(cat /tmp/dev) >{DRIVER}/bind')
        line.guest.wait_until('[ -b /dev/vda ]')
        line.guest.verify('vda', count=100, seed=3)
        load = Load(line.guest, seed=4)
        line.transfer(dest)
        load.advance(300)
        load.stop()

    def test_idle(self) -> None:
        """The guest's driver takes the disk after a live transfer."""
        self.check_idle(IGNORE_SHARED)

    def test_idle_copied_memory(self) -> None:
        """The guest's driver takes the disk after its memory was copied."""
        self.check_idle(COPY)

    def test_snapshot(self) -> None:
        """With the parameter on, savevm is still only a snapshot."""
        image = self.path('snapshot.qcow2')
        subprocess.run([OBJ / 'qemu-img', 'create', '-q', '-f', 'qcow2',
                        image, '1G'], check=True)
        line = Line(self, Disk(self.daemon()), mode=COPY, args=(
            '-drive', f'if=none,id=s,file={image}'))
        source = line.boot()
        load = Load(line.guest)
        line.prepare(source, source=True)
        said = source.cmd('human-monitor-command',
                          {'command-line': 'savevm a'})
        self.assertEqual(said, '')
        load.advance(300)
        load.stop()

    def test_source_opts_out(self) -> None:
        """A disk that only the destination expects does not run without."""
        disk = Disk(self.daemon())
        line = Line(self, disk, mode=COPY)
        source = line.boot(disks=[disk.but(',backend-transfer=off')])
        load = Load(line.guest)
        dest = line.destination()
        line.send(source, dest)
        wait_end(source, 'failed')
        wait_end(dest, 'failed')
        self.assertIn('backend-transfer', migration_error(dest))
        wait_for('the source runs', lambda: status(source) == 'running')
        load.advance(300)
        load.stop()

    def test_parameter_changed(self) -> None:
        """The parameter is turned off while the guest moves: too late."""
        line = Line(self, Disk(self.daemon()))
        source = line.boot()
        load = Load(line.guest)
        dest = line.send_half(source)
        source.cmd('migrate-set-parameters', {'backend-transfer': False})
        source.cmd('migrate-continue', state='pre-switchover')
        line.arrive(source, dest)
        load.advance(300)
        load.stop()

    def test_other_device_on_busy_backend(self) -> None:
        """Not only a disk can be plugged in when the back-end is free."""
        backend = self.daemon()
        source = Line(self, Disk(backend)).boot()
        other = Line(self, mode=COPY).vm('-S')
        other.launch()
        other.add_chardev('c', backend.path)
        for _ in range(2):
            error = other.qmp('device_add', {
                'driver': 'vhost-user-fs-pci', 'id': 'f', 'chardev': 'c',
                'tag': 't', 'bus': HOTPLUG_BUSES[0]})
            self.assertIn("'c'", str(error.get('error')))
            self.assertEqual(other.chardev('c').get('state'), 'postponed')
        source.shutdown()


if __name__ == '__main__':
    main()
