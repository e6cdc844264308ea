# SPDX-License-Identifier: GPL-2.0-or-later
"""
The watch of a guest's requests sees what the guest and its disks have done

blkverify says how many requests there were.
"""
import time
from typing import Any, Awaitable, Callable, List, Tuple

from qemu.live_update.report.rings import (NotWatchable, Ring, Watch,
                                           find_rings, locate)

from lab.machines.backend import THROTTLE, StorageDaemon, make_disk
from lab.machines.chain import COPY, CPR, IGNORE_SHARED, Chain, status
from lab.machines.disks import Disk, Load
from lab.machines.monitor import Monitor
from lab.machines.vm import VM
from lab.machines.watch import wait_for

from .testcase import TestCase, main

DEPTH = 32


def when(event: Any) -> float:
    """The timestamp of a QMP event in seconds."""
    stamp = event['timestamp']
    return float(stamp['seconds'] + stamp['microseconds'] / 1e6)


def pid_of(vm: VM) -> int:
    """The process id of a running VM."""
    pid = vm.get_pid()
    assert pid
    return pid


class Guests(TestCase):
    """Guests under load"""

    def set_up(self, *disks: Disk, mode: str = IGNORE_SHARED,
               args: Tuple[str, ...] = ()) -> VM:
        """Boot a guest; all its QEMUs have a second monitor at "qmp"."""
        # So large that it cannot wrap around between two looks of a watch
        # that gets little CPU time
        disks = tuple(disk.but(',queue-size=1024') for disk in disks)
        self.chain = Chain(self.scope, *disks, mode=mode, args=(
            '-qmp', f'unix:{self.scope.folder}/qmp,server=on,wait=off',
            *args))
        vm = self.chain.boot()
        for letter in 'abc'[:sum('-blk-pci' in arg for arg in vm.args)]:
            sysfs = f'/sys/block/vd{letter}'
            self.chain.guest.wait_until(f'grep -q "^ *0 *0$" {sysfs}/inflight')
            # The block layer must not merge requests.
            self.chain.guest.run(f'echo 2 >{sysfs}/queue/nomerges')
        return vm

    def ask(self, function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        """Call a function with a QMPClient of the newest QEMU."""
        with Monitor(self.scope.path('qmp')) as monitor:
            return monitor.do(lambda qmp: function(qmp, *args))

    def find(self) -> List[Ring]:
        """The rings of the newest QEMU, all of which must be watchable."""
        rings, left_out = self.ask(find_rings)
        self.assertEqual(left_out, {})
        return list(rings)

    def check(self, watch: Watch, load: Load) -> None:
        """End all; the watch must have seen all requests of blkverify."""
        done = sum(result.written + result.verified for result in load.stop())
        watch.stop()
        self.assertEqual(watch.missed, 0)
        self.assertEqual(len(watch.requests), done)
        self.assertEqual(watch.in_flight(time.time()), 0)
        for request in watch.requests:
            assert request.submitted
            self.assertLessEqual(request.submitted, request.completed)
            self.assertLessEqual(request.completed, request.ended)

    def start(self, vm: VM) -> Watch:
        """Watch all rings."""
        watch = Watch(pid_of(vm), self.find())
        self.scope.callback(watch.stop)
        watch.start()
        return watch

    def pause(self, watch: Watch, source: VM, dest: VM
              ) -> Tuple[float, float, float]:
        """
        When the guest was paused; the watch must have seen no request then.

        Returns begin, late and end.  Until "late" the watch may note requests
        that ended before the pause.
        """
        begin = when(source.event_wait('STOP'))
        end = when(dest.event_wait('RESUME'))
        late = begin + watch.resolution(begin - 0.1, end)
        self.assertEqual([request for request in watch.requests
                          if late < request.ended < end], [])
        return begin, late, end

    @staticmethod
    def limit_writes(daemon: StorageDaemon, rate: int) -> None:
        """Limit the writes a second of a disk."""
        daemon.cmd('qom-set', path='/objects/group', property='limits',
                   value={'iops-write': rate})

    def slow_writes(self, **options: Any) -> StorageDaemon:
        """A disk whose reads overtake its writes."""
        daemon = self.scope.daemon('disk', THROTTLE, **options)
        self.limit_writes(daemon, 500)
        return daemon

    def test_out_of_order(self) -> None:
        """Several queues with completions that are out of order."""
        vm = self.set_up(Disk(self.slow_writes(options=',num-queues=2'),
                              options=',num-queues=2'), args=('-smp', '2'))
        watch = self.start(vm)
        load = Load(self.chain.guest, depth=DEPTH)
        load.advance(2000)
        # A guest that gets little CPU time may have none in flight.
        wait_for('requests are in flight', lambda: watch.in_flight(
            time.time()) in range(1, DEPTH + 1))
        self.check(watch, load)
        # One queue may have too few requests to be out of order.
        times = [[request.submitted or 0 for request in watch.requests
                  if request.queue == queue] for queue in range(2)]
        self.assertNotEqual(times, [sorted(each) for each in times])

    def check_transfer(self, mode: str) -> None:
        """The watch goes on in the new QEMU, which has the same memory."""
        disk = self.slow_writes()
        source = self.set_up(Disk(disk), mode=mode)
        watch = self.start(source)
        load = Load(self.chain.guest, depth=DEPTH)

        def in_flight() -> int:
            return watch.in_flight(time.time())

        # No request may complete in the pause, however busy the host is.
        self.limit_writes(disk, 1)
        wait_for('all requests wait', lambda: in_flight() == DEPTH)
        dest = self.chain.send_half(source)
        self.limit_writes(disk, 500)
        wait_for('requests complete', lambda: in_flight() < DEPTH)
        source.cmd('migrate-continue', state='pre-switchover')
        self.chain.settle(source, dest)
        begin, late, end = self.pause(watch, source, dest)
        self.assertIn(watch.in_flight(begin), (DEPTH, DEPTH - 1))
        source.shutdown()
        dest.take_guest()
        load.advance(500)
        self.assertGreater(watch.longest_gap(late, end), end - late)
        # The disk has completed requests while the guest was paused.
        self.assertTrue([request for request in watch.requests
                         if request.completed < end < request.ended])
        self.check(watch, load)

    def test_transfer(self) -> None:
        """The memory is a file that both QEMUs open."""
        self.check_transfer(IGNORE_SHARED)

    def test_transfer_cpr(self) -> None:
        """The memory is a memfd."""
        self.check_transfer(CPR)

    def test_copied_memory(self) -> None:
        """The guest gets other memory, to which the watch is moved."""
        source = self.set_up(Disk(self.slow_writes()), mode=COPY)
        watch = self.start(source)
        load = Load(self.chain.guest, depth=DEPTH)
        rings = self.find()
        dest = self.chain.destination()
        rings = self.ask(locate, rings)
        self.chain.send(source, dest)
        self.chain.settle(source, dest)
        wait_for('the guest runs', lambda: status(dest) == 'running')
        watch.move(pid_of(dest), rings)
        _, late, end = self.pause(watch, source, dest)
        source.shutdown()
        dest.take_guest()
        load.advance(500)
        self.assertGreater(watch.longest_gap(late, end), end - late)
        self.check(watch, load)

    def test_pause(self) -> None:
        """While the VM is stopped, there is a gap in the completions."""
        vm = self.set_up(Disk(self.scope.daemon(limit=1000)))
        watch = self.start(vm)
        load = Load(self.chain.guest, depth=DEPTH)
        vm.cmd('stop')
        time.sleep(0.5)
        vm.cmd('cont')
        _, late, end = self.pause(watch, vm, vm)
        load.advance(500)
        gap = watch.longest_gap(late, end)
        self.assertGreater(gap, end - late)
        self.check(watch, load)
        ends = [request.ended for request in watch.requests]
        self.assertLess(gap, max(ends) - min(ends))

    def test_plain_disks(self) -> None:
        """Plain virtio-blk disks with all kinds of rings."""
        args = []
        for name, options in (('plain', ''), ('quiet', ',event_idx=off'),
                              ('packed', ',packed=on')):
            disk = make_disk(self.scope.path(name))
            args += ['-drive', f'if=none,id={name},file={disk},format=raw,'
                     'throttling.iops-total=500',
                     '-device', f'virtio-blk-pci,drive={name},id=d-{name}'
                                f'{options}']
        vm = self.set_up(args=tuple(args))
        rings, left_out = self.ask(find_rings)
        self.assertEqual({ring.device: ring.event_idx for ring in rings},
                         {'d-plain': True, 'd-quiet': False})
        self.assertIn('packed=on', left_out.pop('d-packed'))
        self.assertEqual(left_out, {})
        with Watch(pid_of(vm), rings) as watch:
            load = Load(self.chain.guest, 'vda', 'vdb', depth=2)
            load.advance(1000)
            self.check(watch, load)
        self.assertEqual({(request.device, request.seen is None)
                          for request in watch.requests},
                         {('d-plain', False), ('d-quiet', True)})

    def test_driver_restarts(self) -> None:
        """The driver frees its rings, and sets up others elsewhere."""
        vm = self.set_up(Disk(self.scope.daemon(limit=1000)))
        guest = self.chain.guest
        watch = self.start(vm)
        guest.verify('vda', count=100)
        wait_for('all requests are seen', lambda: len(watch.requests) >= 200)
        seen = len(watch.requests)
        driver = '/sys/bus/virtio/drivers/virtio_blk'
        guest.run('echo $(basename $(readlink -f /sys/block/vda/device)) '
                  f'>/tmp/dev; cat /tmp/dev >{driver}/unbind')
        self.assertEqual(self.find(), [])
        guest.run('dd if=/dev/urandom of=/tmp/file bs=1M count=90')
        guest.run(f'rm /tmp/file; cat /tmp/dev >{driver}/bind')
        guest.wait_until('[ -b /dev/vda ]')
        watch.move(pid_of(vm), self.find())
        guest.verify('vda', count=100, seed=2)
        watch.stop()
        self.assertEqual(seen, 200)
        self.assertGreaterEqual(len(watch.requests), 400)

    def test_not_watchable(self) -> None:
        """An error says why rings cannot be watched."""
        disk = make_disk(self.scope.path('disk'))
        vm = self.set_up(args=(
            '-drive', f'if=none,id=f,file={disk},format=raw',
            '-device', 'virtio-blk-pci,drive=f,id=d',
            '-object', 'memory-backend-ram,id=own,size=256M,share=off',
            '-machine', 'memory-backend=own'))
        rings = self.find()
        with self.assertRaisesRegex(NotWatchable, 'share=on'):
            Watch(pid_of(vm), rings)
        pid = pid_of(vm)
        vm.shutdown()
        with self.assertRaisesRegex(NotWatchable, f'{pid} cannot be watched'):
            Watch(pid, rings)


if __name__ == '__main__':
    main()
