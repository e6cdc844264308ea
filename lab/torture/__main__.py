# SPDX-License-Identifier: GPL-2.0-or-later
"""
Run rounds until the time is over, and print a report
"""
import argparse
import faulthandler
import logging
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import List

from lab import ROOT
from lab.machines.evidence import children
from lab.machines.scope import PREFIX, end_on_signals
from lab.machines.watch import wait_for
from lab.results import record

from .choices import choose
from .tally import Tally
from .transfer_round import TransferRound
from .update_round import UpdateRound

OUTPUT = ROOT / 'build/torture'


def left_behind() -> List[str]:
    """Processes and files that a round should have removed."""
    memory = Path('/dev/shm').glob(f'{PREFIX}*')
    return [*(f'process {pid}' for pid in children()),
            *map(str, memory), *os.listdir(tempfile.gettempdir())]


def carry_out(seed: int, number: int, tally: Tally, until: float) -> None:
    """Run a round, and report its failure."""
    plan = choose(seed, number)
    folder = OUTPUT / f'{seed}-{number}'
    shutil.rmtree(folder, ignore_errors=True)
    kind = UpdateRound if plan.tool else TransferRound
    tally.notes = [str(plan)]
    problems = kind(plan, tally, until, folder).run()
    for core in Path.cwd().glob('core*'):
        core.unlink()           # an expected abort because of a limit
    try:
        wait_for('nothing is left behind', lambda: not left_behind())
    except TimeoutError:
        problems.append(f'left behind: {left_behind()}')
    if problems:
        replay = f'./run torture --seed {seed} --round {number}'
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'report').write_text('\n'.join(
            [replay, '', *tally.notes, '', *problems, '']), 'utf-8')
        reason = problems[0].strip().splitlines()[-1]
        tally.fail(number, reason)
        print(f'round {number} failed: {reason[:300]}\n'
              f'    again: {replay}\n    logs: {folder}', flush=True)


def main() -> int:
    """Run all rounds; returns the exit status."""
    parser = argparse.ArgumentParser(prog='./run torture', description=__doc__)
    parser.add_argument('--minutes', type=float, default=10)
    parser.add_argument('--seed', type=int, default=random.randrange(1 << 32))
    parser.add_argument('--round', type=int,
                        help='repeat only this round of the seed')
    parser.add_argument('--record', action='store_true',
                        help='write the counts into docs/results.md')
    args = parser.parse_args()
    # qemu.machine warns of QEMUs that end by a signal, which we send.
    logging.getLogger('qemu').setLevel(logging.CRITICAL)
    faulthandler.register(signal.SIGUSR1)
    end_on_signals()
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    OUTPUT.mkdir(parents=True, exist_ok=True)

    tally = Tally()
    begin = time.monotonic()
    until = begin + args.minutes * 60
    number = args.round or 0
    print(f'seed {args.seed}', flush=True)
    with tempfile.TemporaryDirectory(prefix='qemu-torture-') as cores, \
            tempfile.TemporaryDirectory(prefix='qemu-torture-') as scratch:
        # Cores go to the current folder.
        os.chdir(cores)
        tempfile.tempdir = scratch
        try:
            while True:
                tally.add('rounds')
                carry_out(args.seed, number, tally, until)
                number += 1
                if args.round is not None or time.monotonic() > until:
                    break
        except KeyboardInterrupt:
            print('interrupted')
        tempfile.tempdir = None
        os.chdir(ROOT)
    seconds = time.monotonic() - begin
    replayed = '' if args.round is None else f'-{args.round}'
    tally.save(OUTPUT / f'{args.seed}{replayed}.json', args.seed, seconds)
    print(tally.show())
    summary = (f'{tally.counts["rounds"]} rounds, {tally.counts["transfers"]} '
               f'transfers, {tally.counts["kills"]} kills, '
               f'{tally.counts["boots"]} boots in {seconds:.0f} s; '
               f'{len(tally.failures)} rounds failed')
    print(summary)
    if args.record:
        record('./run torture', f'Seed {args.seed}: {summary}.\n\n'
               f'{tally.markdown()}')
    return 1 if tally.failures else 0


if __name__ == '__main__':
    sys.exit(main())
