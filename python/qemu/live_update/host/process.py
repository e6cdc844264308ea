# SPDX-License-Identifier: GPL-2.0-or-later
"""
Processes of this host: what the kernel tells of them, and starting a new one
in the same environment
"""
import asyncio
import contextlib
import ctypes
import os
from pathlib import Path
import re
import resource
import signal
import socket
import struct
import subprocess
from typing import (
    Any,
    Callable,
    Dict,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Sequence,
)

from ..error import Refused
from ..waiting import until
from .confinement import Confinement
from .scheduling import Scheduling


PIDFD_GETFD = 438       # the number of the system call on all architectures


def is_listening(path: str) -> bool:
    """
    Does a process listen on this UNIX socket?

    Asks the kernel.  To connect would not do: the process would accept the
    connection as that of a client.
    """
    accepting = 0x10000         # __SO_ACCEPTCON
    with open('/proc/net/unix', encoding='utf-8', errors='replace') as sockets:
        # The path is the last word, and may have blanks in it.
        return any(len(words) > 7 and words[7] == path and
                   int(words[3], 16) & accepting
                   for words in (line.rstrip('\n').split(None, 7)
                                 for line in list(sockets)[1:]))


def pid_of_server(client: socket.socket) -> int:
    """The process that has called listen(2) on the peer of this socket."""
    form = '3i'                 # struct ucred
    pid, _, _ = struct.unpack(form, client.getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize(form)))
    return int(pid)


def find(argument: str) -> List[int]:
    """All processes whose command line contains a string."""
    found = []
    for entry in Path('/proc').iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and \
                    os.fsencode(argument) in (entry / 'cmdline').read_bytes():
                found.append(int(entry.name))
    return found


def service_of(cgroups: str) -> str:
    """The systemd service in the text of /proc/PID/cgroup, or ''."""
    units = {line.rpartition('/')[2] for line in cgroups.splitlines()}
    return next((unit for unit in units if unit.endswith('.service')), '')


class FileRange(NamedTuple):
    """What a mapping of a file shows: device, inode, and offset."""
    device: int
    inode: int
    offset: int


class Mapping(NamedTuple):
    """
    A range of addresses of a process, a line of /proc/PID/maps.

    file: None if the memory is anonymous
    path: the name that the file had when it was opened
    is_named: does a name of the file still exist?
    """
    begin: int
    end: int
    is_shared: bool
    is_writable: bool
    file: Optional[FileRange]
    path: str
    is_named: bool

    @classmethod
    def parse(cls, line: str) -> 'Mapping':
        """Parse a line; the device is the one that the line tells."""
        words = line.rstrip('\n').split(maxsplit=5)
        begin, end = (int(word, 16) for word in words[0].split('-'))
        device, inode = words[3], int(words[4])
        path = words[5] if len(words) > 5 else ''
        deleted = ' (deleted)'
        file = None
        if inode:
            major, minor = (int(word, 16) for word in device.split(':'))
            file = FileRange(os.makedev(major, minor), inode,
                             int(words[2], 16))
        return cls(begin, end, words[1][3] == 's', words[1][1] == 'w', file,
                   path[:-len(deleted)] if path.endswith(deleted) else path,
                   not path.endswith(deleted))


