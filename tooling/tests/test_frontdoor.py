# SPDX-License-Identifier: GPL-2.0-or-later
"""./run and its helpers: what they say to a user, and when they refuse."""
import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Tuple, Union

from pycotap import TAPTestRunner

ROOT = Path(__file__).resolve().parents[2]
VERBS = ('build', 'stock', 'demo', 'check', 'fuzz', 'sanitize', 'lint',
         'bisect', 'variants', 'torture', 'bench', 'docs', 'refresh', 'series',
         'help')


class FrontDoorTest(unittest.TestCase):
    """The scripts are run in folders of their own."""
    def setUp(self) -> None:
        tmp = tempfile.TemporaryDirectory()
        self.addCleanup(tmp.cleanup)
        self.tmp = Path(tmp.name)

    def repository(self) -> Path:
        """A copy of our tools in which nothing is built."""
        root = self.tmp / 'repository'
        shutil.copytree(ROOT / 'scripts', root / 'scripts')
        shutil.copy(ROOT / 'run', root)
        return root

    def call(self, *command: Union[str, Path],
             **env: str) -> 'subprocess.CompletedProcess[str]':
        """Run a program in our folder."""
        return subprocess.run(command, capture_output=True, text=True,
                              cwd=self.tmp, env={**os.environ, **env},
                              check=False)

    def test_help_names_every_verb(self) -> None:
        r = self.call(ROOT / 'run', 'help')
        self.assertEqual(r.returncode, 0)
        self.assertEqual(self.call(ROOT / 'run').stdout, r.stdout)
        for verb in VERBS:
            self.assertRegex(r.stdout, rf'(?m)^  {verb} +\S')

    def test_unknown_verb(self) -> None:
        r = self.call(ROOT / 'run', 'biuld')
        self.assertEqual(r.returncode, 2)
        self.assertIn('no verb "biuld"', r.stderr)

    def source(self, path: Path) -> 'subprocess.CompletedProcess[str]':
        return self.call(self.repository() / 'tooling/source.sh',
                         QEMU_SRC=str(path))

    def qemu(self, version: str) -> Path:
        """A tree with what source.sh looks at."""
        tree = self.tmp / 'qemu-x'
        for name in ('keycodemapdb', 'berkeley-softfloat-3',
                     'berkeley-testfloat-3'):
            (tree / 'subprojects' / name).mkdir(parents=True)
            (tree / 'subprojects' / name / 'meson.build').write_text('')
        (tree / 'VERSION').write_text(f'{version}\n')
        return tree

    def assert_source(self, path: Path) -> str:
        """The path must be good as a source; return the commit made of it."""
        r = self.source(path)
        self.assertEqual((r.returncode, r.stderr), (0, ''))
        git = ('git', '-C', self.tmp / 'repository/build/10.2/src')
        files = self.call(*git, 'ls-tree', '-r', '--name-only', 'base').stdout
        self.assertIn('VERSION\n', files)
        self.assertIn('subprojects/keycodemapdb/meson.build\n', files)
        return self.call(*git, 'rev-parse', 'base').stdout

    def test_source_forms_give_the_same_base(self) -> None:
        tree = self.qemu('10.2.1')
        unpacked = self.assert_source(tree)

        shutil.rmtree(self.tmp / 'repository')
        tarball = self.tmp / 'qemu.tar.xz'
        self.call('tar', '-cJf', tarball, '-C', self.tmp, tree.name)
        self.assertEqual(self.assert_source(tarball), unpacked)

        shutil.rmtree(self.tmp / 'repository')
        (tree / '.gitignore').write_text('/subprojects/keycodemapdb\n')
        self.call('git', 'init', '-q', tree)
        self.call('git', '-C', tree, 'add', '.')
        self.call('git', '-C', tree, '-c', 'user.name=A', '-c', 'user.email=a',
                  'commit', '-q', '-m', 'QEMU')
        self.assert_source(tree)

    def test_source_refused(self) -> None:
        tree = self.qemu('11.0.0')
        (self.tmp / 'no-tarball').write_text('text')
        (self.tmp / 'no-qemu').mkdir()
        (self.tmp / 'no-subprojects').mkdir()
        (self.tmp / 'no-subprojects/VERSION').write_text('10.2.0\n')
        for path, expected in ((self.tmp / 'nowhere', 'does not exist'),
                               (self.tmp / 'no-tarball', 'not a tarball'),
                               (self.tmp / 'no-qemu', 'not QEMU\'s source'),
                               (self.tmp / 'no-subprojects', 'keycodemapdb'),
                               (tree, 'is QEMU 11.0.0')):
            with self.subTest(expected):
                r = self.source(path)
                self.assertEqual(r.returncode, 1)
                self.assertIn(expected, r.stderr)
                self.assertFalse(
                    (self.tmp / 'repository/build/10.2/src').exists())
                shutil.rmtree(self.tmp / 'repository')

    def test_other_source_than_before(self) -> None:
        self.assert_source(self.qemu('10.2.0'))
        r = self.call(self.tmp / 'repository/tooling/source.sh',
                      QEMU_SRC='/elsewhere')
        self.assertEqual(r.returncode, 1)
        self.assertIn('was not made from QEMU_SRC=/elsewhere', r.stderr)

    def test_step_shows_the_end_of_the_log(self) -> None:
        step = ROOT / 'tooling/step.sh'
        r = self.call(step, 'working', 'logs/w.log', 'sh', '-c',
                      'seq 100; exit 3')
        self.assertEqual(r.returncode, 3)
        self.assertEqual(r.stdout, 'working (log: logs/w.log)...\n')
        self.assertIn('\n100\nerror: working failed', r.stderr)
        self.assertNotIn('\n70\n', r.stderr)
        self.assertEqual(
            self.call(step, 'working', 'w.log', 'true').returncode, 0)

    def count(self, *results: str, **output: str) -> Tuple[int, str]:
        log = self.tmp / 'testlog.json'
        log.write_text(''.join(
            json.dumps({'name': 'suite / name', 'result': r, **output}) + '\n'
            for r in results))
        r = self.call(sys.executable, ROOT / 'scripts/count-results.py', log)
        return r.returncode, r.stdout

    def test_count(self) -> None:
        self.assertEqual(self.count('OK', 'EXPECTEDFAIL'),
                         (0, '2 passed, 0 failed\n'))
        status, said = self.count('OK', 'FAIL', 'TIMEOUT', 'ERROR',
                                  'UNEXPECTEDPASS', 'INTERRUPT', 'SKIP')
        self.assertEqual(status, 1)
        self.assertEqual(said.splitlines()[-1],
                         '1 passed, 5 failed, 1 skipped')
        self.assertEqual(self.count(), (1, '0 passed, 0 failed\n'))
        self.assertEqual(self.count('SKIP'),
                         (1, '0 passed, 0 failed, 1 skipped\n'))

    def test_count_says_what_failed(self) -> None:
        self.assertEqual(
            self.count('ERROR', stdout='1..2\nok 1 a\nnot ok 2 b\n',
                       stderr='Traceback\n  x\nOSError: no c\nthe rest\n'),
            (1, '\nsuite / name: ERROR\n  not ok 2 b\n  OSError: no c\n'
                '0 passed, 1 failed\n'))


if __name__ == '__main__':
    unittest.main(testRunner=TAPTestRunner)
