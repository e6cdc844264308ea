# SPDX-License-Identifier: GPL-2.0-or-later
"""
How the guest's memory gets to the new QEMU

The way must be right for every RAM block of the VM.  What a block is follows
from the mappings of the running QEMU, and from the file that the new QEMU will
open for it.
"""
import os
from pathlib import Path
import stat
from typing import (
    Dict,
    Iterable,
    NamedTuple,
    Optional,
    Sequence,
)

from ..error import Refused
from ..host.process import Process
from ..host.room import check_huge_pages, check_room
from ..monitor import Monitor
from .cmdline import CommandLine
from .ram import RamBlock, ram_blocks


IGNORE_SHARED, CPR, COPY = 'x-ignore-shared', 'cpr-transfer', 'copy'
FILE_BACKEND = 'memory-backend-file'


class Mode(NamedTuple):
    """
    A way for memory to get to the new QEMU.

    reason: why this way is taken, for the user
    blocks: what happens to each memory backend, if it is not the same for all
    """
    name: str
    reason: str
    blocks: Sequence[str] = ()


class Backend(NamedTuple):
    """
    A memory backend object of the running QEMU.

    file: the property "mem-path", absolute; '': it has none
    is_read_only: can the guest, and a QEMU that receives it, not write to it?
    """
    name: str
    driver: str
    is_shared: bool
    file: str
    is_read_only: bool
    discards_data: bool


class Memory(NamedTuple):
    """
    A RAM block, with what matters for its way to the new QEMU.

    is_same_file: is it a named file that the new QEMU will map, shared, too?
    is_skipped: does QEMU leave it out of the stream with x-ignore-shared?
    """
    block: RamBlock
    backend: Optional[Backend]
    is_shared: bool
    is_same_file: bool
    is_skipped: bool

    @property
    def name(self) -> str:
        """The name that the user knows."""
        return self.backend.name if self.backend else self.block.name

    @property
    def path(self) -> str:
        """The file or folder that was given for it, or ''."""
        return self.backend.file if self.backend else ''


async def backends(monitor: Monitor, process: Process) -> Dict[str, Backend]:
    """All memory backends of a QEMU, by their names."""
    found = {}
    for name, driver in (await monitor.children('/objects')).items():
        if not driver.startswith('memory-backend-'):
            continue
        path = f'/objects/{name}'
        file = await monitor.get(path, 'mem-path')
        is_shared = bool(await monitor.get(path, 'share'))
        rom = await monitor.get(path, 'rom')
        found[name] = Backend(
            name, driver, is_shared,
            os.path.join(process.folder, file) if file else '',
            bool(await monitor.get(path, 'readonly')) and
            (is_shared or rom != 'off'),
            bool(await monitor.get(path, 'discard-data')))
    return found


async def skips_all_shared(monitor: Monitor) -> bool:
    """
    Does QEMU skip all shared memory with x-ignore-shared?

    QEMU 8.1 and later skip shared memory of memory-backend-file only.
    """
    version = (await monitor.ask('query-version'))['qemu']
    return (version['major'], version['minor']) < (8, 1)


async def choose_mode(monitor: Monitor, process: Process,
                      options: CommandLine, skips_all: bool) -> Mode:
    """
    Choose the best way that is right for all memory of the VM.

    @param options: of the new QEMU
    @param skips_all: does skips_all_shared() hold for one of the two QEMUs?
    """
    known = await backends(monitor, process)
    parts = []
    used = set()
    for block in await ram_blocks(monitor, process):
        backend = known.get(block.name.rpartition('/')[2])
        if backend:
            used.add(backend.name)
        parts.append(_memory(process, block, backend, options, skips_all))
    await _check_not_migrated(monitor, process, [
        backend for name, backend in known.items() if name not in used],
        options)
    return _choose(process, parts, bool(
        await monitor.get('/machine', 'aux-ram-share')))


