# SPDX-License-Identifier: GPL-2.0-or-later
"""Write the commits made in a QEMU tree back to the repository.

usage: python3 -m tooling.refresh TREE PATCHES ROOT [--force]

Every commit after the tag `base` becomes a patch (edits to QEMU's own files),
a line of `series`, and new files under ROOT.  Its theme is that of the patch
with the same subject.  A commit with a new subject is put into the theme of
the commit before it, and the user is told; to put it elsewhere, move the patch
file and its line of `series` by hand.  What the old series listed and
the new one does not is deleted.  The result is composed again, and must give
the same trees, before anything is written.

--force: also when the repository changed since TREE was composed from it.
"""
import contextlib
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Dict, List, Set, Tuple

from tooling.series import (BASE, COMPOSED, MODES, Entry, Git, SeriesError,
                            compose, errors_in_one_line, read_series,
                            subject_of, themed_commits)


def describe(git: Git, commit: str) -> str:
    """Name a commit to the user."""
    return f'{commit[:10]} ("{git("log", "-1", "--format=%s", commit)}")'


def check_repository_unchanged(git: Git, patches: Path, root: Path) -> None:
    last = git.commit_id(COMPOSED) or git.commit_id(BASE)
    try:
        same = compose(git, patches, root) == last
    except SeriesError:
        same = False
    if not same:
        raise SeriesError(
            f'{patches} or the new files changed since {git.tree} was '
            'composed from them, and a refresh would undo that; '
            '"./run refresh --force" does it.')


def check_history(git: Git) -> None:
    """The commits of the tree must be a clean line."""
    if not git.is_clean():
        raise SeriesError(f'{git.tree} has uncommitted changes: commit or '
                          f'discard them first (git -C {git.tree} status).')
    if not git.run('merge-base', '--is-ancestor', BASE, 'HEAD',
                   check=False).returncode == 0:
        raise SeriesError(f'HEAD of {git.tree} does not descend from the tag '
                          f'"{BASE}": rebase it onto that.')
    if merges := git('rev-list', '--merges', f'{BASE}..HEAD').split():
        raise SeriesError(f'{describe(git, merges[0])} is a merge: '
                          'make the history linear.')


def split_commit(git: Git, commit: str, released: Set[str],
                 creator: Dict[str, str]) -> Tuple[List[str], List[str]]:
    """Sort a commit's changes into (edited files, new files)."""
    edited: List[str] = []
    new: List[str] = []
    name = describe(git, commit)
    for change in git.changes(f'{commit}^', commit):
        path = change.path
        if change.letter == 'R':
            raise SeriesError(f'{name} renames {change.source}: a series '
                              'cannot, so add and edit files instead.')
        if change.letter != 'D' and change.mode not in MODES:
            raise SeriesError(f'{name} makes {path} a link or submodule: '
                              'only plain files can be in the series.')
        if path in creator:
            raise SeriesError(f'{name} changes {path}, which '
                              f'{describe(git, creator[path])} created: '
                              'squash the change into that commit.')
        if path in released:
            edited.append(path)
        elif any(c.isspace() for c in path):
            raise SeriesError(f'{name}: rename {path!r}, the list of the '
                              'series has no way to write white space.')
        else:
            creator[path] = commit
            new.append(path)
    return edited, new


def mail(git: Git, commit: str, edited: List[str]) -> str:
    """A commit as a patch with the edited files only."""
    header = git('log', '-1', '--encoding=UTF-8', commit,
                 '--format=From: %an <%ae>%nDate: %aD%nSubject: %s%n%n%b')
    diff = ''
    if edited:
        diff = git('diff-tree', '-p', '--no-renames', '--no-ext-diff',
                   f'{commit}^', commit, '--', *edited)
    # "index" lines name blobs, which change when another patch does.
    diff = ''.join(line + '\n' for line in diff.split('\n')
                   if line and not line.startswith('index '))
    return f'{header.strip()}\n\n---\n{diff}'


