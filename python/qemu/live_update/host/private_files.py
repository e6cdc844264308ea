# SPDX-License-Identifier: GPL-2.0-or-later
"""
The sockets and the pid file that the old and the new QEMU both create

Both QEMUs have them while one of the two runs the VM.  So the new QEMU creates
its files in private folders, each beside a file of the old QEMU.  When the new
QEMU runs the VM, its files are moved to the public names.  Its command line
keeps the private names; the next update removes the folder from them.
"""
import contextlib
import fcntl
import json
import os
from pathlib import Path
import re
import secrets
import stat
from typing import (
    Any,
    Dict,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Tuple,
)

from ..error import NeedsPerson, Refused


PREFIX = '.live-update-'
CHANNELS = 'cpr', 'migration'       # sockets between the two QEMUs
NOTE = 'old'            # has the RecoveryNote, and the public names
LONGEST = 107           # bytes in the path of a UNIX socket


def public_name(path: str) -> str:
    """The name of a file without a private folder."""
    return re.sub(rf'(^|/){re.escape(PREFIX)}[^/]*/', r'\1', path)


def check_length(private: str, public: str) -> None:
    """Raise Refused if a private name is too long for a socket."""
    excess = len(os.fsencode(private)) - LONGEST
    if excess > 0:
        raise Refused(f"the new QEMU's name for '{public}' would be {excess} "
                      'bytes too long for a socket; start the VM with a '
                      'shorter path')


def _same(one: Path, other: Path) -> bool:
    """Are they the same name in the same folder, perhaps by symlinks?"""
    return one.name == other.name and \
        os.path.realpath(one.parent) == os.path.realpath(other.parent)


class RecoveryNote(NamedTuple):
    """
    What recovery must know of an update that was killed.

    process: the identity of the old QEMU
    status: the run state of the VM
    settings: capabilities and parameters of migration before the update
    """
    process: str
    status: str
    settings: Dict[str, Any]


class PrivateFiles:
    """
    The files of the new QEMU, and their public names.

    token: the name of all private folders, and of no other file
    note: what an earlier update has written; None: this update is new

    @param cwd: the folder to which relative names are relative
    @param owner: user and group of the new QEMU
    """
    def __init__(self, cwd: str, owner: Tuple[int, int]) -> None:
        self.token = PREFIX + secrets.token_hex(4)
        self._cwd = Path(cwd)
        self._owner = owner
        self._public: List[Path] = []
        self.note: Optional[RecoveryNote] = None

    def private(self, path: str) -> str:
        """The private name of a file of the old QEMU."""
        name = self._cwd / public_name(path)
        # A file has one private name, also if symlinks lead to its folder.
        name = next((known for known in self._public if _same(known, name)),
                    name)
        if name not in self._public:
            self._public.append(name)
        return str(name.parent / self.token / name.name)

    def socket(self, path: str) -> str:
        """The private name of a socket; Refused: it would be too long."""
        result = self.private(path)
        check_length(result, path)
        return result

    @property
    def _folders(self) -> List[Path]:
        """The private folders, each once."""
        return list(dict.fromkeys(name.parent / self.token
                                  for name in self._public))

    @classmethod
    def of_earlier(cls, folder: Path) -> 'PrivateFiles':
        """The files of an earlier update, from one of its private folders."""
        files = cls('/', (os.getuid(), os.getgid()))
        files.token = folder.name
        # There is no note if the update was killed before it had written it,
        # or is about to write it.
        files._public = [folder.parent / NOTE]
        with contextlib.suppress(OSError, ValueError):
            told = json.loads((folder / NOTE).read_text('utf-8'))
            files._public = [Path(name) for name in told['names']]
            files.note = RecoveryNote(told['process'], told['status'],
                                      told['settings'])
        return files

    def has_public(self, path: Path) -> bool:
        """Is this one of the public names?"""
        return any(_same(name, path) for name in self._public)

    def create(self, note: RecoveryNote) -> None:
        """
        Create the private folders, locked until this process ends.

        @param note: is written to each of them
        """
        told = json.dumps({**note._asdict(), 'names': [
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
            # The recovery of another VM may remove a folder that is empty.
            with contextlib.suppress(
                    *([] if attempt == 2 else [FileNotFoundError])):
                folder.mkdir(mode=0o700)
                os.chown(folder, *self._owner)
                self.lock(folder, wait=True)
                (folder / NOTE).write_text(told, 'utf-8')
                return

    @staticmethod
    def lock(folder: Path, wait: bool = False) -> int:
        """
        Lock a folder; OSError: another process has locked it.

        Returns a file descriptor, which holds the lock until it is closed.
        """
        fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            os.close(fd)
            raise
        return fd

    def _files(self) -> Iterator[Tuple[Path, Path]]:
        """The files that the new QEMU has created, with the public names."""
        for folder in self._folders:
            for file in list(folder.iterdir()) if folder.exists() else []:
                if file.name not in (*CHANNELS, NOTE) and \
                        not file.name.startswith(PREFIX):
                    yield file, folder.parent / file.name

    def protect_sockets(self) -> None:
        """
        Let only the user of the VM connect to the sockets of the new QEMU.

        With -run-with user=, the new QEMU creates the sockets as the user of
        live-update, while the old QEMU, which connects to them, has changed
        its user already: so they get that user as their owner.
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
        Move the new QEMU's files to the public names; withdraw() undoes it.

        They get the modes and owners of the old QEMU's files.
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
        """Move the old QEMU's files back to the public names."""
        for folder in self._folders:
            for file in folder.glob(f'{PREFIX}*'):
                with contextlib.suppress(OSError):
                    file.replace(folder.parent / file.name[len(PREFIX):])

    def remove(self) -> None:
        """Remove the private folders and all files in them."""
        for folder in self._folders:
            with contextlib.suppress(FileNotFoundError):
                for file in folder.iterdir():
                    file.unlink()
                folder.rmdir()
