# SPDX-License-Identifier: GPL-2.0-or-later
"""
The watch of a guest's requests sees what the guest and its disks have done

blkverify says how many requests there were.
"""
import asyncio
import os
import struct
import time
import unittest
from typing import Any, Dict, List, Tuple

from guest.backend import make_disk
from guest.vm import VM

# pylint: disable=wrong-import-order
from qemu.live_update.rings import (NotWatchable, Queue, Request, Ring, Watch,
                                    find_rings, locate, quiet)
from qemu.qmp import QMPClient

from .disks import Daemon, Disk, Load
from .testcase import main
from .transfer import COPY, CPR, IGNORE_SHARED, Line, status
from .transfer_case import TransferTest
from .watch import wait_for

SIZE = 8
DEPTH = 32
THROTTLE = 'driver=throttle,node-name=disk,throttle-group=group,file=file'
Where = Tuple[List[Ring], Dict[str, str]]


class Decoding(unittest.TestCase):
    """A ring made by hand, of which a guest and a disk use 16-bit indices"""

    def setUp(self) -> None:
        self.avail = memoryview(bytearray(2 * (3 + SIZE))).cast('H')
        self.used = memoryview(bytearray(2 * (3 + 4 * SIZE))).cast('H')
        self.requests: List[Request] = []

    def watch(self, start: int = 0, event_idx: bool = True) -> Queue:
        """Start to watch, with all indices at start."""
        self.avail[1] = self.used[1] = self.avail[2 + SIZE] = start
        ring = Ring('d', 0, SIZE, event_idx, 0, 0, (0, 0))
        return Queue(ring, self.requests, self.avail, self.used)

    def submit(self, *heads: int) -> None:
        """The guest makes requests available."""
        for head in heads:
            self.avail[2 + self.avail[1] % SIZE] = head
            self.avail[1] = self.avail[1] + 1 & 0xffff

    def complete(self, *heads: int) -> None:
        """The disk completes requests."""
        for head in heads:
            place = 2 + 4 * (self.used[1] % SIZE)
            self.used[place:place + 4] = memoryview(
                struct.pack('<II', head, 1)).cast('H')
            self.used[1] = self.used[1] + 1 & 0xffff

    def see(self) -> None:
        """The guest has looked at all completions."""
        self.avail[2 + SIZE] = self.used[1]

    def take(self, count: int) -> List[Request]:
        """Take the requests out of the list; there must be so many."""
        self.assertEqual(len(self.requests), count)
        return [self.requests.pop(0) for _ in range(count)]

    def assert_in_order(self, request: Request) -> None:
        """What is later must have a later time."""
        assert request.submitted and request.seen
        self.assertLess(request.submitted, request.completed)
        self.assertLess(request.completed, request.seen)

    def test_one(self) -> None:
        """A request is submitted, completed and seen."""
        queue = self.watch()
        self.submit(3)
        queue.look()
        between = time.time()
        self.complete(3)
        queue.look()
        self.assertEqual(self.requests, [])
        self.assertEqual(queue.in_flight(between), 1)
        self.assertEqual(queue.in_flight(time.time()), 0)
        self.see()
        queue.look()
        request, = self.take(1)
        self.assert_in_order(request)
        self.assertEqual(request.ended, request.seen)

    def test_without_event_idx(self) -> None:
        """The guest does not say what it has seen."""
        queue = self.watch(event_idx=False)
        self.submit(3)
        self.complete(3)
        queue.look()
        request, = self.take(1)
        self.assertIsNone(request.seen)
        self.assertEqual(request.ended, request.completed)

    def test_out_of_order(self) -> None:
        """Completions come in another order; heads are used again."""
        queue = self.watch()
        self.submit(0, 1)
        queue.look()
        self.complete(1)
        self.see()
        self.submit(1)
        queue.look()
        self.complete(1, 0)
        self.see()
        queue.look()
        first, again, slow = self.take(3)
        assert first.submitted and again.submitted and slow.submitted
        self.assertEqual(slow.submitted, first.submitted)
        self.assertGreater(again.submitted, first.submitted)
        self.assertEqual(slow.completed, again.completed)

    def test_between_two_looks(self) -> None:
        """A head is used twice while nobody looks."""
        queue = self.watch()
        self.submit(5)
        queue.look()
        self.complete(5)
        self.submit(5)
        self.complete(5)
        self.see()
        queue.look()
        first, second = self.take(2)
        self.assertNotEqual(first.submitted, second.submitted)
        self.assertEqual(queue.missed, 0)

    def test_wrap(self) -> None:
        """Indices start again after 65535."""
        queue = self.watch(65536 - 5)
        for _ in range(3):
            self.submit(*range(SIZE))
            queue.look()
            self.complete(*reversed(range(SIZE)))
            queue.look()
            self.see()
            queue.look()
        self.assertEqual(len(self.requests), 3 * SIZE)
        self.assertEqual(queue.missed, 0)
        for request in self.requests:
            self.assert_in_order(request)

    def test_already_in_flight(self) -> None:
        """Nobody knows when a request began that was there before."""
        self.submit(1, 2)
        self.complete(2)
        ring = Ring('d', 0, SIZE, True, 0, 0, (0, 0))
        queue = Queue(ring, self.requests, self.avail, self.used)
        self.assertEqual(queue.in_flight(time.time()), 1)
        self.submit(2)
        self.complete(1)
        self.see()
        queue.look()
        self.assertEqual([request.submitted for request in self.requests],
                         [None])
        self.assertEqual(queue.in_flight(time.time()), 1)

    def test_missed(self) -> None:
        """More has happened than the ring holds; then it goes on."""
        queue = self.watch()
        for _ in range(2):
            self.submit(*range(SIZE))
            self.complete(*range(SIZE))
        self.see()
        self.submit(4)
        queue.look()
        self.assertEqual((self.requests, queue.missed), ([], 1))
        self.assertEqual(queue.in_flight(time.time()), 1)
        self.complete(4)
        self.see()
        self.submit(0)
        queue.look()
        self.complete(0)
        self.see()
        queue.look()
        unknown, known = self.take(2)
        self.assertIsNone(unknown.submitted)
        self.assertIsNotNone(known.submitted)
        self.assertEqual(queue.missed, 1)

    def test_busy_guest(self) -> None:
        """While it looks at completions, Linux sets used_event to 0."""
        queue = self.watch(1000)
        self.submit(0, 1)
        self.complete(0)
        self.avail[2 + SIZE] = 0
        queue.look()
        self.assertEqual(self.requests, [])
        # It would not use it again if it did not know.
        self.submit(0)
        queue.look()
        self.assertEqual(len(self.requests), 1)
        self.complete(1)
        self.see()
        queue.look()
        self.assertEqual(len(self.requests), 2)

    def test_reset(self) -> None:
        """The guest sets the ring up anew, at the same place."""
        queue = self.watch(100)
        self.submit(0, 1)
        queue.look()
        self.avail[:] = memoryview(bytes(self.avail.nbytes)).cast('H')
        self.used[:] = memoryview(bytes(self.used.nbytes)).cast('H')
        queue.look()
        self.assertEqual((queue.missed, queue.in_flight(time.time())), (1, 0))
        self.submit(0)
        self.complete(0)
        self.see()
        queue.look()
        self.assertEqual(len(self.requests), 1)

    def test_no_ring(self) -> None:
        """The guest has something else in the memory of the ring."""
        queue = self.watch(100)
        for _ in range(20):
            for area in self.avail, self.used:
                noise = memoryview(os.urandom(area.nbytes)).cast('H')
                area[:] = noise
                area[0] |= 2
            queue.look()
        self.assertEqual((self.requests, queue.missed), ([], 1))
        self.assertEqual(queue.in_flight(time.time()), 0)

    def test_no_ring_yet(self) -> None:
        """What cannot be a ring is none, and may become one."""
        for area, place, value in ((self.avail, 1, SIZE + 1),
                                   (self.avail, 0, 2), (self.used, 0, 2),
                                   (self.avail, 3, SIZE),
                                   (self.used, 6, SIZE)):
            former = area[place]
            self.avail[1] = 1
            area[place] = value
            ring = Ring('d', 0, SIZE, True, 0, 0, (0, 0))
            queue = Queue(ring, self.requests, self.avail, self.used)
            self.assertEqual(queue.in_flight(time.time()), 0)
            area[place] = former
            self.avail[1] = 2
            queue.look()
            self.assertEqual(queue.in_flight(time.time()), 2)
            self.assertEqual(queue.missed, 0)

    def test_unknown_completion(self) -> None:
        """Nobody has submitted what is complete."""
        queue = self.watch()
        self.submit(1)
        queue.look()
        self.complete(2)
        queue.look()
        self.assertEqual((self.requests, queue.missed), ([], 1))

    def test_quiet(self) -> None:
        """Gaps are not cut if a request tells of their ends."""
        requests = [Request('d', 0, None, when, None) for when in (8, 2, 3)]
        self.assertEqual(quiet(requests, 2.5, 5), [(2, 3), (3, 8)])
        self.assertEqual(quiet(requests, 1, 9),
                         [(1, 2), (2, 3), (3, 8), (8, 9)])
        self.assertEqual(quiet([], 1, 9), [(1, 9)])


