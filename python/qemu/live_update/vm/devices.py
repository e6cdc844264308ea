# SPDX-License-Identifier: GPL-2.0-or-later
"""
The devices that a VM has now, and the options that create them

The user can plug and unplug devices while a VM runs.  The command line of the
new QEMU must create the devices that are present, with their properties.
"""
import contextlib
import json
import re
from typing import (
    Any,
    Callable,
    Dict,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Set,
    Tuple,
)

from . import blocks, created
from ..error import Refused
from ..monitor import Monitor, MonitorError
from .cmdline import CommandLine, Option
from .created import Thing


NAMED = '/machine/peripheral'
UNNAMED = '/machine/peripheral-anon'
# Link properties, and the options that create what they name.
LINKS = {'drive': ('drive', 'blockdev'), 'netdev': ('netdev', 'nic'),
         'memdev': ('object',), 'iothread': ('object',),
         'chardev': ('chardev',)}
# Properties that say where a device is.  QEMU chooses the values of those that
# the user has not set, by what is there already.
PLACES = ('addr', 'slot', 'memaddr', 'nr', 'unit', 'channel', 'scsi-id',
          'lun')
# Properties of objects that QEMU reports but does not take.
NOT_TAKEN = 'opened', 'loaded'


# What becomes of a property of a device, by the first rule that applies:
#   link     its value names an object, which gets an option of its own
#   mapping  so do the I/O threads to which it maps virtqueues
#   plain    its value is passed on
#   skip     it is state of the device, which the user cannot set
# A rule gets the property's name and its item of "device-list-properties".
PropertyRule = Callable[[str, Dict[str, Any]], object]
PROPERTY_KINDS: Sequence[Tuple[str, PropertyRule]] = (
    ('link', lambda name, item: name in LINKS),
    ('link', lambda name, item: item['type'].startswith('link<')),
    ('mapping',
     lambda name, item: item['type'] == 'IOThreadVirtQueueMappingList'),
    ('plain', lambda name, item: 'default-value' in item),
    ('plain', lambda name, item: item['type'] == 'str'),
    ('plain', lambda name, item: name == 'bootindex'),
    ('skip', lambda name, item: True),
)


def property_kind(name: str, item: Dict[str, Any]) -> str:
    """What becomes of a property; see PROPERTY_KINDS."""
    return next(kind for kind, applies in PROPERTY_KINDS
                if applies(name, item))


class Device(NamedTuple):
    """A device that the user has created, with -device or device_add."""
    path: str
    driver: str
    hotplugged: bool
    bus: str                # the name of the bus that it is plugged into
    address: str            # its PCI address; '': it has none

    @property
    def name(self) -> str:
        """Its id, or the name that QEMU has made for it."""
        return self.path.rpartition('/')[2]

    @property
    def has_id(self) -> bool:
        """Did the user give it an id?"""
        return self.path.startswith(NAMED + '/')

    def place(self) -> 'tuple[str, str, str]':
        """What must be the same in the new QEMU."""
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
    """How the devices of two QEMUs differ, in words; None: not at all."""
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
    """The kinds of all netdevs and network cards, by their names."""
    text = await monitor.ask('human-monitor-command',
                             command_line='info network')
    # A line has one or two names, then "index=0,type=user,...".
    found = {}
    for line in text.splitlines():
        kind = re.search(r'\btype=([\w-]+)', line)
        found.update({word: kind[1] if kind else ''
                      for word in line.lstrip(' \\').split(': ')
                      if '=' not in word})
    return found


async def usb_ports(monitor: Monitor) -> Dict[str, str]:
    """The ports of the USB devices that have an id."""
    text = await monitor.ask('human-monitor-command', command_line='info usb')
    return {name: port for port, name in re.findall(
        r'(?m)^ *Device .*?, Port ([0-9.]+), .*, ID: (\S+?)\r?$', text)}


async def object_keys(monitor: Monitor, driver: str) -> List[str]:
    """The keys that "object-add" takes for a type of objects."""
    types = {item['name']: item
             for item in await monitor.ask('query-qmp-schema')}
    variants = types[types['object-add']['arg-type']]['variants']
    return [member['name'] for variant in variants
            if variant['case'] == driver
            for member in types[variant['type']]['members']]


