# SPDX-License-Identifier: GPL-2.0-or-later
"""
What all tests share: a scope, and the Test Anything Protocol (TAP)
"""
import sys
import unittest
from typing import Any, Optional, Union

import pycotap

from lab.machines.scope import Scope, end_on_signals


class TestCase(unittest.TestCase):
    """A test whose processes, sockets and files end with it."""

    def setUp(self) -> None:
        self.scope = Scope()
        self.addCleanup(self.scope.close)

    def run(self, result: Optional[unittest.TestResult] = None
            ) -> Optional[unittest.TestResult]:
        try:
            return super().run(result)
        except KeyboardInterrupt:
            self.doCleanups()       # unittest does not call it then
            raise

    def doCleanups(self) -> None:
        outcome: Any = getattr(self, '_outcome')
        if outcome and not outcome.success:
            print(self.scope.evidence(), file=sys.stderr)
        super().doCleanups()


class Result(pycotap.TAPTestResult):    # type: ignore[misc]
    """TAP; a test is "not ok" if one of its subtests has failed."""

    def __init__(self, count: int) -> None:
        errors = pycotap.LogMode.LogToError
        super().__init__(sys.stdout, sys.stderr, errors, errors)
        self._subtests_failed = False
        # At the start, so that a run that ends too early is noticed.
        self.print_raw(f'1..{count}\n')

    def startTest(self, test: unittest.TestCase) -> None:
        self._subtests_failed = False
        super().startTest(test)

    def addSubTest(self, test: unittest.TestCase,
                   subtest: unittest.TestCase, err: Any) -> None:
        super().addSubTest(test, subtest, err)
        if err:
            self._subtests_failed = True
            kind = self.failures if issubclass(err[0], test.failureException) \
                else self.errors
            self.message.write(f'{subtest}\n{kind[-1][1]}\n')

    def ok(self, test: unittest.TestCase,
           directive: Optional[str] = None) -> None:
        """Report a test that succeeded, but for its subtests."""
        if not self._subtests_failed:
            super().ok(test, directive)

    def not_ok(self, test: unittest.TestCase) -> None:
        """Report a test that failed."""
        self._subtests_failed = False
        super().not_ok(test)

    def stopTest(self, test: unittest.TestCase) -> None:
        if self._subtests_failed:       # unittest reports nothing else
            self.not_ok(test)
        super().stopTest(test)

    def printErrors(self) -> None:
        self._reset_streams()


class Runner:
    """Runs tests with TAP on stdout."""

    @staticmethod
    def run(test: Union[unittest.TestSuite, unittest.TestCase]
            ) -> unittest.TestResult:
        """Run all tests."""
        result = Result(test.countTestCases())
        test(result)
        result.printErrors()
        return result


def main() -> None:
    """Run the tests of the main module with TAP on stdout."""
    end_on_signals()
    unittest.main(testRunner=Runner)
