"""Runs fuzzers: ``python -m tests.fuzz.run SECONDS [TARGET ...]``, as ``make fuzz`` does.

What a fuzzer finds interesting stays in ``build/fuzz/corpus``; ``--keep`` merges what is new of
that into the corpus of the repository, as small as libFuzzer can make it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import hatch_build
from tests.fuzz.build import TARGETS, Target, build

SEED = 1
INPUT_BOUND_S = 30  # an input that takes longer is a hang
MEMORY_MB = 2048
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
    report = done.stdout + done.stderr
    runs = [line.split()[-1] for line in report.splitlines() if "number_of_executed_units" in line]
    return Result(done.returncode != 0, int(runs[0]) if runs else 0, report)


def keep(target: Target, fuzzer: Path, grown: Path) -> int:
    """Merges into the repository's corpus what covers more than that; the exit code."""
    merge = [str(fuzzer), "-merge=1", f"-max_len={target.max_bytes}"]
    done = subprocess.run(
        [*merge, str(target.corpus), str(grown)],
        env={},
        cwd=HOME,
        capture_output=True,
        check=False,
        timeout=GRACE_S,
    )
    return done.returncode


def main() -> int:
    """The command line; 1 when something was found."""
    parser = argparse.ArgumentParser(prog="tests.fuzz.run", description="run the fuzzers")
    parser.add_argument("seconds", type=int, help="of fuzzing in total")
    parser.add_argument("targets", nargs="*", help=", ".join(t.name for t in TARGETS))
    parser.add_argument("--keep", action="store_true", help="add to the repository's corpus")
    arguments = parser.parse_args()
    chosen = [t for t in TARGETS if not arguments.targets or t.name in arguments.targets]
    if not chosen:
        print(f"fuzz: no such target; there are {', '.join(t.name for t in TARGETS)}")
        return 2
    found = 0
    with tempfile.TemporaryDirectory(prefix="pyshim-fuzz-") as folder:
        for target in chosen:
            fuzzer = build(target, Path(folder))
            grown = HOME / "corpus" / target.name
            share = max(1, arguments.seconds // len(chosen))
            result = fuzz(target, fuzzer, share, grown, HOME / "found")
            print(f"{target.name}: {result.runs} inputs{', FOUND SOMETHING' * result.found}")
            if result.found:
                print(result.report[-4000:])
                found = 1
            elif arguments.keep:
                found |= keep(target, fuzzer, grown)
    return found


if __name__ == "__main__":
    try:
        sys.exit(main())
    except hatch_build.BuildError as error:
        sys.exit(f"fuzz: {error}")
