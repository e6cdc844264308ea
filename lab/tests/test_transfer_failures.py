# SPDX-License-Identifier: GPL-2.0-or-later
"""
The source survives a transfer that fails

The destination is killed, or migration is cancelled, at many moments.
"""
from lab.machines.chain import COPY, CPR, IGNORE_SHARED, status, wait_end
from lab.machines.relay import Relay
from lab.machines.vm import VM

from .testcase import main
from .transfer_case import SourceTest


class TransferFailures(SourceTest):
    """One source, and destinations that fail"""

    def held(self, dest: VM, **options: object) -> Relay:
        """Start a migration and wait until the relay stops the stream."""
        relay = self.chain.relay(**options)
        self.chain.send(self.source, dest, path=relay.path)
        if not options.get('mute'):
            self.assertTrue(relay.reached.wait(30))
        return relay

    def measure(self) -> int:
        """Migrate once; returns the byte at which the devices' state ends."""
        relay = self.chain.relay()
        dest = self.chain.destination()
        self.chain.send(self.source, dest, path=relay.path)
        self.chain.arrive(self.source, dest)
        relay.close()
        self.source.shutdown()
        self.source = dest
        description = len(relay.stream) - \
            relay.stream.index(b'{"configuration"')
        return relay.passed - description

    def wait_cancelled(self) -> None:
        """
        Wait for the end after migrate_cancel.

        It closes the channel before it sets the status "cancelled": the
        migration may fail in between, as with stock QEMU.
        """
        wait_end(self.source, 'cancelled', 'failed')

    def check_killed(self, mode: str) -> None:
        """Kill the destination before and during the migration."""
        self.set_up(mode)
        self.chain.destination().kill()
        self.assert_undisturbed()

        # The state of the devices has some 100,000 bytes.  The source may be
        # ahead of the cut by two socket buffers.
        end = self.measure()
        cuts = [0, 1, *range(end - 300000, end, 20000), end + 100]
        if mode == COPY:        # the length of the stream varies
            cuts = [0, 1, end // 4]
        for cut in cuts:
            dest = self.chain.destination()
            relay = self.held(dest, limit=cut)
            dest.kill()
            relay.close()
            self.wait_failed()
            self.assert_undisturbed()
        self.assert_transfers()

    def test_killed(self) -> None:
        """SIGKILL of the destination at any moment before it runs."""
        self.check_killed(IGNORE_SHARED)

    def test_killed_copied_memory(self) -> None:
        """SIGKILL of the destination; RAM is copied."""
        self.check_killed(COPY)

    def test_killed_cpr(self) -> None:
        """SIGKILL of the destination; it has the file descriptor of RAM."""
        self.set_up(CPR)
        for limit in 0, 1, 100000:
            dest = self.chain.destination()
            relay = self.held(dest, limit=limit)
            dest.kill()
            relay.close()
            self.wait_failed()
            self.assert_undisturbed()
        self.assert_transfers()

    def test_killed_before_it_ran(self) -> None:
        """After completion, with -S: "cont" on the source works."""
        self.set_up()
        for _ in range(2):
            dest = self.chain.destination('-S')
            self.chain.send(self.source, dest)
            self.chain.settle(self.source, dest)
            dest.kill()
            self.assertEqual(status(self.source), 'postmigrate')
            self.source.cmd('cont')
            self.assert_undisturbed()
        self.assert_transfers()

    def test_killed_after_it_ran(self) -> None:
        """The source refuses to run a guest that has run elsewhere."""
        self.set_up()
        dest = self.chain.destination()
        relay = self.held(dest, mute=True)
        dest.event_wait('RESUME')
        dest.kill()
        relay.close()
        self.wait_failed()
        self.assertNotEqual(status(self.source), 'running')
        error = self.source.qmp('cont').get('error', {})
        self.assertIn('another QEMU', str(error))
        self.assertNotEqual(status(self.source), 'running')

    def test_source_after_handover(self) -> None:
        """Commands in the source do not disturb the destination."""
        self.set_up()
        dest = self.chain.transfer(self.source)
        self.assertIn('error', self.source.qmp('cont'))
        self.source.cmd('set-action', reboot='reset')
        self.source.cmd('system_reset')
        self.source.event_wait('RESET')
        self.assertIn('error', self.source.qmp('cont'))
        self.source.shutdown()
        self.source = dest
        self.assert_undisturbed()
        self.assert_transfers()

    def test_cancel(self) -> None:
        """migrate_cancel, early and late."""
        self.set_up()
        end = self.measure()
        for limit in 0, end // 2, end - 100:
            dest = self.chain.destination()
            # The source must not block in a write: it could not be
            # cancelled then, as with stock QEMU.
            relay = self.held(dest, limit=limit, swallow=True)
            self.source.cmd('migrate_cancel')
            relay.close()
            self.wait_cancelled()
            wait_end(dest, 'failed')
            self.assert_undisturbed()
            dest.shutdown()
        self.assert_transfers()

    def test_cancel_copied_memory(self) -> None:
        """migrate_cancel while RAM is being copied."""
        self.set_up(COPY)
        self.source.cmd('migrate-set-parameters', {'max-bandwidth': 1000000})
        dest = self.chain.destination()
        self.chain.send(self.source, dest)
        self.source.event_wait('MIGRATION',
                               match={'data': {'status': 'active'}})
        self.source.cmd('migrate_cancel')
        self.wait_cancelled()
        wait_end(dest, 'failed')
        self.assert_undisturbed()
        dest.shutdown()
        self.source.cmd('migrate-set-parameters', {'max-bandwidth': 1 << 30})
        self.assert_transfers()

    def test_cancel_too_late(self) -> None:
        """migrate_cancel when the guest runs at the destination already."""
        self.set_up()
        dest = self.chain.destination()
        relay = self.held(dest, mute=True)
        dest.event_wait('RESUME')
        dest.take_guest()
        self.source.cmd('migrate_cancel')
        relay.close()
        self.wait_cancelled()
        self.assertNotEqual(status(self.source), 'running')
        self.source = dest
        self.assert_undisturbed()
        self.assert_transfers()


if __name__ == '__main__':
    main()
