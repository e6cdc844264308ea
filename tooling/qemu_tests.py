# SPDX-License-Identifier: GPL-2.0-or-later
"""List QEMU's own unit tests and qtests for ./run check.

usage: python3 -m tooling.qemu_tests OBJ
       python3 -m tooling.qemu_tests --targets [OBJ NAME...]

For Meson: prints NAME|SUITE|PROTOCOL|TIMEOUT|PARALLEL of each test, from what
Meson wrote into QEMU's build folder OBJ.  SUITE is "unit" or "qtest" for those
in qemu-tests.txt, which cover code that the series touches, and "rest" for the
others.  Left out are tests that QEMU's "make check" leaves out (slow and
thorough ones), the suites block (qemu-iotests), func (it needs images from the
network), decodetree and softfloat, and the tests of stock-failures.txt.

--targets: prints what has to be built for the tests in qemu-tests.txt, and for
those NAMEs that are tests of QEMU, which OBJ must be configured for.
"""
import json
import sys
from pathlib import Path
from typing import Any, Dict, List, Set

SUITES = {'qemu:unit': 'unit', 'qemu:qtest': 'qtest',
          'qemu:qapi-schema': 'unit', 'qemu:tracetool': 'unit'}
QTEST = 'qtest-x86_64/'
TOOLING = Path(__file__).resolve().parent


def names(file: str) -> Set[str]:
    """The first words of the lines of a list."""
    lines = (TOOLING / file).read_text('utf-8').splitlines()
    return {line.split()[0] for line in lines
            if line and not line.startswith('#')}


def tests_of(obj: Path) -> List[Dict[str, Any]]:
    """All tests that QEMU's build knows."""
    file = obj / 'meson-info/intro-tests.json'
    tests: List[Dict[str, Any]] = json.loads(file.read_text('utf-8'))
    return tests


def show_tests(obj: Path) -> None:
    """Print the tests for Meson."""
    covering = names('qemu-tests.txt')
    left_out = names('stock-failures.txt')
    for test in tests_of(obj):
        suite = SUITES.get(test['suite'][0])
        slow = {'qemu:slow', 'qemu:thorough'} & set(test['suite'])
        if suite and not slow and test['name'] not in left_out:
            print(test['name'],
                  suite if test['name'] in covering else 'rest',
                  test['protocol'], test['timeout'], test['is_parallel'],
                  sep='|')


def show_targets(wanted: Set[str]) -> None:
    """Print what has to be built for tests."""
    for name in sorted(wanted):
        if name.startswith(QTEST):
            print(f'tests/qtest/{name[len(QTEST):]}')
        else:
            print(f'tests/unit/{name}')


def main(words: List[str]) -> None:
    """Do what the command line says."""
    if words == ['--targets']:
        show_targets(names('qemu-tests.txt'))
    elif words[:1] == ['--targets']:
        known = {test['name'] for test in tests_of(Path(words[1]))}
        show_targets(names('qemu-tests.txt') | known.intersection(words[2:]))
    elif len(words) == 1:
        show_tests(Path(words[0]))
    else:
        raise SystemExit(__doc__)


if __name__ == '__main__':
    main(sys.argv[1:])
