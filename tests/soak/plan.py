"""What a seed stands for: which faults strike when, and the chances of each life.

Only the order of things that run at once is not the seed's to decide.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

# Before it nothing strikes: the first lives show that all is well without faults.
CALM_S = 2.0


@dataclass(frozen=True)
class Rate:
    """How often a fault strikes, and for how long; what shares a ``target`` strikes in turn."""

    every_s: float
    lasts_s: tuple[float, float] = (0.0, 0.0)
    target: str = ""


@dataclass(frozen=True)
class Strike:
    """One fault, ``at_s`` after the start, for ``lasts_s``; ``number`` among those of its name."""

    at_s: float
    fault: str
    number: int
    lasts_s: float

    def __str__(self) -> str:
        lasts = f" for {self.lasts_s:.2f} s" if self.lasts_s else ""
        return f"{self.at_s:8.2f}  {self.fault} #{self.number}{lasts}"


def chance(seed: int, *names: object) -> random.Random:
    """The randomness of what ``names`` name: the same for the same seed, whatever else there is."""
    return random.Random(" ".join(map(str, (seed, *names))))


def schedule(seed: int, seconds: float, rates: Mapping[str, Rate]) -> list[Strike]:
    """The strikes of a soak of so many ``seconds``, in order; all are over by its end."""
    strikes: list[Strike] = []
    for name, rate in rates.items():
        dice = chance(seed, "fault", name)
        at_s = CALM_S + dice.uniform(0, rate.every_s)
        number = 0
        while True:
            lasts_s = dice.uniform(*rate.lasts_s)
            if at_s + lasts_s > seconds:
                break
            number += 1
            strikes.append(Strike(at_s, name, number, lasts_s))
            at_s += lasts_s + dice.uniform(0.2, 1.8) * rate.every_s
    strikes.sort(key=lambda strike: strike.at_s)
    return _in_turn(strikes, rates)


def _in_turn(strikes: list[Strike], rates: Mapping[str, Rate]) -> list[Strike]:
    """Without those that would begin while another of the same target lasts."""
    over_s: dict[str, float] = {}
    kept = []
    for strike in strikes:
        target = rates[strike.fault].target or strike.fault
        if strike.at_s >= over_s.get(target, 0.0):
            kept.append(strike)
            over_s[target] = strike.at_s + strike.lasts_s
    return kept
