# SPDX-License-Identifier: GPL-2.0-or-later
"""compose.py, refresh.py and export.py, tried on a toy tree."""
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Callable, Dict, List, Optional, Tuple

from pycotap import TAPTestRunner

ROOT = Path(__file__).resolve().parents[2]
IDENTITY = {f'GIT_{role}_{key}': value for role in ('AUTHOR', 'COMMITTER')
            for key, value in (('NAME', 'Zoë Tester'),
                               ('EMAIL', 'zoe@example.org'))}
# Of each file: what is in it, when it was written, its mode.
Files = Dict[str, Tuple[bytes, int, int]]


class SeriesTest(unittest.TestCase):
    """A toy tree in a folder of its own, and a repository beside it."""
    def setUp(self) -> None:
        tmp = tempfile.TemporaryDirectory()
        self.addCleanup(tmp.cleanup)
        self.src = Path(tmp.name) / 'src'
        self.root = Path(tmp.name) / 'root'
        self.patches = self.root / 'patches'
        self.src.mkdir()
        self.patches.mkdir(parents=True)
        self.git('init', '-q', '-b', 'main')
        self.write('meson.build', ''.join(f'line {n}\n' for n in range(30)))
        self.write('other.c', 'int other;\n')
        self.write('script.sh', '#!/bin/sh\n')
        self.commit('QEMU')
        self.git('tag', 'base')

    def git(self, *args: str) -> str:
        return subprocess.run(
            ['git', '-C', self.src, *args], check=True, capture_output=True,
            text=True, env={**os.environ, **IDENTITY}).stdout.strip()

    def write(self, path: str, text: str) -> None:
        file = self.src / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def edit(self, path: str, old: str, new: str,
             where: Optional[Path] = None) -> None:
        file = (where or self.src) / path
        text = file.read_text()
        self.assertIn(old, text)
        file.write_text(text.replace(old, new))

    def commit(self, message: str) -> None:
        self.git('add', '-A')
        self.git('commit', '-q', '-m', message)

    def script(self, name: str,
               *args: str) -> 'subprocess.CompletedProcess[str]':
        return subprocess.run(
            [sys.executable, '-B', '-m', f'tooling.{name}', self.src,
             self.patches, self.root, *args], cwd=ROOT, capture_output=True,
            text=True, check=False)

    def succeed(self, name: str, *args: str) -> str:
        r = self.script(name, *args)
        self.assertEqual((r.returncode, r.stderr), (0, ''))
        return r.stdout

    def fail_with(self, expected: str, name: str, *args: str) -> None:
        """The script must fail, say why in one line, and change nothing."""
        before = self.state()
        r = self.script(name, *args)
        self.assertEqual(r.returncode, 1)
        self.assertRegex(r.stderr, r'\Aerror: .*\n\Z')
        self.assertIn(expected, r.stderr)
        self.assertEqual(self.state(), before)

    def files(self, root: Path) -> Files:
        return {str(p.relative_to(root)):
                (p.read_bytes(), p.stat().st_mtime_ns, p.stat().st_mode)
                for p in root.rglob('*')
                if p.is_file() and '.git' not in p.parts}

    def state(self) -> Tuple[Files, Files, str]:
        return (self.files(self.src), self.files(self.root),
                self.git('rev-parse', 'HEAD'))

    def develop(self) -> None:
        """Two commits: edits and new files, then a new file alone."""
        self.edit('meson.build', 'line 3\n', "line 3\nfiles('chardev/a.c')\n")
        self.write('chardev/a.c', '/* No end of line, ünïcode */')
        self.write('tests/a.sh', '#!/bin/sh\n')
        (self.src / 'tests/a.sh').chmod(0o755)
        self.commit('chardev: add “a”, whose subject is so long that git '
                    'would fold it in a mail header\n\nWhy: [because]\n\n'
                    'Signed-off-by: Zoë Tester <zoe@example.org>')
        self.write('docs/a.rst', 'A\n=\n\n')
        self.commit('[docs] describe it')

    def developed(self) -> None:
        self.develop()
        self.succeed('refresh')

    def two_themes(self) -> None:
        """A series whose second commit is in a theme of its own."""
        self.developed()
        first, second = (self.patches / 'series').read_text().splitlines()
        moved = second.replace('fixes/0002', 'docs/0001')
        (self.patches / 'docs').mkdir()
        (self.patches / second.split()[0]).rename(
            self.patches / moved.split()[0])
        self.list_series(first, moved)
        for theme in 'fixes', 'docs':
            (self.patches / theme / 'cover-letter.txt').write_text(
                f'the {theme}\n\nWhat they are for.\n')
        self.succeed('compose')

    def list_series(self, *lines: str) -> None:
        (self.patches / 'series').write_text('\n'.join(lines) + '\n')

    def listed(self) -> List[str]:
        """The patches that the series lists."""
        return [line.split()[0] for line in
                (self.patches / 'series').read_text().splitlines()]

    def test_round_trip(self) -> None:
        self.develop()
        developed = self.git('log', '--format=%T %an %ae %ad%n%B', 'base..')
        before = self.files(self.src)
        self.succeed('refresh')
        self.assertEqual(
            self.git('log', '--format=%T %an %ae %ad%n%B', 'base..'),
            developed)
        self.assertEqual(self.files(self.src), before)

        state = self.state()
        self.assertEqual(self.succeed('compose'), '')
        self.succeed('refresh')
        self.assertEqual(self.succeed('compose'), '')
        self.assertEqual(self.state()[0], state[0])
        self.assertEqual(self.state()[2], state[2])
        self.assertEqual({p: c for p, (c, _, _) in self.state()[1].items()},
                         {p: c for p, (c, _, _) in state[1].items()})

        # From nothing but the repository comes the very same commit.
        self.git('reset', '-q', '--hard', 'base')
        self.git('update-ref', '-d', 'refs/run/composed')
        self.succeed('compose')
        self.assertEqual(self.git('rev-parse', 'HEAD'), state[2])

    def test_patches_hold_only_edits(self) -> None:
        self.developed()
        series = (self.patches / 'series').read_text().splitlines()
        first, second = (line.split() for line in series)
        self.assertEqual(first[1:], ['chardev/a.c', 'tests/a.sh'])
        self.assertEqual(second, ['fixes/0002-docs-describe-it.patch',
                                  'docs/a.rst'])
        text = (self.patches / first[0]).read_text()
        self.assertIn("+files('chardev/a.c')", text)
        self.assertNotIn('b/chardev/a.c', text)
        self.assertNotIn('\nindex ', text)
        self.assertTrue(
            (self.patches / second[0]).read_text().endswith('\n---\n'))
        self.assertTrue(os.access(self.root / 'tests/a.sh', os.X_OK))

    def test_refresh_drops_what_left_the_series(self) -> None:
        self.developed()
        (self.root / 'docs/ours.rst').write_text('not of the series\n')
        self.edit('series', 'fixes/0001', '# why\nfixes/0001', self.patches)
        self.git('reset', '-q', '--hard', 'HEAD^')
        self.succeed('refresh')
        self.assertFalse((self.root / 'docs/a.rst').exists())
        self.assertTrue((self.root / 'docs/ours.rst').exists())
        self.assertEqual(len(list(self.patches.glob('*/*.patch'))), 1)
        self.assertTrue((self.patches / 'series').read_text()
                        .startswith('# why\nfixes/0001'))

    def test_compose_touches_only_what_differs(self) -> None:
        self.developed()
        old = self.files(self.src)
        (self.root / 'docs/a.rst').write_text('B\n=\n')
        self.succeed('compose')
        new = self.files(self.src)
        self.assertEqual({p for p in new if new[p] != old[p]}, {'docs/a.rst'})
        self.assertEqual(new['docs/a.rst'][0], b'B\n=\n')

    def test_work_in_the_tree_is_kept(self) -> None:
        self.developed()
        self.edit('other.c', 'other', 'mine')
        self.assertIn('as it is', self.succeed('compose'))
        self.commit('other: rename')
        self.assertIn('as it is', self.succeed('compose'))
        self.assertIn('mine', (self.src / 'other.c').read_text())

        (self.root / 'docs/a.rst').write_text('changed too\n')
        self.fail_with('have both changed', 'compose')
        self.fail_with('--force', 'refresh')
        self.succeed('refresh', '--force')
        self.assertEqual((self.root / 'docs/a.rst').read_text(), 'A\n=\n\n')
        self.assertEqual(self.succeed('compose'), '')

    def test_repository_can_be_kept_instead(self) -> None:
        self.developed()
        self.edit('other.c', 'other', 'mine')
        (self.root / 'docs/a.rst').write_text('changed too\n')
        r = self.script('compose')
        command = r.stderr.rsplit('"', 2)[1]
        subprocess.run(command, shell=True, check=True, capture_output=True,
                       env={**os.environ, **IDENTITY})
        self.succeed('compose')
        self.assertEqual((self.src / 'docs/a.rst').read_text(),
                         'changed too\n')

    def test_patch_that_does_not_apply(self) -> None:
        self.developed()
        patch = (self.patches / 'series').read_text().split()[0]
        self.edit(patch, ' line 3\n', ' line three\n', self.patches)
        self.fail_with(patch, 'compose')

    def test_broken_series(self) -> None:
        self.developed()
        series = self.patches / 'series'
        good = series.read_text()
        for old, new, expected in (
                (' docs/a.rst', ' docs/a.rst chardev/a.c', 'both fixes/0001'),
                (' docs/a.rst', ' docs/b.rst', 'does not exist'),
                (' docs/a.rst', ' other.c', 'which QEMU has'),
                ('fixes/0002-', '0002-', 'is not in the folder of a theme'),
                ('0002-', '0009-', 'missing')):
            with self.subTest(expected):
                series.write_text(good.replace(old, new))
                self.fail_with(expected, 'compose')

    def test_patch_that_creates_a_file(self) -> None:
        self.developed()
        patch = self.patches / 'fixes/0002-docs-describe-it.patch'
        patch.write_text(patch.read_text() +
                         'diff --git a/n.c b/n.c\nnew file mode 100644\n'
                         '--- /dev/null\n+++ b/n.c\n@@ -0,0 +1 @@\n+int n;\n')
        self.fail_with('n.c', 'compose')

    def test_refresh_refuses(self) -> None:
        self.developed()
        changes: List[Tuple[Callable[[], object], str]] = [
            (lambda: self.edit('chardev/a.c', 'end', 'END'), 'squash'),
            (lambda: (self.src / 'other.c').rename(self.src / 'o.c'),
             'renames'),
            (lambda: (self.src / 'l').symlink_to('other.c'), 'link'),
            (lambda: (self.src / 'other.c').write_bytes(bytes(range(256))),
             'without loss'),
            (lambda: self.write('a b', ''), 'white space')]
        for change, expected in changes:
            with self.subTest(expected):
                self.git('reset', '-q', '--hard', 'refs/run/composed')
                change()
                self.fail_with('uncommitted', 'refresh')
                self.commit('try')
                self.fail_with(expected, 'refresh')

    def test_refresh_does_not_overwrite_other_files(self) -> None:
        (self.root / 'README').write_text('ours\n')
        self.write('README', 'theirs\n')
        self.commit('readme')
        self.fail_with('not part of the series', 'refresh')

    def test_theme_of_a_commit_is_kept(self) -> None:
        self.two_themes()
        self.assertEqual(self.script('refresh').stdout,
                         f'{self.patches}: 2 patches, 3 new files\n')
        self.assertEqual([name[:10] for name in self.listed()],
                         ['fixes/0001', 'docs/0001-'])

    def test_new_commit_joins_the_theme_before_it(self) -> None:
        self.two_themes()
        docs = self.git('rev-parse', 'HEAD')
        self.git('reset', '-q', '--hard', 'HEAD^')
        self.edit('script.sh', 'sh', 'ash')
        self.commit('mend the script')
        self.git('cherry-pick', docs)
        self.edit('other.c', 'other', 'another')
        self.commit('rename it')
        self.assertEqual(self.succeed('refresh').splitlines()[:-1], [
            'new: fixes/0002-mend-the-script.patch',
            'new: docs/0002-rename-it.patch'])
        self.assertEqual(self.listed()[1:], [
            'fixes/0002-mend-the-script.patch',
            'docs/0001-docs-describe-it.patch',
            'docs/0002-rename-it.patch'])

    def test_themes_are_in_one_piece(self) -> None:
        self.two_themes()
        first, second = (self.patches / 'series').read_text().splitlines()
        (self.patches / 'fixes/0002.patch').write_text(
            (self.patches / first.split()[0]).read_text())
        self.list_series(first, second, 'fixes/0002.patch')
        self.fail_with('is apart from the other patches of fixes', 'compose')

        self.list_series(first, second)
        self.edit('script.sh', 'sh', 'ash')
        self.commit('mend the script')
        self.succeed('refresh')
        third = self.listed()[2]
        (self.patches / third).rename(self.patches / 'fixes/0002.patch')
        self.list_series(first, 'fixes/0002.patch', second)
        self.fail_with('is apart from the other commits of the theme fixes',
                       'refresh')

    def export(self, *args: str) -> 'subprocess.CompletedProcess[str]':
        # The toy tree has its own checkpatch.pl, which says nothing.
        checkpatch = self.src / 'scripts/checkpatch.pl'
        checkpatch.parent.mkdir(exist_ok=True)
        checkpatch.write_text('#!/bin/sh\n')
        checkpatch.chmod(0o755)
        return subprocess.run(
            [sys.executable, '-B', '-m', 'tooling.export', self.src,
             self.patches, self.root / 'mails', *args], cwd=ROOT,
            capture_output=True, text=True, check=False)

    def mails(self) -> List[str]:
        return sorted(str(p.relative_to(self.root / 'mails'))
                      for p in (self.root / 'mails').rglob('*.*'))

    def test_export(self) -> None:
        self.two_themes()
        r = self.export()
        self.assertEqual((r.returncode, r.stderr), (0, ''))
        mails = self.root / 'mails'
        self.assertEqual(r.stdout.splitlines()[-1],
                         f'on top of QEMU: git am {mails}/fixes/*.patch '
                         f'{mails}/docs/*.patch')
        fixes = [m for m in self.mails() if m.startswith('fixes/')]
        self.assertEqual(len(fixes), 2)
        self.assertEqual([m for m in self.mails() if m not in fixes], [
            'docs/0000-cover-letter.mail', 'docs/0001-docs-describe-it.patch'])
        cover = (mails / 'docs/0000-cover-letter.mail').read_text()
        self.assertIn('[PATCH 0/1] the docs\n', cover)
        self.assertIn('\nWhat they are for.\n', cover)
        self.assertNotIn('chardev/a.c', cover)

        tree = self.git('rev-parse', 'HEAD^{tree}')
        self.git('reset', '-q', '--hard', 'base')
        for theme in 'fixes', 'docs':
            self.git('am', '-q', *map(str, (mails / theme).glob('*.patch')))
        self.assertEqual(self.git('rev-parse', 'HEAD^{tree}'), tree)

    def test_export_of_one_theme(self) -> None:
        self.two_themes()
        r = self.export('docs')
        self.assertEqual((r.returncode, r.stderr), (0, ''))
        self.assertEqual(self.mails(), [
            'docs/0000-cover-letter.mail', 'docs/0001-docs-describe-it.patch'])
        self.assertEqual(r.stdout.splitlines()[-1],
                         'on top of QEMU, fixes: git am '
                         f'{self.root}/mails/docs/*.patch')

    def test_export_refuses(self) -> None:
        self.two_themes()
        r = self.export('nothing')
        self.assertEqual((r.returncode, r.stderr), (
            1, 'error: there is no theme "nothing": name one of fixes, '
               'docs.\n'))
        (self.patches / 'docs/cover-letter.txt').unlink()
        r = self.export()
        self.assertEqual(r.returncode, 1)
        self.assertRegex(r.stderr,
                         r'\Aerror: .*docs/cover-letter.txt is .*\n\Z')

    def test_list_of_commits(self) -> None:
        self.two_themes()
        r = subprocess.run([sys.executable, '-B', '-m', 'tooling.series',
                            self.src, self.patches], cwd=ROOT, check=True,
                           capture_output=True, text=True)
        self.assertEqual(r.stdout.splitlines(), [
            self.git('rev-parse', 'HEAD^') + ' fixes/0001',
            self.git('rev-parse', 'HEAD') + ' docs/0001'])


if __name__ == '__main__':
    unittest.main(testRunner=TAPTestRunner)
