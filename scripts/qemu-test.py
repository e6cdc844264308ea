#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Run one of QEMU's own tests as QEMU's build would.

usage: qemu-test.py OBJ NAME

Tests take KVM where there is one.  Results must not depend on that, and a
/dev/kvm that does not work makes some tests wait for ever: so when root runs
them, they see /dev/null in its place, and use TCG.

Cases that fail on stock QEMU too are listed in stock-failures.txt.  They are
run, and marked for Meson as TAP's "TODO": such a case may fail, and is
reported when it passes.
"""
import json
import os
import re
import subprocess
import sys
from pathlib import Path

KVM = '/dev/kvm'
MASK_KVM = ['unshare', '-m', 'sh', '-c',
            f'mount --bind /dev/null {KVM} && exec "$@"', 'sh']
RESULT = re.compile(r'(not )?ok \d+ (\S+)')


def stock_failures(name):
    """The cases of a test that fail on stock; a line is TEST CASE REASON."""
    text = Path(__file__).with_name('stock-failures.txt').read_text()
    lines = [line.split(None, 2) for line in text.splitlines()
             if line and not line.startswith('#')]
    return {case for test, case, _ in lines if test == name}


def run_marking(command, env, cwd, expected):
    """Run a TAP test; failures of the expected cases do not count."""
    unexpected = False
    with subprocess.Popen(command, env=env, cwd=cwd, text=True,
                          stdout=subprocess.PIPE) as child:
        for line in child.stdout:
            result = RESULT.match(line)
            if result and result[2] in expected:
                line = f'{line.rstrip()} # TODO fails on stock QEMU too\n'
            elif result and result[1]:
                unexpected = True
            sys.stdout.write(line)
            sys.stdout.flush()
    # GLib's tests exit with 1 when a case failed, which Meson takes ill.
    if child.returncode == 1 and not unexpected:
        return 0
    return child.returncode


def main(obj, name):
    tests = json.loads((Path(obj) / 'meson-info/intro-tests.json').read_text())
    test = next(t for t in tests if t['name'] == name)
    command = test['cmd']
    env = {**os.environ, **test['env']}
    cwd = test['workdir'] or obj
    if os.path.exists(KVM) and os.geteuid() == 0:
        command = MASK_KVM + command
    if expected := stock_failures(name):
        return run_marking(command, env, cwd, expected)
    os.chdir(cwd)
    os.execvpe(command[0], command, env)


if __name__ == '__main__':
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    raise SystemExit(main(*sys.argv[1:]))
