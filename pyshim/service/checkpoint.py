"""Checkpoint: the runtime, with criu's help, writes a container's processes to a folder.

Their way back is a Create that names the folder, and its Start (``create``, ``start``).
"""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import TYPE_CHECKING

from pyshim.api import state_pb2, task_pb2
from pyshim.runtime import command, options
from pyshim.service import commands, requests, states
from pyshim.ttrpc.status import Code, StatusError

if TYPE_CHECKING:
    from pyshim.service.task import Task

# What a big container's memory takes to be written; the others of the runtime's commands are short.
CHECKPOINT_TIMEOUT_S = 600
DUMP_LOG = "criu-dump.log"  # containerd's Go shim leaves criu's log in the bundle by this name


async def checkpoint(task: Task, call: state_pb2.Call) -> None:
    """The call Checkpoint.  With the option ``exit`` the container ends, else it goes on.

    A failure has the text of the Go shim, and says where criu's log is.
    """
    request = requests.decode(task_pb2.CheckpointTaskRequest, call)
    container = task.container(request.id)
    chosen = options.decode_checkpoint(request.options)
    images = request.path or chosen.image_path
    if not images.startswith("/"):
        text = f"checkpoint path {images!r}: give the absolute path of a folder"
        raise StatusError(Code.INVALID_ARGUMENT, text)
    if not call.token:
        states.check(container.init, "checkpoint")
    work = chosen.work_path or os.path.join(container.bundle, command.CRIU_WORK_FOLDER)
    argv = command.checkpoint(container, images, work, chosen)
    try:
        status, printed = await commands.run(
            task.store, call, argv, container.bundle, timeout_s=CHECKPOINT_TIMEOUT_S
        )
        if status:
            text = command.failure(container, "checkpoint", status, call.log_size, printed)
            raise StatusError(Code.UNKNOWN, f"{text} path= {_keep_log(container, work)}")
    finally:
        if not chosen.work_path:
            shutil.rmtree(work, ignore_errors=True)
    task.server.answer(call, b"")


def _keep_log(container: state_pb2.Container, work: str) -> str:
    """Copies criu's log into the bundle; where it is then, if criu wrote one."""
    kept = os.path.join(container.bundle, DUMP_LOG)
    with contextlib.suppress(OSError):
        shutil.copyfile(os.path.join(work, "dump.log"), kept)
    return kept
