"""The matrix of section 1.4 of the spec: what users can tell the inits apart by, row by row.

For each question (``questions.py``): the answer of each persona, and of the program that it stands
for where that differs.  Those differences are the B rows of the spec, and mostly known bugs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from . import questions
from .inits import HANG_S, ORIGINALS, PATIENCE_S, QUIET, installed
from .questions import Init

COLUMNS = ("tini", "dumb-init", "dumb-init -c", "catatonit", "pyinit")
# Of an original: what one has to wait for in vain.
VAIN = {"hangs", "no prompt", "stays stopped", "held"}


@dataclass(frozen=True)
class Row:
    """The answers of our personas, and the originals' where they differ, in the order of COLUMNS.

    One answer stands for all; None for the same as ours.
    """

    question: Callable[[Init], str]
    ours: str | tuple[str, ...]
    theirs: tuple[str | None, ...] = (None, None, None, None)

    def answer(self, column: str) -> str:
        """What our persona must answer."""
        return self.ours if isinstance(self.ours, str) else self.ours[COLUMNS.index(column)]

    def original_answer(self, column: str) -> str:
        """What the program that it stands for answers."""
        return self.theirs[COLUMNS.index(column)] or self.answer(column)


IN_GROUP, IN_SESSION = "group terminal", "group session terminal"
TINI_JOBS = "passed on, dropped, dropped"
ROWS = {
    "exec failures": Row(
        questions.exec_failures, ("127 126 1", "2 2 2", "2 2 2", "1 1 1", "127 126 127")
    ),
    "group and session": Row(
        questions.place_of_the_command, (IN_GROUP, IN_SESSION, "terminal", IN_GROUP, IN_GROUP)
    ),
    "target": Row(
        questions.target, ("command", "command and other", "command", "command", "command")
    ),
    "TSTP, TTIN, TTOU": Row(
        questions.job_control,
        (
            TINI_JOBS,
            ", ".join(["both stop"] * 3),
            ", ".join(["passed on and stops"] * 3),
            "dropped, dropped, dropped",
            TINI_JOBS,
        ),
    ),
    "faults": Row(
        questions.faults,
        (
            "ends it, as PID 1 nothing",
            "forwards 4, as PID 1 forwards 4",
            "forwards 4, as PID 1 forwards 4",
            "ends it, as PID 1 nothing",
            "forwards 4, as PID 1 forwards 4",
        ),
    ),
    "real time": Row(questions.real_time, "34 50 64"),
    "signals of the caller": Row(
        questions.signals_of_the_caller,
        "kept, kept",
        (None, "lost, lost", "lost, lost", "and 0x380000, kept"),
    ),
    "stdin closed": Row(questions.without_stdin, "5", ("1", None, None, None)),
    "SIGCHLD ignored": Row(questions.with_children_ignored, "6", ("hangs", None, None, "hangs")),
    "not PID 1": Row(
        questions.not_pid_1,
        (
            "warns, does not adopt",
            "silent, does not adopt",
            "silent, does not adopt",
            "silent, adopts",
            "silent, adopts",
        ),
    ),
    "background": Row(
        questions.in_the_background,
        "leaves it",
        ("takes the terminal", None, None, "takes the terminal"),
    ),
    "Ctrl-Z in a shell": Row(questions.suspended, "prompt", ("no prompt", None, None, "no prompt")),
    "Ctrl-Z as PID 1": Row(
        questions.suspended_as_pid_1, "goes on", ("stays stopped", None, None, "stays stopped")
    ),
    "Ctrl-C": Row(questions.interrupted, "once", (None, None, "twice", None)),
    "working directory": Row(questions.folder_held, "let go", ("held", None, None, "held")),
    "files": Row(questions.files_held, "let go", ("held", "held", "held", None)),
    "pipes": Row(questions.pipes_held, "let go", ("held", "held", "held", "held")),
    "idle": Row(questions.idle, "sleeps", ("ticks", None, None, None)),
    "after the end": Row(
        questions.after_the_end, ("left alone", "told", "left alone", "left alone", "left alone")
    ),
}


def init_of(column: str, program: Callable[[str], str], patience_s: float) -> Init:
    """The init of that column; ``program`` gives its path by its name."""
    name, *options = column.split()
    return Init((program(name), *options), QUIET[name], patience_s)


@pytest.mark.parametrize("row", ROWS)
def test_row(inits: Path, row: str) -> None:
    for column in COLUMNS:
        init = init_of(column, lambda name: str(inits / name), PATIENCE_S)
        assert ROWS[row].question(init) == ROWS[row].answer(column), column


@pytest.mark.parametrize("row", ROWS)
def test_row_of_the_originals(row: str) -> None:
    for column in COLUMNS:
        if column.split()[0] in ORIGINALS:
            expected = ROWS[row].original_answer(column)
            init = init_of(column, installed, HANG_S if expected in VAIN else PATIENCE_S)
            assert ROWS[row].question(init) == expected, column
