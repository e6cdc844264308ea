# SPDX-License-Identifier: GPL-2.0-or-later
"""
Tests of what live-update carries over: devices, memory, limits and rights

They are unit tests: no QEMU is needed.
"""
import asyncio
import json
import unittest
from typing import Any, Dict, List

from qemu.live_update.error import Refused
from qemu.live_update.host.confinement import Confinement
from qemu.live_update.vm.blocks import limits_given
from qemu.live_update.vm.cmdline import CommandLine, Option
from qemu.live_update.vm.devices import (Device, DeviceOptions, devices,
                                         property_kind)


class FakeMonitor:
    """
    A monitor of a QEMU that has some objects.

    values: of properties, by the path of the object and the name
    types: the properties of each device type
    """
    def __init__(self, values: Dict[str, Dict[str, Any]],
                 types: Dict[str, Dict[str, Any]]) -> None:
        self.values = values
        self.types = types

    async def get(self, path: str, name: str) -> Any:
        """The value of a property."""
        return self.values.get(path, {}).get(name)

    async def children(self, path: str) -> Dict[str, str]:
        """The types of the children of an object."""
        return {child.rpartition('/')[2]: values['type']
                for child, values in self.values.items()
                if child.rpartition('/')[0] == path}

    async def properties(self, driver: str) -> Any:
        """The properties of a device type."""
        return self.types.get(driver)

    async def chardevs(self) -> Dict[str, Any]:
        """All chardevs."""
        return {name: {'filename': 'unix:s'}
                for name in await self.children('/chardevs')}

    async def ask(self, command: str, **_: object) -> Any:
        """The answer of other commands."""
        members = [{'name': 'thread-pool-max'}]
        return {'human-monitor-command': '', 'query-qmp-schema': [
            {'name': 'object-add', 'arg-type': '1'},
            {'name': '1', 'variants': [{'case': 'iothread', 'type': '2'}]},
            {'name': '2', 'members': members}]}.get(command, [])


class Properties(unittest.TestCase):
    """Properties of devices that were plugged"""

    MAPPING = 'IOThreadVirtQueueMappingList'
    TYPES: Dict[str, Dict[str, Any]] = {'disk': {
        'logical': {'type': 'uint32', 'default-value': 512},
        'size': {'type': 'uint32', 'default-value': 1},
        'serial': {'type': 'str'},
        'empty': {'type': 'str'},
        'bootindex': {'type': 'int32'},
        'realized': {'type': 'bool'},
        'chardev': {'type': 'str'},
        'iothread': {'type': 'link<iothread>'},
        'rng': {'type': 'link<rng-backend>'},
        'parent_bus': {'type': 'link<bus>'},
        'child': {'type': 'link<device>'},
        'map': {'type': MAPPING}}}

    def test_kinds(self) -> None:
        """What becomes of a property depends on its name and type."""
        kinds = {name: property_kind(name, item)
                 for name, item in self.TYPES['disk'].items()}
        self.assertEqual(kinds, {
            'logical': 'plain', 'size': 'plain', 'serial': 'plain',
            'empty': 'plain', 'bootindex': 'plain', 'realized': 'skip',
            'chardev': 'link', 'iothread': 'link', 'rng': 'link',
            'parent_bus': 'link', 'child': 'link', 'map': 'mapping'})

    def follow(self, words: List[str], **values: Any) -> List[Any]:
        """The options of a VM with a disk that has these values."""
        path = '/machine/peripheral/d'
        monitor: Any = FakeMonitor({
            path: {'type': 'disk', 'hotplugged': True, **values},
            '/objects/t': {'type': 'iothread', 'thread-pool-max': 8},
            '/objects/u': {'type': 'iothread'},
            '/chardevs/c': {'type': 'chardev-socket', 'reconnect-ms': 0,
                            'addr': {'type': 'unix', 'path': 's'}},
        }, self.TYPES)

        async def work() -> CommandLine:
            options = CommandLine.parse(words)
            await DeviceOptions(monitor, options).follow(
                await devices(monitor))
            return options

        return [(option.name, json.loads(option.value)
                 if option.value.startswith('{') else option.value)
                for option in asyncio.run(work())]

    def test_plain(self) -> None:
        """Values that are not the default are passed on."""
        self.assertEqual(
            self.follow([], parent_bus='/machine/pci/bus.0', size=2,
                        logical=512, serial='x', empty='', bootindex=1,
                        realized=True),
            [('device', {'driver': 'disk', 'id': 'd', 'bus': 'bus.0',
                         'size': 2, 'serial': 'x', 'bootindex': 1})])

    def test_links(self) -> None:
        """What a device needs is created before it."""
        self.assertEqual(
            self.follow([], iothread='/objects/t', chardev='c',
                        map=[{'iothread': 'u'}]),
            [('chardev', 'socket,id=c,path=s'),
             ('object', {'qom-type': 'iothread', 'id': 't',
                         'thread-pool-max': 8}),
             ('object', {'qom-type': 'iothread', 'id': 'u'}),
             ('device', {'driver': 'disk', 'id': 'd', 'chardev': 'c',
                         'iothread': 't', 'map': [{'iothread': 'u'}]})])
        words = ['-object', 'iothread,id=t', '-device', 'gone,id=gone']
        self.assertEqual(
            self.follow(words, iothread='/objects/t'),
            [('object', 'iothread,id=t'),
             ('device', {'driver': 'disk', 'id': 'd', 'iothread': 't'})])

    def test_parts(self) -> None:
        """Links to parts of the device are left out, others refused."""
        self.assertEqual(
            self.follow([], child='/machine/peripheral/d/part',
                        rng='/machine/unattached/rng'),
            [('device', {'driver': 'disk', 'id': 'd'})])
        with self.assertRaisesRegex(Refused, 'child=/machine/peripheral/e'):
            self.follow([], child='/machine/peripheral/e')

    def test_order(self) -> None:
        """A bus is created before the device that is plugged into it."""
        def device(name: str, bus: str) -> Device:
            return Device(f'/machine/peripheral/{name}', 'x', True, bus, '')

        monitor: Any = FakeMonitor({}, {})
        options = CommandLine()
        current = DeviceOptions(monitor, options)
        found = [device('disk', 'hub.0'), device('hub', 'usb-bus')]
        asyncio.run(current.follow({item.path: item for item in found}))
        self.assertEqual([option.id for option in options], ['hub', 'disk'])
        self.assertEqual(current.changes, ["'hub' was plugged",
                                           "'disk' was plugged"])
        with self.assertRaisesRegex(Refused, 'without an id'):
            asyncio.run(DeviceOptions(monitor, CommandLine()).follow({
                'x': Device('/machine/peripheral-anon/device[0]', 'x', True,
                            '', '')}))


