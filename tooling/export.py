# SPDX-License-Identifier: GPL-2.0-or-later
"""Write a tree's series as mails for `git am` and list what checkpatch says.

usage: python3 -m tooling.export TREE PATCHES OUTPUT

The cover letter is PATCHES/cover-letter.txt: a subject, an empty line, text.
"""
import shutil
import subprocess
import sys
from pathlib import Path

from tooling.series import BASE, Git, SeriesError, errors_in_one_line


def main(tree: Path, patches: Path, output: Path) -> bool:
    git = Git(tree)
    letter = patches / 'cover-letter.txt'
    if not letter.exists():
        raise SeriesError(f'{letter} is missing: write the series\' subject, '
                          'an empty line and an introduction there.')
    subject, text = letter.read_text().split('\n', 1)
    shutil.rmtree(output, ignore_errors=True)
    name, email = git('log', '-1', '--format=%an%n%ae').split('\n')
    git('format-patch', '-q', '--no-signature', '--cover-letter',
        '-o', output.resolve(), f'{BASE}..HEAD',
        GIT_COMMITTER_NAME=name, GIT_COMMITTER_EMAIL=email)
    cover, *mails = sorted(output.iterdir())
    cover.write_text(cover.read_text()
                     .replace('*** SUBJECT HERE ***', subject)
                     .replace('*** BLURB HERE ***', text.strip()))
    # By another suffix, so that *.patch is what "git am" takes.
    cover.rename(cover.with_suffix('.mail'))
    # Its exit status tells nothing of warnings.
    said = subprocess.run(['scripts/checkpatch.pl', '--quiet',
                           '--summary-file', *(m.resolve() for m in mails)],
                          cwd=tree, check=False, stdout=subprocess.PIPE,
                          text=True).stdout
    print(said, end='')
    print(f'{output}: cover letter and {len(mails)} patches; checkpatch.pl '
          f'{"has complaints, see above" if said else "is content"}')
    print(f'in a QEMU tree: git am {output.resolve()}/*.patch')
    return said != ''


if __name__ == '__main__':
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    with errors_in_one_line():
        raise SystemExit(main(*map(Path, sys.argv[1:])))
