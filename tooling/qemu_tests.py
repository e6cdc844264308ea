# SPDX-License-Identifier: GPL-2.0-or-later
"""List those of QEMU's tests that ./run check runs.

usage: python3 -m tooling.qemu_tests OBJ

Prints NAME|SUITE|PROTOCOL|TIMEOUT|PARALLEL of each, from what Meson wrote into
QEMU's build folder OBJ.  Left out are what QEMU's "make check" leaves out
(slow, thorough), and suites that no chardev, device or migration code
takes part in (block: qemu-iotests; func: needs images from the network;
decodetree, softfloat: other targets' instructions and arithmetic), and the
tests of stock-failures.txt.
"""
import json
import sys
from pathlib import Path
from typing import Set

SUITES = {'qemu:unit': 'unit', 'qemu:qtest': 'qtest',
          'qemu:qapi-schema': 'unit', 'qemu:tracetool': 'unit'}


def stock_failures() -> Set[str]:
    """The tests that fail on stock; a line is TEST REASON."""
    text = Path(__file__).with_name('stock-failures.txt').read_text(
        'utf-8')
    return {line.split()[0] for line in text.splitlines()
            if line and not line.startswith('#')}


def main(obj: str) -> None:
    tests = json.loads((Path(obj) / 'meson-info/intro-tests.json').read_text())
    left_out = stock_failures()
    for test in tests:
        suite = SUITES.get(test['suite'][0])
        slow = {'qemu:slow', 'qemu:thorough'} & set(test['suite'])
        if suite and not slow and test['name'] not in left_out:
            print(test['name'], suite, test['protocol'], test['timeout'],
                  test['is_parallel'], sep='|')


if __name__ == '__main__':
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(sys.argv[1])