def _memory(process: Process, block: RamBlock, backend: Optional[Backend],
            options: CommandLine, skips_all: bool) -> Memory:
    """Look at a RAM block; Refused: the new QEMU cannot have it."""
    is_shared = bool(backend and backend.is_shared)
    is_writable = not (backend and backend.is_read_only)
    if block.mapping:
        is_shared = block.mapping.is_shared
        is_writable = block.mapping.is_writable
    if backend and not is_shared and not is_writable:
        raise Refused(
            f"the memory '{backend.name}' (readonly=on) is not shared: QEMU "
            'would copy it, and the new QEMU cannot write to it; start the VM '
            'with share=on for it, so that it is not copied, or unplug it')
    has_name = bool(backend and is_shared and backend.file and
                    not Path(backend.file).is_dir())
    if backend and has_name:
        _check_file(process, backend, options)
    return Memory(block, backend, is_shared, has_name, is_shared and (
        skips_all or bool(backend and backend.driver == FILE_BACKEND)))


def _choose(process: Process, parts: Sequence[Memory], shares_aux: bool
            ) -> Mode:
    """
    Choose a way for these RAM blocks.

    @param shares_aux: has the machine aux-ram-share=on?
    """
    if any(part.is_same_file for part in parts):
        return _choose_files(process, parts)
    private = [part for part in parts if part.backend and not part.is_shared]
    folders = [part for part in parts if part.backend and
               part.backend.driver == FILE_BACKEND]
    unshared = [part for part in parts if not part.is_shared]
    if private:
        reason = f"'{private[0].name}' is not shared (share=on)"
    elif folders:
        reason = (f"'{folders[0].name}' is a file without a name in the "
                  f"folder '{folders[0].path}'")
    elif not shares_aux:
        reason = ('guest memory is no named file, and the machine lacks '
                  'aux-ram-share=on')
    elif unshared:
        reason = f"'{unshared[0].name}' is not shared"
    else:
        return Mode(CPR, 'shared, and handed over by its file descriptors')
    return choose_copy(process, parts, reason)


def _choose_files(process: Process, parts: Sequence[Memory]) -> Mode:
    """
    Choose a way for RAM blocks of which some are named files.

    COPY is no choice: the new QEMU would write what it receives to the file,
    which the running guest uses.
    """
    copied = [part for part in parts if not part.is_same_file]
    for part in copied:
        if part.is_skipped:
            same = next(part for part in parts if part.is_same_file)
            raise Refused(
                f"'{same.name}' is memory in a named file, and '{part.name}' "
                'is shared memory that another QEMU cannot open: with '
                f"x-ignore-shared, '{part.name}' would be lost; without it, "
                f"'{same.name}' would be overwritten while the guest uses it; "
                f"unplug '{part.name}', or start the VM with a file for it "
                '(mem-path=FILE, not a folder)')
    _check_room(process, copied, 'what is not in a shared file')
    if not any(part.backend for part in copied):
        return Mode(IGNORE_SHARED, 'a shared file, which stays where it is')
    return Mode(IGNORE_SHARED, 'memory in shared files stays where it is, '
                'other memory is copied', [
                    f"'{part.name}' " + (
                        f"stays in '{part.path}'" if part.is_same_file else
                        'is copied: it is ' + (
                            'in no named file' if part.is_shared else
                            'not shared (share=on)'))
                    for part in parts if part.backend])


def choose_copy(process: Process, parts: Sequence[Memory], reason: str
                ) -> Mode:
    """Choose to copy the memory; Refused: there is no room for a copy."""
    return Mode(COPY, f'{reason}; this takes '
                f'{_check_room(process, parts, reason)}')


def _check_room(process: Process, parts: Iterable[Memory], reason: str) -> str:
    """Check that there is room for a copy; returns how much, in words."""
    # Memory of devices and firmware, which has no backend, is small.
    blocks = [part.block for part in parts if part.backend]
    for page_size in {block.page_size for block in blocks}:
        alike = [block for block in blocks if block.page_size == page_size]
        check_huge_pages(page_size, sum(block.size for block in alike),
                         alike[0].name)
    return check_room(process, sum(block.size for block in blocks), reason)


# Files

def file_given(backend: Backend, process: Process, options: CommandLine
               ) -> str:
    """
    The file that the new QEMU will open for a memory backend.

    A backend that no option creates is made by the machine, by the same rule
    in both QEMUs.
    """
    for option in options.named('object'):
        if option.id == backend.name:
            return os.path.join(process.folder,
                                str(option.keys().get('mem-path', '')))
    return backend.file


