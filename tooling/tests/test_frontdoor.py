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
RELEASE = (ROOT / 'patches/base').read_text('ascii').strip()
VERBS = ('demo', 'build', 'check', 'test', 'torture', 'fuzz',
         'sanitize', 'bench', 'variants', 'lint', 'bisect', 'refresh',
         'series', 'docs', 'stock', 'help')


class FrontDoorTest(unittest.TestCase):
    """The scripts are run in folders of their own."""
    def setUp(self) -> None:
        tmp = tempfile.TemporaryDirectory()
        self.addCleanup(tmp.cleanup)
        self.tmp = Path(tmp.name)

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

    def test_live_update_before_anything_is_built(self) -> None:
        for folder in 'scripts', 'python':
            shutil.copytree(ROOT / folder, self.tmp / folder)
        r = self.call('scripts/live-update', '--help', PYTHONPATH='')
        self.assertEqual(r.returncode, 1)
        self.assertIn('type "./run build"', r.stderr)
        (self.tmp / 'build/x/src').mkdir(parents=True)
        (self.tmp / 'build/x/src/python').symlink_to(
            ROOT / f'build/{RELEASE}/src/python')
        r = self.call('scripts/live-update', '--help', PYTHONPATH='')
        self.assertEqual((r.returncode, r.stderr), (0, ''))

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

    def test_step_shows_progress_on_a_terminal(self) -> None:
        step = ROOT / 'tooling/step.sh'
        r = self.call('script', '-qec', f'{step} working w.log sh -c "echo '
                      '[1/2]; sleep 1; echo [2/2]; sleep 1"', '/dev/null')
        self.assertEqual(r.returncode, 0)
        for steps in '[1/2]', '[2/2]':
            self.assertIn(f'working (log: w.log)... {steps}', r.stdout)

    def count(self, *results: str, **output: str) -> Tuple[int, str]:
        log = self.tmp / 'testlog.json'
        log.write_text(''.join(
            json.dumps({'name': 'suite / name', 'result': r, **output}) + '\n'
            for r in results))
        r = self.call(sys.executable, '-B', ROOT / 'tooling/count_results.py',
                      log)
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
                '  to run it alone: ./run test name\n'
                '0 passed, 1 failed\n'))


if __name__ == '__main__':
    unittest.main(testRunner=TAPTestRunner)
