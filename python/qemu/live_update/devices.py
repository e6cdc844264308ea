# SPDX-License-Identifier: GPL-2.0-or-later
"""
The devices that a VM has now, which its command line may not tell

Devices come and go while a VM runs.  The new QEMU has to be given those that
are there, with all that they were given.
"""
import contextlib
import json
import re
from typing import Any, Dict, List, NamedTuple, Optional, Set

from . import blocks
from .cmdline import CommandLine, Option
from .error import Refused
from .monitor import Monitor, MonitorError

NAMED = '/machine/peripheral'
UNNAMED = '/machine/peripheral-anon'
# Properties of a device that name another object, and options that make it.
LINKS = {'drive': ('drive', 'blockdev'), 'netdev': ('netdev', 'nic'),
         'memdev': ('object',), 'iothread': ('object',),
         'chardev': ('chardev',)}
# What objects may have but cannot be given.
NOT_TAKEN = 'opened', 'loaded'
# The type of a property that says which I/O thread has which queues.
MAPPING = 'IOThreadVirtQueueMappingList'


class Device(NamedTuple):
    """A device that the user has asked for."""
    path: str
    driver: str
    hotplugged: bool
    bus: str                # the name of the bus that it is on
    address: str            # its place there, if it is PCI

    @property
    def name(self) -> str:
        """Its id, or what stands for one."""
        return self.path.rpartition('/')[2]

    @property
    def has_id(self) -> bool:
        """Was it given an id?"""
        return self.path.startswith(NAMED + '/')

    def place(self) -> 'tuple[str, str, str]':
        """What has to be the same in another QEMU."""
        return self.driver, self.bus, self.address


async def devices(monitor: Monitor) -> Dict[str, Device]:
    """All devices, by their QOM path."""
    found = {}
    for folder in NAMED, UNNAMED:
        for name, driver in (await monitor.children(folder)).items():
            path = f'{folder}/{name}'
            bus = await monitor.get(path, 'parent_bus')
            address = await monitor.get(path, 'legacy-addr')
            found[path] = Device(
                path, driver, bool(await monitor.get(path, 'hotplugged')),
                str(bus or '').rpartition('/')[2], str(address or ''))
    return found


def difference(old: Dict[str, Device], new: Dict[str, Device]
               ) -> Optional[str]:
    """How the devices of two QEMUs differ, in words; None: they do not."""
    for path in {**old, **new}:
        if path not in new:
            return f"lacks the device '{old[path].name}' ({old[path].driver})"
        if path not in old:
            return (f"has the device '{new[path].name}' ({new[path].driver}) "
                    'that the VM does not have')
        if old[path].place() != new[path].place():
            return (f"has the device '{new[path].name}' as "
                    f'{"/".join(new[path].place())}, the VM as '
                    f'{"/".join(old[path].place())}')
    return None


async def networks(monitor: Monitor) -> Dict[str, str]:
    """All networks, and the cards that they serve, with the kinds of them."""
    text = await monitor.ask('human-monitor-command',
                             command_line='info network')
    # Each line has one or two names, and what they are, with "=" in it.
    found = {}
    for line in text.splitlines():
        kind = re.search(r'\btype=([\w-]+)', line)
        found.update({word: kind[1] if kind else ''
                      for word in line.lstrip(' \\').split(': ')
                      if '=' not in word})
    return found


async def usb_ports(monitor: Monitor) -> Dict[str, str]:
    """The ports of USB devices that have an id."""
    text = await monitor.ask('human-monitor-command', command_line='info usb')
    return {name: port for port, name in re.findall(
        r'(?m)^ *Device .*?, Port ([0-9.]+), .*, ID: (\S+?)\r?$', text)}


async def object_keys(monitor: Monitor, driver: str) -> List[str]:
    """What an object of a type can be given."""
    types = {item['name']: item
             for item in await monitor.ask('query-qmp-schema')}
    variants = types[types['object-add']['arg-type']]['variants']
    return [member['name'] for variant in variants
            if variant['case'] == driver
            for member in types[variant['type']]['members']]


