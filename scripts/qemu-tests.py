#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""List those of QEMU's tests that ./run check runs.

usage: qemu-tests.py OBJ

Prints NAME|SUITE|PROTOCOL|TIMEOUT|PARALLEL of each, from what Meson wrote into
QEMU's build folder OBJ.  Left out are what QEMU's "make check" leaves out
(slow, thorough), and suites that no chardev, device or migration code
takes part in (block: qemu-iotests; func: needs images from the network;
decodetree, softfloat: other targets' instructions and arithmetic).
"""
import json
import sys
from pathlib import Path

SUITES = {'qemu:unit': 'unit', 'qemu:qtest': 'qtest',
          'qemu:qapi-schema': 'unit', 'qemu:tracetool': 'unit'}


def main(obj):
    tests = json.loads((Path(obj) / 'meson-info/intro-tests.json').read_text())
    for test in tests:
        suite = SUITES.get(test['suite'][0])
        if suite and not {'qemu:slow', 'qemu:thorough'} & set(test['suite']):
            print(test['name'], suite, test['protocol'], test['timeout'],
                  test['is_parallel'], sep='|')


if __name__ == '__main__':
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(sys.argv[1])