class DeviceOptions:
    """
    Changes a command line so that it creates the devices that the VM has now.

    changes: what was changed in the command line, in words
    losses: what the new QEMU will not have, in words

    @param monitor: of the QEMU that runs the VM
    @param options: its command line, which follow() changes
    """
    def __init__(self, monitor: Monitor, options: CommandLine) -> None:
        self.changes: List[str] = []
        self.losses: List[str] = []
        self._monitor = monitor
        self._options = options
        self._new: List[Option] = []
        self._ports: Dict[str, str] = {}

    async def follow(self, present: Dict[str, Device]) -> None:
        """
        Add what was plugged since the VM began, and drop what was unplugged.

        @param present: the devices that the VM has now
        """
        for device in present.values():
            if device.hotplugged and not device.has_id:
                raise Refused(
                    f"the device '{device.path}' ({device.driver}) was "
                    'plugged without an id and cannot be reproduced; plug '
                    'it with one, or give the command line after "--"')
        self._ports = await usb_ports(self._monitor)
        things = await created.things(self._monitor)
        if things is None:
            await self._guess(present)
        else:
            await self._follow_log(present, things)
        self._options.extend(self._new)
        if things is not None:
            for name in 'blockdev', 'object':
                created.sort_by_references(self._options, name)
        await self._set_places(present)
        await self._note_losses()

    async def _guess(self, present: Dict[str, Device]) -> None:
        """Follow what the properties of devices tell, and other queries."""
        plugged = {device.name: device for device in present.values()
                   if device.hotplugged}
        self._drop_unplugged(present, plugged)
        self._drop_absent('chardev', set(await self._monitor.chardevs()))
        await self._drop_removed()
        await self._add_plugged(list(plugged.values()))

    # Follow the log of a QEMU that tells what was created

    async def _follow_log(self, present: Dict[str, Device],
                          things: List[Thing]) -> None:
        log = {(thing.kind, thing.id): thing for thing in things}
        gone = [name for kind in created.OPTIONS
                for name in await self._follow_kind(kind, log)]
        images = await blocks.drives_and_nodes(self._monitor)
        gone += self._drop_absent('drive', images)
        for thing in log.values():
            if thing.at_startup:
                await self._check_startup(thing)
            elif not thing.id.startswith('guestfwd.'):
                # Otherwise an option of a netdev creates the chardev.
                await self._add(thing, present)
        await self._follow_drives(present)
        self._check_references(gone)
        self._options.extend(self._new)
        self._new = []
        await self._follow_drives(present)

    async def _follow_kind(self, kind: str,
                           log: Dict[Tuple[str, str], Thing]) -> List[str]:
        """
        Change the options that create things of a kind.

        Returns the names of those that must have no user on the command line.
        """
        gone = []
        for option in list(self._options.named(*created.OPTIONS[kind])):
            thing = log.get((kind, option.id))
            if not option.id or thing and thing.at_startup and \
                    not thing.changed and \
                    await self._graph(thing) == thing:
                continue
            position = self._options.index(option)
            if thing and thing.at_startup:
                self._options[position] = await self._changed(option, thing)
                self.changes.append(f"'{option.id}' was changed")
                continue
            # Some objects are needed only while others are created, as
            # secrets are: they may be absent now.
            if not thing and kind == 'object' and any(
                    self._options.referring_to(option.id)):
                continue
            del self._options[position]
            if not thing:
                self.changes.append(f"'{option.id}' was " + (
                    'unplugged' if kind == 'device' else 'removed'))
            if option.name == 'nic':
                raise Refused(
                    f"'{' '.join(option.words())}' also creates a network "
                    f"card, and its network '{option.id}' was removed; give "
                    'the command line after "--"')
            # The netdev of a device cannot be replaced: a later one of this
            # id is not that of a device of the command line.
            if kind == 'netdev' or kind == 'blockdev' and not thing:
                gone.append(option.id)
        return gone

    async def _changed(self, option: Option, thing: Thing) -> Option:
        """An option, with the changes that were made since."""
        if thing.kind != 'device':
            return (await self._graph(thing)).option()
        known = await self._monitor.properties(thing.options['driver']) or {}
        changes = {}
        for key, value in created.changes_of(option, thing).items():
            if key in known and property_kind(key, known[key]) == 'plain':
                changes[key] = value
            else:
                self.losses.append(
                    f"the property '{key}' of the device '{thing.id}' was "
                    'set while the VM ran, and the new QEMU cannot be given '
                    'its value: set it again after the update')
        return option.changed(changes)

    async def _graph(self, thing: Thing) -> Thing:
        """The thing; if it is a block node, with the children of now."""
        if thing.kind != 'blockdev':
            return thing
        known = await blocks.nodes(self._monitor)
        if thing.id not in known:
            raise Refused(f"the block node '{thing.id}' was removed at this "
                          'moment; try again')
        return thing._replace(options=blocks.with_children(
            thing.options, known[thing.id], known))

    async def _check_startup(self, thing: Thing) -> None:
        """Refuse, or note, a change of what an unknown option created."""
        if not thing.changed or self._creates(
                thing.id, *created.OPTIONS[thing.kind]):
            return
        if thing.kind == 'device':
            self.losses.append(
                f"a property of the device '{thing.id}', which has no id, "
                'was set while the VM ran: set it again after the update')
            return
        raise Refused(
            f"the {thing.kind} '{thing.id}' was changed while the VM ran, "
            f'and the command line has no option -{thing.kind} for it; give '
            'the command line, with that change, after "--"')

    async def _add(self, thing: Thing, present: Dict[str, Device]) -> None:
        """Add the option that creates what was created since."""
        if thing.kind == 'blockdev' and thing.id in blocks.names_given(
                [*self._options, *self._new]):
            raise Refused(
                f"the block node '{thing.id}' of the command line was "
                'changed, and has no option of its own; give the command '
                'line, with that change, after "--"')
        if thing.kind != 'device':
            self._new.append((await self._graph(thing)).option())
            self.changes.append(f"'{thing.id}' was added")
            return
        device = present.get(f'{NAMED}/{thing.id}')
        if not device:
            raise Refused(f"the device '{thing.id}' was plugged or unplugged "
                          'at this moment; try again')
        words = await created.typed_options(self._monitor, thing)
        option = thing.option()
        if words is not None:
            words = dict(words)
            if device.bus and 'bus' not in words:
                words['bus'] = device.bus
            option = Option('device', json.dumps(words))
        self._new.append(option)
        self.changes.append(f"'{thing.id}' was plugged")

    async def _follow_drives(self, present: Dict[str, Device]) -> None:
        """Give each device the block node that it has now."""
        # Snapshots, block jobs and changes of the medium replace it.
        nodes = blocks.names_given([*self._options, *self._new])
        for position, option in enumerate(self._options):
            device = present.get(f'{NAMED}/{option.id}')
            given = option.keys().get('drive')
            if option.name != 'device' or not device or not given:
                continue
            drive = await self._drive(device)
            if drive in nodes and drive != given:
                self._options[position] = option.changed({'drive': drive})
                self.changes.append(f"'{option.id}' got another image")
            elif device.hotplugged:
                # HMP's drive_add is not in the log.
                await self._provide(device, 'drive', drive or str(given))

    async def _drive(self, device: Device) -> Optional[str]:
        """The drive that a device has now."""
        drive = await self._monitor.get(device.path, 'drive')
        return str(drive) if drive else await self._drive_of_child(device)

    # Drop options

    def _drop_unplugged(self, present: Dict[str, Device],
                        plugged: Dict[str, Device]) -> None:
        """Drop devices that are absent, or that _add_plugged() will add."""
        for option in list(self._options.named('device')):
            name = option.id
            if name and (f'{NAMED}/{name}' not in present or name in plugged):
                self._options.remove(option)
                if name not in plugged:
                    self.changes.append(f"'{name}' was unplugged")

    def _drop_absent(self, kind: str, present: Set[str]) -> List[str]:
        """Drop options that create what is absent; returns the names."""
        gone = [option for option in self._options.named(kind)
                if option.id and option.id not in present]
        for option in gone:
            self._options.remove(option)
            self.changes.append(f"'{option.id}' was removed")
        return [option.id for option in gone]

    async def _drop_removed(self) -> None:
        """Drop disks, networks and objects that were removed."""
        images = await blocks.drives_and_nodes(self._monitor)
        nets = await networks(self._monitor)
        gone = [name for kind, present in (
            ('drive', images), ('blockdev', images),
            ('netdev', set(nets)), ('nic', set(nets)))
            for name in self._drop_absent(kind, present)]
        self._check_networks(nets)
        self._check_references(gone)
        objects = await self._monitor.children('/objects')
        # Some objects are needed only while others are created, as secrets
        # are: they may be absent now.
        self._drop_absent('object', {*objects, *(
            option.id for option in self._options.named('object')
            if any(self._options.referring_to(option.id)))})

    def _check_references(self, gone: List[str]) -> None:
        """Refuse an option that refers to what was removed."""
        for name in gone:
            for option in self._options.referring_to(name):
                if option.name not in ('device', 'blockdev', 'object'):
                    continue
                raise Refused(
                    f"'{name}' was removed, which the command line gives to "
                    f"'{' '.join(option.words())}'; unplug what uses it, or "
                    'give the command line after "--"')

    def _check_networks(self, nets: Dict[str, str]) -> None:
        """Refuse a network whose name is that of another network now."""
        for option in self._options.named('netdev', 'nic'):
            kind = nets.get(option.id)
            # QEMU reports "bridge" and "passt" as the kind that they use.
            if kind and kind != option.kind and \
                    option.kind not in ('bridge', 'passt'):
                raise Refused(
                    f"'{' '.join(option.words())}' was removed, and "
                    f"'{option.id}' is a network of the kind {kind} now; "
                    'give the command line after "--", with that network')

    # Add options

    async def _set_places(self, present: Dict[str, Device]) -> None:
        """Set the places of devices, where the user has not chosen them."""
        # QEMU takes the first that is free.  Another device may have been
        # there when this one was created.
        moved = any(device.hotplugged for device in present.values()) or \
            any(change.endswith(' was unplugged') for change in self.changes)
        for position, option in enumerate(self._options):
            device = present.get(f'{NAMED}/{option.id}')
            if option.name != 'device' or not device:
                continue
            places: Dict[str, Any] = {}
            if option.id in self._ports:
                places['port'] = self._ports[option.id]
            if moved:
                places.update(await self._places(device))
            places = {key: value for key, value in places.items()
                      if key not in option.keys()}
            if places:
                self._options[position] = option.changed(places)

    async def _places(self, device: Device) -> Dict[str, Any]:
        """The properties that say where a device is."""
        if device.address:
            return {'addr': device.address}
        known = await self._monitor.properties(device.driver) or {}
        values = {name: await self._monitor.get(device.path, name)
                  for name in PLACES if name in known}
        return {name: value for name, value in values.items()
                if value is not None}

    async def _add_plugged(self, waiting: List[Device]) -> None:
        """Add devices, each after the device whose bus it is plugged into."""
        while waiting:
            ready = next((device for device in waiting if not any(
                device.bus == other.name or
                device.bus.startswith(other.name + '.')
                for other in waiting if other is not device)), waiting[0])
            waiting.remove(ready)
            words = await self._cpu(ready) or await self._device(ready)
            if ready.name in self._ports:
                words['port'] = self._ports[ready.name]
            self._new.append(Option('device', json.dumps(words)))
            self.changes.append(f"'{ready.name}' was plugged")

    async def _cpu(self, device: Device) -> Optional[Dict[str, Any]]:
        """
        The keys of a CPU: its place; None: the device is no CPU.

        The option -cpu sets the properties of all CPUs.
        """
        with contextlib.suppress(MonitorError):
            for place in await self._monitor.ask(
                    'query-hotpluggable-cpus'):
                if place.get('qom-path') == device.path:
                    return {'driver': device.driver, 'id': device.name,
                            **place['props']}
        return None

    async def _device(self, device: Device) -> Dict[str, Any]:
        """The keys of a device: its properties that have no default value."""
        known = await self._monitor.properties(device.driver)
        words: Dict[str, Any] = {'driver': device.driver, 'id': device.name}
        if device.bus:
            words['bus'] = device.bus
        for name, item in (known or {}).items():
            kind = property_kind(name, item)
            if kind == 'skip':
                continue
            value = await self._monitor.get(device.path, name)
            if name == 'drive' and not value:
                value = await self._drive_of_child(device)
            if value in (None, '', []) or value == item.get('default-value'):
                continue
            if kind == 'link':
                value = await self._follow_link(device, name, str(value))
            elif kind == 'mapping':
                for part in value:
                    await self._provide(device, 'iothread', part['iothread'])
            if value is not None:
                words[name] = value
        return words

    async def _drive_of_child(self, device: Device) -> Optional[str]:
        """The drive that a device has passed on to a child of its own."""
        for drive in await self._monitor.ask('query-block'):
            if drive.get('qdev', '').startswith(device.path + '/'):
                name: str = drive['device'] or drive.get('inserted', {}).get(
                    'node-name', '')
                return name
        return None

    async def _follow_link(self, device: Device, link: str, value: str
                           ) -> Optional[str]:
        """
        Provide what a link of a device leads to; returns its name.

        None: it leads to a part of the machine or of the device, which QEMU
        creates by itself.
        """
        if link not in LINKS and not value.startswith('/objects/'):
            if not value.startswith((f'{NAMED}/', f'{UNNAMED}/')) or \
                    value.startswith(device.path + '/'):
                return None
            raise Refused(
                f"the device '{device.name}' was plugged with "
                f'{link}={value}, which cannot be given to the new QEMU; '
                'unplug it, or give the command line after "--"')
        name = value.rpartition('/')[2]
        await self._provide(device, link, name)
        return name

    def _creates(self, name: str, *kinds: str) -> bool:
        """Does an option of one of these kinds create this name?"""
        return any(option.name in kinds and option.id == name
                   for option in [*self._options, *self._new])

    async def _provide(self, device: Device, link: str, name: str) -> None:
        """Add an option that creates what a device needs, unless present."""
        kinds = LINKS.get(link, ('object',))
        if self._creates(name, *kinds):
            return
        if 'chardev' in kinds:
            await self._add_chardev(name)
        elif 'object' in kinds:
            await self._add_object(name)
        elif 'blockdev' in kinds:
            await self._add_image(device, name)
        else:
            raise Refused(
                f"the device '{device.name}' was plugged with the {link} "
                f"'{name}', which the command line lacks and which cannot be "
                'read from QEMU; give the command line, with both, after '
                '"--"')

    async def _add_image(self, device: Device, name: str) -> None:
        known = await blocks.nodes(self._monitor)
        options = blocks.NodeOptions(
            known, blocks.names_given([*self._options, *self._new]))
        try:
            if name not in known:
                raise Refused('it is no block node with a name')
            options.add(name)
        except Refused as error:
            raise Refused(
                f"the device '{device.name}' was plugged with the drive "
                f"'{name}', which the command line lacks and which cannot be "
                f'read from QEMU: {error}; give the command line, with both, '
                'after "--"') from error
        self._new.extend(options.made.values())
        if options.made:
            self.losses.append(
                f"the image '{name}' was added to the running VM: the new "
                'QEMU uses defaults for the options that QEMU does not tell '
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
            # QEMU reports hugetlbsize=0, which it does not take.
            if value in (None, '', []) or key in NOT_TAKEN or \
                    (key, value) == ('hugetlbsize', 0):
                continue
            if str(value).startswith('/objects/'):
                value = str(value).rpartition('/')[2]
                if not self._creates(value, 'object'):
                    await self._add_object(value)
            elif key == 'chardev' and not self._creates(value, 'chardev'):
                await self._add_chardev(str(value))
            words[key] = value
        self._new.append(Option('object', json.dumps(words)))

    async def _note_losses(self) -> None:
        """Note objects and block nodes that no option creates."""
        objects = {option.id for option in self._options.named('object')}
        memory = await self._monitor.get('/machine', 'memory-backend')
        for name, kind in (await self._monitor.children('/objects')).items():
            if name not in objects and f'/objects/{name}' != memory:
                self.losses.append(
                    f"the object '{name}' ({kind}) was added, and no device "
                    'that was plugged uses it: the new QEMU will not have it')
        for name in await blocks.nodes_left_out(self._monitor,
                                                self._options):
            self.losses.append(
                f"the block node '{name}' was added, and no device that was "
                'plugged uses it: the new QEMU will not have it')
