# SPDX-License-Identifier: GPL-2.0-or-later
"""
A transfer that cannot succeed is refused, and the source runs on

An error names the cause, and the monitors answer.
"""
import time
from typing import Dict, List

from lab.machines.chain import COPY, Chain, migration_error, status, wait_end
from lab.machines.disks import Disk, Load, add_chardev
from lab.machines.vm import HOTPLUG_BUSES, VM

from .testcase import main
from .transfer_case import SourceTest


class TransferRefused(SourceTest):
    """One source, and destinations that do not fit"""

    def assert_refused(self, dest: VM, *words: str,
                       on: 'tuple[bool, bool]' = (True, True)) -> None:
        """A migration must fail; the destination must give the reason."""
        self.chain.send(self.source, dest, transfer=on)
        self.wait_failed()
        wait_end(dest, 'failed')
        error = migration_error(dest)
        dest.shutdown()
        error += dest.get_log() or ''
        for word in words:
            self.assertIn(word, error)
        self.assert_undisturbed()

    def test_other_shape(self) -> None:
        """A destination whose disk differs refuses the session."""
        self.set_up(options=',num-queues=2,vectors=5', queues=2)
        for options, word in (
                (',num-queues=1', 'num-queues'),
                (',num-queues=4', 'num-queues'),
                (',queue-size=64', 'queue-size'),
                (',event_idx=off', 'features'),
                (',config-wce=off', 'features')):
            dest = self.chain.destination(disks=[self.disk.but(options)])
            self.assert_refused(dest, word)
        self.assert_transfers()

    def test_other_device(self) -> None:
        """A destination with another kind of disk, or without one."""
        self.set_up()
        for args in ((), ('-blockdev', 'driver=null-co,node-name=n',
                          '-device', 'virtio-blk-pci,id=d,drive=n')):
            self.assert_refused(self.chain.destination(*args, disks=[]),
                                'vhost-user-blk')
        self.assert_transfers()

    def test_more_disks(self) -> None:
        """A destination has a disk that was unplugged at the source."""
        self.set_up()
        dest = self.chain.destination(
            disks=[self.disk, Disk(self.scope.daemon('other'), 'e')])
        self.assert_refused(dest, "'e'", 'did not come')
        self.assert_transfers()

    def test_source_only(self) -> None:
        """backend-transfer is off in the destination: it cannot connect."""
        self.set_up()
        dest = self.chain.destination()
        self.chain.prepare(dest, transfer=False)
        started = time.monotonic()
        error = dest.qmp('migrate-incoming',
                         {'uri': f'unix:{self.chain.path}'})
        self.assertLess(time.monotonic() - started, 10)
        self.assertIn('c-d', str(error['error']))
        self.assertEqual(status(dest), 'inmigrate')
        self.assert_undisturbed()

        # The same QEMU can be used if the parameter is turned on.
        self.chain.transfer(self.source, dest)
        self.load.advance(300)
        self.load.stop()

    def test_destination_only(self) -> None:
        """backend-transfer is off in the source: no disk is handed over."""
        self.set_up()
        self.assert_refused(self.chain.destination(), 'backend-transfer',
                            on=(False, True))
        self.assert_transfers()

    def test_device_opts_out(self) -> None:
        """A device with backend-transfer=off needs a back-end of its own."""
        self.set_up()
        mine = self.scope.daemon('mine', share=True)
        other = self.scope.daemon('other', share=True, disk='mine')
        chain = Chain(self.scope, self.disk, mode=COPY)
        self.source.shutdown()
        disks = [self.disk, Disk(mine, 'own', ',backend-transfer=off')]
        source = chain.boot(disks=disks)
        load = Load(chain.guest, 'vda', 'vdb')
        disks = [self.disk, Disk(other, 'own', ',backend-transfer=off')]
        chain.transfer(source, chain.destination(disks=disks))
        load.advance(300)
        load.stop()

    def test_hotplug_on_busy_backend(self) -> None:
        """device_add on a busy back-end fails, and the monitor answers."""
        self.set_up()
        bus = HOTPLUG_BUSES[0]
        other = Chain(self.scope, mode=COPY).vm('-S')
        other.launch()
        choices: List[Dict[str, object]] = [{}, {'reconnect_ms': 1000}]
        # The daemon queues two connections: later attempts find no place.
        for options in choices * 3:
            add_chardev(other, 'c', self.backend.path, **options)
            started = time.monotonic()
            error = other.attach_error({'driver': 'vhost-user-blk-pci',
                                        'id': 'd', 'chardev': 'c', 'bus': bus})
            self.assertLess(time.monotonic() - started, 10)
            self.assertIn("'c'", error)
            other.cmd('chardev-remove', id='c')
        self.assert_undisturbed()
        # It succeeds when the back-end is free.
        self.load.stop()
        self.source.shutdown()
        self.disk.but(f',bus={bus}').plug(other)

    def test_channels(self) -> None:
        """Channels that cannot pass file descriptors are refused at once."""
        self.set_up()
        self.chain.prepare(self.source, source=True)
        for uri in ('tcp:127.0.0.1:1', 'exec:cat >/dev/null',
                    f'file:{self.scope.path("file")}'):
            error = self.source.qmp('migrate', {'uri': uri})
            self.assertIn('backend-transfer', str(error.get('error')), uri)
        for name in 'postcopy-ram', 'x-colo', 'background-snapshot':
            change = {'capability': name, 'state': True}
            if 'error' in self.source.qmp('migrate-set-capabilities',
                                          {'capabilities': [change]}):
                continue        # not with x-ignore-shared or on this host
            error = self.source.qmp('migrate',
                                    {'uri': f'unix:{self.chain.path}'})
            self.assertIn('backend-transfer', str(error.get('error')), name)
            change['state'] = False
            self.source.cmd('migrate-set-capabilities', capabilities=[change])
        self.assert_undisturbed()
        self.assert_transfers()


if __name__ == '__main__':
    main()
