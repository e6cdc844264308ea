# SPDX-License-Identifier: GPL-2.0-or-later
"""
Tests of how live-update follows a virtqueue from outside

They are unit tests: no QEMU is needed.
"""
import os
import struct
import time
import unittest
from typing import List

from qemu.live_update.report.rings import Queue, Request, Ring, gaps

SIZE = 8


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

    def test_gaps(self) -> None:
        """Gaps are not cut if a request tells of their ends."""
        requests = [Request('d', 0, None, when, None) for when in (8, 2, 3)]
        self.assertEqual(gaps(requests, 2.5, 5), [(2, 3), (3, 8)])
        self.assertEqual(gaps(requests, 1, 9),
                         [(1, 2), (2, 3), (3, 8), (8, 9)])
        self.assertEqual(gaps([], 1, 9), [(1, 9)])


if __name__ == '__main__':
    unittest.main()
