# SPDX-License-Identifier: GPL-2.0-or-later
"""
The test lab: virtual machines with a real guest, and what is done with them

README.md says how to write, run and debug a test.  This file says where the
programs are.  QEMU_OBJ names another folder where QEMU was built.
"""
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BASE = (ROOT / 'patches/base').read_text('ascii').strip()   # QEMU's release
OBJ = Path(os.environ.get('QEMU_OBJ', ROOT / f'build/{BASE}/obj')).resolve()
STOCK_OBJ = ROOT / f'build/{BASE}-stock/obj'
IMAGE = ROOT / 'build/guest'


def existing(path: Path, remedy: str) -> Path:
    """Return the path of a file that exists, else exit and name a remedy."""
    if not path.exists():
        sys.exit(f'{path} is missing: {remedy}')
    return path
