"""Regenerates the ``*_pb2`` modules: ``python -m pyshim.api.generate [OUTPUT FOLDER]``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def generate(output: Path) -> None:
    """Writes the modules of all .proto files below ``output``; raises CalledProcessError."""
    sources = sorted(str(p.relative_to(ROOT)) for p in Path(__file__).parent.glob("*.proto"))
    flags = ["-I", ".", f"--python_out={output}", f"--pyi_out={output}"]
    command = [sys.executable, "-m", "grpc_tools.protoc", *flags, *sources]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120)


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
