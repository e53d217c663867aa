"""Where the two shims differ on purpose; ``docs/compatibility.md`` gives the reasons."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from tests.compat.scenario import Difference, Wording

NEVER = r"(?!)"
RUNC_FAILED = "runc did not terminate successfully: exit status 1: "
NOT_JSON = r"(unexpected end of JSON input|json: .*|invalid character .*)"

DIFFERENCES: tuple[Difference, ...] = (
    Difference("version-text", "version-flag", ("labels",)),
    Difference("no-config", "start-without-a-bundle", ("refused",)),
    Difference("says-what-to-do", "start-without-a-namespace", ("text",)),
    Difference("no-socket-left", "shim-killed-while-containerd-is-away", ("left",)),
    Difference("no-socket-left", "exec-states", ("left",), ("1.7", "2")),
    Difference("no-socket-left", "pod-in-one-shim", ("left",), ("2",)),
    Difference("no-socket-left", "group-in-one-shim", ("left",), ("2",)),
    Difference("no-crash", "failed-exec-is-started-again", ("again", "delete", "left")),
    Difference(
        "exit-code-kept", "exit-while-containerd-is-away", ("status", "delete"), ("1.7", "2")
    ),
    Difference(
        "exit-code-kept", "restart-with-a-stopped-container", ("status", "delete"), ("1.7", "2")
    ),
    *(
        Difference("last-event", name, ("topics", "events"), always=False)
        for name in (
            "events-of-a-task",
            "events-of-a-short-run",
            "events-of-a-failed-create",
            "events-of-a-failed-exec",
            "events-of-an-oom",
        )
    ),
    Difference("fast-output", "run-one-after-another", ("results",), always=False),
    Difference("late-exec", "execs-end-with-the-init", ("late",), ("1.7", "2")),
    Difference("address-file", "start-prints", ("address file",), ("2",)),
    Difference("host-pid-namespace", "host-pid-namespace", ("alive",), ("1.7", "2"), always=False),
    Difference("fast-output", "run-log-file", ("out",), always=False),
    Difference("fast-output", "log-to-a-file", ("words",), always=False),
    Difference("fast-output", "log-is-appended", ("words",), always=False),
    Difference("fast-output", "plain-path-that-is-no-fifo", ("words",), always=False),
    Difference("no-socket-left", "delete-action-in-a-pod", ("left",), ("2",)),
    Difference("no-crash", "update-with-nothing", ("update", "state", "left")),
    Difference("delete-forgets", "delete-action-in-a-pod", ("first",)),
    Difference("delete-again", "exec-states", ("delete again",)),
    Difference("delete-again", "calls-when-stopped", ("deleted",)),
    Difference("delete-again", "calls-when-deleted", ("Delete",)),
    Difference("exec-pid-in-bundle", "bundle-files", ("running",)),
    Difference("stats-of-the-ended", "calls-when-stopped", ("Stats",)),
    Difference("wait-deadline", "wait-with-a-deadline", ("code",)),
    Difference("stdout-alone", "stdout-alone", ("create", "status", "out")),
    Difference(
        "terminal-to-a-file", "terminal-logs-to-a-file", ("create", "status", "delete", "out")
    ),
)

WORDINGS: tuple[Wording, ...] = (
    Wording(
        "names-what-is-missing",
        r"NOT_FOUND: container '[^']*': container not created",
        r"NOT_FOUND: container not created: not found",
    ),
    Wording(
        "names-what-is-missing",
        r"(NOT_FOUND: )?process '[^']*' of '[^']*' does not exist(: not found)?",
        r"((NOT_FOUND|UNKNOWN): )?process does not exist [^:]*: not found",
    ),
    Wording(
        "plain-words",
        r"process already finished(?!: not found)",
        r"process already finished: not found",
    ),
    Wording(
        "plain-words",
        r"process not created(?!: failed)",
        r"process not created: failed precondition",
    ),
    Wording(
        "plain-words",
        r"signal \d+: Invalid argument",
        rf"unknown error after kill: {RUNC_FAILED}unable to signal init: invalid argument",
    ),
    Wording("plain-words", NEVER, rf"{RUNC_FAILED}(?=unable to set)", ""),
    Wording("plain-words", NEVER, "failed to create init process I/O: ", ""),
    Wording(
        "plain-words",
        r"\S+: mount bind /no/such/source: No such file or directory",
        r"failed to mount rootfs component.*: no such file or directory",
    ),
    Wording(
        "plain-words",
        r"cannot run the OCI runtime \S+: No such file or directory; is it on PATH, .*\?",
        r"OCI runtime create failed: unable to retrieve .*: executable file not found in \$PATH",
    ),
    Wording(
        "plain-words",
        r"cannot start the logging binary (\S+): No such file or directory",
        r"(1 error occurred:\s+\* )?failed to start binary process: .*no such file or directory",
    ),
    Wording(
        "plain-words",
        r"/no/such/fifo: No such file or directory",
        r"failed to start io pipe copy: .*: open /no/such/fifo: no such file or directory",
    ),
    Wording(
        "already-exists",
        r"ALREADY_EXISTS: container '[^']*' already exists",
        r"UNKNOWN: OCI runtime create failed: .*container with given ID already exists",
    ),
    Wording(
        "invalid-argument",
        r"INVALID_ARGUMENT: exec \w+: the process spec is not JSON: .*",
        rf"UNKNOWN: {NOT_JSON}",
    ),
    Wording(
        "invalid-argument",
        r"INVALID_ARGUMENT: \S+/config.json: .*",
        r"(NOT_FOUND: open \S+/options.json: .*|UNKNOWN: OCI runtime create failed: runc create "
        r"failed: (JSON specification file config.json not found|unexpected EOF))",
    ),
    Wording(
        "plain-words", r"UNKNOWN: (unexpected )?EOF|UNKNOWN: json: .*", rf"UNKNOWN: {NOT_JSON}"
    ),
)


def fields(name: str, series: str) -> dict[str, Difference]:
    """The fields of a scenario's observation that may differ on a generation."""
    return {
        field: difference
        for difference in DIFFERENCES
        if difference.scenario == name and series in difference.series
        for field in difference.fields
    }


def wordings(ours: Any, theirs: Any) -> set[str] | None:
    """The keys of the wordings in which two values differ; None when they differ otherwise."""
    used: set[str] = set()
    if _reworded(ours, 0, used) != _reworded(theirs, 1, used):
        return None
    return used


def _reworded(value: Any, side: int, used: set[str]) -> Any:
    """``value`` with the wordings of a side replaced by what is the same for both."""
    if isinstance(value, str):
        for wording in WORDINGS:
            pattern = (wording.ours, wording.theirs)[side]
            value, times = re.subn(pattern, wording.same, value)
            used |= {wording.key} if times else set()
        return value
    if isinstance(value, dict):
        return {key: _reworded(inner, side, used) for key, inner in value.items()}
    if isinstance(value, list):
        return [_reworded(inner, side, used) for inner in value]
    return value


def keys() -> set[str]:
    """All keys, which the document has to have."""
    both: Iterable[Difference | Wording] = (*DIFFERENCES, *WORDINGS)
    return {difference.key for difference in both}
