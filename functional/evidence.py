# SPDX-License-Identifier: GPL-2.0-or-later
"""
What can be seen of our processes when a test has failed, before they end
"""
import os
import re
import subprocess
from pathlib import Path
from typing import Any, Iterator, List, Sequence

from guest import OBJ
from guest.agent import GuestError
from guest.vm import VM
from qemu.machine.machine import QEMUMachineError
from qemu.qmp import QMPError

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


def _rings(vm: VM) -> Iterator[str]:
    """The indices in the rings of vhost-user disks, in the guest's memory."""
    devices: Any = vm.cmd('x-query-virtio')
    for path in (device['path'] for device in devices):
        if vm.cmd('qom-get', path=path, property='type') != 'vhost-user-blk':
            continue
        for queue in range(int(str(vm.cmd('qom-get', path=path,
                                          property='num-queues')))):
            ring: Any = vm.cmd('x-query-virtio-vhost-queue-status', path=path,
                               queue=queue)
            for area in 'avail', 'used':
                words = vm.cmd('human-monitor-command', {
                    'command-line': f'xp /2hx {ring[area + "-phys"]:#x}'})
                yield f'{path} queue {queue} {area}: {words}'


def describe(vm: VM) -> Iterator[str]:
    """What a QEMU says, and what is seen of it from outside."""
    pid = vm.get_pid()
    yield f'QEMU {pid}, ' + ('running' if vm.is_running() else
                             f'ended with {vm.exitcode()}')
    yield vm.get_log() or ''.join(log.read_text('utf-8', 'replace') for log
                                  in Path(vm.log_dir).glob('*.log'))
    if vm.console.exists():
        yield 'console: ' + vm.console.read_text('utf-8', 'replace')[-2000:]
    if pid is None or not vm.is_running():
        return
    yield from _pending(pid)
    try:
        for command in 'query-status', 'query-migrate':
            yield f'{command}: {vm.cmd(command)}'
        yield from _rings(vm)
    except (QMPError, QEMUMachineError, OSError) as error:
        yield f'its monitor: {error!r}'


def describe_all(vms: Sequence[VM]) -> str:
    """All that is known of VMs, their guests and our other processes."""
    lines: List[str] = []
    for vm in vms:
        lines += describe(vm)
    for guest in {vm.guest for vm in vms}:
        try:
            reply = guest.wait(guest.start(ASK_GUEST), timeout=10)
            lines.append(f'the guest says: {reply.output}')
        except (GuestError, AssertionError, OSError) as error:
            lines.append(f'the guest: {error!r}')
    for pid in children():
        lines += [f'process {pid}', *_pending(pid), _gdb('-p', str(pid))]
    return '\n'.join(lines)