def write_series(git: Git, commits: List[Tuple[str, str]], patches: Path,
                 root: Path, comment: List[str]) -> List[Entry]:
    """Write patches, list and new files of the commits with their themes."""
    released = git.paths(BASE)
    creator: Dict[str, str] = {}
    entries: List[Entry] = []
    number: Dict[str, int] = {}
    for commit, theme in commits:
        edited, new = split_commit(git, commit, released, creator)
        number[theme] = number.get(theme, 0) + 1
        slug = git('log', '-1', '--format=%f', commit)[:60].rstrip('-.')
        name = f'{theme}/{number[theme]:04d}-{slug}.patch'
        (patches / theme).mkdir(parents=True, exist_ok=True)
        (patches / name).write_bytes(
            mail(git, commit, edited).encode('utf-8', 'surrogateescape'))
        for path in new:
            file = root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(git.run('cat-file', 'blob',
                                     f'{commit}:{path}').stdout)
            mode = git('ls-tree', commit, '--', path).split()[0]
            file.chmod(0o755 if mode == MODES[1] else 0o644)
        entries.append(Entry(name, new))
    patches.mkdir(parents=True, exist_ok=True)
    lines = comment + [' '.join([e.patch, *e.files]) for e in entries]
    (patches / 'series').write_text(''.join(f'{line}\n' for line in lines))
    return entries


def tell_new(entries: List[Entry], new: Path, old: Path) -> None:
    """Tell the user where commits with a new subject were put."""
    known = {subject_of(old / e.patch) for e in read_series(old)
             if (old / e.patch).is_file()}
    for entry in entries:
        if subject_of(new / entry.patch) not in known:
            print(f'new: {entry.patch}')


def check_round_trip(git: Git, commits: List[str], patches: Path,
                     root: Path) -> str:
    """Compose what was written; the same commits must come of it."""
    again = compose(git, patches, root)
    composed = git('rev-list', '--reverse', f'{BASE}..{again}').split()
    for old, new in zip(commits, composed, strict=True):
        for what in '%T', '%an <%ae> %ad', '%B':
            if (git('log', '-1', f'--format={what}', old).strip() !=
                    git('log', '-1', f'--format={what}', new).strip()):
                raise SeriesError(
                    f'{describe(git, old)} cannot be kept as a patch without '
                    'loss: look for a binary file, or a line in its message '
                    'that looks like a diff or a mail header.')
    return again


def leading_comment(patches: Path) -> List[str]:
    """The comment above the list of patches."""
    series = patches / 'series'
    lines: List[str] = []
    for line in series.read_text().splitlines() if series.exists() else []:
        if not line.startswith('#'):
            break
        lines.append(line)
    return lines


def remove(file: Path) -> None:
    """Delete a file, and its folder if it was the last one there."""
    file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        file.parent.rmdir()


def replace(old: List[Entry], entries: List[Entry], new_patches: Path,
            new_root: Path, patches: Path, root: Path) -> None:
    """Put the new series in the place of the old one."""
    owned = {path for e in old for path in e.files}
    for e in entries:
        for path in e.files:
            target, content = root / path, (new_root / path).read_bytes()
            if (path not in owned and target.exists()
                    and target.read_bytes() != content):
                raise SeriesError(f'{target} is there and not part of the '
                                  'series: move it, or give the new file '
                                  'another name.')
    kept = {path for e in entries for path in e.files}
    for e in old:
        remove(patches / e.patch)
    for path in owned - kept:
        (root / path).unlink(missing_ok=True)
        print(f'removed {path}')
    patches.mkdir(parents=True, exist_ok=True)
    for path in sorted(kept):
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(new_root / path, target)
        shutil.copymode(new_root / path, target)
    shutil.copytree(new_patches, patches, dirs_exist_ok=True)


def main(tree: Path, patches: Path, root: Path, force: bool) -> None:
    if not tree.is_dir():
        raise SeriesError(f'{tree} does not exist: "./run build" makes it.')
    git = Git(tree)
    check_history(git)
    commits = themed_commits(git, patches)
    if not force:
        check_repository_unchanged(git, patches, root)
    with tempfile.TemporaryDirectory() as tmp:
        new_patches, new_root = Path(tmp) / 'patches', Path(tmp) / 'root'
        entries = write_series(git, commits, new_patches, new_root,
                               leading_comment(patches))
        composed = check_round_trip(git, [c for c, _ in commits], new_patches,
                                    new_root)
        tell_new(entries, new_patches, patches)
        replace(read_series(patches), entries, new_patches, new_root,
                patches, root)
    # The composed commits have the same trees, so no file is touched.
    git('reset', '-q', '--keep', composed)
    git('update-ref', COMPOSED, composed)
    print(f'{patches}: {len(entries)} patches, '
          f'{sum(len(e.files) for e in entries)} new files')


if __name__ == '__main__':
    args = [a for a in sys.argv[1:] if a != '--force']
    if len(args) != 3:
        raise SystemExit(__doc__)
    with errors_in_one_line():
        main(Path(args[0]), Path(args[1]), Path(args[2]),
             '--force' in sys.argv)
