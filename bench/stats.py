# SPDX-License-Identifier: GPL-2.0-or-later
"""
What is said of repeated measurements: median, spread, ratio and its error

A Comparison has three arms that take turns: stock, stock once more, and ours.
The second one shows how far two equal programs are apart in the same run.
"""
import random
import statistics
from typing import Dict, List, NamedTuple, Sequence

ARMS = ('stock', 'again', 'ours')


class Ratio(NamedTuple):
    """Median of ratios, with the ends of its 95 % confidence interval."""
    value: float
    low: float
    high: float

    @classmethod
    def of(cls, above: Sequence[float], below: Sequence[float]) -> 'Ratio':
        """Divide what was measured in the same round (bootstrap)."""
        ratios = [a / b for a, b in zip(above, below)]
        dice = random.Random(0)
        medians = sorted(
            statistics.median(dice.choices(ratios, k=len(ratios)))
            for _ in range(1000))
        return cls(statistics.median(ratios), medians[25], medians[974])

    def error(self) -> float:
        """How far the interval reaches."""
        return max(self.high - self.value, self.value - self.low)

    def __str__(self) -> str:
        return f'{self.value:.3f} ±{self.error():.3f}'


class Comparison:
    """What each round has measured with each arm."""

    def __init__(self) -> None:
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
        return Ratio.of(self.values['ours'], self.values['stock'])

    def noise(self) -> Ratio:
        """stock / stock"""
        return Ratio.of(self.values['again'], self.values['stock'])


def shuffled() -> List[str]:
    """The arms in an order that differs from round to round."""
    return random.sample(ARMS, len(ARMS))
