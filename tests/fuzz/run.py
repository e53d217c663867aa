"""Runs fuzzers: ``python -m tests.fuzz.run SECONDS [TARGET ...]``, as ``make fuzz`` does.

What a fuzzer finds interesting stays in ``build/fuzz/corpus``; ``--keep`` merges what is new of
that into the corpus of the repository, as small as libFuzzer can make it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import hatch_build
from tests.arguments import Parser, between, interruptible
from tests.fuzz.build import TARGETS, Target, build

SEED = 1
INPUT_BOUND_S = 30  # an input that takes longer is a hang
MEMORY_MB = 2048
MOST_SECONDS = 7 * 86400
GRACE_S = 120  # for what is not fuzzing: reading the corpus, writing a report
HOME = hatch_build.ROOT / "build" / "fuzz"


@dataclass(frozen=True)
class Result:
    """How a fuzzer has ended."""

    found: bool
    runs: int
    report: str


def fuzz(target: Target, fuzzer: Path, seconds: int, grown: Path, artifacts: Path) -> Result:
    """Runs ``fuzzer`` for ``seconds`` from the repository's corpus and what is in ``grown``.

    New inputs go to ``grown``, and one that fails to ``artifacts``.
    """
    for folder in (grown, artifacts):
        folder.mkdir(parents=True, exist_ok=True)
    command = [
        str(fuzzer),
        f"-seed={SEED}",
        f"-max_total_time={seconds}",
        f"-max_len={target.max_bytes}",
        f"-timeout={INPUT_BOUND_S}",
        f"-rss_limit_mb={MEMORY_MB}",
        f"-artifact_prefix={artifacts}/{target.name}-",
        "-print_final_stats=1",
        "-verbosity=0",
        *(str(folder) for folder in (grown, target.corpus) if folder.is_dir()),
    ]
    try:
        done = subprocess.run(
            command,
            env={},
            cwd=artifacts,
            capture_output=True,
            check=False,
            text=True,
            errors="replace",
            timeout=seconds + GRACE_S,
        )
    except subprocess.TimeoutExpired:
        return Result(True, 0, f"it did not end within {seconds + GRACE_S} s, and was killed")
    report = done.stdout + done.stderr
    runs = [line.split()[-1] for line in report.splitlines() if "number_of_executed_units" in line]
    return Result(done.returncode != 0, int(runs[0]) if runs else 0, report)


def keep(target: Target, fuzzer: Path, grown: Path) -> str:
    """Merges into the repository's corpus what covers more than that; what is wrong, or ""."""
    merge = [str(fuzzer), "-merge=1", f"-max_len={target.max_bytes}"]
    try:
        done = subprocess.run(
            [*merge, str(target.corpus), str(grown)],
            env={},
            cwd=grown,
            capture_output=True,
            check=False,
            timeout=GRACE_S,
        )
    except subprocess.TimeoutExpired:
        return f"was not merged within {GRACE_S} s"
    return f"was not merged: exit code {done.returncode}" if done.returncode else ""


def main() -> int:
    """The command line; 1 when something was found."""
    names = ", ".join(target.name for target in TARGETS)
    parser = Parser(prog="tests.fuzz.run", description="run the fuzzers")
    of_all = "of fuzzing in total; each target has one at least"
    parser.add_argument("seconds", type=between(1, MOST_SECONDS), help=of_all)
    parser.add_argument("targets", nargs="*", help=f"{names}; without one all")
    parser.add_argument("--keep", action="store_true", help="add to the repository's corpus")
    arguments = parser.parse_args()
    for name in arguments.targets:
        if name not in {target.name for target in TARGETS}:
            parser.error(f"there is no target {name!r} but {names}")
    chosen = [t for t in TARGETS if not arguments.targets or t.name in arguments.targets]
    interruptible()
    found = 0
    with tempfile.TemporaryDirectory(prefix="pyshim-fuzz-") as folder:
        for target in chosen:
            fuzzer = build(target, Path(folder))
            grown = HOME / "corpus" / target.name
            share = max(1, int(arguments.seconds // len(chosen)))
            result = fuzz(target, fuzzer, share, grown, HOME / "found")
            print(f"{target.name}: {result.runs} inputs{', FOUND SOMETHING' * result.found}")
            if result.found:
                print(result.report[-4000:])
                found = 1
            elif arguments.keep and (wrong := keep(target, fuzzer, grown)):
                print(f"{target.name}: the corpus {wrong}")
                found = 1
    return found


if __name__ == "__main__":
    try:
        sys.exit(main())
    except hatch_build.BuildError as error:
        sys.exit(f"fuzz: {error}")
    except KeyboardInterrupt:
        print("fuzz: interrupted; what was built has been removed", file=sys.stderr)
        sys.exit(130)
