#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What is kept in the repository: scripts, licences, patches, maintainers."""
import fnmatch
import re
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from pycotap import TAPTestRunner

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / 'build/10.2/src'
SUFFIXES = ('.c', '.h', '.py', '.sh', '.build', '.rst', '.json')

sys.path.append(str(ROOT / 'scripts'))
from series import read_series  # noqa: E402


def kept_files():
    """The files that git has, as paths from the root."""
    names = subprocess.run(['git', '-C', ROOT, 'ls-files', '-z'], check=True,
                           capture_output=True, text=True).stdout
    return [n for n in names.split('\0') if n and (ROOT / n).exists()]


def first_lines(name):
    return (ROOT / name).read_bytes()[:1500].decode('utf-8', 'replace')


class RepositoryTest(unittest.TestCase):
    def test_shell_scripts_are_clean(self):
        scripts = [n for n in kept_files()
                   if re.match(r'#!.*\b(ba)?sh\n', first_lines(n))]
        self.assertIn('run', scripts)
        r = subprocess.run(['shellcheck', '-x', *scripts], cwd=ROOT,
                           capture_output=True, text=True)
        self.assertEqual(r.stdout, '')

    def test_every_source_file_has_a_licence_line(self):
        sources = [n for n in kept_files() if n.endswith(SUFFIXES) or
                   first_lines(n).startswith('#!')]
        self.assertIn('scripts/series.py', sources)
        self.assertEqual([n for n in sources
                          if 'SPDX-License-Identifier:' not in first_lines(n)],
                         [])

    def test_patches_are_all_in_the_series(self):
        patches = ROOT / 'patches/10.2'
        self.assertEqual({p.name for p in patches.glob('*.patch')},
                         {e.patch for e in read_series(patches)})

    def test_maintainers_names_every_new_file(self):
        patterns = [line.split(None, 1)[1] for line in
                    (ROOT / 'MAINTAINERS').read_text().splitlines()
                    if line.startswith('F:')]
        new = [f for e in read_series(ROOT / 'patches/10.2') for f in e.files]
        self.assertEqual([f for f in new if not any(
            f.startswith(p) if p.endswith('/') else fnmatch.fnmatch(f, p)
            for p in patterns)], [])

    def test_checkpatch_is_content(self):
        with tempfile.TemporaryDirectory() as tmp:
            subprocess.run(['git', '-C', SRC, 'format-patch', '-q', '-o', tmp,
                            'base..refs/run/composed'], check=True)
            mails = sorted(Path(tmp).iterdir())
            self.assertEqual(len(mails),
                             len(read_series(ROOT / 'patches/10.2')))
            for mail in mails:
                with self.subTest(mail.name):
                    r = subprocess.run(
                        ['scripts/checkpatch.pl', '--quiet', mail], cwd=SRC,
                        capture_output=True, text=True)
                    self.assertEqual(r.stdout, '')


if __name__ == '__main__':
    unittest.main(testRunner=TAPTestRunner)
