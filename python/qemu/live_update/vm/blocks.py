# SPDX-License-Identifier: GPL-2.0-or-later
"""
The block layer of a VM: images, block nodes, jobs, exports and throttling
"""
import json
import re
from typing import (
    Any,
    Dict,
    Iterable,
    Iterator,
    List,
    Optional,
    Set,
    Tuple,
)

from ..error import Refused
from ..monitor import Monitor
from .cmdline import CommandLine, Option


Node = Dict[str, Any]
# Block drivers of whose nodes QEMU reports all options that matter for data.
FILES = 'file', 'host_device'
FORMATS = 'raw', 'qcow2'
# Options of those drivers that QEMU does not report.
NOT_TOLD = 'discard, aio, locking, and the sizes of caches'
# Throttling limits: their name in QMP, and the two names that -drive takes.
LIMITS = {f'{kind}{ending}': (f'throttling.{kind}-{word}', f'{kind}{ending}')
          for kind in ('bps', 'iops') for ending, word in (
              ('', 'total'), ('_rd', 'read'), ('_wr', 'write'))}
UNITS = {'': 1, 'b': 1, 'k': 1 << 10, 'm': 1 << 20, 'g': 1 << 30,
         't': 1 << 40}


def is_invented(name: str) -> bool:
    """Has QEMU made this name of a node?  The user gave none then."""
    return name.startswith('#')


async def nodes(monitor: Monitor) -> Dict[str, Node]:
    """All block nodes, by their names."""
    return {node['node-name']: node
            for node in await monitor.ask('query-named-block-nodes')}


async def images(monitor: Monitor) -> Dict[str, Tuple[str, ...]]:
    """
    Describe the drives and the block nodes.

    The result has the image and the backing file of each drive, and a
    description of each node to which the user gave a name.
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
    """The driver, file and options of a node, and its children."""
    node = known[name]
    # An older QEMU does not report children.
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
    How the images of two QEMUs differ, in words; None: they do not differ.

    The old QEMU has other images than its command line if the user made a
    snapshot or changed a medium.
    """
    for drive, image in new.items():
        if image != old.get(drive, image):
            there, here = (' on '.join(filter(None, files)) or 'none'
                           for files in (image, old[drive]))
            return (f'has another image in the {drive}: {there}; the VM has '
                    f'{here}')
    return None


async def check_work(monitor: Monitor) -> None:
    """Refuse jobs, exports and bitmaps, which the new QEMU would not have."""
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
    """Parse a number that may have a suffix, such as K or M."""
    parts = re.fullmatch(r'(\d+)([bkmgt]?)', text, re.IGNORECASE)
    return int(parts[1]) * UNITS[parts[2].lower()] if parts else 0


def limits_given(drive: Option) -> Dict[str, int]:
    """The throttling limits that an option -drive sets."""
    keys = drive.keys()
    return {name: next((_number(str(keys[key])) for key in words
                        if key in keys), 0)
            for name, words in LIMITS.items()}


async def other_limits(monitor: Monitor, options: CommandLine
                       ) -> List[str]:
    """The drives whose throttling limits differ from the command line."""
    drives = list(options.named('drive'))
    given = {option.id: limits_given(option) for option in drives}
    # QEMU has made the names of drives whose option has no id.
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
    """The values of "node-name", at any depth."""
    if isinstance(value, dict):
        for inner, item in value.items():
            yield from _names(item, inner)
    elif key.rpartition('.')[2] == 'node-name':
        yield str(value)


def names_given(options: Iterable[Option]) -> Set[str]:
    """The names of the block nodes that options create."""
    return {name for option in options
            if option.name in ('blockdev', 'drive')
            for name in _names(option.keys())}


class NodeOptions:
    """
    Makes the options -blockdev that create the block nodes of a disk.

    made: these options, by the names of the nodes

    @param known: all block nodes of the running QEMU
    @param given: names of nodes that the command line creates
    """
    def __init__(self, known: Dict[str, Node], given: Set[str]) -> None:
        self.made: Dict[str, Option] = {}
        self._known = known
        self._given = given
        self._seen: Set[str] = set()

    def add(self, name: str) -> None:
        """Make the options that create a node and its children."""
        if name not in self._given and name not in self.made:
            words = self._words(name)
            self.made[name] = Option('blockdev', json.dumps(words))

    def _words(self, name: str) -> Dict[str, Any]:
        node = self._known[name]
        driver = node['drv']
        if driver not in FILES + FORMATS or node['encrypted'] or \
                'children' not in node or name in self._seen:
            raise Refused(f"QEMU does not tell all options of '{name}' "
                          f'({driver})')
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
                self.add(child)
                words[role] = child
            elif role != 'backing' or node['file'].startswith('json:'):
                words[role] = self._words(child)
            # Otherwise QEMU opens the backing file that the image names.
        if driver == 'qcow2' and 'backing' not in children:
            # The image may name a backing file that QEMU has not opened.
            words['backing'] = None
        return words

    @staticmethod
    def _own(name: str, node: Node) -> Dict[str, Any]:
        """The options that only the driver of this node has."""
        text, driver = node['file'], node['drv']
        if not text.startswith('json:'):
            return {'filename': text} if driver in FILES else {}
        words: Dict[str, Any] = json.loads(text[len('json:'):])
        own = {key: value for key, value in words.items() if key not in (
            'driver', 'file', 'backing', 'data-file')}
        known = {'qcow2': '', 'raw': 'offset size'}.get(driver, 'filename')
        if not set(own) <= set(known.split()):
            raise Refused(f"'{name}' ({driver}) has options that live-update "
                          'does not know')
        return own


def with_children(options: Dict[str, Any], node: Node,
                  known: Dict[str, Node]) -> Dict[str, Any]:
    """
    The options of a node, with the named children that it has now.

    Snapshots and block jobs change the children, and make nodes read-only.

    @param options: the arguments of "blockdev-add"
    @param known: all block nodes of the running QEMU
    """
    children = {edge['child']: edge['node-name']
                for edge in node.get('children', [])}
    result = dict(options)
    for role, child in children.items():
        if not is_invented(child) and '.' not in role and \
                not isinstance(options.get(role), dict):
            result[role] = child
    if 'children' in node and 'backing' not in children and \
            isinstance(options.get('backing'), str) and \
            options['backing'] in known:
        result['backing'] = None
    if node.get('ro') and not options.get('auto-read-only'):
        result['read-only'] = True
    return result


async def nodes_left_out(monitor: Monitor, options: Iterable[Option]
                         ) -> List[str]:
    """Block nodes of the running QEMU that options do not create."""
    given = names_given(options)
    return [name for name in await nodes(monitor)
            if not is_invented(name) and name not in given]


async def drives_and_nodes(monitor: Monitor) -> Set[str]:
    """The names of all drives and block nodes."""
    return {drive['device'] for drive in await monitor.ask('query-block')} | \
        set(await nodes(monitor))
