# SPDX-License-Identifier: GPL-2.0-or-later
"""
Tests of how live-update follows a QEMU that tells what was created

They are unit tests: no QEMU is needed.
"""
import asyncio
import json
import unittest
from typing import Any, Dict, List, Optional

from qemu.live_update.error import Refused
from qemu.live_update.vm.cmdline import CommandLine, Option
from qemu.live_update.vm.created import (
    CHARDEV_KEYS,
    QUERY,
    chardev_option,
    sort_by_references,
)
from qemu.live_update.vm.devices import Device, DeviceOptions


class TellingMonitor:
    """
    A monitor of a QEMU that has query-created.

    @param log: its answer
    @param nodes: the answer of query-named-block-nodes
    @param values: of properties, by path and name
    """
    TYPES: Dict[str, Any] = {
        'disk': {'addr': {'type': 'str', 'default-value': -1},
                 'size': {'type': 'size', 'default-value': 0},
                 'queues': {'type': 'uint16', 'default-value': 1},
                 'fast': {'type': 'bool', 'default-value': True},
                 'state': {'type': 'int'}},
        'scsi-hd': {'scsi-id': {'type': 'uint32', 'default-value': 0},
                    'lun': {'type': 'uint32', 'default-value': 0}}}

    def __init__(self, log: List[Dict[str, Any]],
                 nodes: Optional[List[Dict[str, Any]]] = None,
                 values: Optional[Dict[str, Any]] = None) -> None:
        self._answers: Dict[str, Any] = {
            'query-commands': [{'name': QUERY}], QUERY: log,
            'query-named-block-nodes': nodes or [],
            'human-monitor-command': ''}
        self._values = values or {}

    async def ask(self, command: str, **_: object) -> Any:
        """The answer of a command."""
        return self._answers.get(command, [])

    async def get(self, path: str, name: str) -> Any:
        """The value of a property."""
        return self._values.get(f'{path} {name}')

    async def children(self, path: str) -> Dict[str, str]:
        """The types of the children of an object: it has none."""
        return {} if path else {'': ''}

    async def properties(self, driver: str) -> Any:
        """The properties of a device type."""
        return self.TYPES.get(driver)


def thing(kind: str, name: str, options: Dict[str, Any], **more: bool
          ) -> Dict[str, Any]:
    """An item of the answer of query-created."""
    return {'kind': kind, 'id': name, 'options': options, 'at-startup': False,
            'changed': False, 'keyval': False,
            **{key.replace('_', '-'): value for key, value in more.items()}}


def device(name: str, driver: str = 'disk', hotplugged: bool = False,
           address: str = '') -> Device:
    """A device that the VM has now."""
    return Device(f'/machine/peripheral/{name}', driver, hotplugged, 'bus.0',
                  address)


