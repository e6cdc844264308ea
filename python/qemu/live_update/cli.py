# SPDX-License-Identifier: GPL-2.0-or-later
"""
The command line of live-update
"""
import argparse
import asyncio
import sys
from typing import List, NoReturn, Optional

from .error import NeedsPerson, Refused, UpdateError
from .interruption import Interruption
from .leftover import clear_up
from .monitor import Monitor, MonitorError
from .output import Output
from .plan import Plan
from .record import Record
from .update import Update, describe

EXIT_STATUS = """
exit status:
  0  the VM runs in the new QEMU (with --dry-run: it could)
  1  refused; nothing was changed
  2  failed; the old QEMU runs the VM on
  3  needs a person: the message says what for
"""


class Parser(argparse.ArgumentParser):
    """One for which wrong usage is no failed update."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(Refused.exit, f'{self.prog}: {message}\n')


def parse(arguments: List[str]) -> argparse.Namespace:
    """Take the arguments apart."""
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
                        help='say what would be done, and do nothing')
    parser.add_argument('--json', action='store_true',
                        help='print a JSON object per line')
    parser.add_argument('--timeout', metavar='SECONDS', type=float,
                        default=120, help='give up after so long, and leave '
                        'the VM in the old QEMU (default: %(default)s)')
    parser.add_argument('--report', metavar='FILE.html',
                        help='write what happened, with a picture of the '
                        'guest\'s I/O (needs Python\'s matplotlib)')
    ours, theirs = arguments, None
    if '--' in arguments:
        position = arguments.index('--')
        ours, theirs = arguments[:position], arguments[position + 1:]
    options = parser.parse_args(ours)
    options.command = theirs
    return options


async def update(options: argparse.Namespace, output: Output) -> None:
    """Do what the user wants; raises UpdateError if it cannot be."""
    interruption = Interruption(options.timeout)
    record = Record(options.report, output) if options.report else None
    if options.dry_run or not await clear_up(options.qmp, interruption,
                                             output):
        await update_running(options, interruption, record, output)


async def update_running(options: argparse.Namespace,
                         interruption: Interruption, record: Optional[Record],
                         output: Output) -> None:
    """The same, when nothing of an earlier update is left."""
    old = Monitor('the running QEMU', options.qmp)
    work = None
    try:
        await interruption.guard(old.connect())
        plan = Plan(old, options.binary, options.command, output)
        await interruption.guard(plan.check())
        if options.dry_run:
            output.plan(plan.command(), plan.describe())
            output.result('possible', 'the VM can be updated; nothing was '
                          'changed', mode=plan.mode.name)
            return
        if record:
            await interruption.guard(record.begin(plan))
        work = Update(plan, interruption, record, output)
        await work.run()
        if record:
            await record.end(work.facts)
        await work.check_alive()
        output.result('updated', 'the VM runs in the new QEMU, process '
                      f'{work.facts["pid"]}', **work.facts)
    finally:
        if work:
            await work.close()
        await old.close()


def main(arguments: Optional[List[str]] = None) -> int:
    """Update a VM; returns the exit status."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    output = Output(options.json)
    # pylint: disable=broad-exception-caught
    try:
        asyncio.run(update(options, output))
    except MonitorError as error:
        output.fail(Refused(str(error)))
    except UpdateError as error:
        output.fail(error)
    except Exception as error:
        # Where the VM is then, the next run finds out.
        output.fail(NeedsPerson(
            f'{describe(error)}: type the same command again, which completes '
            'the update or undoes it'))
    return output.exit
