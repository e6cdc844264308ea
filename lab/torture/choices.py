# SPDX-License-Identifier: GPL-2.0-or-later
"""
The random choices for a round, made before it begins
"""
import random
from dataclasses import dataclass, field
from typing import List, Tuple

from lab.machines.chain import COPY, CPR, IGNORE_SHARED

# Back-ends: qemu-storage-daemon without a limit, with 500 requests a second,
# with 40 requests a second, and with null-co, which delays each request; the
# sample back-end of QEMU, which can be restarted.
PLAIN, THROTTLED, SLOW, DELAYED, SAMPLE = \
    'plain', 'throttled', 'slow', 'delayed', 'sample'
PLUG, UNPLUG, PLUG_WAITING = 'plug', 'unplug', 'plug-waiting'

# Kinds of faults, by the way in which they are injected, with weights
SIGNALS = {'kill-source': 7, 'kill-destination': 14, 'kill-backend': 10,
           'stuck-source': 2, 'stuck-destination': 3, 'stuck-backend': 7}
COMMANDS = {'cancel': 9, 'stop-source': 3, 'cont-source': 2,
            'stop-destination': 3, 'cont-destination': 2, 'reset-source': 2,
            'reset-destination': 2}
STREAM = {'kill-source-at-byte': 3, 'kill-destination-at-byte': 10,
          'truncated-stream': 6, 'full-socket': 5, 'corrupted-stream': 6}
LIMITS = {'fd-limit': 6, 'memory-limit': 3}
FAULTS = {**SIGNALS, **COMMANDS, **STREAM, **LIMITS}
TOOL_FAULTS = {'none': 2, 'SIGINT': 3, 'SIGTERM': 1, 'SIGKILL': 4,
               'kill-new': 3}


@dataclass
class DiskChoice:
    """A disk, and the load on it."""
    backend: str
    queues: int
    options: str                # of the device
    reconnect: bool             # does the chardev have reconnect-ms?
    depth: int
    block_size: int


@dataclass
class Fault:
    """
    A fault in a transfer.

    @param when: seconds from the begin of the transfer
    @param place: for faults in the stream: bytes that pass before
    @param length: seconds that the fault lasts
    @param amount: from 0 to 1; how much of a limit, or which one of several
    """
    kind: str
    when: float
    place: int
    length: float
    amount: float


@dataclass
class Transfer:
    """
    One transfer.

    @param change: PLUG, UNPLUG or PLUG_WAITING before the transfer, or ''
    @param paused: is the VM stopped before the transfer?
    @param hold: is the destination started with -S?
    @param take_back: with hold: does "cont" go to the source?
    @param kill_loser: is the QEMU without the VM killed?  Else it quits.
    """
    faults: List[Fault]
    change: str
    paused: bool
    hold: bool
    take_back: bool
    kill_loser: bool

    def has(self, *kinds: str) -> bool:
        """Is there a fault of one of these kinds?"""
        return any(fault.kind in kinds for fault in self.faults)


@dataclass
class ToolFault:
    """A fault in a run of live-update, after so many seconds."""
    kind: str
    when: float


@dataclass
class Plan:
    """All choices for a round."""
    mode: str
    cpus: int
    disks: List[DiskChoice]
    spare: List[DiskChoice]     # for hot-plug
    transfers: List[Transfer] = field(default_factory=list)
    tool: List[ToolFault] = field(default_factory=list)


def pick(rng: random.Random, weights: 'dict[str, int]') -> str:
    """Choose a key, by the weights."""
    return rng.choices(list(weights), list(weights.values()))[0]


def moment(rng: random.Random) -> float:
    """Choose seconds; early ones, when most happens, are more likely."""
    return rng.uniform(0, rng.choice((0.02, 0.1, 0.3, 1.0)))


def place(rng: random.Random, mode: str) -> int:
    """Choose a byte of the stream, which begins with RAM if that is copied."""
    if mode == COPY and rng.random() < 0.6:
        return rng.randrange(60_000_000)
    return rng.randrange(rng.choice((2000, 100_000, 600_000)))


