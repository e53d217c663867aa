"""What users have reported of docker-proxy, a check for each: the relay passes.

Where the report is of the version that Debian has, the same check must fail with it, which shows
that the check can see the fault.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration import relay_checks, relay_connection_checks
from tests.integration.conftest import plain_only
from tests.integration.relay_checks import THERE_TOO, Check

DOCKER_PROXY = Path("/usr/sbin/docker-proxy")
NAMES = {**vars(relay_checks), **vars(relay_connection_checks)}
CHECKS = [value for name, value in NAMES.items() if name.startswith("check_")]
OF_THE_REST = [check for check in CHECKS if "memory" not in check.__name__]
OF_MEMORY = [check for check in CHECKS if "memory" in check.__name__]


@pytest.mark.parametrize("check", OF_THE_REST, ids=lambda c: c.__name__)
def test_the_relay_passes(binary: str, check: Check) -> None:
    check(binary)


@plain_only
@pytest.mark.parametrize("check", OF_MEMORY, ids=lambda c: c.__name__)
def test_the_relay_is_small(binary: str, check: Check) -> None:
    check(binary)


@pytest.mark.parametrize("check", THERE_TOO, ids=lambda c: c.__name__)
def test_docker_proxy_fails(check: Check) -> None:
    assert DOCKER_PROXY.exists(), "docker-proxy is missing; `make test` installs it"
    with pytest.raises((AssertionError, OSError, pytest.fail.Exception)):
        check(str(DOCKER_PROXY))
