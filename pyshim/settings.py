"""Numbers that an administrator may set by the environment, each read once, within its bounds.

Nobody is there to correct one that is wrong when it is read, and no container may suffer by it: the
default is taken, and the services say so in the log of the next container (``refused``).
"""

from __future__ import annotations

import math
import os

LEAST_SECONDS = 0.001
MOST_SECONDS = 86400.0  # a day: longer is as good as no bound, and a timer must be able to hold it

refused: list[str] = []  # a line for each variable that was not obeyed


def seconds(name: str, default: float) -> float:
    """The time that the variable ``name`` gives; ``default`` where it is empty or wrong."""
    return number(name, default, LEAST_SECONDS, MOST_SECONDS, "seconds")


def number(name: str, default: float, least: float, most: float, unit: str) -> float:
    """As ``seconds``, for a finite number of ``unit`` from ``least`` to ``most``."""
    text = os.environ.get(name, "")
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if least <= value <= most:  # which nan is not
        return value
    refused.append(
        f"{name} is not a number of {unit} from {least:g} to {most:g}; {default:g} is taken"
    )
    return default