class Limits(unittest.TestCase):
    """Throttling, as a drive was given it"""

    def test_forms(self) -> None:
        """Old names and new ones, with and without a unit."""
        for text, expected in (
                ('file=f', {}),
                ('file=f,throttling.iops-total=10', {'iops': 10}),
                ('file=f,bps_rd=1k,iops_wr=7', {'bps_rd': 1024,
                                                'iops_wr': 7}),
                ('throttling.bps-write=2M', {'bps_wr': 2 << 20})):
            found = limits_given(Option('drive', text))
            self.assertEqual({name: value for name, value in found.items()
                              if value}, expected)


class Confined(unittest.TestCase):
    """What confines a process"""

    STATUS = ('CapInh:\t0000000000000001\nCapPrm:\t0\nCapEff:\t0\n'
              'CapBnd:\t0000000000000003\nCapAmb:\t0\nNoNewPrivs:\t1\n'
              'Seccomp:\t2\nSeccomp_filters:\t2\n')

    def differs(self, status: str, label: str = '', **more: bool) -> str:
        """How another one differs, in words."""
        return ' '.join(Confinement(self.STATUS, '').differences(
            Confinement(status, label), **more))

    def test_differences(self) -> None:
        """Each is named."""
        self.assertEqual(self.differs(self.STATUS), '')
        self.assertIn('NoNewPrivs', self.differs(
            self.STATUS.replace('NoNewPrivs:\t1', 'NoNewPrivs:\t0')))
        self.assertIn('CapBnd', self.differs(
            self.STATUS.replace('003', '007')))
        self.assertIn('"svirt"', self.differs(self.STATUS, 'svirt'))
        fewer = self.STATUS.replace('filters:\t2', 'filters:\t1')
        self.assertIn('system calls', self.differs(fewer))
        # QEMU adds one by itself.
        self.assertEqual(self.differs(fewer, sandbox=True), '')

    def test_drops_privileges(self) -> None:
        """QEMU gives some away by itself."""
        more = self.STATUS.replace('CapEff:\t0', 'CapEff:\t1')
        self.assertIn('CapEff', self.differs(more))
        self.assertEqual(self.differs(more, drops=True), '')


if __name__ == '__main__':
    unittest.main()
