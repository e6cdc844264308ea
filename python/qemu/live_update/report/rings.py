# SPDX-License-Identifier: GPL-2.0-or-later
"""
Watch the requests of a guest's disks in guest memory

A driver and its disk exchange requests in split virtqueues ("rings") in guest
memory.  That memory is a shared file, which this process maps: neither the
guest nor QEMU nor the back-end of the disk has to help, and requests are seen
also while the guest moves from one QEMU to another.  Times are those of
time.time(), as the times of QMP events are.

The functions take a QMPClient, not a Monitor as others do: they only execute
commands, and can be used on any connection of a program to QMP.
"""
from bisect import bisect_left, bisect_right
from collections import deque
import mmap
import os
import re
import sys
import threading
import time
from types import TracebackType
from typing import (
    Any,
    Deque,
    Dict,
    Iterable,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
    Type,
)

from qemu.qmp import ExecuteError, QMPClient


PERIOD = 0.0003                 # seconds from one look to the next
LATE = 0.001                    # a longer time is noted; see resolution()
INDEX = 0xffff                  # indices of rings count modulo 65536
QUEUE_COMMANDS = {
    # x-query-virtio-queue-status would stop the ring of a vhost-user device.
    'vhost-user-blk': 'x-query-virtio-vhost-queue-status',
    'virtio-blk-device': 'x-query-virtio-queue-status',
}
AREAS = {
    'vhost-user-blk': ('num', 'avail-phys', 'used-phys'),
    'virtio-blk-device': ('vring-num', 'vring-avail', 'vring-used'),
}
OBSTACLES = {
    'VIRTIO_F_RING_PACKED': 'its queues are packed (packed=on)',
    'VIRTIO_F_IOMMU_PLATFORM': 'an IOMMU may be between it and the memory',
}


class NotWatchable(Exception):
    """The requests of a guest cannot be watched; the text says why."""


class Ring(NamedTuple):
    """
    A virtqueue of a disk.

    avail, used: guest-physical addresses of the available and the used ring,
                 which do not change when the guest moves to another QEMU
    mapped: addresses of the two in the memory of the QEMU process, which do
    """
    device: str
    queue: int
    size: int
    event_idx: bool
    avail: int
    used: int
    mapped: Tuple[int, int]


class Request(NamedTuple):
    """
    A request that has completed, and whose completion the guest has seen.

    submitted: None if the guest submitted it before the watch began
    seen: when the guest saw it; None: not known without event_idx=on
    """
    device: str
    queue: int
    submitted: Optional[float]
    completed: float
    seen: Optional[float]

    @property
    def ended(self) -> float:
        """When the guest saw its completion, or else when it completed."""
        return self.completed if self.seen is None else self.seen


async def _execute(qmp: QMPClient, command: str, **arguments: object) -> Any:
    try:
        return await qmp.execute(command, arguments)
    except ExecuteError as error:
        raise NotWatchable(f'QEMU cannot tell where the queues of its disks '
                           f'are: {command}: {error}') from error


async def _map(qmp: QMPClient, address: int) -> int:
    said = await _execute(qmp, 'human-monitor-command',
                          **{'command-line': f'gpa2hva {address:#x}'})
    found = re.search(r' is (0x[0-9a-f]+)', said)
    if not found:
        raise NotWatchable(f'QEMU has no memory at {address:#x} of the guest: '
                           f'{said.strip()}')
    return int(found[1], 16)


async def locate(qmp: QMPClient, rings: Sequence[Ring]) -> List[Ring]:
    """
    Return the rings with their addresses in the QEMU that the guest moves to.

    The result can be asked for before the guest arrives; it is valid when the
    guest has arrived.
    """
    return [ring._replace(mapped=(await _map(qmp, ring.avail),
                                  await _map(qmp, ring.used)))
            for ring in rings]


