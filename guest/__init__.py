# SPDX-License-Identifier: GPL-2.0-or-later
"""
Virtual machines with a real guest, for tests, demos and measurements

vm.VM is a QEMU process, agent.Guest talks to the guest in it, and backend has
the storage back-ends.  This file says where the programs are.

QEMU_OBJ names the folder where QEMU was built (build/10.2/obj); its sources
are expected beside it, in "src".  They bring the packages qemu.machine and
qemu.qmp, which this package builds on.
"""
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMAGE = ROOT / 'build/guest'
STOCK_OBJ = ROOT / 'build/10.2-stock/obj'
OBJ = Path(os.environ.get('QEMU_OBJ', ROOT / 'build/10.2/obj')).resolve()


def existing(path: Path, remedy: str) -> Path:
    """Return the path if there is something, else exit and say what to do."""
    if not path.exists():
        sys.exit(f'{path} is missing: {remedy}')
    return path


sys.path.insert(0, str(existing(OBJ.parent / 'src/python', 'run ./run build')))
sys.path.insert(0, str(ROOT / 'python'))
