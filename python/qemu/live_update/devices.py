# SPDX-License-Identifier: GPL-2.0-or-later
"""
The devices that a VM has now, which its command line may not tell

Devices come and go while a VM runs.  The new QEMU has to be given those that
are there, with all that they were given.
"""
import contextlib
import json
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from .cmdline import CommandLine, Option
from .error import Refused
from .monitor import Monitor, MonitorError

NAMED = '/machine/peripheral'
UNNAMED = '/machine/peripheral-anon'
# Properties of a device that name another object, and options that make it.
LINKS = {'drive': ('drive', 'blockdev'), 'netdev': ('netdev', 'nic'),
         'memdev': ('object',), 'iothread': ('object',),
         'chardev': ('chardev',)}


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


async def images(monitor: Monitor) -> Dict[str, Tuple[str, str]]:
    """The image that each drive has, and what that is based on."""
    found = {}
    for drive in await monitor.ask('query-block'):
        image = drive.get('inserted', {})
        found[drive.get('qdev') or drive['device']] = (
            image.get('file', ''), image.get('backing_file', ''))
    return found


def other_image(old: Dict[str, Tuple[str, str]],
                new: Dict[str, Tuple[str, str]]) -> Optional[str]:
    """
    How the images of two QEMUs differ, in words; None: they do not.

    They do when a snapshot was made, or a medium changed, since the VM began.
    """
    for drive, image in new.items():
        if image != old.get(drive, image):
            there, here = (' on '.join(filter(None, files)) or 'none'
                           for files in (image, old[drive]))
            return (f"has another image in the drive '{drive}': {there}; the "
                    f'VM has {here}')
    return None


class Catalog:
    """
    What the command line has to say to create what the VM has now.

    changes: what was changed in the command line, in words

    @param monitor: of the QEMU that runs the VM
    @param options: its command line, which reproduce() changes
    """
    def __init__(self, monitor: Monitor, options: CommandLine) -> None:
        self.changes: List[str] = []
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
        chardevs = await self._monitor.chardevs()
        for option in list(self._options.named('chardev')):
            if option.id not in chardevs:
                self._options.remove(option)

        # What others are plugged into comes first.
        waiting = list(plugged.values())
        while waiting:
            ready = next((device for device in waiting if not any(
                device.bus == other.name or
                device.bus.startswith(other.name + '.')
                for other in waiting if other is not device)), waiting[0])
            waiting.remove(ready)
            await self._add_device(ready)
            self.changes.append(f"'{ready.name}' was plugged")
        self._options.extend(self._new)

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

    async def _add_device(self, device: Device) -> None:
        self._new.append(Option('device', json.dumps(
            await self._cpu(device) or await self._given(device))))

    async def _given(self, device: Device) -> Dict[str, Any]:
        """What a device was given."""
        known = await self._monitor.properties(device.driver)
        words: Dict[str, Any] = {'driver': device.driver, 'id': device.name}
        if device.bus:
            words['bus'] = device.bus
        for name, item in (known or {}).items():
            if 'default-value' not in item and name not in LINKS and \
                    item['type'] != 'str' and name != 'bootindex':
                continue        # what it is, not what it was given
            value = await self._monitor.get(device.path, name)
            if value in (None, '', []) or value == item.get('default-value'):
                continue
            if name in LINKS:
                value = str(value).rpartition('/')[2]
                await self._need(device, name, value)
            words[name] = value
        return words

    async def _need(self, device: Device, link: str, name: str) -> None:
        """See to it that what a device needs is there before it."""
        makers = [option for option in self._options + self._new
                  if option.name in LINKS[link] and option.id == name]
        if makers:
            return
        if LINKS[link] == ('chardev',):
            await self._add_chardev(name)
        elif LINKS[link] == ('object',):
            await self._add_object(name)
        else:
            raise Refused(
                f"the device '{device.name}' was plugged with the {link} "
                f"'{name}', which the command line lacks and which cannot be "
                'read from QEMU; give the command line, with both, after '
                '"--"')

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
        for item in await self._monitor.ask('qom-list', path=path):
            if item['name'] == 'type' or item['type'].startswith(
                    ('child<', 'link<')):
                continue
            value = await self._monitor.get(path, item['name'])
            if value not in (None, '', []):
                words[item['name']] = value
        self._new.append(Option('object', json.dumps(words)))
