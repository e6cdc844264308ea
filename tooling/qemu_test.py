# SPDX-License-Identifier: GPL-2.0-or-later
"""Run one of QEMU's own tests as QEMU's build would on a machine without KVM.

usage: python3 -m tooling.qemu_test OBJ NAME [PROGRAM]

PROGRAM is run in place of the test's own program.

Tests take KVM where there is one.  Results must not depend on that, and a
/dev/kvm that does not work makes some tests wait for ever: so when root runs
them, they see /dev/null in its place, and use TCG.  "--full" is what QEMU
gives migration-test only where it found KVM; TCG is too slow for it.

A test has files of fixed names in its folder, so "meson test --repeat" must
not run it twice at once: each holds a lock, which lasts until it has ended.
"""
import fcntl
import json
import os
import sys
from pathlib import Path

KVM = '/dev/kvm'
MASK_KVM = ['unshare', '-m', 'sh', '-c',
            f'mount --bind /dev/null {KVM} && exec "$@"', 'sh']


def main(obj: str, name: str, *program: str) -> None:
    tests = json.loads((Path(obj) / 'meson-info/intro-tests.json').read_text())
    test = next(t for t in tests if t['name'] == name)
    own, *arguments = [arg for arg in test['cmd'] if arg != '--full']
    command = [*(program or [own]), *arguments]
    if os.path.exists(KVM) and os.geteuid() == 0:
        command = MASK_KVM + command
    file = '-'.join([name, *program]).replace('/', '-') + '.lock'
    lock = os.open(Path(obj) / 'meson-logs' / file, os.O_CREAT | os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.set_inheritable(lock, True)
    os.chdir(test['workdir'] or obj)
    env = {**os.environ, **test['env']}
    os.execvpe(command[0], command, env)


if __name__ == '__main__':
    if len(sys.argv) not in (3, 4):
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
