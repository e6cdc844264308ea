# SPDX-License-Identifier: GPL-2.0-or-later
"""
The new QEMU runs like the old one: terminal, folder, rights, scheduling
"""
import ctypes
import os
import re
import struct
from pathlib import Path
from typing import Any, List

from .live_update_case import NOBODY, LiveUpdateTest
from .testcase import main


class NewProcess(LiveUpdateTest):
    """Processes of a VM without a guest"""

    def test_pty(self) -> None:
        """A pty gets another name, unless its path was given."""
        vm = self.bare()
        name = vm.qemu.folder / 'terminal'
        vm.qemu.command += [
            '-serial', 'pty', '-chardev', f'pty,id=named,path={name}']
        self.start_paused(vm)
        for _ in range(2):
            said = vm.assert_runs().said('terminal')
            self.assertIn("'serial1'", said)
            self.assertNotIn("'named'", said)
            with vm.qemu.monitor() as monitor:
                terminal = next(item for item in monitor.cmd('query-chardev')
                                if item['label'] == 'named')
            self.assertEqual('pty:' + os.readlink(name),
                             terminal['filename'])

    def test_given_relative(self) -> None:
        """Relative paths after "--" refer to the VM's folder; '' is kept."""
        vm = self.bare()
        inner = vm.qemu.folder / 'inner'
        inner.mkdir()
        vm.qemu.qmp = str(vm.qemu.folder / 'qmp.sock')
        self.start_paused(vm, cwd=inner, env={**os.environ, 'PWD': str(inner)})
        command = [word.replace(f'{vm.qemu.folder}/', '../')
                   for word in vm.qemu.command]
        for _ in range(2):
            vm.assert_runs(command=[*command, '-k', '', '-no-shutdown'],
                           cwd='/')
            words = vm.arguments()
            at = words.index('-k')
            self.assertEqual(words[at + 1:at + 3], ['', '-no-shutdown'])
            self.assertEqual(int(vm.qemu.pid_file.read_text('ascii')),
                             vm.qemu.pid)
        vm.assert_runs()

    def test_confined(self) -> None:
        """The new QEMU has the rights and the scheduling of the old one."""
        kept = re.compile(r'(?m)^(?:Cap|NoNewPrivs|Seccomp).*')

        def confinement() -> Any:
            proc = Path(f'/proc/{vm.qemu.pid}')
            with vm.qemu.monitor() as monitor:
                threads = [thread['thread-id'] for command in (
                    'query-cpus-fast', 'query-iothreads')
                    for thread in monitor.cmd(command)]
            return (kept.findall((proc / 'status').read_text('ascii')),
                    (proc / 'oom_score_adj').read_text('ascii'),
                    [(os.sched_getaffinity(thread),
                      os.sched_getscheduler(thread),
                      os.getpriority(os.PRIO_PROCESS, thread))
                     for thread in (vm.qemu.pid, *threads)])

        vm = self.bare('-object', 'iothread,id=thread')
        vm.qemu.command = [
            'setpriv', '--no-new-privs', '--bounding-set', '-all,+chown',
            '--inh-caps', '-all', 'nice', '-n', '3', 'choom', '-n', '300',
            '--', *vm.qemu.command]
        self.start_paused(vm)
        with vm.qemu.monitor() as monitor:
            cpu = monitor.cmd('query-cpus-fast')[0]['thread-id']
        os.sched_setaffinity(cpu, {max(os.sched_getaffinity(0))})
        os.setpriority(os.PRIO_PROCESS, cpu, 2)
        before = confinement()
        self.assertIn('NoNewPrivs:\t1', before[0])
        for _ in range(2):
            vm.assert_runs()
            self.assertEqual(confinement(), before)

    def test_user(self) -> None:
        """The new QEMU keeps uid and capabilities of an unprivileged VM."""
        vm = self.bare()
        vm.folder.chmod(0o755)
        os.chown(vm.qemu.folder, NOBODY, NOBODY)
        vm.qemu.log.touch()
        vm.qemu.command = [
            'setpriv', f'--reuid={NOBODY}', f'--regid={NOBODY}',
            '--clear-groups', '--inh-caps=+net_raw', '--ambient-caps=+net_raw',
            *vm.qemu.command]
        self.start_paused(vm)

        def rights() -> List[str]:
            return re.findall('(?m)^(?:Cap|Uid|Gid|Groups).*', Path(
                f'/proc/{vm.qemu.pid}/status').read_text('ascii'))

        before = rights()
        vm.assert_runs()
        self.assertEqual(rights(), before)
        secret = vm.folder / 'secret'
        secret.mkdir(mode=0o700)
        binary = secret / 'qemu'
        binary.symlink_to(vm.binary)
        for options in ('--dry-run',), ():
            outcome = vm.run(*options, binary=binary)
            self.assertEqual(outcome.status, 1, outcome)
            self.assertIn(str(binary), outcome.message)
            self.assertIn('user', outcome.message)

    def test_filtered(self) -> None:
        """A seccomp filter that was set from outside would be lost."""
        def forbid() -> None:
            """Set a seccomp filter that allows all system calls."""
            allow = ctypes.create_string_buffer(
                struct.pack('HBBI', 6, 0, 0, 0x7fff0000))
            program = ctypes.create_string_buffer(
                struct.pack('HxxxxxxP', 1, ctypes.addressof(allow)))
            set_seccomp, filter_mode = 22, 2
            ctypes.CDLL(None).prctl(set_seccomp, filter_mode, program)

        vm = self.bare()
        self.start_paused(vm, preexec_fn=forbid)
        vm.assert_refuses('system calls')

    def test_no_room(self) -> None:
        """Copying RAM needs free memory: live-update prints how much."""
        vm = self.bare()
        self.start_paused(vm)
        self.assertRegex(vm.run('--dry-run').said('memory'),
                         'up to 256 MiB.* [0-9]+ MiB')


if __name__ == '__main__':
    main()
