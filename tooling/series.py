# SPDX-License-Identifier: GPL-2.0-or-later
"""The series on disk: its list of patches, and git trees made of it.

usage: python3 -m tooling.series TREE PATCHES

Prints the commits of TREE after the tag `base`, each with its theme and its
number in there: COMMIT THEME/NUMBER.

`patches/10.2/series` has one line per commit: a patch file, such as
`fixes/0001-chardev-do-x.patch`, then the new files which that commit brings,
as paths that are the same in the repository and in QEMU's tree.  A line that
begins with `#` is a comment.

The folder of a patch is its theme.  A theme is a series that is sent to
QEMU's developers by itself, with its own cover-letter.txt; it needs the themes
above it in the list and none below.  A commit in a QEMU tree does not carry
its theme: it is in that of the patch with the same subject, or, if there is no
such patch, in that of the commit before it.

A patch file is a mail (header, message, `---`, diff).  Its diff edits files
that QEMU has; it is empty where a commit only brings new files.

Composing makes one commit per line.  It is done in git's object store with
an index of its own, so no work tree is touched, and the same input always
gives the same commit ids.
"""
import contextlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import (Any, Dict, Iterator, List, NamedTuple, Optional, Set,
                    Tuple)

BASE = 'base'                   # tag: QEMU as released
COMPOSED = 'refs/run/composed'  # what was last made of the repository
MODES = ('100644', '100755')
FIRST_THEME = 'fixes'           # of a series that has none yet


class Entry(NamedTuple):
    """A commit of the series: its patch, and the new files it brings."""
    patch: str
    files: List[str]

    @property
    def theme(self) -> str:
        """The folder of the patch."""
        return self.patch.rpartition('/')[0]


class Change(NamedTuple):
    """A difference of two trees; letter is one of A, D, M, R and T."""
    letter: str
    mode: str
    path: str
    source: str


class SeriesError(Exception):
    """One sentence that tells the user what to do."""


def one_line(output: bytes) -> str:
    """What a program has printed, in one line."""
    return '; '.join(output.decode('utf-8', 'replace').strip().splitlines())


class Git:
    """Runs git in one tree; with an index file, on that index."""

    def __init__(self, tree: Path, index: Optional[Path] = None) -> None:
        self.tree = tree
        self.env = {k: v for k, v in os.environ.items()
                    if not k.startswith('GIT_')}
        if index:
            self.env['GIT_INDEX_FILE'] = str(index)

    def run(self, *args: object, stdin: Optional[bytes] = None,
            check: bool = True,
            **env: str) -> 'subprocess.CompletedProcess[bytes]':
        """Run a command; **env is for its environment."""
        return subprocess.run(
            ['git', '-c', 'core.autocrlf=false', '--literal-pathspecs',
             '-C', self.tree, *map(str, args)], input=stdin, check=check,
            capture_output=True, env={**self.env, **env})

    def __call__(self, *args: object, **kwargs: Any) -> str:
        try:
            output = self.run(*args, **kwargs).stdout
        except subprocess.CalledProcessError as e:
            raise SeriesError(f'git {args[0]} in {self.tree} failed: '
                              f'{one_line(e.stderr)}') from e
        return output.decode('utf-8', 'surrogateescape').strip('\n')

    def commit_id(self, rev: str) -> Optional[str]:
        """The commit that rev names, or None."""
        r = self.run('rev-parse', '-q', '--verify', f'{rev}^{{commit}}',
                     check=False)
        return r.stdout.decode().strip() or None

    def paths(self, rev: str) -> Set[str]:
        """The files of a commit."""
        return set(self('ls-tree', '-r', '-z', '--name-only', rev)
                   .split('\0')) - {''}

    def changes(self, old: str, new: str) -> Iterator[Change]:
        """How two trees differ."""
        fields = iter(self('diff-tree', '-r', '-z', '-M', '--raw', old, new)
                      .split('\0'))
        for head in fields:
            if not head:
                break
            _, mode, _, _, letter = head.split()
            source = next(fields, '')
            path = next(fields, '') if letter[0] in 'RC' else source
            yield Change(letter[0], mode, path, source)

    def is_clean(self) -> bool:
        return not self('status', '--porcelain')


def read_series(patches: Path) -> List[Entry]:
    """The entries of patches/series, in order; none without the file."""
    entries: List[Entry] = []
    owner: Dict[str, str] = {}
    series = patches / 'series'
    for line in series.read_text().splitlines() if series.exists() else []:
        if not line.strip() or line.startswith('#'):
            continue
        patch, *files = line.split()
        for path in files:
            if path in owner:
                raise SeriesError(f'{series}: both {owner[path]} and {patch} '
                                  f'bring {path}: remove one of the two.')
            owner[path] = patch
        entry = Entry(patch, files)
        if not re.fullmatch(r'[^/]+/[^/]+', patch):
            raise SeriesError(f'{series}: {patch} is not in the folder of a '
                              'theme: write THEME/NAME.patch.')
        if is_apart(entry.theme, [e.theme for e in entries]):
            raise SeriesError(f'{series}: {patch} is apart from the other '
                              f'patches of {entry.theme}: move it to them.')
        entries.append(entry)
    return entries


