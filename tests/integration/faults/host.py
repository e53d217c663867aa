"""A host whose services die at chosen points, and a client that asks again after UNAVAILABLE."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TypeVar

from google.protobuf.message import Message

from pyshim.api import task_pb2
from pyshim.ttrpc.status import Code, StatusError
from pyshim.zygote import address
from tests.integration.containerd import BOUND_S, eventually, scripts
from tests.integration.shim import Container, Edit, Host, unedited

Reply = TypeVar("Reply", bound=Message)
PROGRAM = Path(__file__).with_name("program.py")


class FaultyHost(Host):
    """A ``Host`` whose zygote was started with points in what it forks."""

    def __init__(self, home: Path, rootfs: Path) -> None:
        super().__init__(home, rootfs)
        self.faults = home / "f"
        self.faults.mkdir()
        # What a spare rehearses is nobody's call.
        self.env["PYSHIM_ZYGOTE_SPARES"] = "0"
        self.refused: list[str] = []

    def start_zygote(self) -> None:
        """Starts it where launchers and monitors of this host look for one."""
        flags = ["-I", "-X", "utf8"]  # as the launcher has it: what is installed is what is tested
        python = str(scripts() / "python3")
        command = [python, *flags, str(PROGRAM), str(self.faults), "pyshim.zygote"]
        subprocess.run(command, env={**os.environ, **self.env}, check=True, timeout=BOUND_S)
        eventually(self._answers, "the zygote answers")

    def have_zygote(self) -> None:
        """Starts another when a test that has failed took it along."""
        if not self._answers():
            self.start_zygote()

    def _answers(self) -> bool:
        return any(address.answers(str(path)) for path in self.runtime.glob("zygote-*.sock"))

    def container(
        self, *command: str, pod: str = "", edit: Edit = unedited, flags: tuple[str, ...] = ()
    ) -> Patient:
        """As ``Host.container``."""
        made = super().container(*command, pod=pod, edit=edit, flags=flags)
        made.client.close()
        return Patient(self, made.name, made.address)

    # -- faults ----------------------------------------------------------------------------------

    def arm(self, *moments: str) -> None:
        """Services will die at ``moments`` (a point and ``before`` or ``after``), one by one."""
        draft = self.faults / "draft"
        draft.write_text("\n".join(moments))
        draft.replace(self.faults / "armed")

    def disarm(self) -> list[str]:
        """The moments at which no service has died; no more will."""
        armed = self.faults / "armed"
        left = armed.read_text().split("\n") if armed.exists() else []
        armed.unlink(missing_ok=True)
        return left

    def raise_at(self, moment: str, error: str) -> None:
        """What comes to ``moment`` next fails with the exception ``module:name``, as by a bug."""
        (self.faults / "raising").write_text(f"{moment}\n{error}")

    def seen(self) -> list[str]:
        """The moments that services have come to since the last call, in order."""
        path = self.faults / "seen"
        found = path.read_text().splitlines()
        path.write_text("")
        return found


class Patient(Container):
    """A client that asks again after UNAVAILABLE, once: nothing was done then."""

    host: FaultyHost

    def call(
        self, method: str, request: Message, reply: type[Reply], timeout_s: float = BOUND_S
    ) -> Reply:
        """As ``Container.call``."""
        try:
            return super().call(method, request, reply, timeout_s)
        except StatusError as error:
            if error.code != Code.UNAVAILABLE:
                raise
            self.host.refused.append(f"{method}: {error.message}")
        return super().call(method, request, reply, timeout_s)

    def agrees(self, status: int, exec_id: str = "") -> None:
        """What State says is ``status``, and is so."""
        state = self.state(exec_id)
        assert state.status == status
        alive = Path(f"/proc/{state.pid}").exists() and state.pid > 0
        assert alive == (status != task_pb2.STOPPED)