def _check_file(process: Process, backend: Backend, options: CommandLine
                ) -> None:
    """Check that the new QEMU will open the file that is guest memory."""
    name = backend.name
    file = file_given(backend, process, options)
    try:
        status = os.stat(file)
    except OSError as error:
        raise Refused(f"the file '{file}' of the memory '{name}' is not "
                      f'there any more ({error.strerror}), so that no other '
                      'QEMU can open it') from error
    if stat.S_ISDIR(status.st_mode) or not maps(process, status):
        if file != backend.file:
            raise Refused(
                f"the memory '{name}' is the file '{backend.file}', and the "
                f"new QEMU would have '{file}'; give the command line with "
                'the memory of the VM after "--"')
        raise Refused(f"the file '{file}' is not what the VM has as its "
                      f"memory '{name}'; it was replaced since the VM started")
    if backend.discards_data:
        raise Refused(f"the memory '{name}' has discard-data=on: the old "
                      'QEMU would delete the memory of the VM when it ends')


def maps(process: Process, status: os.stat_result) -> bool:
    """Has a process mapped the file that has this result of stat(2)?"""
    for mapping in process.mappings():
        if mapping.file and mapping.file.inode == status.st_ino:
            file = process.file_of(mapping)
            if file and file.device == status.st_dev:
                return True
    return False


async def _check_not_migrated(monitor: Monitor, process: Process,
                              unused: Iterable[Backend], options: CommandLine
                              ) -> None:
    """
    Check memory that QEMU does not migrate, as that of virtio-pmem.

    @param unused: memory backends that are no RAM block with a name
    """
    in_use = {device['data'].get('memdev')
              for device in await monitor.ask('query-memory-devices')}
    for backend in unused:
        if f'/objects/{backend.name}' not in in_use:
            continue
        if not backend.file or Path(backend.file).is_dir() or \
                not (backend.is_shared or backend.is_read_only):
            raise Refused(
                f"QEMU does not migrate the memory '{backend.name}', and it "
                'is no shared file (share=on,mem-path=FILE) that the new QEMU '
                'could open: unplug its device')
        _check_file(process, backend, options)


def lost(mode: str, old: Sequence[RamBlock], new: Sequence[RamBlock]
         ) -> Optional[str]:
    """
    How the memory of the new QEMU is not that of the VM; None: it is.

    @param mode: how memory gets to the new QEMU, the name of a Mode
    @param old: the RAM blocks of the old QEMU
    @param new: the RAM blocks of the new QEMU
    """
    there = {block.name: block for block in new}
    for block in old:
        other = there.pop(block.name, None)
        if not other:
            return f"lacks the memory '{block.name}'"
        what = f"has the memory '{block.name}' with "
        if block.size != other.size:
            return what + f'{other.size} bytes, the VM with {block.size}'
        if block.page_size != other.page_size:
            return what + (f'pages of {other.page_size} bytes, the VM with '
                           f'{block.page_size}')
        problem = _other_mapping(mode, block, other)
        if problem:
            return what + problem
    extra = next(iter(there), None)
    return extra and f"has the memory '{extra}', which the VM does not have"


def _other_mapping(mode: str, old: RamBlock, new: RamBlock) -> Optional[str]:
    """How a RAM block is mapped in a wrong way; None: it is right."""
    if not old.mapping or not new.mapping:
        return None             # an older QEMU does not tell addresses
    if old.mapping.is_shared != new.mapping.is_shared:
        here, there = ('share=on' if mapping.is_shared else 'share=off'
                       for mapping in (old.mapping, new.mapping))
        return f'{there}, the VM with {here}'
    if not old.mapping.is_shared:
        return None             # it is copied
    is_same = old.file == new.file
    stays = mode == CPR or mode == IGNORE_SHARED and old.mapping.is_named
    if stays and not is_same:
        return (f"another file than the VM: '{new.mapping.path}', which is "
                f"not '{old.mapping.path}'")
    if not stays and is_same and old.file and new.mapping.is_writable:
        return (f"the VM's file '{old.mapping.path}', to which a copy would "
                'be written while the guest uses it')
    return None
