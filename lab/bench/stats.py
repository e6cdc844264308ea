# SPDX-License-Identifier: GPL-2.0-or-later
"""
Statistics of repeated measurements: ratios and their confidence intervals

A Comparison has three arms, which are measured in turn: stock, stock again,
and ours.  The second arm shows how much equal programs differ in the same run.
"""
import random
import statistics
from typing import Callable, Dict, List, NamedTuple, Sequence

ARMS = ('stock', 'again', 'ours')
Statistic = Callable[[Sequence[float]], float]


def lower_quartile(values: Sequence[float]) -> float:
    """The value below which a quarter of the values are."""
    return sorted(values)[len(values) // 4]


class Ratio(NamedTuple):
    """A ratio, with the ends of its 95 % confidence interval."""
    value: float
    low: float
    high: float

    @classmethod
    def of(cls, above: Sequence[float], below: Sequence[float],
           typical: Statistic) -> 'Ratio':
        """Divide the typical values; the interval is bootstrapped."""
        rounds = range(len(above))
        dice = random.Random(0)
        ratios = []
        for _ in range(1000):
            drawn = dice.choices(rounds, k=len(rounds))
            ratios.append(typical([above[i] for i in drawn])
                          / typical([below[i] for i in drawn]))
        ratios.sort()
        return cls(typical(above) / typical(below), ratios[25], ratios[974])

    def error(self) -> float:
        """The distance of the farther end of the interval."""
        return max(self.high - self.value, self.value - self.low)

    def __str__(self) -> str:
        return f'{self.value:.3f} ±{self.error():.3f}'


class Comparison:
    """
    The measurements of each round with each arm.

    @param typical: the statistic of which ratios are made
    """

    def __init__(self, typical: Statistic = statistics.median) -> None:
        self._typical = typical
        self.values: Dict[str, List[float]] = {arm: [] for arm in ARMS}

    def add(self, values: Dict[str, float]) -> None:
        """Add a round."""
        for arm, value in values.items():
            self.values[arm].append(value)

    def rounds(self) -> int:
        """How many rounds there were."""
        return len(self.values['stock'])

    def ratio(self) -> Ratio:
        """ours / stock"""
        return Ratio.of(self.values['ours'], self.values['stock'],
                        self._typical)

    def noise(self) -> Ratio:
        """stock / stock"""
        return Ratio.of(self.values['again'], self.values['stock'],
                        self._typical)


def shuffled() -> List[str]:
    """The arms in random order."""
    return random.sample(ARMS, len(ARMS))
