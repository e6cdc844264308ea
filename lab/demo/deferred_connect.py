# SPDX-License-Identifier: GPL-2.0-or-later
"""
Show a disk whose chardev is created before there is a back-end for it

A VM boots with a chardev that nobody serves.  The disk cannot be attached
until the back-end is up; then the same command attaches it, and the guest
writes blocks and reads them back.  The exit status is not 0 if anything
differs from what is printed.
"""
import signal
import sys
import time

from qemu.qmp import QMPError

from lab import STOCK_OBJ
from lab.machines.agent import GuestError
from lab.machines.scope import Scope
from lab.machines.vm import HOTPLUG_BUSES, VM, Properties, VMLaunchFailure

BLOCKS = 5000
DISK: Properties = {
    'driver': 'vhost-user-blk-pci', 'id': 'disk', 'chardev': 'c',
    'bus': HOTPLUG_BUSES[0]}
START = time.monotonic()


class DemoError(Exception):
    """Something differs from what the demo prints."""


def say(text: str) -> None:
    """Print a line with the time since the start."""
    print(f'{time.monotonic() - START:6.1f} s  {text}', flush=True)


def require(condition: bool, complaint: str) -> None:
    """End the demo unless the condition holds."""
    if not condition:
        raise DemoError(complaint)


def state(vm: VM) -> str:
    """The state of the connection in query-chardev."""
    return str(vm.chardev('c').get('state', 'unknown'))


def attach_in_vain(vm: VM) -> None:
    """Attaching must fail with a reason, and change nothing."""
    error = vm.attach_error(DISK)
    require(error != '', 'the disk was attached without a back-end')
    say(f'attach the disk:  {error}')
    require(state(vm) == 'postponed', f'the chardev is {state(vm)}')
    vm.guest.run('true')
    say('                  the guest still runs')


def attach_and_use(vm: VM) -> str:
    """Attach the disk, use it, detach it; returns a summary."""
    vm.cmd('device_add', DISK)
    require(state(vm) == 'connected', f'the chardev is {state(vm)}')
    say('attach the disk:  done; query-chardev says "connected"')
    vm.guest.wait_until('[ -b /dev/vda ]')
    say(f'the guest found it as /dev/vda; it writes {BLOCKS} blocks, 8 at a '
        'time, and reads each back...')
    result = vm.guest.verify('vda', count=BLOCKS)
    require((result.verified, result.errors) == (BLOCKS, 0),
            f'the guest found errors: {result}')
    require(len(vm.guest.records) == 2 * BLOCKS,
            f'{len(vm.guest.records)} of {2 * BLOCKS} requests were reported')
    say(f'{result.verified} blocks read back, {result.errors} errors')
    vm.delete_device('disk')
    vm.cmd('chardev-remove', id='c')
    say('detach the disk, remove the chardev: done')
    return (f'{result.verified} blocks ({result.size / 1e6:.1f} MB) written '
            f'and verified in {result.seconds:.1f} s, {result.errors} errors')


def show_stock(chardev: str) -> None:
    """Start QEMU without the series with the same arguments."""
    if not (STOCK_OBJ / 'qemu-system-x86_64').exists():
        return
    vm = VM('-chardev', chardev, obj=STOCK_OBJ)
    try:
        vm.launch()
    except VMLaunchFailure as failure:
        reason = (failure.output or '').strip().split(': ', 2)[-1]
        say(f'stock QEMU, same arguments: exits with status '
            f'{failure.exitcode}, "{reason}"')
        return
    vm.shutdown()
    say('stock QEMU, same arguments: starts as well')


def demonstrate(scope: Scope) -> str:
    """The demo from begin to end; returns a summary"""
    daemon = scope.daemon(start=False)
    chardev = f'socket,id=c,path={daemon.path}'
    vm = scope.vm('-chardev', chardev)
    say(f'start a VM with -chardev {chardev} (no server listens there)')
    vm.boot()
    require(state(vm) == 'postponed', f'the chardev is {state(vm)}')
    say('the guest is up; query-chardev says "postponed"')
    attach_in_vain(vm)
    daemon.start()
    say('start the back-end (qemu-storage-daemon)')
    outcome = attach_and_use(vm)
    vm.shutdown()
    show_stock(f'socket,id=c,path={scope.path("no-server.sock")}')
    return outcome


def main() -> None:
    """The demo, with one line for an error"""
    try:
        with Scope() as scope:
            outcome = demonstrate(scope)
    except VMLaunchFailure as failure:
        sys.exit(f'FAILED: QEMU does not start: {failure.output}')
    except (DemoError, GuestError, QMPError) as error:
        sys.exit(f'FAILED: {error}')
    except KeyboardInterrupt:
        sys.exit(130)
    print(f"""
Summary
  The VM ran before its storage back-end existed.  Attaching the disk too
  early failed with an error message, and the VM ran on.  With the back-end up:
  {outcome}.""")


if __name__ == '__main__':
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