class Follow(unittest.TestCase):
    """The command line has what exists now"""

    def follow(self, text: str, monitor: TellingMonitor, *present: Device
               ) -> List[str]:
        """The new command line."""
        words = text.split()
        options = CommandLine.parse(words)
        fake: Any = monitor
        self.current = DeviceOptions(fake, options)
        asyncio.run(self.current.follow({item.path: item
                                         for item in present}))
        return [' '.join(option.words()) for option in options]

    def test_kept(self) -> None:
        """What was created at startup has the option that it had."""
        text = ('-object iothread,id=t -netdev user,id=n -chardev null,id=c '
                '-blockdev null-co,node-name=b -device disk,id=d -device disk')
        log = [thing(kind, name, {}, at_startup=True)
               for kind, name in (('object', 't'), ('netdev', 'n'),
                                  ('chardev', 'c'), ('blockdev', 'b'),
                                  ('device', 'd'))]
        self.assertEqual(' '.join(self.follow(
            text, TellingMonitor(log, [{'node-name': 'b'}]), device('d'))),
            text)
        self.assertEqual(self.current.changes, [])

    def test_gone(self) -> None:
        """What no longer exists has no option."""
        self.assertEqual(self.follow(
            '-object iothread,id=t -netdev user,id=n -chardev null,id=c '
            '-blockdev null-co,node-name=b -device disk,id=d',
            TellingMonitor([])), [])
        self.assertIn("'d' was unplugged", self.current.changes)
        with self.assertRaisesRegex(Refused, "'n' was removed"):
            self.follow('-netdev user,id=n -device disk,id=d,netdev=n',
                        TellingMonitor([thing('device', 'd', {},
                                              at_startup=True)]),
                        device('d'))
        with self.assertRaisesRegex(Refused, "'n' was removed"):
            self.follow('-nic user,id=n', TellingMonitor([]))

    def test_again(self) -> None:
        """An id was used again: the option is that of the later thing."""
        null = {'type': 'null', 'data': {}}
        log = [thing('object', 't', {'qom-type': 'rng-builtin', 'id': 't'}),
               thing('netdev', 'n', {'type': 'hubport', 'id': 'n',
                                     'hubid': 2}),
               thing('chardev', 'c', {'id': 'c', 'backend': null}),
               thing('blockdev', 'b', {'driver': 'null-co',
                                       'node-name': 'b'}),
               thing('device', 'd', {'driver': 'disk', 'id': 'd',
                                     'bus': 'x'})]
        self.assertEqual(
            self.follow(
                '-object iothread,id=t -netdev user,id=n -chardev pty,id=c '
                '-blockdev null-aio,node-name=b -device disk,id=d,bus=y',
                TellingMonitor(log, [{'node-name': 'b'}]),
                device('d', hotplugged=True)),
            ['-object {"qom-type": "rng-builtin", "id": "t"}',
             '-netdev {"type": "hubport", "id": "n", "hubid": 2}',
             '-chardev null,id=c',
             '-blockdev {"driver": "null-co", "node-name": "b"}',
             '-device {"driver": "disk", "id": "d", "bus": "x"}'])

    def test_changed(self) -> None:
        """A change keeps the place of the option."""
        log = [thing('chardev', 'c', {'id': 'c', 'backend': {
            'type': 'ringbuf', 'data': {'size': 16}}}, at_startup=True,
            changed=True)]
        self.assertEqual(
            self.follow('-chardev null,id=c -serial chardev:c',
                        TellingMonitor(log)),
            ['-chardev ringbuf,id=c,size=16', '-serial chardev:c'])
        log[0]['id'] = 'serial0'
        with self.assertRaisesRegex(Refused, "'serial0' was changed"):
            self.follow('-serial null', TellingMonitor(log))

    def test_changed_device(self) -> None:
        """A property is set, or it is said that it cannot be."""
        log = [thing('device', 'd', {
            'driver': 'disk', 'id': 'd', 'queues': '2', 'state': '5'},
            at_startup=True, changed=True, keyval=True)]
        self.assertEqual(
            self.follow('-device disk,id=d', TellingMonitor(log),
                        device('d')), ['-device disk,id=d,queues=2'])
        self.assertIn("'state'", ' '.join(self.current.losses))

    def test_reopened(self) -> None:
        """A reopened block node follows a new child, and precedes users."""
        log = [thing('blockdev', 'top', {
            'driver': 'qcow2', 'node-name': 'top', 'file': 'new'},
            at_startup=True, changed=True),
            thing('blockdev', 'user', {}, at_startup=True),
            thing('blockdev', 'new', {'driver': 'null-co',
                                      'node-name': 'new'})]
        nodes = [{'node-name': name} for name in ('top', 'user', 'new')]
        self.assertEqual(
            self.follow('-blockdev qcow2,node-name=top,file.driver=null-co '
                        '-blockdev raw,node-name=user,file=top',
                        TellingMonitor(log, nodes)),
            ['-blockdev {"driver": "null-co", "node-name": "new"}',
             '-blockdev {"driver": "qcow2", "node-name": "top", '
             '"file": "new"}', '-blockdev raw,node-name=user,file=top'])

    def test_snapshot(self) -> None:
        """A node was added as an overlay; now it has a backing file."""
        log = [thing('blockdev', 'over', {
            'driver': 'qcow2', 'node-name': 'over', 'file': {'driver': 'file'},
            'backing': None})]
        nodes = [{'node-name': 'over', 'children': [
            {'child': 'file', 'node-name': '#block1'},
            {'child': 'backing', 'node-name': 'base'}]}]
        option, = self.follow('', TellingMonitor(log, nodes))
        self.assertIn('"backing": "base"', option)

    def test_read_only(self) -> None:
        """A node of the command line is below an overlay now."""
        log = [thing('blockdev', 'base', {
            'driver': 'null-co', 'node-name': 'base'}, at_startup=True)]
        for automatic in False, True:
            log[0]['options']['auto-read-only'] = automatic
            option, = self.follow(
                '-blockdev null-co,node-name=base',
                TellingMonitor(log, [{'node-name': 'base', 'ro': True}]))
            self.assertEqual('"read-only": true' in option, not automatic)

    def test_drive(self) -> None:
        """A device of the command line has the node that it has now."""
        log = [thing('device', 'd', {}, at_startup=True),
               thing('blockdev', 'base', {}, at_startup=True),
               thing('blockdev', 'over', {'driver': 'raw',
                                          'node-name': 'over'})]
        path = '/machine/peripheral/d drive'
        text = '-blockdev null-co,node-name=base -device disk,id=d,drive=base'
        for now, drive in ('over', 'over'), ('#block7', 'base'):
            words = self.follow(text, TellingMonitor(
                log, [{'node-name': name} for name in ('base', 'over')],
                {path: now}), device('d'))
            self.assertIn(f'-device disk,id=d,drive={drive}', words)

    def test_old_form(self) -> None:
        """A device that HMP has plugged gets the types of its properties."""
        log = [thing('device', 'd', {
            'driver': 'disk', 'id': 'd', 'bus': 'b', 'queues': '0x10',
            'fast': 'off', 'size': '2k', 'addr': '4'}, keyval=True)]
        option, = self.follow('', TellingMonitor(log),
                              device('d', hotplugged=True))
        self.assertEqual(json.loads(option.partition(' ')[2]), {
            'driver': 'disk', 'id': 'd', 'bus': 'b', 'queues': 16,
            'fast': False, 'size': 2048, 'addr': '4'})
        log[0]['options']['len-x'] = '1'
        self.assertEqual(
            self.follow('', TellingMonitor(log),
                        device('d', hotplugged=True)),
            ['-device driver=disk,id=d,bus=b,queues=0x10,fast=off,size=2k,'
             'addr=4,len-x=1'])

    def test_guestfwd(self) -> None:
        """The option of a netdev creates the chardev of a forwarded port."""
        log = [thing('chardev', 'guestfwd.tcp.44', {})]
        self.assertEqual(self.follow('', TellingMonitor(log)), [])

    def test_places(self) -> None:
        """Places that QEMU chose are set once something was unplugged."""
        log = [thing('device', name, {}, at_startup=True)
               for name in ('pci', 'set', 'hd')]
        present = (device('pci', address='05.0'),
                   device('set', address='06.0'), device('hd', 'scsi-hd'))
        values = {'/machine/peripheral/hd scsi-id': 1,
                  '/machine/peripheral/hd lun': 0}
        text = ('-device disk,id=pci -device disk,id=set,addr=6 '
                '-device scsi-hd,id=hd,lun=0')
        self.assertEqual(
            ' '.join(self.follow(text, TellingMonitor(log, values=values),
                                 *present)), text)
        self.assertEqual(
            self.follow(text + ' -device disk,id=gone',
                        TellingMonitor(log, values=values), *present),
            ['-device disk,id=pci,addr=05.0', '-device disk,id=set,addr=6',
             '-device scsi-hd,id=hd,lun=0,scsi-id=1'])