class Catalog:
    """
    What the command line has to say to create what the VM has now.

    changes: what was changed in the command line, in words
    losses: what the new QEMU will not have, in words

    @param monitor: of the QEMU that runs the VM
    @param options: its command line, which reproduce() changes
    """
    def __init__(self, monitor: Monitor, options: CommandLine) -> None:
        self.changes: List[str] = []
        self.losses: List[str] = []
        self._monitor = monitor
        self._options = options
        self._new: List[Option] = []

    async def reproduce(self, present: Dict[str, Device]) -> None:
        """Add what was plugged, and drop what was unplugged."""
        plugged = {device.name: device for device in present.values()
                   if device.hotplugged and device.has_id}
        for device in present.values():
            if device.hotplugged and not device.has_id:
                raise Refused(
                    f"the device '{device.path}' ({device.driver}) was "
                    'plugged without an id and cannot be reproduced; plug '
                    'it with one, or give the command line anew after "--"')
        for option in list(self._options.named('device')):
            name = option.id
            if name and (f'{NAMED}/{name}' not in present or name in plugged):
                self._options.remove(option)
                if name not in plugged:
                    self.changes.append(f"'{name}' was unplugged")
        self._drop('chardev', set(await self._monitor.chardevs()))
        await self._drop_removed()
        ports = await usb_ports(self._monitor)
        for position, option in enumerate(self._options):
            if option.name == 'device' and option.id in ports and \
                    'port' not in option.keys():
                # Another device may have been where this one would be.
                self._options[position] = option.changed(
                    {'port': ports[option.id]})

        # What others are plugged into comes first.
        waiting = list(plugged.values())
        while waiting:
            ready = next((device for device in waiting if not any(
                device.bus == other.name or
                device.bus.startswith(other.name + '.')
                for other in waiting if other is not device)), waiting[0])
            waiting.remove(ready)
            await self._add_device(ready, ports)
            self.changes.append(f"'{ready.name}' was plugged")
        self._options.extend(self._new)
        await self._note_unused()

    def _drop(self, kind: str, present: Set[str]) -> List[str]:
        """Drop options for what is not there any more; returns the names."""
        gone = [option for option in self._options.named(kind)
                if option.id and option.id not in present]
        for option in gone:
            self._options.remove(option)
            self.changes.append(f"'{option.id}' was removed")
        return [option.id for option in gone]

    async def _drop_removed(self) -> None:
        """Drop disks, networks and objects that were removed."""
        images = await blocks.present(self._monitor)
        nets = await networks(self._monitor)
        gone = [*self._drop('drive', images), *self._drop('blockdev', images),
                *self._drop('netdev', {*nets}), *self._drop('nic', {*nets})]
        for option in self._options.named('netdev', 'nic'):
            kind = nets.get(option.id)
            # Those that are left out are made of others.
            if kind and kind != option.kind and \
                    option.kind not in ('bridge', 'passt'):
                raise Refused(
                    f"'{' '.join(option.words())}' was removed, and "
                    f"'{option.id}' is a network of the kind {kind} now; "
                    'give the command line anew after "--", with that')
        for name in gone:
            for option in self._options.naming(name):
                if option.name not in ('device', 'blockdev', 'object'):
                    continue
                raise Refused(
                    f"'{name}' was removed, which the command line gives to "
                    f"'{' '.join(option.words())}'; unplug what uses it, or "
                    'give the command line anew after "--"')
        objects = await self._monitor.children('/objects')
        # Some are needed only while others begin, such as secrets.
        self._drop('object', {*objects, *(
            option.id for option in self._options.named('object')
            if any(self._options.naming(option.id)))})

    async def _note_unused(self) -> None:
        """Say what was added but is used by no device."""
        objects = {option.id for option in self._options.named('object')}
        memory = await self._monitor.get('/machine', 'memory-backend')
        for name, kind in (await self._monitor.children('/objects')).items():
            if name not in objects and f'/objects/{name}' != memory:
                self.losses.append(
                    f"the object '{name}' ({kind}) was added, and no device "
                    'that was plugged uses it: the new QEMU will not have it')
        for name in await blocks.unused(self._monitor, self._options):
            self.losses.append(
                f"the block node '{name}' was added, and no device that was "
                'plugged uses it: the new QEMU will not have it')

    async def _cpu(self, device: Device) -> Optional[Dict[str, Any]]:
        """
        What a processor was given: its place; None: it is no processor.

        The rest it has from the option -cpu.
        """
        with contextlib.suppress(MonitorError):
            for place in await self._monitor.ask(
                    'query-hotpluggable-cpus'):
                if place.get('qom-path') == device.path:
                    return {'driver': device.driver, 'id': device.name,
                            **place['props']}
        return None

    async def _add_device(self, device: Device, ports: Dict[str, str]
                          ) -> None:
        words = await self._cpu(device) or await self._given(device)
        if device.name in ports:
            words['port'] = ports[device.name]
        self._new.append(Option('device', json.dumps(words)))

    async def _given(self, device: Device) -> Dict[str, Any]:
        """What a device was given."""
        known = await self._monitor.properties(device.driver)
        words: Dict[str, Any] = {'driver': device.driver, 'id': device.name}
        if device.bus:
            words['bus'] = device.bus
        for name, item in (known or {}).items():
            is_link = item['type'].startswith('link<')
            if 'default-value' not in item and name not in LINKS and \
                    item['type'] not in ('str', MAPPING) and \
                    name != 'bootindex' and not is_link:
                continue        # what it is, not what it was given
            value = await self._monitor.get(device.path, name)
            if name == 'drive' and not value:
                value = await self._drive_within(device)
            if value in (None, '', []) or value == item.get('default-value'):
                continue
            if is_link and name not in LINKS and \
                    not str(value).startswith('/objects/'):
                if not str(value).startswith((f'{NAMED}/', f'{UNNAMED}/')) \
                        or str(value).startswith(device.path + '/'):
                    continue        # it has made that itself
                raise Refused(
                    f"the device '{device.name}' was plugged with "
                    f'{name}={value}, which cannot be given to the new QEMU; '
                    'unplug it, or give the command line anew after "--"')
            if item['type'] == MAPPING:
                for part in value:
                    await self._need(device, 'iothread', part['iothread'])
            elif name in LINKS or is_link:
                value = str(value).rpartition('/')[2]
                await self._need(device, name, value)
            words[name] = value
        return words

    async def _drive_within(self, device: Device) -> Optional[str]:
        """The drive of a device that has given it to one of its own."""
        for drive in await self._monitor.ask('query-block'):
            if drive.get('qdev', '').startswith(device.path + '/'):
                name: str = drive['device'] or drive.get('inserted', {}).get(
                    'node-name', '')
                return name
        return None

    async def _need(self, device: Device, link: str, name: str) -> None:
        """See to it that what a device needs is there before it."""
        kinds = LINKS.get(link, ('object',))
        makers = [option for option in self._options + self._new
                  if option.name in kinds and option.id == name]
        if makers:
            return
        if kinds == ('chardev',):
            await self._add_chardev(name)
        elif kinds == ('object',):
            await self._add_object(name)
        elif link == 'drive':
            await self._add_image(device, name)
        else:
            raise Refused(
                f"the device '{device.name}' was plugged with the {link} "
                f"'{name}', which the command line lacks and which cannot be "
                'read from QEMU; give the command line, with both, after '
                '"--"')

    async def _add_image(self, device: Device, name: str) -> None:
        known = await blocks.nodes(self._monitor)
        options = [*self._options, *self._new]
        graph = blocks.Graph(known, blocks.names_given(options))
        try:
            if name not in known:
                raise Refused('it is no block node with a name')
            graph.make(name)
        except Refused as error:
            raise Refused(
                f"the device '{device.name}' was plugged with the drive "
                f"'{name}', which the command line lacks and which cannot be "
                f'read from QEMU: {error}; give the command line, with both, '
                'after "--"') from error
        self._new.extend(graph.made.values())
        if graph.made:
            self.losses.append(
                f"the image '{name}' was added to the running VM: the new "
                'QEMU gets its defaults of what cannot be read '
                f'({blocks.NOT_TOLD}); to have others, give the command line '
                'after "--"')

    async def _add_chardev(self, name: str) -> None:
        path = f'/chardevs/{name}'
        address = await self._monitor.get(path, 'addr')
        reconnect = await self._monitor.get(path, 'reconnect-ms')
        listens = ',server=on' in (await self._monitor.chardevs())[name][
            'filename']
        if not address or address.get('type') != 'unix' or listens or \
                reconnect is None:
            raise Refused(
                f"the chardev '{name}' was added to the running VM, and is "
                'not the client of a UNIX socket; give the command line, '
                'with it, after "--"')
        parts = ['socket', f'id={name}', f'path={address["path"]}']
        if reconnect:
            parts.append(f'reconnect-ms={reconnect}')
        self._new.append(Option('chardev').with_parts(parts))

    async def _add_object(self, name: str) -> None:
        path = f'/objects/{name}'
        driver = (await self._monitor.children('/objects'))[name]
        words: Dict[str, Any] = {'qom-type': driver, 'id': name}
        for key in await object_keys(self._monitor, driver):
            value = await self._monitor.get(path, key)
            # QEMU does not take the 0 which it gives for a size of pages.
            if value in (None, '', []) or key in NOT_TAKEN or \
                    (key, value) == ('hugetlbsize', 0):
                continue
            if str(value).startswith('/objects/'):
                value = str(value).rpartition('/')[2]
                if not any(option.id == value for option in
                           [*self._options.named('object'), *self._new]):
                    await self._add_object(value)
            elif key == 'chardev' and not any(
                    option.id == value for option in
                    [*self._options.named('chardev'), *self._new]):
                await self._add_chardev(str(value))
            words[key] = value
        self._new.append(Option('object', json.dumps(words)))
