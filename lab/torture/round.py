# SPDX-License-Identifier: GPL-2.0-or-later
"""
The base of both kinds of rounds
"""
import traceback
from pathlib import Path
from typing import List

from lab.machines.evidence import keep_cores
from lab.machines.scope import Scope

from .choices import Plan
from .tally import Tally


class Round:
    """
    A round; subclasses say in carry_out() what happens in it.

    @param plan: the random choices of this round
    @param tally: counts what happens
    @param until: begin no other transfer after this time.monotonic()
    @param folder: for evidence if the round fails
    """
    def __init__(self, plan: Plan, tally: Tally, until: float,
                 folder: Path) -> None:
        self.scope = Scope()
        self.plan = plan
        self.tally = tally
        self.until = until
        self.folder = folder

    def run(self) -> List[str]:
        """Carry the round out, and end its scope; returns all errors."""
        problems = []
        for step in self._carry_out, self.scope.close:
            try:
                step()
            except Exception:           # pylint: disable=broad-except
                problems.append(traceback.format_exc())
        return problems

    def _carry_out(self) -> None:
        try:
            self.carry_out()
        except Exception:
            self.keep_evidence()
            raise
        except KeyboardInterrupt:
            self.scope.close()
            raise

    def carry_out(self) -> None:
        """Raise an exception if anything is wrong."""
        raise NotImplementedError

    def keep_evidence(self) -> None:
        """Write the state of all processes to the folder."""
        keep_cores(self.folder)
        (self.folder / 'state').write_text(self.scope.evidence(), 'utf-8')