async def find_rings(qmp: QMPClient) -> Tuple[List[Ring], Dict[str, str]]:
    """
    Find the queues of all disks that the guest uses.

    The second result has the disks that cannot be watched, with the reasons.
    """
    rings: List[Ring] = []
    left_out = {}
    for info in await _execute(qmp, 'x-query-virtio'):
        path = info['path']
        kind = await _execute(qmp, 'qom-get', path=path, property='type')
        if kind not in QUEUE_COMMANDS:
            continue
        device = path.split('/')[-2]
        status = await _execute(qmp, 'x-query-virtio-status', path=path)
        features = [text.split(':')[0] for text in
                    status['guest-features']['transports']]
        obstacles = [text for feature, text in OBSTACLES.items()
                     if feature in features]
        if obstacles:
            left_out[device] = obstacles[0]
        elif status['vhost-started'] or kind == 'virtio-blk-device':
            for queue in range(status['num-vqs']):
                places = await _execute(qmp, QUEUE_COMMANDS[kind], path=path,
                                        queue=queue)
                size, avail, used = (places[area] for area in AREAS[kind])
                if avail:
                    rings.append(Ring(
                        device, queue, size,
                        'VIRTIO_RING_F_EVENT_IDX' in features,
                        avail, used, (0, 0)))
    return await locate(qmp, rings), left_out


def gaps(requests: Iterable[Request], begin: float,
         end: float) -> List[Tuple[float, float]]:
    """
    Return the gaps between the ends of requests in a period, in order.

    The first gap begins with the last end of a request before the period, and
    the last gap ends with the first end after it, if there are such requests.
    """
    ends = sorted(request.ended for request in requests)
    first = max(bisect_left(ends, begin) - 1, 0)
    ends = ends[first:bisect_right(ends, end) + 1]
    if not ends or ends[0] > begin:
        ends.insert(0, begin)
    if ends[-1] < end:
        ends.append(end)
    return list(zip(ends, ends[1:]))


class Memory:
    """
    The shared file mappings of a process.

    @param pid: the process; it may end after this was created
    """
    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._files: Dict[Tuple[int, int], memoryview] = {}
        try:
            with open(f'/proc/{pid}/maps', encoding='utf-8',
                      errors='replace') as maps:
                self._maps = [line.split(None, 5) for line in maps]
        except OSError as error:
            raise self._error(error) from error

    def _error(self, error: Exception) -> NotWatchable:
        return NotWatchable(
            f'the memory of process {self._pid} cannot be watched: '
            f'{getattr(error, "strerror", error)}' +
            ('; run this as root or as the user of the VM'
             if isinstance(error, PermissionError) else ''))

    def _open(self, device: int, inode: int) -> memoryview:
        """Map a file that the process has open, such as a memfd."""
        folder = f'/proc/{self._pid}/fd'
        for name in os.listdir(folder):
            path = f'{folder}/{name}'
            try:
                info = os.stat(path)
            except FileNotFoundError:
                continue        # closed in the meantime
            if (info.st_dev, info.st_ino) == (device, inode):
                with open(path, 'rb') as file:
                    return memoryview(mmap.mmap(file.fileno(), 0,
                                                prot=mmap.PROT_READ))
        raise NotWatchable(f'process {self._pid} has closed the file that its '
                           'memory is')

    def area(self, address: int, size: int) -> memoryview:
        """Return an area of its memory, as 16-bit numbers."""
        for places, rights, offset, device, inode, *_ in self._maps:
            begin, end = (int(place, 16) for place in places.split('-'))
            if begin <= address < end:
                break
        else:
            raise NotWatchable(
                f'process {self._pid} has nothing at {address:#x}')
        if 's' not in rights:
            raise NotWatchable('the RAM of the VM is not shared memory '
                               '(share=on)')
        major, minor = (int(word, 16) for word in device.split(':'))
        file = os.makedev(major, minor), int(inode)
        try:
            if file not in self._files:
                self._files[file] = self._open(*file)
        except (OSError, ValueError) as error:
            raise self._error(error) from error
        start = int(offset, 16) + address - begin
        return self._files[file][start:start + size].cast('H')


