"""Removes the control groups of a container that its runtime was killed in the middle of making.

A runtime makes the groups before it notes the container, so its own `delete` then knows of none.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from pathlib import Path

from pyshim.cgroups import locate

# What a killed runtime has begun ends by itself, since the pipe to it has ended; not at once.
BUSY_TIMEOUT_S = 0.5
BUSY_POLL_S = 0.01


def remove(bundle: Path) -> None:
    """Removes the groups that ``bundle``'s config.json names, as far as nothing is in them."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    for folder in groups(bundle):
        while _is_busy(folder) and time.monotonic() < deadline:
            time.sleep(BUSY_POLL_S)


def groups(bundle: Path) -> list[str]:
    """Where the groups of ``bundle`` lie; none where systemd makes or the runtime chooses them."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        config = json.loads((bundle / "config.json").read_bytes())
        path = os.path.normpath(config["linux"]["cgroupsPath"])
        if path.startswith("/") and path.strip("/") and "\0" not in path:
            text = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
            points = {point for _, point in locate.mount_points(text).values()}
            return sorted(f"{point}/{path.lstrip('/')}" for point in points)
    return []


def _is_busy(folder: str) -> bool:
    """Removes a group; whether something was in it."""
    try:
        os.rmdir(folder)
    except OSError as error:
        return error.errno == errno.EBUSY
    return False
