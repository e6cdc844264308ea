# SPDX-License-Identifier: GPL-2.0-or-later
"""source.sh and download.sh: where QEMU's source comes from."""
import functools
import hashlib
import http.server
import os
import re
import shutil
import subprocess
import tempfile
import threading
import unittest
from pathlib import Path
from typing import Dict, Union

from pycotap import TAPTestRunner

ROOT = Path(__file__).resolve().parents[2]
RELEASE = (ROOT / 'patches/base').read_text('ascii').strip()
VERSION = f'{RELEASE}.7'
CODENAME = re.findall(r'(?m)^VERSION_CODENAME=(.*)',
                      Path('/etc/os-release').read_text('utf-8'))[0]
POOL = 'pool/main/q/qemu'
# apt as it is without the configuration of this machine.
APT = '''
Dir::Etc::sourcelist "{tmp}/sources.list";
Dir::Etc::sourceparts "-";
Dir::Etc::main "-";
Dir::Etc::parts "-";
Dir::State::lists "{tmp}/lists";
Acquire::AllowInsecureRepositories "true";
APT::Get::AllowUnauthenticated "true";
'''


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


class SourceTest(unittest.TestCase):
    """source.sh runs in a copy of our tools in which nothing is built."""
    def setUp(self) -> None:
        tmp = tempfile.TemporaryDirectory()
        self.addCleanup(tmp.cleanup)
        self.tmp = Path(tmp.name)
        self.env: Dict[str, str] = {}

    def call(self, *command: Union[str, Path],
             **env: str) -> 'subprocess.CompletedProcess[str]':
        """Run a program in our folder."""
        return subprocess.run(command, capture_output=True, text=True,
                              cwd=self.tmp, env={**os.environ, **env},
                              check=False)

    def succeed(self, *command: Union[str, Path], **env: str) -> str:
        r = self.call(*command, **env)
        self.assertEqual(r.returncode, 0, r.stderr)
        return r.stdout

    def repository(self) -> Path:
        """The copy."""
        root = self.tmp / 'repository'
        if not root.exists():
            shutil.copytree(ROOT / 'tooling', root / 'tooling')
            (root / 'patches').mkdir()
            shutil.copy(ROOT / 'patches/base', root / 'patches')
        return root

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

    def base(self) -> str:
        """The commit that was made of the source."""
        git = ('git', '-C', self.tmp / f'repository/build/{RELEASE}/src')
        files = self.succeed(*git, 'ls-tree', '-r', '--name-only', 'base')
        self.assertIn('VERSION\n', files)
        self.assertIn('subprojects/keycodemapdb/meson.build\n', files)
        return self.succeed(*git, 'rev-parse', 'base')

    def assert_source(self, path: Path) -> str:
        """The path must be good as a source; return the commit made of it."""
        r = self.source(path)
        self.assertEqual((r.returncode, r.stderr), (0, ''))
        return self.base()

    # QEMU_SRC

    def test_source_forms_give_the_same_base(self) -> None:
        tree = self.qemu(VERSION)
        unpacked = self.assert_source(tree)

        shutil.rmtree(self.tmp / 'repository')
        tarball = self.tmp / 'qemu.tar.xz'
        self.succeed('tar', '-cJf', tarball, '-C', self.tmp, tree.name)
        self.assertEqual(self.assert_source(tarball), unpacked)

        shutil.rmtree(self.tmp / 'repository')
        (tree / '.gitignore').write_text('/subprojects/keycodemapdb\n')
        self.succeed('git', 'init', '-q', tree)
        self.succeed('git', '-C', tree, 'add', '.')
        self.succeed('git', '-C', tree, '-c', 'user.name=A',
                     '-c', 'user.email=a', 'commit', '-q', '-m', 'QEMU')
        self.assert_source(tree)

    def test_source_refused(self) -> None:
        tree = self.qemu('11.0.0')
        (self.tmp / 'no-tarball').write_text('text')
        (self.tmp / 'no-qemu').mkdir()
        (self.tmp / 'no-subprojects').mkdir()
        (self.tmp / 'no-subprojects/VERSION').write_text(f'{VERSION}\n')
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
                    (self.tmp / f'repository/build/{RELEASE}/src').exists())
                shutil.rmtree(self.tmp / 'repository')

    def test_other_source_than_before(self) -> None:
        self.assert_source(self.qemu(VERSION))
        r = self.call(self.tmp / 'repository/tooling/source.sh',
                      QEMU_SRC='/elsewhere')
        self.assertEqual(r.returncode, 1)
        self.assertIn('was not made from QEMU_SRC=/elsewhere', r.stderr)

    # Downloads, from an HTTP server of our own

    def serve(self, folder: Path) -> str:
        """Serve a folder; return its URL."""
        class Handler(http.server.SimpleHTTPRequestHandler):
            """Writes no log."""
            def log_message(self, *_: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(
            ('127.0.0.1', 0), functools.partial(Handler, directory=folder))
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        self.addCleanup(server.server_close)
        self.addCleanup(thread.join)
        self.addCleanup(server.shutdown)
        return f'http://127.0.0.1:{server.server_address[1]}'

    def mirror(self) -> Path:
        """A Debian mirror with a package of QEMU, and QEMU's releases."""
        mirror = self.tmp / 'mirror'
        (mirror / POOL).mkdir(parents=True)
        (mirror / 'releases').mkdir()
        tree = self.qemu(VERSION)
        self.succeed('tar', '-cJf', mirror / f'releases/qemu-{VERSION}.tar.xz',
                     '-C', self.tmp, tree.name)
        for name, text in (
                ('changelog', f'qemu (1:{VERSION}) sid; urgency=low\n\n  * A\n'
                 '\n -- A <a@example.org>  Thu, 01 Jan 2026 00:00:00 +0000\n'),
                ('control', 'Source: qemu\nMaintainer: A <a@example.org>\n\n'
                 'Package: qemu\nArchitecture: all\nDescription: Q\n'),
                ('source/format', '3.0 (native)\n')):
            file = tree / 'debian' / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        self.succeed('env', '-C', mirror / POOL, 'dpkg-source', '-b', tree)
        url = self.serve(mirror)
        for suite in CODENAME, f'{CODENAME}-backports':
            self.suite(suite, 'main/binary-amd64/Packages', '')
        self.suite('sid', 'main/source/Sources', self.succeed(
            'env', '-C', mirror, 'dpkg-scansources', 'pool'))
        (self.tmp / 'lists/partial').mkdir(parents=True)
        (self.tmp / 'sources.list').write_text(f'deb {url} {CODENAME} main\n')
        (self.tmp / 'apt.conf').write_text(APT.format(tmp=self.tmp))
        sums = [f'{sha256(file)}  {file.name}\n'
                for file in sorted(mirror.rglob('qemu[_-]*'))]
        (self.repository() / 'patches/base.sha256').write_text(''.join(sums))
        self.env = {'APT_CONFIG': str(self.tmp / 'apt.conf'),
                    'QEMU_RELEASES': f'{url}/releases', 'QEMU_SRC': ''}
        return mirror

    def suite(self, name: str, index: str, text: str) -> None:
        """A suite of the mirror, with one index."""
        folder = self.tmp / 'mirror/dists' / name
        (folder / index).parent.mkdir(parents=True, exist_ok=True)
        (folder / index).write_text(text)
        (folder / 'Release').write_text(
            f'Suite: {name}\nCodename: {name}\nComponents: main\n'
            'Architectures: amd64\nDate: Thu, 01 Jan 2026 00:00:00 UTC\n'
            f'SHA256:\n {sha256(folder / index)} {len(text)} {index}\n')

    def damage(self, file: Path) -> None:
        """Change one byte of a file."""
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)

    def download(self) -> 'subprocess.CompletedProcess[str]':
        return self.call(self.repository() / 'tooling/source.sh', **self.env)

    def assert_downloads(self, *places: str) -> None:
        """These places must be tried, the last one successfully."""
        r = self.download()
        self.assertEqual((r.returncode, r.stderr), (0, ''), r.stdout)
        tried = re.findall(r'(?m)^downloading .* from (.*) \(log', r.stdout)
        self.assertEqual(len(tried), len(places), r.stdout)
        for place, expected in zip(tried, places):
            self.assertIn(expected, place)
        self.base()

    def test_package_in_the_index(self) -> None:
        self.mirror()
        self.assert_downloads('index')
        # Nothing is downloaded twice.
        shutil.rmtree(self.tmp / 'mirror')
        shutil.rmtree(self.tmp / f'repository/build/{RELEASE}')
        self.assert_downloads()

    def test_package_only_in_the_pool(self) -> None:
        self.mirror()
        self.suite('sid', 'main/source/Sources', '')
        self.assert_downloads('index', 'pool')

    def test_only_a_release(self) -> None:
        mirror = self.mirror()
        self.suite('sid', 'main/source/Sources', '')
        shutil.rmtree(mirror / POOL)
        self.assert_downloads('index', 'pool', 'releases')

    def test_damaged_package(self) -> None:
        mirror = self.mirror()
        self.damage(next((mirror / POOL).glob('*.tar.xz')))
        self.assert_downloads('index', 'pool', 'releases')

    def test_other_package_of_the_same_version(self) -> None:
        mirror = self.mirror()
        (self.tmp / 'qemu-x/backdoor').write_text('')
        self.succeed('env', '-C', mirror / POOL, 'dpkg-source', '-b',
                     self.tmp / 'qemu-x')
        self.suite('sid', 'main/source/Sources', self.succeed(
            'env', '-C', mirror, 'dpkg-scansources', 'pool'))
        self.assert_downloads('index', 'pool', 'releases')

    def test_nowhere(self) -> None:
        mirror = self.mirror()
        self.suite('sid', 'main/source/Sources', '')
        shutil.rmtree(mirror / POOL)
        self.damage(next((mirror / 'releases').iterdir()))
        r = self.download()
        self.assertEqual(r.returncode, 1)
        for said in ('the package index: ', 'the mirror\'s pool: ',
                     'releases: ', 'could not be downloaded', 'QEMU_SRC=PATH'):
            self.assertIn(said, r.stderr)
        self.assertFalse(
            (self.tmp / f'repository/build/{RELEASE}/src').exists())


if __name__ == '__main__':
    unittest.main(testRunner=TAPTestRunner)
