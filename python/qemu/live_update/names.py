# SPDX-License-Identifier: GPL-2.0-or-later
"""
Names of files that the old and the new QEMU both make: sockets, a pid file

Both have them while one runs the VM.  So the new QEMU makes its files in
private folders, beside the names that everybody knows, and when it runs the VM
they are moved there.  Its command line keeps the private names; the next
update takes the folder out of them.
"""
import contextlib
import fcntl
import json
import os
import re
import secrets
import stat
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

from .error import NeedsPerson, Refused

PREFIX = '.live-update-'
CHANNELS = 'cpr', 'migration'
OLD = 'old'             # says what the old QEMU is; see Old
LONGEST = 107           # bytes in the path of a UNIX socket


def public(path: str) -> str:
    """The name by which others know a file."""
    return re.sub(rf'(^|/){re.escape(PREFIX)}[^/]*/', r'\1', path)


def _same(one: Path, other: Path) -> bool:
    """Are they the same name in the same folder, however that is spelled?"""
    return one.name == other.name and \
        os.path.realpath(one.parent) == os.path.realpath(other.parent)


class Old(NamedTuple):
    """
    What an update that completes or undoes this one must know.

    process: the identity of the old QEMU
    status: the run state of the VM
    settings: of migration, as they were before the update
    """
    process: str
    status: str
    settings: Dict[str, Any]


class Names:
    """
    The names that the new QEMU has for its files.

    token: is in all of them, and nowhere else
    old: what an earlier update has left of its knowledge

    @param cwd: where relative names begin
    @param owner: who the new QEMU runs as: user and group
    """
    def __init__(self, cwd: str, owner: Tuple[int, int]) -> None:
        self.token = PREFIX + secrets.token_hex(4)
        self._cwd = Path(cwd)
        self._owner = owner
        self._public: List[Path] = []
        self.old: Optional[Old] = None

    def private(self, path: str) -> str:
        """The name for the new QEMU of what others call path."""
        name = self._cwd / public(path)
        # One file has one name, also for who comes through another folder.
        name = next((known for known in self._public if _same(known, name)),
                    name)
        result = name.parent / self.token / name.name
        excess = len(os.fsencode(result)) - LONGEST
        if excess > 0:
            raise Refused(f"the new QEMU's name for '{name}' would be "
                          f'{excess} bytes too long for a socket; start the '
                          'VM with a shorter path')
        if name not in self._public:
            self._public.append(name)
        return str(result)

    @property
    def _folders(self) -> List[Path]:
        """The private folders, each once."""
        return list(dict.fromkeys(name.parent / self.token
                                  for name in self._public))

    @classmethod
    def of(cls, folder: Path) -> 'Names':
        """The names of an earlier update, from one of its private folders."""
        names = cls('/', (os.getuid(), os.getgid()))
        names.token = folder.name
        # Without it, the update was killed before it began, or begins now.
        names._public = [folder.parent / OLD]
        with contextlib.suppress(OSError, ValueError):
            told = json.loads((folder / OLD).read_text('utf-8'))
            names._public = [Path(name) for name in told['names']]
            names.old = Old(told['process'], told['status'],
                            told['settings'])
        return names

    def has(self, path: Path) -> bool:
        """Is this one of the public names?"""
        return any(_same(name, path) for name in self._public)

    def create(self, old: Old) -> None:
        """
        Make the private folders, locked as long as this process lives.

        @param old: is written there
        """
        told = json.dumps({**old._asdict(), 'names': [
            str(name) for name in self._public]})
        for folder in self._folders:
            try:
                self._create(folder, told)
            except OSError as error:
                self.remove()
                raise Refused(f"cannot make a folder in '{folder.parent}', "
                              'where a file of the VM is: '
                              f'{error.strerror}') from error

    def _create(self, folder: Path, told: str) -> None:
        for attempt in range(3):
            # The update of another VM may take an empty one for a leftover.
            with contextlib.suppress(
                    *([] if attempt == 2 else [FileNotFoundError])):
                folder.mkdir(mode=0o700)
                os.chown(folder, *self._owner)
                self.lock(folder, wait=True)
                (folder / OLD).write_text(told, 'utf-8')
                return

    @staticmethod
    def lock(folder: Path, wait: bool = False) -> int:
        """
        Lock a folder; OSError: another process has.

        Returns a file descriptor that stands for the lock.
        """
        fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            os.close(fd)
            raise
        return fd

    def _files(self) -> Iterator[Tuple[Path, Path]]:
        """What the new QEMU has made, with the public names."""
        for folder in self._folders:
            for file in list(folder.iterdir()) if folder.exists() else []:
                if file.name not in (*CHANNELS, OLD) and \
                        not file.name.startswith(PREFIX):
                    yield file, folder.parent / file.name

    def protect(self) -> None:
        """
        Keep others from the sockets, also if they get into the folder.

        A QEMU that will change its user makes them as the one it was started
        by, and the old one, which has changed it, connects to them.
        """
        for folder in self._folders:
            for file in folder.iterdir():
                if file.is_socket():
                    with contextlib.suppress(FileNotFoundError):
                        os.chmod(file, 0o600)
                        if os.geteuid() == 0:
                            os.chown(file, *self._owner)

    def publish(self) -> None:
        """
        Give the new QEMU's files their names; withdraw() takes them back.

        Who may use a file stays as it was.
        """
        for file, name in self._files():
            with contextlib.suppress(OSError):
                old = name.stat()
                os.chown(file, old.st_uid, old.st_gid)
                os.chmod(file, stat.S_IMODE(old.st_mode))
            with contextlib.suppress(OSError):
                os.link(name, file.parent / (PREFIX + name.name))
            try:
                file.replace(name)
            except OSError as error:
                raise NeedsPerson(
                    f"the VM runs in the new QEMU, but its file '{file}' "
                    f"cannot be moved to '{name}': {error.strerror}; move it "
                    'there, and end the old QEMU') from error

    def withdraw(self) -> None:
        """Give the old QEMU's files their names again."""
        for folder in self._folders:
            for file in folder.glob(f'{PREFIX}*'):
                with contextlib.suppress(OSError):
                    file.replace(folder.parent / file.name[len(PREFIX):])

    def remove(self) -> None:
        """Remove the private folders with what is left in them."""
        for folder in self._folders:
            with contextlib.suppress(FileNotFoundError):
                for file in folder.iterdir():
                    file.unlink()
                folder.rmdir()