class Queue:
    """
    Finds the requests in a ring by looks at its available and used ring.

    A look never blocks, and writes nothing to guest memory.  If the indices
    have moved further than a ring allows (the guest has set up the ring again,
    or the look comes too late), the requests since the last look are lost,
    and the queue begins again with the present indices.

    missed: how often that has happened
    """
    # pylint: disable=too-many-instance-attributes

    def __init__(self, ring: Ring, requests: List[Request],
                 avail: memoryview, used: memoryview) -> None:
        self.ring = ring
        self.missed = 0
        self._requests = requests
        self._areas = avail, used
        self._indices = 0, 0, 0
        self._begin()

    def use(self, avail: memoryview, used: memoryview) -> None:
        """Look at a copy of the ring from now on."""
        self._areas = avail, used

    def _begin(self) -> None:
        avail, used = self._areas
        size = self.ring.size
        # The used index first: it must not be ahead of the available index.
        self._used = self._seen = used[1]
        self._avail = avail[1]
        # Times of submission by the head of the descriptor chain.  The guest
        # may use a head again before a look has seen that it was completed.
        self._open: Dict[int, Deque[float]] = {}
        # Completed requests of which the guest has not seen that.
        self._unseen: Deque[Tuple[int, Optional[float], float]] = deque()
        self._is_ring = (
            self._avail - self._used & INDEX <= size
            and avail[0] <= 1 and used[0] <= 1
            and all(head < size for head in avail[2:2 + size])
            and all(head < size for head in used[2:2 + 4 * size:4]))
        # The number of requests that were submitted before the watch began.
        self._unknown = self._is_ring * (self._avail - self._used & INDEX)

    def look(self) -> None:
        """Note the requests since the last look."""
        avail, used = self._areas
        # In this order an index is never ahead of the one on its right: a
        # request is submitted, then completed, then seen.
        indices = avail[2 + self.ring.size], used[1], avail[1]
        if indices != self._indices:
            self._indices = indices
            if not self._is_ring:
                self._begin()
            elif not self._advance(*indices, time.time()):
                self.missed += 1
                self._begin()

    def _new(self, area: memoryview, last: int, index: int,
             width: int) -> Optional[List[int]]:
        """Return the heads between two indices; None: some are overwritten."""
        size = self.ring.size
        heads = [area[2 + width * ((last + n) % size)]
                 for n in range(min(index - last & INDEX, size + 1))]
        # The ring may have gone round while the heads were read.
        if area[1] - last & INDEX > size or any(n >= size for n in heads):
            return None
        return heads

    def _advance(self, event: int, used: int, avail: int, now: float) -> bool:
        """Note what is new; false: the indices are not possible."""
        available = self._new(self._areas[0], self._avail, avail, 1)
        done = self._new(self._areas[1], self._used, used, 4)
        if (available is None or done is None or
                avail - used & INDEX > self.ring.size):
            return False
        for head in available:
            completed = [entry[0] for entry in self._unseen]
            if head in completed:
                # A guest that uses a head again has seen its completion.
                self._see(completed.index(head) + 1, now)
            self._open.setdefault(head, deque()).append(now)
        for head in done:
            submitted = None
            if self._open.get(head):
                submitted = self._open[head].popleft()
            elif self._unknown:
                self._unknown -= 1
            else:
                return False
            self._unseen.append((head, submitted, now))
        self._avail, self._used = avail, used
        if not self.ring.event_idx:
            self._see(len(self._unseen), None)
        # A driver that wants no interrupt may write any other number.
        elif event - self._seen & INDEX <= len(self._unseen):
            self._see(event - self._seen & INDEX, now)
        return True

    def _see(self, count: int, now: Optional[float]) -> None:
        """Note that the guest has seen a number of completions."""
        self._seen = self._seen + count & INDEX
        for _ in range(count):
            _, submitted, completed = self._unseen.popleft()
            self._requests.append(Request(
                self.ring.device, self.ring.queue, submitted, completed, now))

    def in_flight(self, when: float) -> int:
        """How many requests that are not in the list were in flight then."""
        return (self._unknown +
                sum(moment <= when for moments in self._open.values()
                    for moment in moments) +
                sum((submitted or 0) <= when < completed
                    for _, submitted, completed in self._unseen))


