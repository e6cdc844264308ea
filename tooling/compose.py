# SPDX-License-Identifier: GPL-2.0-or-later
"""Bring a QEMU tree to the series as the repository has it.

usage: python3 -m tooling.compose TREE PATCHES ROOT

TREE is a git tree with the tag `base`; PATCHES holds `series` and the
themes; ROOT is where the new files are.  Files that the move does not change
keep their time stamps.  Work done in TREE is never lost: it is left alone
while the repository stands still, and refused when both have moved.
"""
import sys
from pathlib import Path

from tooling.series import (BASE, COMPOSED, Git, SeriesError, compose,
                            errors_in_one_line)


def main(tree: Path, patches: Path, root: Path) -> None:
    git = Git(tree)
    wanted = compose(git, patches, root)
    head = git.commit_id('HEAD')
    last = git.commit_id(COMPOSED) or git.commit_id(BASE)

    clean = git.is_clean()
    if wanted in (head, last):
        if head != wanted or not clean:
            print(f'using {tree} as it is, with the work done in it '
                  '(./run refresh writes its commits to the repository)')
    elif head != last or not clean:
        raise SeriesError(
            f'{tree} and {patches} have both changed: keep the tree\'s '
            f'commits with "./run refresh --force", or the repository\'s with '
            f'"git -C {tree} stash -u; '
            f'git -C {tree} reset --keep {COMPOSED}".')
    else:
        git('reset', '-q', '--keep', wanted)
    git('update-ref', COMPOSED, wanted)


if __name__ == '__main__':
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    with errors_in_one_line():
        main(*map(Path, sys.argv[1:]))
