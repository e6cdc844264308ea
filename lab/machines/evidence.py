# SPDX-License-Identifier: GPL-2.0-or-later
"""
The state of processes and VMs, to be printed when a test has failed
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

# A function that executes a QMP command with its arguments.
Command = Callable[[str, Dict[str, object]], Any]
ASK_GUEST = ('cat /sys/block/[vs]d*/inflight; grep virtio /proc/interrupts; '
             'dmesg | tail -n 5')


def children() -> List[int]:
    """The process ids of our children."""
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
    """Turn core files in the current folder into backtraces in another."""
    folder.mkdir(parents=True, exist_ok=True)
    for core in Path.cwd().glob('core*'):
        (folder / f'backtrace-{core.name}').write_text(
            _gdb(str(OBJ / 'qemu-system-x86_64'), str(core)), 'utf-8')
        core.unlink()


def _pending(pid: int) -> Iterator[str]:
    """The eventfds of a process that have been signalled and not read."""
    for info in Path(f'/proc/{pid}/fdinfo').iterdir():
        try:
            found = re.search(r'eventfd-count: +(\w+)(?:.*id: *(\d+))?',
                              info.read_text('ascii'), re.S)
        except OSError:
            continue            # closed in the meantime
        if found and int(found[1], 16):
            yield f'fd {info.name} (eventfd {found[2]}): {found[1]}'


def _rings(cmd: Command) -> Iterator[str]:
    """The avail and used indices of vhost-user disks."""
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
    """The answers of a QEMU about its VM, disks and ports."""
    try:
        for command in 'query-status', 'query-migrate', 'query-chardev':
            yield f'{command}: {cmd(command, {})}'
        tree = cmd('human-monitor-command', {'command-line': 'info qtree'})
        yield from re.findall(r'name = ".*"|port \d+, guest.*', tree)
        yield from _rings(cmd)
    except (QMPError, QEMUMachineError, OSError) as error:
        yield f'its monitor: {error!r}'


def ask_guest(guest: Guest) -> str:
    """The answer of a guest about its disks, if it answers."""
    try:
        reply = guest.wait(guest.start(ASK_GUEST), timeout=10)
        return f'the guest says: {reply.output}'
    except (GuestError, AssertionError, OSError) as error:
        return f'the guest: {error!r}'


def describe_process(pid: int) -> Iterator[str]:
    """Eventfds and backtraces of a process."""
    yield f'process {pid}'
    yield from _pending(pid)
    yield _gdb('-p', str(pid))


def describe(vm: VM) -> Iterator[str]:
    """The output of a QEMU, its console, and its answers."""
    yield f'QEMU {vm.get_pid()}, ' + (
        'running' if vm.is_running() else f'ended with {vm.exitcode()}')
    yield vm.get_log() or vm.output()
    if vm.console.exists():
        yield 'console: ' + vm.console.read_text('utf-8', 'replace')[-2000:]
    if vm.is_running():
        yield from ask_monitor(vm.cmd)


def describe_all(vms: Sequence[VM]) -> str:
    """Describe VMs, their guests, and all our children."""
    lines: List[str] = []
    for vm in vms:
        lines += describe(vm)
    lines += [ask_guest(guest) for guest in {vm.guest for vm in vms}]
    for pid in children():
        lines += describe_process(pid)
    return '\n'.join(lines)
