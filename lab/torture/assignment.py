# SPDX-License-Identifier: GPL-2.0-or-later
"""
What a round is given, whichever kind it is of
"""
from pathlib import Path

from lab.machines.evidence import keep_cores
from lab.tests.testcase import TestCase

from .choices import Plan
from .tally import Tally


class Assignment(TestCase):
    """
    A round.

    @param plan: what is to happen
    @param tally: takes note of it
    @param until: begin nothing more after this time.monotonic()
    @param folder: for what is to be looked at if something is wrong
    """
    def __init__(self, plan: Plan, tally: Tally, until: float,
                 folder: Path) -> None:
        super().__init__('carry_out')
        self.plan = plan
        self.tally = tally
        self.until = until
        self.folder = folder

    def keep_evidence(self) -> None:
        """Write down all that is known."""
        keep_cores(self.folder)
        (self.folder / 'state').write_text(self.evidence(), 'utf-8')
