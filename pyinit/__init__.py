"""The init that runs as PID 1 in a container; here, where its program lies.

The program itself is ``init.py``, which Cython and a C compiler have made a static binary of.  This
package only finds it, for those who copy it into images, and runs it (``python -m pyinit``).
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path

__all__ = ["path"]

PROGRAM = "pyinit"


def path() -> Path:
    """Where the binary is: beside the scripts of this installation, or on PATH.

    Raises:
        FileNotFoundError: if it is in neither; the installation is broken or was only copied.
    """
    folders = [sysconfig.get_path("scripts"), str(Path(sys.executable).parent)]
    if os.name == "posix":
        folders.append(sysconfig.get_path("scripts", f"{os.name}_user"))
    for folder in [*folders, *os.get_exec_path()]:
        found = shutil.which(PROGRAM, path=folder)
        if found:
            return Path(found)
    raise FileNotFoundError(f"{PROGRAM} is in none of {', '.join(folders)}; install pyshim again")