class Chardevs(unittest.TestCase):
    """The option -chardev for a ChardevBackend"""

    def option(self, kind: str, **data: Any) -> str:
        """The value of the option."""
        return chardev_option('c', {'type': kind, 'data': {
            name.replace('_', '-'): value
            for name, value in data.items()}}).value

    def test_socket(self) -> None:
        """All kinds of addresses; QMP has other defaults."""
        def unix(**more: Any) -> Dict[str, Any]:
            return {'type': 'unix', 'data': {'path': 'a,b', **more}}

        self.assertEqual(self.option('socket', addr=unix()),
                         'socket,id=c,path=a,,b,server=on,wait=off')
        self.assertEqual(
            self.option('socket', addr=unix(abstract=True, tight=False),
                        server=False, reconnect_ms=5, logfile='l'),
            'socket,id=c,path=a,,b,abstract=on,tight=off,server=off,'
            'reconnect-ms=5,logfile=l')
        self.assertEqual(
            self.option('socket', server=True, wait=True, telnet=True, addr={
                'type': 'inet', 'data': {'host': 'h', 'port': '1', 'to': 2,
                                         'ipv6': False, 'numeric': False}}),
            'socket,id=c,server=on,wait=on,telnet=on,host=h,port=1,to=2,'
            'ipv6=off')
        for addr in ({'type': 'fd', 'data': {'str': '5'}},
                     {'type': 'vsock', 'data': {'cid': '1', 'port': '1'}},
                     {'type': 'inet', 'data': {'host': 'h', 'port': '1',
                                               'keep-alive': True}}):
            with self.assertRaisesRegex(Refused, "chardev 'c'"):
                self.option('socket', addr=addr)

    def test_others(self) -> None:
        """Types whose members have other names in the option."""
        def inet(port: str) -> Dict[str, Any]:
            return {'type': 'inet', 'data': {'host': 'h', 'port': port}}

        types: List['tuple[str, Dict[str, Any]]'] = [
            ('file,id=c,path=o,input-path=i,append=on', {
                'out': 'o', 'in': 'i', 'append': True}),
            ('pipe,id=c,path=p', {'device': 'p'}),
            ('udp,id=c,host=h,port=1,localaddr=h,localport=2', {
                'remote': inet('1'), 'local': inet('2')}),
            ('hub,id=c,chardevs.0=a,chardevs.1=b', {
                'chardevs': ['a', 'b']})]
        for value, data in types:
            self.assertEqual(self.option(value.partition(',')[0], **data),
                             value)
        with self.assertRaisesRegex(Refused, 'stdio'):
            self.option('stdio', signal=True)

    def test_keys(self) -> None:
        """No member of a type has the key of another one."""
        for kind, keys in CHARDEV_KEYS.items():
            self.assertEqual(len(set(keys.values())), len(keys), kind)


class Order(unittest.TestCase):
    """Options that refer to others"""

    def test_order(self) -> None:
        """The order is kept as far as references allow; loops are no trap."""
        options = CommandLine.parse([
            '-blockdev', 'raw,node-name=a,file=c', '-S',
            '-blockdev', 'raw,node-name=b',
            '-blockdev', 'raw,node-name=c,file.node-name=d,file.x=b'])
        sort_by_references(options, 'blockdev')
        self.assertEqual([option.id for option in options],
                         ['b', '', 'c', 'a'])
        loop = [Option('object', '{"id":"x","y":"z"}'),
                Option('object', '{"id":"z","y":"x"}')]
        options = CommandLine(loop)
        sort_by_references(options, 'object')
        self.assertEqual({option.id for option in options}, {'x', 'z'})


if __name__ == '__main__':
    unittest.main()
