"""Installations of pyshim for a soak: the one under test, another that works, one that does not."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from pyshim.api import upgrade_pb2
from pyshim.cli import monitors
from pyshim.cli.monitors import Monitor
from pyshim.service.upgrade import CONTROL
from pyshim.ttrpc.client import Client
from pyshim.ttrpc.status import StatusError
from pyshim.zygote import address
from tests.integration.containerd import eventually, processes_of, scripts
from tests.integration.installations import Installation, install, with_broken_service

OTHER, BROKEN = "2" * 16, "b" * 16
# A service that a storm kills again and again takes as long as with any other request.
ANSWER_BOUND_S = 120
MONITOR_BOUND_S = 60
JOBS = 8
OUTCOMES = {"upgraded", "current", "ended", "failed"}
Record = dict[str, Any]


class Versions:
    """What the monitors below ``root`` may become; commands have the environment ``env``."""

    def __init__(self, root: Path, env: dict[str, str]) -> None:
        self._root, self._env = root, env
        self.ours = Installation(Path(sys.prefix), address.build_id())
        self.other = install(root / "other", OTHER, scripts())
        self._broken = install(root / "broken", BROKEN, scripts())
        with_broken_service(self._broken.home)

    def take_over(self, installation: Installation) -> list[Record]:
        """`pyshim upgrade` for everything that is soaked; the records, which it checks."""
        command = ("--json", "--jobs", str(JOBS), "--timeout", str(MONITOR_BOUND_S))
        done = installation.upgrade(*command, f"{self._root}/*", env=self._env)
        assert done.stderr == "", done.stderr
        records: list[Record] = json.loads(done.stdout)
        assert {record["outcome"] for record in records} <= OUTCOMES, records
        failed = [record for record in records if record["outcome"] == "failed"]
        assert done.returncode == bool(failed), done
        assert all(record["reason"] for record in failed), failed
        return records

    def there_and_back(self) -> Counter[str]:
        """Where no fault is, every monitor becomes another version, and ours again; how many."""
        outcomes: Counter[str] = Counter()
        for installation in (self.other, self.ours):
            records = self.take_over(installation)
            assert records, "there is no monitor to be upgraded"
            assert all(record["outcome"] != "failed" for record in records), records
            outcomes.update(record["outcome"] for record in records)
        eventually(self._only_ours, "the zygotes of other versions have ended")
        return outcomes

    def _only_ours(self) -> bool:
        """Tells the zygotes of other versions to end, which else do when they have been idle."""
        homes = tuple(f"{i.bin}/python" for i in (self.other, self._broken))
        found = [pid for pid, line in processes_of(self._root).items() if line.startswith(homes)]
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        return not found

    def monitors(self) -> list[Monitor]:
        """What can be upgraded here."""
        return [m for m in monitors.running() if m.is_one_of([f"{self._root}/*"])]

    def fail_to_take_over(self, monitor: Monitor, patience_ms: int) -> str:
        """Asks ``monitor`` to become the broken version; what is said to that.

        Raises AssertionError when it has become that, or has no answer.
        """
        broken = self._broken
        python = str(broken.bin / "python3")
        zygote = Path(address.socket_path(python, broken.build)).name
        request = upgrade_pb2.UpgradeRequest(
            monitor=str(broken.bin / monitors.PROGRAM),
            python=python,
            zygote=str(Path(monitor.zygote).with_name(zygote)),
            patience_ms=patience_ms,
        )
        reply = upgrade_pb2.UpgradeResponse
        try:
            with Client(monitor.address, ANSWER_BOUND_S) as client:
                answer = client.call(CONTROL, "Upgrade", request, reply, ANSWER_BOUND_S)
        except StatusError as error:
            said = error.message
        except (FileNotFoundError, ConnectionError):
            eventually(lambda: not self._is_there(monitor), "who hangs up has ended")
            return "it has ended meanwhile"
        else:
            raise AssertionError(f"a version that does not work has answered: {answer}")
        eventually(lambda: not self._is_broken(monitor), "the monitor has gone back")
        return said

    def _is_there(self, monitor: Monitor) -> bool:
        return monitor.address in {found.address for found in self.monitors()}

    def _is_broken(self, monitor: Monitor) -> bool:
        try:
            return os.readlink(f"/proc/{monitor.pid}/exe").startswith(str(self._broken.home))
        except OSError:
            return False
