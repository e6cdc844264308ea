# SPDX-License-Identifier: GPL-2.0-or-later
"""Check mechanically what a maintainer of QEMU would complain about.

usage: python3 -m tooling.lint TREE PATCHES OUTPUT

TREE has the series as commits after the tag `base`; its themes are exported
as mails to OUTPUT.  Our own Python is checked, too, as setup.cfg says.  Prints
a line for each check, and below it what was found; the last line is the count.
"""
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from itertools import zip_longest
from pathlib import Path
from typing import Callable, Iterator, List, Set

from tooling.series import (BASE, Git, SeriesError, commits_by_theme,
                            errors_in_one_line)

ROOT = Path(__file__).resolve().parent.parent
RELEASE = (ROOT / 'patches/base').read_text('ascii').strip()
# Where our Python finds modules.
MODULES = ('.', 'python', f'build/{RELEASE}/src/python')
# A commit may rewrite so many lines of one before it, such as a condition or
# a call that it extends.  More is a correction: it belongs into that commit.
EXTENDED = 3
COLUMNS = 76    # of a message; QEMU asks for it
# A theme can be sent alone, and a commit is read before those after it.
LATER = re.compile(r'\b(later|next|following)\s+(commit|patch)(es|s)?\b|'
                   r'\b(end|later|next|rest)\s+(in|of)\s+the\s+series\b',
                   re.I)


