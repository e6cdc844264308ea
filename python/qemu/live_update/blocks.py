# SPDX-License-Identifier: GPL-2.0-or-later
"""
The block layer of a VM: images, the nodes that they consist of, and their work
"""
import json
import re
from typing import Any, Dict, Iterable, Iterator, List, Optional, Set, Tuple

from .cmdline import CommandLine, Option
from .error import Refused
from .monitor import Monitor

Node = Dict[str, Any]
# Drivers of nodes of which QEMU tells all that matters to the guest's data.
FILES = 'file', 'host_device'
FORMATS = 'raw', 'qcow2'
# What QEMU does not tell of them.
NOT_TOLD = 'discard, aio, locking, and the sizes of caches'
# Limits of throttling: what QMP calls them, and what the command line does.
LIMITS = {f'{kind}{ending}': (f'throttling.{kind}-{word}', f'{kind}{ending}')
          for kind in ('bps', 'iops') for ending, word in (
              ('', 'total'), ('_rd', 'read'), ('_wr', 'write'))}
UNITS = {'': 1, 'b': 1, 'k': 1 << 10, 'm': 1 << 20, 'g': 1 << 30,
         't': 1 << 40}


def is_invented(name: str) -> bool:
    """Is it the name of a node to which the user has given none?"""
    return name.startswith('#')


async def nodes(monitor: Monitor) -> Dict[str, Node]:
    """What is known of each block node."""
    return {node['node-name']: node
            for node in await monitor.ask('query-named-block-nodes')}


async def images(monitor: Monitor) -> Dict[str, Tuple[str, ...]]:
    """
    The image that each drive has, and what that is based on.

    Also what each node is to which the user gave a name.
    """
    found: Dict[str, Tuple[str, ...]] = {}
    for drive in await monitor.ask('query-block'):
        image = drive.get('inserted', {})
        found[f"drive '{drive.get('qdev') or drive['device']}'"] = (
            image.get('file', ''), image.get('backing_file', ''))
    known = await nodes(monitor)
    found.update({f"block node '{name}'": (_describe(known, name),)
                  for name in known if not is_invented(name)})
    return found


def _describe(known: Dict[str, Node], name: str) -> str:
    """What a node is."""
    node = known[name]
    # An older QEMU does not tell of children.
    children = {edge['child']: edge['node-name']
                for edge in node.get('children', [])}
    return ', '.join([
        f'{node["drv"]} {node["file"]}',
        'read-only' if node['ro'] else 'writable',
        *(key for key in ('direct', 'no-flush') if node['cache'][key]),
        f'detect-zeroes={node["detect_zeroes"]}',
        *(f'{role}=({_describe(known, child)})' if is_invented(child)
          else f'{role}={child}'
          for role, child in sorted(children.items()))])


def other_image(old: Dict[str, Tuple[str, ...]],
                new: Dict[str, Tuple[str, ...]]) -> Optional[str]:
    """
    How the images of two QEMUs differ, in words; None: they do not.

    They do when a snapshot was made, or a medium changed, since the VM began.
    """
    for drive, image in new.items():
        if image != old.get(drive, image):
            there, here = (' on '.join(filter(None, files)) or 'none'
                           for files in (image, old[drive]))
            return (f'has another image in the {drive}: {there}; the VM has '
                    f'{here}')
    return None


async def check_work(monitor: Monitor) -> None:
    """Nothing may be under way that another QEMU would not go on with."""
    for job in await monitor.ask('query-jobs'):
        raise Refused(
            f"the job '{job['id']}' ({job['type']}, {job['status']}) would "
            'end: wait until it is done, or end it with "block-job-cancel" '
            'or "job-dismiss"')
    for export in await monitor.ask('query-block-exports'):
        raise Refused(
            f"the export '{export['id']}' ({export['type']}) of "
            f"'{export['node-name']}' would end: remove it with "
            '"block-export-del", and add it again after the update')
    for name, node in (await nodes(monitor)).items():
        for bitmap in node.get('dirty-bitmaps', []):
            if not bitmap['persistent'] and bitmap.get('name'):
                raise Refused(
                    f"the dirty bitmap '{bitmap['name']}' of "
                    f"'{name}' is not persistent, and would be lost: remove "
                    'it with "block-dirty-bitmap-remove", and begin with a '
                    'full backup after the update')