def is_apart(theme: str, before: List[str]) -> bool:
    """Has this theme ended before the next place of a list of themes?"""
    return theme in before and theme != before[-1]


def subject_of(mail: Path) -> str:
    """The subject of a patch file; refresh.py writes it in one line."""
    lines = mail.read_text('utf-8', 'surrogateescape').splitlines()
    return next((line[9:] for line in lines if line.startswith('Subject: ')),
                '')


def themed_commits(git: Git, patches: Path) -> List[Tuple[str, str]]:
    """The commits of the tree, in order, each with its theme."""
    entries = read_series(patches)
    known = {subject_of(patches / e.patch): e.theme for e in entries
             if (patches / e.patch).is_file()}
    theme = entries[0].theme if entries else FIRST_THEME
    commits: List[Tuple[str, str]] = []
    for line in git('log', '--reverse', '--format=%H %s',
                    f'{BASE}..HEAD').splitlines():
        commit, _, subject = line.partition(' ')
        theme = known.get(subject, theme)
        if is_apart(theme, [t for _, t in commits]):
            raise SeriesError(f'{commit[:10]} ("{subject}") is apart from the '
                              f'other commits of the theme {theme}: rebase, '
                              'so that it comes before the next theme.')
        commits.append((commit, theme))
    return commits


def commits_by_theme(git: Git, patches: Path) -> Dict[str, List[str]]:
    """The themes in order, each with its commits."""
    themes: Dict[str, List[str]] = {}
    for commit, theme in themed_commits(git, patches):
        themes.setdefault(theme, []).append(commit)
    return themes


def compose(git: Git, patches: Path, root: Path) -> str:
    """Make the series' commits on top of BASE; return the last one's id."""
    released = git.paths(BASE)
    head = git('rev-parse', f'{BASE}^{{commit}}')
    with tempfile.TemporaryDirectory() as tmp:
        index = Git(git.tree, Path(tmp) / 'index')
        for entry in read_series(patches):
            head = compose_entry(index, released, patches, root, entry, head,
                                 Path(tmp))
    return head


def compose_entry(git: Git, released: Set[str], patches: Path, root: Path,
                  entry: Entry, parent: str, tmp: Path) -> str:
    """Make the commit of a line on top of parent; return its id."""
    mail = patches / entry.patch
    if not mail.is_file():
        raise SeriesError(f'{mail} is listed in the series but missing.')
    git('read-tree', parent)
    message, diff = tmp / 'message', tmp / 'diff'
    info = git('mailinfo', '-k', '--no-scissors', '--encoding=UTF-8', message,
               diff, stdin=mail.read_bytes())
    header = dict(line.split(': ', 1) for line in info.splitlines() if line)
    if missing := {'Author', 'Email', 'Subject', 'Date'} - set(header):
        raise SeriesError(f'{mail}: its mail header lacks '
                          f'{", ".join(sorted(missing))}.')

    r = git.run('apply', '--cached', '--allow-empty', '--whitespace=nowarn',
                diff, check=False)
    if r.returncode:
        raise SeriesError(f'{mail} does not apply: '
                          f'{one_line(r.stderr)}')
    for path in entry.files:
        if path in released:
            raise SeriesError(f'{mail} brings {path}, which QEMU has: '
                              f'put the change into the patch instead.')
        if not (root / path).is_file():
            raise SeriesError(f'{mail} brings {path}, which does not exist.')
        blob = git('hash-object', '-w', '--no-filters',
                   (root / path).resolve())
        mode = MODES[os.access(root / path, os.X_OK)]
        git('update-index', '--add', '--cacheinfo', f'{mode},{blob},{path}')
    tree = git('write-tree')
    brought = released.union(entry.files)
    for change in git.changes(parent, tree):
        if change.letter != 'D' and change.path not in brought:
            raise SeriesError(f'{mail} creates or edits {change.path}, which '
                              f'QEMU does not have: keep it as a whole file.')

    who = {'NAME': header['Author'], 'EMAIL': header['Email'],
           'DATE': header['Date']}
    env = {f'GIT_{role}_{k}': v for role in ('AUTHOR', 'COMMITTER')
           for k, v in who.items()}
    text = f'{header["Subject"]}\n\n{message.read_text()}'.strip() + '\n'
    return git('commit-tree', tree, '-p', parent, stdin=text.encode(), **env)


@contextlib.contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Tell the user of a SeriesError, without a traceback."""
    try:
        yield
    except SeriesError as e:
        raise SystemExit(f'error: {e}') from e


def main(tree: Path, patches: Path) -> None:
    for theme, commits in commits_by_theme(Git(tree), patches).items():
        for number, commit in enumerate(commits, 1):
            print(commit, f'{theme}/{number:04d}')


if __name__ == '__main__':
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    with errors_in_one_line():
        main(*map(Path, sys.argv[1:]))