class Process:
    """
    A process, which may end at any time.

    @param pid: its number.  A pidfd keeps the process apart from one that
                gets the same number later.
    """
    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._proc = Path(f'/proc/{pid}')
        try:
            self._fd = os.pidfd_open(pid)
            self._proc.joinpath('environ').read_bytes()
        except OSError as error:
            raise Refused(f'cannot look at process {pid}: {error.strerror}; '
                          'run this as root or as the user of the VM'
                          ) from error

    @classmethod
    def from_identity(cls, identity: str) -> 'Optional[Process]':
        """The process that has this identity; None: it has ended."""
        with contextlib.suppress(Refused, OSError, ValueError):
            process = cls(int(identity.split()[0]))
            if process.identity == identity:
                return process
        return None

    @property
    def identity(self) -> str:
        """Its number and start time, which no other process has."""
        return f'{self.pid} {self._stat()[19]}'

    def close(self) -> None:
        """Close its pidfd."""
        os.close(self._fd)

    def _read(self, name: str) -> str:
        return os.fsdecode((self._proc / name).read_bytes())

    def _stat(self) -> List[str]:
        """The fields of /proc/PID/stat after the name of the program."""
        # The name may contain spaces and parentheses.
        return self._read('stat').rpartition(')')[2].split()

    @property
    def arguments(self) -> List[str]:
        """Its command line, without the name of the program."""
        return self._read('cmdline').split('\0')[1:-1]

    @property
    def environment(self) -> Dict[str, str]:
        """The environment that it was started with."""
        pairs = (item.partition('=')
                 for item in self._read('environ').split('\0') if item)
        return {name: value for name, _, value in pairs}

    @property
    def folder(self) -> str:
        """The folder to which paths on its command line are relative."""
        folder = os.readlink(self._proc / 'cwd')
        if '-daemonize' in self.arguments:
            # It has changed to "/" since.  A shell sets PWD for a program.
            folder = self.environment.get('PWD', folder)
        return folder

    @property
    def users(self) -> Dict[str, List[int]]:
        """Its user, group, and other groups: 'Uid', 'Gid', 'Groups'."""
        lines = (line.partition(':')
                 for line in self._read('status').splitlines())
        return {name: [int(word) for word in value.split()]
                for name, _, value in lines
                if name in ('Uid', 'Gid', 'Groups')}

    @property
    def memory(self) -> int:
        """How much anonymous and shared memory it uses, in bytes."""
        return sum(int(size) for size in re.findall(
            r'(?m)^(?:RssAnon|RssShmem|VmSwap):\s*(\d+) kB',
            self._read('status'))) << 10

    def service(self) -> str:
        """The systemd service that ends when this process ends, or ''."""
        parent = self._stat()[1]
        with contextlib.suppress(OSError):
            if Path(f'/proc/{parent}/comm').read_text('utf-8') == 'systemd\n':
                return service_of(self._read('cgroup'))
        return ''

    def shares_namespaces(self) -> bool:
        """Does it have the namespaces of live-update?"""
        return all(os.readlink(self._proc / 'ns' / name) ==
                   os.readlink(f'/proc/self/ns/{name}')
                   for name in ('mnt', 'net', 'pid', 'user'))

    def has_ended(self) -> bool:
        """Has it ended?  It may be a zombie, for which its parent waits."""
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            signal.pidfd_send_signal(self._fd, 0)
            return self._stat()[0] == 'Z'
        return True

    async def wait(self, timeout: float) -> bool:
        """Wait until it has ended; false: it has not after a timeout."""
        async def has_ended() -> bool:
            return self.has_ended()

        return await until(has_ended, timeout)

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    def copy_fd(self, number: int) -> Optional[int]:
        """Copy one of its file descriptors; None: not permitted, or none."""
        libc = ctypes.CDLL(None, use_errno=True)
        copy = libc.syscall(PIDFD_GETFD, self._fd, number, 0)
        return int(copy) if copy >= 0 else None

    def mappings(self) -> List[Mapping]:
        """Its mappings, in the order of their addresses."""
        return [Mapping.parse(line)
                for line in self._read('maps').splitlines()]

    def file_of(self, mapping: Mapping) -> Optional[FileRange]:
        """
        The file of one of its mappings, with the device that stat(2) tells.

        /proc/PID/maps tells another device for a file in a subvolume (btrfs)
        or an overlay.
        """
        if not mapping.file:
            return None
        for status in self._stats_of(mapping):
            if status.st_ino == mapping.file.inode:
                return mapping.file._replace(device=status.st_dev)
        return mapping.file

    def _stats_of(self, mapping: Mapping) -> Iterator[os.stat_result]:
        """The results of stat(2) for files that may be that of a mapping."""
        with contextlib.suppress(OSError):
            # This takes CAP_SYS_ADMIN.
            yield os.stat(self._proc / 'map_files' /
                          f'{mapping.begin:x}-{mapping.end:x}')
            return
        for entry in (self._proc / 'fd').iterdir():
            with contextlib.suppress(OSError):
                path = os.readlink(entry).replace(' (deleted)', '')
                if path == mapping.path:
                    yield os.stat(entry)

    @property
    def root(self) -> str:
        """Its root folder, which chroot(2) changes."""
        return os.readlink(self._proc / 'root')

    @property
    def may_override_access(self) -> bool:
        """Has it CAP_DAC_OVERRIDE, with which it may open any file?"""
        cap_dac_override = 1
        found = re.search(r'(?m)^CapEff:\s*(\w+)', self._read('status'))
        return bool(found and int(found[1], 16) >> cap_dac_override & 1)

    def cgroup(self) -> Optional[Path]:
        """The file cgroup.procs of its control group (v2)."""
        for line in self._read('cgroup').splitlines():
            if line.startswith('0::/'):
                path = Path('/sys/fs/cgroup' + line[3:], 'cgroup.procs')
                return path if path.exists() else None
        return None

    def start_like(self, command: Sequence[str], as_user: bool
                   ) -> 'subprocess.Popen[bytes]':
        """
        Start a program with the attributes of this process.

        These are the working directory, the environment, resource limits, CPU
        affinity, scheduling priority, confinement, and control group.  The
        program's stdout and stderr are the stderr of this process.  If that
        is /dev/null or cannot be copied, the program's stderr is a pipe, the
        "stderr" of the result.

        @param as_user: also with the user and groups of this process
        """
        output = self.copy_fd(2)
        if output is not None and \
                os.fstat(output).st_rdev == os.stat('/dev/null').st_rdev:
            os.close(output)
            output = None
        cgroup = self.cgroup()

        def join() -> None:
            if cgroup:
                with contextlib.suppress(OSError):
                    cgroup.write_text(str(os.getpid()), 'ascii')

        try:
            return self.run_like(
                command, as_user, first=join,
                stdout=subprocess.DEVNULL if output is None else output,
                stderr=subprocess.PIPE if output is None else output)
        finally:
            if output is not None:
                os.close(output)

    def run_like(self, command: Sequence[str], as_user: bool,
                 first: Callable[[], object] = lambda: None,
                 last: Callable[[], object] = lambda: None,
                 **options: Any) -> 'subprocess.Popen[bytes]':
        """
        Like start_like(), but leaves control group and output to the caller.

        @param first: is called in the new process, before its user changes
        @param last: is called in the new process, after its user has changed
        @param options: of subprocess.Popen
        """
        limits = {}
        # To read the limits of another user's process takes CAP_SYS_RESOURCE.
        with contextlib.suppress(PermissionError):
            limits = {kind: resource.prlimit(self.pid, kind)
                      for name, kind in vars(resource).items()
                      if name.startswith('RLIMIT_')}
        scheduling = Scheduling(self.pid)
        confinement = Confinement.of(self.pid)
        users = self.users
        memory = self._proc.joinpath('oom_score_adj').read_text('ascii')

        def prepare() -> None:
            """Is called in the new process, before it runs the program."""
            first()
            scheduling.apply_to(0)
            for kind, limit in limits.items():
                with contextlib.suppress(ValueError, OSError):
                    resource.setrlimit(kind, limit)
            Path('/proc/self/oom_score_adj').write_text(memory, 'ascii')
            confinement.confine()
            if as_user and os.geteuid() == 0:
                os.setgroups(users['Groups'])
                os.setresgid(*users['Gid'][:3])
                os.setresuid(*users['Uid'][:3])
            confinement.finish()
            last()

        try:
            # pylint: disable-next=subprocess-popen-preexec-fn
            return subprocess.Popen(
                command, cwd=self.folder, stdin=subprocess.DEVNULL,
                env={**self.environment, 'PWD': self.folder},
                start_new_session=True, preexec_fn=prepare, **options)
        except OSError as error:
            raise Refused(
                f"cannot run '{command[0]}' as the user of the VM, "
                f'{users["Uid"][1]}: {error.strerror}; let that user execute '
                'the file and enter its folders') from error
        except subprocess.SubprocessError as error:
            raise Refused(
                f"cannot run '{command[0]}' with the CPU affinity, priority "
                f'and user of process {self.pid}; run this as root'
                ) from error


async def end_all(argument: str, timeout: float = 10) -> None:
    """Kill all processes whose command line contains a string."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    # More than once: a process may fork while it is being killed.
    while loop.time() < deadline:
        pids = find(argument)
        if not pids:
            return
        for pid in pids:
            with contextlib.suppress(Refused):
                process = Process(pid)
                process.kill()
                await process.wait(timeout)
                process.close()
