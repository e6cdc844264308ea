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
import os
import re
import secrets
import stat
from pathlib import Path
from typing import Iterable, Iterator, Set, Tuple

from .error import NeedsPerson, Refused

PREFIX = '.live-update-'
CHANNELS = 'cpr', 'migration'
OLD = 'old'             # says which process the old QEMU is
LONGEST = 107           # bytes in the path of a UNIX socket


def public(path: str) -> str:
    """The name by which others know a file."""
    return re.sub(rf'(^|/){re.escape(PREFIX)}[^/]*/', r'\1', path)


class Names:
    """
    The names that the new QEMU has for its files.

    token: is in all of them, and nowhere else

    @param cwd: where relative names begin
    @param owner: who the new QEMU runs as: user and group
    """
    def __init__(self, cwd: str, owner: Tuple[int, int]) -> None:
        self.token = PREFIX + secrets.token_hex(4)
        self._cwd = Path(cwd)
        self._owner = owner
        self._folders: Set[Path] = set()

    def private(self, path: str) -> str:
        """The name for the new QEMU of what others call path."""
        name = self._cwd / public(path)
        result = name.parent / self.token / name.name
        excess = len(os.fsencode(result)) - LONGEST
        if excess > 0:
            raise Refused(f"the new QEMU's name for '{name}' would be "
                          f'{excess} bytes too long for a socket; start the '
                          'VM with a shorter path')
        self._folders.add(result.parent)
        return str(result)

    @classmethod
    def of(cls, folder: Path, words: Iterable[str]) -> 'Names':
        """
        The names of a QEMU that an earlier update has started.

        @param folder: one of the private folders
        @param words: the command line of that QEMU
        """
        names = cls('/', (os.getuid(), os.getgid()))
        names.token = folder.name
        found = re.compile(f'(/[^,=:"]*/{re.escape(folder.name)})/')
        names._folders = {folder, *(Path(path) for word in words
                                    for path in found.findall(word))}
        return names

    def create(self, old: str) -> None:
        """
        Make the private folders, locked as long as this process lives.

        @param old: identity of the process of the old QEMU
        """
        for folder in self._folders:
            try:
                folder.mkdir(mode=0o700)
                os.chown(folder, *self._owner)
                self.lock(folder)
                (folder / OLD).write_text(old, 'ascii')
            except OSError as error:
                self.remove()
                raise Refused(f"cannot make a folder in '{folder.parent}', "
                              'where a file of the VM is: '
                              f'{error.strerror}') from error

    @staticmethod
    def lock(folder: Path) -> None:
        """Lock a folder; OSError: another process has."""
        fcntl.flock(os.open(folder, os.O_RDONLY | os.O_CLOEXEC),
                    fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _files(self) -> Iterator[Tuple[Path, Path]]:
        """What the new QEMU has made, with the public names."""
        for folder in self._folders:
            for file in list(folder.iterdir()) if folder.exists() else []:
                if file.name not in (*CHANNELS, OLD):
                    yield file, folder.parent / file.name

    def protect(self) -> None:
        """Keep others from the sockets, also if they get into the folder."""
        for folder in self._folders:
            for file in folder.iterdir():
                if file.is_socket():
                    with contextlib.suppress(FileNotFoundError):
                        os.chmod(file, 0o600)

    def publish(self) -> None:
        """
        Give the new QEMU's files their names.

        Who may use a file stays as it was.
        """
        for file, name in self._files():
            with contextlib.suppress(OSError):
                old = name.stat()
                os.chown(file, old.st_uid, old.st_gid)
                os.chmod(file, stat.S_IMODE(old.st_mode))
            try:
                file.replace(name)
            except OSError as error:
                raise NeedsPerson(
                    f"the VM runs in the new QEMU, but its file '{file}' "
                    f"cannot be moved to '{name}': {error.strerror}; move it "
                    'there, and end the old QEMU') from error

    def remove(self) -> None:
        """Remove the private folders with what is left in them."""
        for folder in self._folders:
            with contextlib.suppress(FileNotFoundError):
                for file in folder.iterdir():
                    file.unlink()
                folder.rmdir()