def choose_disk(rng: random.Random, cpus: int, backends: Tuple[str, ...]
                ) -> DiskChoice:
    """Choose a disk."""
    backend = rng.choice(backends)
    reconnect = backend == SAMPLE and rng.random() < 0.8
    queues = rng.randint(1, cpus)
    options = f',num-queues={queues}'
    options += rng.choice(('', ',event_idx=off'))
    depth = rng.choice((1, 4, 8, 32, 64))
    if rng.random() < 0.3:
        options += ',indirect_desc=off'
        # With a full ring, the driver of the guest's Linux stops for good,
        # on stock QEMU and without a transfer, too: all its requests have
        # been answered, and it submits no other.
        depth = min(depth, 8)
    options += rng.choice(('', '', ',packed=on'))
    options += rng.choice(('', '', ',queue-size=64'))
    block_size = rng.choice((512, 4096, 4096, 16384))
    return DiskChoice(backend, queues, options, reconnect, depth, block_size)


def choose_fault(rng: random.Random, kind: str, mode: str) -> Fault:
    """Choose the details of a fault."""
    length = rng.uniform(0.05, 1.5)
    return Fault(kind, moment(rng), place(rng, mode), length, rng.random())


def choose_faults(rng: random.Random, mode: str, can_restart: bool
                  ) -> List[Fault]:
    """Choose faults that can be injected into the same transfer."""
    count = rng.choices((0, 1, 2, 3), (15, 60, 18, 7))[0]
    weights = {kind: weight for kind, weight in FAULTS.items()
               if can_restart or kind != 'kill-backend'}
    faults: List[Fault] = []
    for _ in range(count):
        fault = choose_fault(rng, pick(rng, weights), mode)
        if fault.kind == 'corrupted-stream':
            return [fault]
        del weights[fault.kind]
        if fault.kind in STREAM:
            weights = {k: w for k, w in weights.items() if k not in STREAM}
        weights.pop('corrupted-stream', None)
        faults.append(fault)
    return faults


def choose_transfer(rng: random.Random, plan: Plan, plugged: bool
                    ) -> Transfer:
    """Choose a transfer."""
    can_restart = any(disk.reconnect for disk in plan.disks)
    faults = choose_faults(rng, plan.mode, can_restart)
    change = ''
    if plan.spare and rng.random() < 0.3:
        if plugged:
            change = UNPLUG
        else:
            change = PLUG_WAITING if plan.mode != CPR and \
                rng.random() < 0.5 else PLUG
    hold = rng.random() < 0.2
    transfer = Transfer(faults, change, rng.random() < 0.08, hold,
                        rng.random() < 0.4, rng.random() < 0.5)
    if transfer.has('corrupted-stream'):
        transfer.hold = transfer.take_back = transfer.kill_loser = True
    return transfer


def choose(seed: int, number: int) -> Plan:
    """Make all choices for a round."""
    rng = random.Random(f'{seed}-{number}')
    mode = rng.choice((IGNORE_SHARED, IGNORE_SHARED, CPR, COPY))
    cpus = rng.choice((1, 1, 2, 4))
    count = rng.choice((1, 1, 2, 3, 4, 8))
    if rng.random() < 0.15:
        plan = Plan(mode, 1, [], [])
        plan.disks = [choose_disk(rng, 1, (PLAIN,))
                      for _ in range(min(count, 3))]
        plan.tool = [ToolFault(pick(rng, TOOL_FAULTS), rng.uniform(0, 1.5))
                     for _ in range(rng.randint(3, 6))]
        return plan
    plan = Plan(mode, cpus, [], [])
    plan.disks = [choose_disk(rng, cpus, (PLAIN, THROTTLED, SLOW, DELAYED,
                                          SAMPLE, SAMPLE))
                  for _ in range(count)]
    if rng.random() < 0.5:
        disk = choose_disk(rng, cpus, (PLAIN, THROTTLED))
        disk.queues, disk.options = cpus, ''    # the default of QEMU
        plan.spare = [disk]
    plugged = False
    for _ in range(rng.randint(6, 14)):
        transfer = choose_transfer(rng, plan, plugged)
        if transfer.change:
            plugged = transfer.change != UNPLUG
        plan.transfers.append(transfer)
    return plan
