# SPDX-License-Identifier: GPL-2.0-or-later
"""
What can be seen of our processes when a test has failed, before they end
"""
import os
import re
import subprocess
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Sequence

from qemu.machine.machine import QEMUMachineError
from qemu.qmp import QMPError

from lab import OBJ

from .agent import Guest, GuestError
from .vm import VM

# Has a monitor carry out a command with its arguments.
Command = Callable[[str, Dict[str, object]], Any]
ASK_GUEST = ('cat /sys/block/[vs]d*/inflight; grep virtio /proc/interrupts; '
             'dmesg | tail -n 5')


def children() -> List[int]:
    """All processes that we have started and have not seen the end of."""
    found = []
    for entry in Path('/proc').iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            stat = (entry / 'stat').read_text('utf-8', 'replace')
        except OSError:
            continue            # it has ended
        if int(stat.rpartition(')')[2].split()[1]) == os.getpid():
            found.append(int(entry.name))
    return found


def _gdb(*words: str) -> str:
    try:
        return subprocess.run(
            ['gdb', '-batch', '-nx', *words, '-ex', 'thread apply all bt'],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, check=False, timeout=120,
            encoding='utf-8', errors='replace').stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        return f'{error}\n'


def keep_cores(folder: Path) -> None:
    """Where our processes were that dumped core here."""
    folder.mkdir(parents=True, exist_ok=True)
    for core in Path.cwd().glob('core*'):
        (folder / f'backtrace-{core.name}').write_text(
            _gdb(str(OBJ / 'qemu-system-x86_64'), str(core)), 'utf-8')
        core.unlink()


def _pending(pid: int) -> Iterator[str]:
    """The eventfds that nobody has read."""
    for info in Path(f'/proc/{pid}/fdinfo').iterdir():
        try:
            found = re.search(r'eventfd-count: +(\w+)(?:.*id: *(\d+))?',
                              info.read_text('ascii'), re.S)
        except OSError:
            continue            # closed in the meantime
        if found and int(found[1], 16):
            yield f'fd {info.name} (eventfd {found[2]}): {found[1]}'


def _rings(cmd: Command) -> Iterator[str]:
    """The indices in the rings of vhost-user disks, in the guest's memory."""
    for path in (device['path'] for device in cmd('x-query-virtio', {})):
        def get(name: str, path: str = path) -> Any:
            return cmd('qom-get', {'path': path, 'property': name})

        if get('type') != 'vhost-user-blk':
            continue
        for queue in range(get('num-queues')):
            ring = cmd('x-query-virtio-vhost-queue-status',
                       {'path': path, 'queue': queue})
            for area in 'avail', 'used':
                words = cmd('human-monitor-command', {
                    'command-line': f'xp /2hx {ring[area + "-phys"]:#x}'})
                yield f'{path} queue {queue} {area}: {words}'


def ask_monitor(cmd: Command) -> Iterator[str]:
    """What a QEMU says of the VM's state, its disks and its ports."""
    try:
        for command in 'query-status', 'query-migrate', 'query-chardev':
            yield f'{command}: {cmd(command, {})}'
        tree = cmd('human-monitor-command', {'command-line': 'info qtree'})
        yield from re.findall(r'name = ".*"|port \d+, guest.*', tree)
        yield from _rings(cmd)
    except (QMPError, QEMUMachineError, OSError) as error:
        yield f'its monitor: {error!r}'


def ask_guest(guest: Guest) -> str:
    """What a guest says, if it does."""
    try:
        reply = guest.wait(guest.start(ASK_GUEST), timeout=10)
        return f'the guest says: {reply.output}'
    except (GuestError, AssertionError, OSError) as error:
        return f'the guest: {error!r}'


def describe_process(pid: int) -> Iterator[str]:
    """What is seen of a process from outside."""
    yield f'process {pid}'
    yield from _pending(pid)
    yield _gdb('-p', str(pid))


def describe(vm: VM) -> Iterator[str]:
    """What a QEMU has printed, and what it says."""
    yield f'QEMU {vm.get_pid()}, ' + (
        'running' if vm.is_running() else f'ended with {vm.exitcode()}')
    yield vm.get_log() or vm.output()
    if vm.console.exists():
        yield 'console: ' + vm.console.read_text('utf-8', 'replace')[-2000:]
    if vm.is_running():
        yield from ask_monitor(vm.cmd)


def describe_all(vms: Sequence[VM]) -> str:
    """All that is known of VMs, their guests and our other processes."""
    lines: List[str] = []
    for vm in vms:
        lines += describe(vm)
    lines += [ask_guest(guest) for guest in {vm.guest for vm in vms}]
    for pid in children():
        lines += describe_process(pid)
    return '\n'.join(lines)
