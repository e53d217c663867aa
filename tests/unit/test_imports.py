"""What the zygote imports, and what it keeps out."""

from __future__ import annotations

import subprocess
import sys

BOUND_S = 60
# Each says nothing when all is well.
WITHOUT_TLS = """
from pyshim.zygote import imports
imports.import_all()
import sys
libraries = open("/proc/self/maps").read()
assert "libssl" not in libraries and "libcrypto" not in libraries
assert "ssl" not in sys.modules
for name in imports.WARM_MODULES:
    assert name in sys.modules, name
import asyncio
assert asyncio.run(asyncio.sleep(0, "slept")) == "slept"
import ssl
assert ssl.SSLContext is not None
"""
WITH_TLS_ALREADY = """
import ssl, sys
from pyshim.zygote import imports
imports.import_all()
assert sys.modules["ssl"] is ssl
"""


def said(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=BOUND_S,
    )
    return done.stdout + done.stderr


def test_no_tls_is_loaded_and_all_the_rest_is() -> None:
    assert said(WITHOUT_TLS) == ""


def test_tls_that_is_there_stays() -> None:
    assert said(WITH_TLS_ALREADY) == ""