def _number(text: str) -> int:
    """A number that may have a unit."""
    parts = re.fullmatch(r'(\d+)([bkmgt]?)', text, re.IGNORECASE)
    return int(parts[1]) * UNITS[parts[2].lower()] if parts else 0


def limits_given(drive: Option) -> Dict[str, int]:
    """The limits of throttling that an option -drive has."""
    keys = drive.keys()
    return {name: next((_number(str(keys[key])) for key in words
                        if key in keys), 0)
            for name, words in LIMITS.items()}


async def other_limits(monitor: Monitor, options: CommandLine
                       ) -> List[str]:
    """The drives whose throttling is not as the command line has it."""
    drives = list(options.named('drive'))
    given = {option.id: limits_given(option) for option in drives}
    # One whose option has no id has one that QEMU has made.
    unnamed = given.pop('', None)
    found = []
    for drive in await monitor.ask('query-block'):
        name = drive['device']
        limits = given.get(name, unnamed if name and unnamed else {})
        image = drive.get('inserted', {})
        if any(image.get(key, 0) != limits.get(key, 0) for key in LIMITS):
            found.append(name or drive['qdev'])
    return found


def _names(value: object, key: str = '') -> Iterator[str]:
    """All names that options give to nodes."""
    if isinstance(value, dict):
        for inner, item in value.items():
            yield from _names(item, inner)
    elif key.rpartition('.')[2] == 'node-name':
        yield str(value)


def names_given(options: Iterable[Option]) -> Set[str]:
    """The nodes that the command line makes, as far as they have names."""
    return {name for option in options
            if option.name in ('blockdev', 'drive')
            for name in _names(option.keys())}


class Graph:
    """
    The options that make the nodes of a disk.

    @param known: what QEMU tells of its nodes
    @param given: nodes that the command line makes
    """
    def __init__(self, known: Dict[str, Node], given: Set[str]) -> None:
        self.made: Dict[str, Option] = {}
        self._known = known
        self._given = given
        self._seen: Set[str] = set()

    def make(self, name: str) -> None:
        """Have a node, and all that it is based on, made."""
        if name not in self._given and name not in self.made:
            words = self._words(name)
            self.made[name] = Option('blockdev', json.dumps(words))

    def _words(self, name: str) -> Dict[str, Any]:
        node = self._known[name]
        driver = node['drv']
        if driver not in FILES + FORMATS or node['encrypted'] or \
                'children' not in node or name in self._seen:
            raise Refused(f"of '{name}' ({driver}) QEMU does not tell enough")
        self._seen.add(name)
        words: Dict[str, Any] = {
            'driver': driver, 'read-only': node['ro'],
            'cache': {key: node['cache'][key]
                      for key in ('direct', 'no-flush')},
            'detect-zeroes': node['detect_zeroes']}
        if not is_invented(name):
            words['node-name'] = name
        words.update(self._own(name, node))
        children = {edge['child']: edge['node-name']
                    for edge in node['children']}
        for role, child in children.items():
            if not is_invented(child):
                self.make(child)
                words[role] = child
            elif role != 'backing' or node['file'].startswith('json:'):
                words[role] = self._words(child)
            # Otherwise it is the one that the image names.
        if driver == 'qcow2' and 'backing' not in children:
            # The image may name one that is not to be opened.
            words['backing'] = None
        return words

    @staticmethod
    def _own(name: str, node: Node) -> Dict[str, Any]:
        """What only this driver has."""
        text, driver = node['file'], node['drv']
        if not text.startswith('json:'):
            return {'filename': text} if driver in FILES else {}
        words: Dict[str, Any] = json.loads(text[len('json:'):])
        own = {key: value for key, value in words.items() if key not in (
            'driver', 'file', 'backing', 'data-file')}
        known = {'qcow2': '', 'raw': 'offset size'}.get(driver, 'filename')
        if not set(own) <= set(known.split()):
            raise Refused(f"'{name}' ({driver}) is made in a way that is not "
                          'known here')
        return own


async def unused(monitor: Monitor, options: Iterable[Option]) -> List[str]:
    """Nodes that were added, and that the new QEMU would not have."""
    given = names_given(options)
    return [name for name in await nodes(monitor)
            if not is_invented(name) and name not in given]


async def present(monitor: Monitor) -> Set[str]:
    """The names of all drives and block nodes."""
    return {drive['device'] for drive in await monitor.ask('query-block')} | \
        set(await nodes(monitor))