class Watch:
    """
    Watches rings in a "with" block, or from start() to stop().

    requests: in the order in which they ended.  The list only grows, and may
              be read during the watch.
    missed: how often requests were lost; see Queue

    After a reset of the VM, the rings may be at other addresses: see move().
    """
    # pylint: disable=too-many-instance-attributes

    def __init__(self, pid: int, rings: Sequence[Ring]) -> None:
        if sys.byteorder != 'little':
            raise NotWatchable('rings are not in the byte order of this host')
        self.requests: List[Request] = []
        self._queues: List[Queue] = []
        self._missed = 0
        self._last = 0.0        # when the last look began
        self._late: List[Tuple[float, float]] = []
        self._lock = threading.Lock()
        self._watching = False
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.move(pid, rings)

    def move(self, pid: int, rings: Sequence[Ring]) -> None:
        """
        From now on watch these rings in the memory of this QEMU.

        Is needed after a migration only if guest memory was copied.  Rings
        from locate() continue those that were watched before.
        """
        memory = Memory(pid)
        areas = [(memory.area(ring.mapped[0], 2 * (3 + ring.size)),
                  memory.area(ring.mapped[1], 2 * (2 + 4 * ring.size)))
                 for ring in rings]
        with self._lock:
            known = {queue.ring._replace(mapped=(0, 0)): queue
                     for queue in self._queues}
            self._missed = self.missed
            self._queues = []
            for ring, places in zip(rings, areas):
                queue = known.get(ring._replace(mapped=(0, 0)))
                if queue:
                    self._missed -= queue.missed
                    queue.use(*places)
                else:
                    queue = Queue(ring, self.requests, *places)
                self._queues.append(queue)

    def _watch(self) -> None:
        while self._watching:
            time.sleep(PERIOD)
            now = time.time()
            if now - self._last > LATE:
                self._late.append((self._last, now))
            self._last = now
            with self._lock:
                for queue in self._queues:
                    queue.look()

    def start(self) -> None:
        """Begin to watch."""
        self._last = time.time()
        self._watching = True
        self._thread.start()

    def stop(self) -> None:
        """End the watch, and release guest memory."""
        if self._watching:
            self._watching = False
            self._thread.join()
            for queue in self._queues:
                queue.look()
                queue.use(memoryview(b''), memoryview(b''))

    def __enter__(self) -> 'Watch':
        self.start()
        return self

    def __exit__(self, exc_type: Optional[Type[BaseException]],
                 exc: Optional[BaseException],
                 traceback: Optional[TracebackType]) -> None:
        self.stop()

    @property
    def missed(self) -> int:
        """How often requests were lost; see Queue."""
        return self._missed + sum(queue.missed for queue in self._queues)

    def in_flight(self, when: float) -> int:
        """How many requests were in flight at a time during the watch."""
        with self._lock:
            requests = self.requests[:]
            flying = sum(queue.in_flight(when) for queue in self._queues)
        return flying + sum((request.submitted or 0) <= when <
                            request.completed for request in requests)

    def longest_gap(self, begin: float, end: float) -> float:
        """
        The longest time in which no request ended, in seconds.

        A gap counts as a whole if a part of it is between begin and end.
        """
        return max(later - earlier for earlier, later
                   in gaps(self.requests, begin, end))

    def resolution(self, begin: float, end: float) -> float:
        """The longest time from one look to the next, in seconds."""
        # The list does not have the time since the last look yet.
        looks = [(self._last, time.time()), *self._late]
        return max([later - earlier for earlier, later in looks
                    if later > begin and earlier < end] + [LATE])
