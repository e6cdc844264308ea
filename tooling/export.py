# SPDX-License-Identifier: GPL-2.0-or-later
"""Write a tree's themes as mails for `git am`; list what checkpatch says.

usage: python3 -m tooling.export TREE PATCHES OUTPUT [THEME]

Each theme becomes a series of its own in OUTPUT/THEME; with THEME, only that
one is written.  Its cover letter is PATCHES/THEME/cover-letter.txt: a subject,
an empty line, text.
"""
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Dict, List

from tooling.series import (Git, SeriesError, commits_by_theme,
                            errors_in_one_line)


def write_mails(git: Git, letter: Path, commits: List[str],
                output: Path) -> List[Path]:
    """Write a theme's cover letter and mails; return the mails."""
    if not letter.exists():
        raise SeriesError(f'{letter} is missing: write the subject of the '
                          'theme, an empty line and an introduction there.')
    subject, text = letter.read_text().split('\n', 1)
    shutil.rmtree(output, ignore_errors=True)
    name, email = git('log', '-1', '--format=%an%n%ae').split('\n')
    git('format-patch', '-q', '--no-signature', '--cover-letter',
        '-o', output.resolve(), f'{commits[0]}^..{commits[-1]}',
        GIT_COMMITTER_NAME=name, GIT_COMMITTER_EMAIL=email)
    cover, *mails = sorted(output.iterdir())
    cover.write_text(cover.read_text()
                     .replace('*** SUBJECT HERE ***', subject)
                     .replace('*** BLURB HERE ***', text.strip()))
    # By another suffix, so that *.patch is what "git am" takes.
    cover.rename(cover.with_suffix('.mail'))
    return mails


def complaints(tree: Path, mails: List[Path]) -> str:
    """What checkpatch.pl prints; its exit status tells not of warnings."""
    return subprocess.run(['scripts/checkpatch.pl', '--quiet',
                           '--summary-file', *(m.resolve() for m in mails)],
                          cwd=tree, check=False, stdout=subprocess.PIPE,
                          text=True).stdout


def how_to_apply(output: Path, themes: List[str], wanted: str) -> str:
    """The command that applies what was written."""
    before = themes[:themes.index(wanted)] if wanted else []
    mails = [f'{output.resolve()}/{name}/*.patch' for name in themes
             if wanted in ('', name)]
    return f'on top of {", ".join(["QEMU", *before])}: git am ' + \
        ' '.join(mails)


def main(tree: Path, patches: Path, output: Path, wanted: str) -> bool:
    git = Git(tree)
    themes: Dict[str, List[str]] = commits_by_theme(git, patches)
    if wanted and wanted not in themes:
        raise SeriesError(f'there is no theme "{wanted}": name one of '
                          f'{", ".join(themes)}.')
    if not wanted:
        shutil.rmtree(output, ignore_errors=True)
    found = ''
    for theme, commits in themes.items():
        if wanted in ('', theme):
            mails = write_mails(git, patches / theme / 'cover-letter.txt',
                                commits, output / theme)
            said = complaints(tree, mails)
            print(said, end='')
            print(f'{output / theme}: cover letter and {len(mails)} patches; '
                  'checkpatch.pl '
                  f'{"has complaints, see above" if said else "is content"}')
            found += said
    print(how_to_apply(output, list(themes), wanted))
    return found != ''


if __name__ == '__main__':
    if len(sys.argv) not in (4, 5):
        raise SystemExit(__doc__)
    with errors_in_one_line():
        places = [Path(name) for name in sys.argv[1:4]]
        raise SystemExit(main(places[0], places[1], places[2],
                              ''.join(sys.argv[4:])))
