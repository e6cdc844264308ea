# SPDX-License-Identifier: GPL-2.0-or-later
"""
blkverify finds the errors of a disk: other tests rely on it

It runs on the host here, on a file.  BLKVERIFY is the path of the program.
"""
import os
import subprocess
import tempfile
import unittest
from pathlib import Path

from lab import ROOT, existing
from lab.machines.agent import Summary

from .testcase import main

PROGRAM = existing(
    Path(os.environ.get('BLKVERIFY',
                        ROOT / 'build/meson/lab/guest/blkverify')),
    'run "meson compile -C build/meson"')
BLOCK = 4096
BLOCKS = 64


class BlkVerify(unittest.TestCase):
    """A disk of BLOCKS blocks, and runs of blkverify on it"""

    def setUp(self) -> None:
        # Not in /tmp, whose file system may not support O_DIRECT.
        disk = tempfile.NamedTemporaryFile(dir=PROGRAM.parent)
        self.addCleanup(disk.close)
        disk.truncate(BLOCKS * BLOCK)
        self._disk = disk

    def command(self, *options: object) -> 'list[str]':
        """The command with these options."""
        return [str(PROGRAM), *map(str, options), self._disk.name]

    def run_it(self, *options: object) -> 'subprocess.CompletedProcess[str]':
        """Run blkverify to its end."""
        return subprocess.run(self.command(*options), check=False, text=True,
                              capture_output=True, timeout=60)

    def assert_finds(self, expected: str, *options: object) -> None:
        """A check must fail with one error, which matches a pattern."""
        done = self.run_it('--check', *options)
        self.assertEqual(done.returncode, 1)
        self.assertEqual(Summary.parse(done.stderr).errors, 1)
        self.assertRegex(done.stderr, expected)

    def read_block(self, number: int) -> bytes:
        """Contents of a block."""
        return os.pread(self._disk.fileno(), BLOCK, number * BLOCK)

    def write_block(self, number: int, data: bytes) -> None:
        """Change the start of a block behind the back of blkverify."""
        os.pwrite(self._disk.fileno(), data, number * BLOCK)

    def test_good_disk(self) -> None:
        """Every request is reported once, and a check agrees."""
        done = self.run_it('--count', 1000, '--tag', 'a')
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertCountEqual(done.stdout.splitlines(),
                              [f'a {kind} {sequence}' for kind in 'wr'
                               for sequence in range(1000)])
        done = self.run_it('--check', '--count', 1000)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(Summary.parse(done.stderr).verified, BLOCKS)

    def test_lost_write(self) -> None:
        """A block with older contents is found."""
        self.run_it('--count', BLOCKS)
        former = self.read_block(5)
        self.run_it('--first', BLOCKS, '--count', BLOCKS)
        self.write_block(5, former)
        self.assert_finds('block 5: expected seed 1 sequence 69, '
                          'found seed 1 sequence 5 of block 5',
                          '--count', 2 * BLOCKS)

    def test_later_write(self) -> None:
        """A check accepts writes that were in flight at the end."""
        self.run_it('--count', BLOCKS + 3)
        done = self.run_it('--check', '--count', BLOCKS)
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_misplaced_write(self) -> None:
        """A block of another place or another run is found."""
        self.run_it('--count', BLOCKS)
        mine = self.read_block(7)
        self.write_block(7, self.read_block(8))
        self.assert_finds('block 7: .*of block 8', '--count', BLOCKS)
        self.run_it('--count', BLOCKS, '--seed', 2)
        self.write_block(7, mine)
        self.assert_finds('block 7: expected seed 2 .*found seed 1',
                          '--count', BLOCKS, '--seed', 2)

    def test_torn_write(self) -> None:
        """A block that was written in part is found."""
        self.run_it('--count', BLOCKS)
        self.write_block(3, self.read_block(3)[:2048] + bytes(2048))
        self.assert_finds('block 3: .*damaged', '--count', BLOCKS)
        self.write_block(3, bytes(BLOCK))
        self.assert_finds('block 3: .*no block of ours', '--count', BLOCKS)

    def test_terminated(self) -> None:
        """After SIGTERM a run completes its requests and ends."""
        with subprocess.Popen(self.command(), text=True,
                              stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE) as process:
            assert process.stdout
            process.stdout.readline()
            process.terminate()
            _, errors = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 0, errors)
        done = self.run_it('--check', '--count', Summary.parse(errors).written)
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_wrong_usage(self) -> None:
        """Mistakes end with status 2 and a hint."""
        for options, hint in ((('--blocks', BLOCKS + 1), 'has room for 64'),
                              (('--depth', 0), '--depth must be a number'),
                              (('--check',), '--check needs --count')):
            done = self.run_it(*options)
            self.assertEqual(done.returncode, 2)
            self.assertIn(hint, done.stderr)


if __name__ == '__main__':
    main()
