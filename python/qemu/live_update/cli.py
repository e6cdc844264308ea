# SPDX-License-Identifier: GPL-2.0-or-later
"""
The command line of live-update, and the order of its work
"""
import argparse
import asyncio
import sys
from typing import List, NoReturn, Optional

from .error import NeedsPerson, Refused, UpdateError
from .interruption import Interruption
from .monitor import Monitor, MonitorError
from .output import Output
from .plan import Plan
from .recovery import recover
from .report.record import Record
from .update import Update, describe
from .vm.memory import COPY


EXIT_STATUS = """
exit status:
  0  the VM runs in the new QEMU (with --dry-run: it could)
  1  refused; nothing was changed
  2  failed; the old QEMU still runs the VM
  3  needs a person: the message says what to look at
"""


class Parser(argparse.ArgumentParser):
    """
    Exits with status 1 (refused) on wrong usage.

    The status of argparse, 2, would mean that an update has failed.
    """

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(Refused.exit, f'{self.prog}: {message}\n')


def parse(arguments: List[str]) -> argparse.Namespace:
    """Parse the arguments; "command" is what follows "--", or None."""
    parser = Parser(
        prog='live-update', usage='live-update --qmp SOCKET --binary QEMU '
        '[OPTION...] [-- COMMAND LINE OF THE VM]',
        description='Update the QEMU under a running VM.',
        epilog=EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--qmp', metavar='SOCKET', required=True,
                        help='UNIX socket of the VM\'s monitor (QMP)')
    parser.add_argument('--binary', metavar='QEMU', required=True,
                        help='the new QEMU')
    parser.add_argument('--dry-run', action='store_true',
                        help='check whether the VM can be updated; change '
                        'nothing')
    parser.add_argument('--json', action='store_true',
                        help='print JSON objects, one a line')
    parser.add_argument('--timeout', metavar='SECONDS', type=float,
                        default=120, help='give up after this time, and '
                        'leave the VM in the old QEMU (default: %(default)s)')
    parser.add_argument('--report', metavar='FILE.html',
                        help='write a report, with a picture of the guest\'s '
                        'I/O (needs the Python module matplotlib)')
    ours, theirs = arguments, None
    if '--' in arguments:
        position = arguments.index('--')
        ours, theirs = arguments[:position], arguments[position + 1:]
    options = parser.parse_args(ours)
    options.command = theirs
    return options


async def run(options: argparse.Namespace, output: Output) -> None:
    """
    Complete an earlier update, or do a new one; raises UpdateError.

    With --dry-run, only check whether an update is possible.
    """
    interruption = Interruption(options.timeout)
    record = Record(options.report, output) if options.report else None
    if options.dry_run or not await recover(options.qmp, interruption,
                                            output):
        await run_new_update(options, interruption, record, output)


async def run_new_update(options: argparse.Namespace,
                         interruption: Interruption, record: Optional[Record],
                         output: Output) -> None:
    """Check whether an update is possible, and do it."""
    old = Monitor('the running QEMU', options.qmp)
    update = None
    try:
        await interruption.may_end(old.connect())
        plan = Plan(old, options.binary, options.command, output)
        await interruption.may_end(plan.check())
        if options.dry_run:
            output.plan(plan.command(), plan.describe())
            output.result('possible', 'the VM can be updated; nothing was '
                          'changed', mode=plan.mode.name)
            return
        if record:
            await interruption.may_end(
                record.begin(old, plan.mode.name == COPY))
        update = Update(plan, interruption, record, output)
        await update.run()
        if record:
            await record.end(update.facts)
        await update.check_alive()
        output.result('updated', 'the VM runs in the new QEMU, process '
                      f'{update.facts["pid"]}', **update.facts)
    finally:
        if update:
            await update.close()
        await old.close()


def main(arguments: Optional[List[str]] = None) -> int:
    """Update a VM; returns the exit status."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    output = Output(options.json)
    # pylint: disable=broad-exception-caught
    try:
        asyncio.run(run(options, output))
    except MonitorError as error:
        output.fail(Refused(str(error)))
    except UpdateError as error:
        output.fail(error)
    except Exception as error:
        # The next run finds out which QEMU has the VM.
        output.fail(NeedsPerson(
            f'{describe(error)}: type the same command again, which completes '
            'the update or undoes it'))
    return output.exit