def when(event: Any) -> float:
    """The time of a QMP event, by time.time()."""
    stamp = event['timestamp']
    return float(stamp['seconds'] + stamp['microseconds'] / 1e6)


def pid_of(vm: VM) -> int:
    """The process that a running VM is."""
    pid = vm.get_pid()
    assert pid
    return pid


class Guests(TransferTest):
    """Watches of guests under load"""

    def set_up(self, *disks: Disk, mode: str = IGNORE_SHARED,
               args: Tuple[str, ...] = ()) -> VM:
        """Boot a guest, whose QEMUs have one more monitor."""
        # A ring that a busy host cannot let go round between two looks
        disks = tuple(disk.but(',queue-size=1024') for disk in disks)
        self.line = Line(self, *disks, mode=mode, args=(
            '-qmp', f'unix:{self.path("qmp")},server=on,wait=off', *args))
        vm = self.line.boot()
        for letter in 'abc'[:sum('-blk-pci' in arg for arg in vm.args)]:
            sysfs = f'/sys/block/vd{letter}'
            self.line.guest.wait_until(f'grep -q "^ *0 *0$" {sysfs}/inflight')
            # Two requests of a program may become one of the disk.
            self.line.guest.run(f'echo 2 >{sysfs}/queue/nomerges')
        return vm

    def ask(self, function: Any, *args: Any) -> Any:
        """Call a function that asks the youngest QEMU."""
        async def connect_and_ask() -> Any:
            qmp = QMPClient()
            await qmp.connect(self.path('qmp'))
            try:
                return await function(qmp, *args)
            finally:
                await qmp.disconnect()
        return asyncio.run(connect_and_ask())

    def find(self) -> List[Ring]:
        """The rings of the youngest QEMU; none may be left out."""
        rings, left_out = self.ask(find_rings)
        self.assertEqual(left_out, {})
        return list(rings)

    def check(self, watch: Watch, load: Load) -> None:
        """End it all; the watch must have seen what blkverify did."""
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
        self.addCleanup(watch.stop)
        watch.start()
        return watch

    def pause(self, watch: Watch, source: VM, dest: VM
              ) -> Tuple[float, float, float]:
        """
        When the guest was paused; it must not have seen anything then.

        What happened before may have been noted later, if not much.  That is
        the time in the middle.
        """
        begin = when(source.event_wait('STOP'))
        end = when(dest.event_wait('RESUME'))
        late = begin + watch.resolution(begin - 0.1, end)
        self.assertEqual([request for request in watch.requests
                          if late < request.ended < end], [])
        return begin, late, end

    @staticmethod
    def limit_writes(daemon: Daemon, rate: int) -> None:
        """From now on, let a disk write so many times a second."""
        daemon.cmd('qom-set', path='/objects/group', property='limits',
                   value={'iops-write': rate})

    def slow_writes(self, **options: Any) -> Daemon:
        """A disk whose reads overtake its writes."""
        daemon = self.daemon('disk', THROTTLE, **options)
        self.limit_writes(daemon, 500)
        return daemon

    def test_out_of_order(self) -> None:
        """Several queues, whose completions come in another order."""
        vm = self.set_up(Disk(self.slow_writes(options=',num-queues=2'),
                              options=',num-queues=2'), args=('-smp', '2'))
        watch = self.start(vm)
        load = Load(self.line.guest, depth=DEPTH)
        load.advance(2000)
        # A guest that gets little time may have none for a moment.
        wait_for('requests are in flight', lambda: watch.in_flight(
            time.time()) in range(1, DEPTH + 1))
        self.check(watch, load)
        # The guest may hardly use one of the queues.
        times = [[request.submitted or 0 for request in watch.requests
                  if request.queue == queue] for queue in range(2)]
        self.assertNotEqual(times, [sorted(each) for each in times])

    def check_transfer(self, mode: str) -> None:
        """The guest takes its memory along; the same watch goes on."""
        disk = self.slow_writes()
        source = self.set_up(Disk(disk), mode=mode)
        watch = self.start(source)
        load = Load(self.line.guest, depth=DEPTH)

        def in_flight() -> int:
            return watch.in_flight(time.time())

        # The pause, too, must not depend on how busy the host is.
        self.limit_writes(disk, 1)
        wait_for('all requests wait', lambda: in_flight() == DEPTH)
        dest = self.line.send_half(source)
        self.limit_writes(disk, 500)
        wait_for('some are complete', lambda: in_flight() < DEPTH)
        source.cmd('migrate-continue', state='pre-switchover')
        self.line.settle(source, dest)
        begin, late, end = self.pause(watch, source, dest)
        self.assertIn(watch.in_flight(begin), (DEPTH, DEPTH - 1))
        source.shutdown()
        dest.take_guest()
        load.advance(500)
        self.assertGreater(watch.longest_gap(late, end), end - late)
        # The disk did not wait for the guest.
        self.assertTrue([request for request in watch.requests
                         if request.completed < end < request.ended])
        self.check(watch, load)

    def test_transfer(self) -> None:
        """The memory is a file that both QEMUs open."""
        self.check_transfer(IGNORE_SHARED)

    def test_transfer_cpr(self) -> None:
        """The memory is a file without a name."""
        self.check_transfer(CPR)

    def test_copied_memory(self) -> None:
        """The guest gets other memory, where the watch goes on."""
        source = self.set_up(Disk(self.slow_writes()), mode=COPY)
        watch = self.start(source)
        load = Load(self.line.guest, depth=DEPTH)
        rings = self.find()
        dest = self.line.destination()
        rings = self.ask(locate, rings)
        self.line.send(source, dest)
        self.line.settle(source, dest)
        wait_for('the guest runs', lambda: status(dest) == 'running')
        watch.move(pid_of(dest), rings)
        _, late, end = self.pause(watch, source, dest)
        source.shutdown()
        dest.take_guest()
        load.advance(500)
        self.assertGreater(watch.longest_gap(late, end), end - late)
        self.check(watch, load)

    def test_pause(self) -> None:
        """A stop is a gap, as long as it was, and more requests wait."""
        vm = self.set_up(Disk(self.daemon(limit=1000)))
        watch = self.start(vm)
        load = Load(self.line.guest, depth=DEPTH)
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
        """Disks without vhost-user, with rings of all kinds."""
        args = []
        for name, options in (('plain', ''), ('quiet', ',event_idx=off'),
                              ('packed', ',packed=on')):
            disk = make_disk(self.path(name))
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
            load = Load(self.line.guest, 'vda', 'vdb', depth=2)
            load.advance(1000)
            self.check(watch, load)
        self.assertEqual({(request.device, request.seen is None)
                          for request in watch.requests},
                         {('d-plain', False), ('d-quiet', True)})

    def test_driver_restarts(self) -> None:
        """The guest gives its memory to others; it sets up rings elsewhere."""
        vm = self.set_up(Disk(self.daemon(limit=1000)))
        guest = self.line.guest
        watch = self.start(vm)
        guest.verify('vda', count=100)
        wait_for('all are seen', lambda: len(watch.requests) >= 200)
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
        """Why there is nothing to watch is told."""
        disk = make_disk(self.path('disk'))
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
