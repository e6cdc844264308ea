# SPDX-License-Identifier: GPL-2.0-or-later
"""What is kept in the repository: scripts, licences, patches, maintainers."""
import fnmatch
import re
import subprocess
import unittest
from pathlib import Path
from typing import List

from pycotap import TAPTestRunner

from tooling.series import read_series

ROOT = Path(__file__).resolve().parents[2]
PATCHES = ROOT / 'patches' / (ROOT / 'patches/base').read_text('ascii').strip()
SUFFIXES = ('.c', '.h', '.py', '.sh', '.build', '.rst', '.json')


def kept_files() -> List[str]:
    """The files that git has, as paths from the root."""
    names = subprocess.run(['git', '-C', ROOT, 'ls-files', '-z'], check=True,
                           capture_output=True, text=True).stdout
    return [n for n in names.split('\0') if (ROOT / n).is_file()]


def first_lines(name: str) -> str:
    return (ROOT / name).read_bytes()[:1500].decode('utf-8', 'replace')


def names_file(pattern: str, name: str) -> bool:
    """Does an F: line of MAINTAINERS name a file?  `*` is no slash."""
    if pattern.endswith('/'):
        return name.startswith(pattern)
    return (name.count('/') == pattern.count('/') and
            fnmatch.fnmatchcase(name, pattern))


class RepositoryTest(unittest.TestCase):
    """What git keeps of the repository."""
    def test_shell_scripts_are_clean(self) -> None:
        scripts = [n for n in kept_files()
                   if re.match(r'#!.*\b(ba)?sh\n', first_lines(n))]
        self.assertIn('run', scripts)
        r = subprocess.run(['shellcheck', '-x', *scripts], cwd=ROOT,
                           capture_output=True, text=True, check=False)
        self.assertEqual(r.stdout, '')

    def test_every_source_file_has_a_licence_line(self) -> None:
        sources = [n for n in kept_files() if n.endswith(SUFFIXES) or
                   first_lines(n).startswith('#!')]
        self.assertIn('tooling/series.py', sources)
        self.assertEqual([n for n in sources
                          if 'SPDX-License-Identifier:' not in first_lines(n)
                          and first_lines(n)], [])

    def test_patches_are_all_in_the_series(self) -> None:
        self.assertEqual({str(p.relative_to(PATCHES))
                          for p in PATCHES.rglob('*.patch')},
                         {e.patch for e in read_series(PATCHES)})

    def test_maintainers_name_every_file_and_no_other(self) -> None:
        patterns = [line.split(None, 1)[1] for line in
                    (ROOT / 'MAINTAINERS').read_text().splitlines()
                    if line.startswith('F:')]
        names = kept_files()
        self.assertEqual([n for n in names
                          if not any(names_file(p, n) for p in patterns)], [])
        self.assertEqual([p for p in patterns
                          if not any(names_file(p, n) for n in names)], [])


if __name__ == '__main__':
    unittest.main(testRunner=TAPTestRunner)
