# SPDX-License-Identifier: GPL-2.0-or-later
"""Count the results in Meson's testlog.json.

usage: python3 -m tooling.count_results TESTLOG

A program with many cases counts once, since one that crashes or hangs has no
cases to count.  What failed in it, and with which exceptions, is said first:
of a long log, its end may be all that is left.  Exit status 1 when a test
failed or none ran.
"""
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Dict

PASSED = {'OK', 'EXPECTEDFAIL'}
SKIPPED = {'SKIP', 'IGNORED'}
# Of TAP and of Python.
REASON = re.compile(r'^(?:not ok|Bail out!|[\w.]+(?:Error|Failed):) .*', re.M)


def kind(result: str) -> str:
    if result in PASSED:
        return 'passed'
    return 'skipped' if result in SKIPPED else 'failed'


def show_failure(test: Dict[str, str]) -> None:
    print(f'\n{test["name"]}: {test["result"]}')
    output = test.get('stdout', '') + '\n' + test.get('stderr', '')
    for reason in REASON.findall(output)[:20]:
        print(f'  {reason[:300]}')
    print(f'  to run it alone: ./run test {test["name"].split(" / ")[-1]}')


def main(log: Path) -> bool:
    results: Counter[str] = Counter()
    for line in log.read_text().splitlines() if log.exists() else []:
        test = json.loads(line)
        results[kind(test['result'])] += 1
        if kind(test['result']) == 'failed':
            show_failure(test)
    line = f'{results["passed"]} passed, {results["failed"]} failed'
    if results['skipped']:
        line += f', {results["skipped"]} skipped'
    print(line)
    return results['failed'] > 0 or results['passed'] == 0


if __name__ == '__main__':
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    raise SystemExit(main(Path(sys.argv[1])))
