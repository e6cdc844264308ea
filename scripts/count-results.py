#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Count the results in Meson's testlog.json.

usage: count-results.py TESTLOG

A program with many cases counts once, since one that crashes or hangs has no
cases to count.  Exit status 1 when a test failed or none ran.
"""
import json
import sys
from collections import Counter
from pathlib import Path

PASSED = {'OK', 'EXPECTEDFAIL'}
SKIPPED = {'SKIP', 'IGNORED'}


def main(log: Path) -> bool:
    results: Counter[str] = Counter()
    for line in log.read_text().splitlines() if log.exists() else []:
        result = json.loads(line)['result']
        results['passed' if result in PASSED else
                'skipped' if result in SKIPPED else 'failed'] += 1
    line = f'{results["passed"]} passed, {results["failed"]} failed'
    if results['skipped']:
        line += f', {results["skipped"]} skipped'
    print(line)
    return results['failed'] > 0 or results['passed'] == 0


if __name__ == '__main__':
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    raise SystemExit(main(Path(sys.argv[1])))