def said(*command: object, **env: str) -> List[str]:
    """What a program has printed that found fault with something."""
    r = subprocess.run([str(word) for word in command], cwd=ROOT, check=False,
                       env={**os.environ, **env}, text=True,
                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if r.returncode == 0:
        return []
    return [*r.stdout.splitlines(), f'exit status {r.returncode}']


def our_python() -> List[str]:
    """Our programs and modules, as paths from the top."""
    names = [n for n in Git(ROOT)('ls-files').splitlines()
             if (ROOT / n).is_file()]
    return [n for n in names if n.endswith('.py') or
            (ROOT / n).read_bytes().startswith(b'#!/usr/bin/python3\n')]


def mypy() -> List[str]:
    """mypy --strict has no complaint of our Python"""
    return said('mypy', '--cache-dir=build/mypy', *our_python(),
                MYPYPATH=':'.join(MODULES))


def pylint() -> List[str]:
    """pylint has no complaint of our Python"""
    return said('pylint', '--score=n', *our_python(),
                PYTHONPATH=':'.join(MODULES))


def flake8() -> List[str]:
    """flake8 has no complaint of our Python"""
    return said('flake8', *our_python())


class Series:
    """The series as commits, and as mails."""

    def __init__(self, tree: Path, patches: Path, mails: Path) -> None:
        self._git = Git(tree)
        self._tree = tree
        self._patches = patches
        self._mails = mails
        self._themes = commits_by_theme(self._git, patches)
        self._commits = [c for t in self._themes.values() for c in t]
        self._subjects = {c: self._show('%s', c) for c in self._commits}

    def _show(self, form: str, commit: str) -> str:
        return self._git('log', '-1', f'--format={form}', commit)

    def _changed(self, letters: str) -> List[str]:
        """The files that the series adds (A) or modifies (M)."""
        return self._git('diff', '--name-only', '--no-renames',
                         f'--diff-filter={letters}', BASE,
                         'HEAD').splitlines()

    def _added(self, pattern: str, files: List[str]) -> Set[str]:
        """What matches in the lines that the series adds to files."""
        diff = self._git('diff', '-U0', BASE, 'HEAD', '--', *files)
        return {match for line in re.findall(r'(?m)^\+(?!\+\+ )(.*)', diff)
                for match in re.findall(pattern, line)}

    def is_committed(self) -> List[str]:
        """the tree that is tested is committed"""
        return self._git('status', '--porcelain').splitlines()

    def checkpatch(self) -> List[str]:
        """checkpatch.pl has no error and no warning"""
        return said(sys.executable, '-B', '-m', 'tooling.export', self._tree,
                    self._patches, self._mails)

    def mails_give_the_commits(self) -> List[str]:
        """git am of each theme on those before it gives the same commits"""
        form = '%T %an <%ae> %ad%n%B'
        mails = [mail for theme in self._themes
                 for mail in sorted((self._mails / theme).glob('*.patch'))]
        with tempfile.TemporaryDirectory(dir=self._mails.parent) as folder:
            place = Path(folder) / 'src'
            self._git('worktree', 'add', '-q', '--detach', place, BASE)
            git = Git(place)
            try:
                git('am', '-q', '--no-gpg-sign', *mails,
                    GIT_COMMITTER_NAME='lint', GIT_COMMITTER_EMAIL='lint')
                applied = git('rev-list', '--reverse', f'{BASE}..HEAD').split()
                pairs = zip_longest(self._commits, applied)
                return [f'{self._subjects.get(old, new)} differs'
                        for old, new in pairs if not old or not new or
                        self._show(form, old) != self._show(form, new)]
            except SeriesError as error:
                return [str(error)]
            finally:
                self._git('worktree', 'remove', '--force', place)

    def messages(self) -> List[str]:
        """each message has a text, no long line, and its author's sign-off"""
        found = []
        for commit, subject in self._subjects.items():
            text = self._show('%b', commit)
            author = self._show('%an <%ae>', commit)
            wide = [line for line in [subject, *text.splitlines()]
                    if len(line) > COLUMNS and ' ' in line
                    and not line.startswith('Signed-off-by:')]
            if f'Signed-off-by: {author}' not in text.splitlines():
                found.append(f'{subject}: not signed off by its author')
            if text.strip() == self._show('%(trailers)', commit).strip():
                found.append(f'{subject}: does not say why')
            if wide:
                found.append(f'{subject}: over {COLUMNS} columns: {wide[0]}')
        return found

    def order(self) -> List[str]:
        """no message speaks of a commit that comes after it"""
        found = []
        for commit, subject in self._subjects.items():
            if match := LATER.search(self._show('%b', commit)):
                words = ' '.join(match[0].split())
                found.append(f'{subject}: says "{words}"')
        return found

    def cover_letters(self) -> List[str]:
        """each theme has a cover letter: subject, empty line, text"""
        found = [f'{letter}: there is no such theme'
                 for letter in self._patches.glob('*/cover-letter.txt')
                 if letter.parent.name not in self._themes]
        for theme in self._themes:
            letter = self._patches / theme / 'cover-letter.txt'
            lines = letter.read_text().splitlines() if letter.exists() else []
            if len(lines) < 3 or not lines[0] or lines[1] or not lines[2]:
                found.append(f'{letter}: missing, or of another form')
            found += [f'{letter}: over {COLUMNS} columns: {line}'
                      for line in lines if len(line) > COLUMNS]
        return found

    def fixes(self) -> List[str]:
        """no message says that it corrects another one of the series"""
        found = [s for s in self._subjects.values()
                 if re.match('(fixup|squash|amend)! ', s)]
        for commit, subject in self._subjects.items():
            text = self._show('%b', commit)
            found += [f'{subject}: Fixes: {fixed}'
                      for fixed in re.findall(r'(?m)^Fixes: (.*)', text)
                      if any(fixed.startswith(c[:7]) or s in fixed
                             for c, s in self._subjects.items())]
        return found

    def _rewritten(self, commit: str, path: str) -> Iterator[str]:
        """The commits whose lines a commit removes, once for each line."""
        hunks = re.findall(r'(?m)^@@ -(\d+)(?:,(\d+))? ', self._git(
            'diff', '-U0', f'{commit}^', commit, '--', path))
        ranges = [f'-L{first},+{count or 1}' for first, count in hunks
                  if count != '0']
        if ranges:
            blame = self._git('blame', '-ls', *ranges, f'{commit}^', '--',
                              path)
            yield from (line.split()[0] for line in blame.splitlines())

    def corrections(self) -> List[str]:
        """no commit rewrites what an earlier one of the series has written"""
        found = []
        for commit, subject in self._subjects.items():
            names = self._git('diff-tree', '-r', '--name-only', '--no-renames',
                              '--no-commit-id', '--diff-filter=M', commit)
            lines = Counter(origin for path in names.splitlines()
                            for origin in self._rewritten(commit, path))
            found += [f'{subject}: rewrites {count} lines of '
                      f'"{self._subjects[origin]}"'
                      for origin, count in lines.items()
                      if origin in self._subjects and count > EXTENDED]
        return found

    def maintainers(self) -> List[str]:
        """QEMU's MAINTAINERS knows every new file"""
        found = []
        for path in self._changed('A'):
            r = subprocess.run(
                ['scripts/get_maintainer.pl', '--nogit', '--nogit-fallback',
                 '--noemail', '--nol', '--subsystem', '-f', path],
                cwd=self._tree, check=True, capture_output=True, text=True)
            if set(r.stdout.splitlines()) <= {'All patches CC here'}:
                found.append(path)
        return found

    def _events(self, path: str) -> Set[str]:
        """The trace events that a file declares."""
        return set(re.findall(r'(?m)^(?:disable )?(\w+)\(',
                              self._git('show', f'HEAD:{path}')))

    def trace_events(self) -> List[str]:
        """trace events that are declared are used, and the other way round"""
        found = []
        known: Set[str] = set()
        for path in self._git.paths('HEAD'):
            if Path(path).name != 'trace-events':
                continue
            known |= self._events(path)
            for event in self._added(r'^(?:disable )?(\w+)\(', [path]):
                if self._git.run('grep', '-qw', f'trace_{event}', 'HEAD', '--',
                                 Path(path).parent, check=False).returncode:
                    found.append(f'{event} is not used')
        for path in self._changed('AM'):
            if path.endswith('.c'):
                used = self._added(r'\btrace_(?!event_)(\w+)\(', [path])
                found += [f'{path}: {event} is not declared'
                          for event in used - known]
        return found


def main(tree: Path, patches: Path, mails: Path) -> bool:
    """Do all checks; did one find something?"""
    mails.parent.mkdir(exist_ok=True)
    series = Series(tree, patches, mails)
    checks: List[Callable[[], List[str]]] = [
        series.is_committed, series.checkpatch, series.mails_give_the_commits,
        series.messages, series.order, series.cover_letters, series.fixes,
        series.corrections, series.maintainers, series.trace_events,
        mypy, pylint, flake8]
    failed = 0
    for check in checks:
        found = check()
        failed += bool(found)
        print('FAILED' if found else 'ok    ', check.__doc__, flush=True)
        for line in found:
            print(f'         {line}')
    print(f'{len(checks) - failed} passed, {failed} failed')
    return failed > 0


if __name__ == '__main__':
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    with errors_in_one_line():
        raise SystemExit(main(*(Path(p).resolve() for p in sys.argv[1:])))
