"""What users have reported of docker-proxy, a check for each: the relay passes.

Where the report is of the version that Debian has, the same check must fail with it, which shows
that the check can see the fault.
"""

from __future__ import annotations

import importlib
import socket
from pathlib import Path

import pytest

from portproxy import channel
from tests.integration import relay_checks, relay_connection_checks, relay_cost_checks
from tests.integration.conftest import plain_only
from tests.integration.relay_catalogue import ENTRIES
from tests.integration.relay_checks import PATIENCE_S, THERE_TOO, Check
from tests.integration.relays import BOUND_S
from tests.integration.test_portproxy_relay import Controlled

DOCKER_PROXY = Path("/usr/sbin/docker-proxy")
NAMES = {**vars(relay_checks), **vars(relay_connection_checks), **vars(relay_cost_checks)}
CHECKS = [value for name, value in NAMES.items() if name.startswith("check_")]
# Which a sanitizer's runtime changes.
OF_COST = [c for c in CHECKS if "memory" in c.__name__ or "system_calls" in c.__name__]
OF_THE_REST = [check for check in CHECKS if check not in OF_COST]


@pytest.mark.parametrize("check", OF_THE_REST, ids=lambda c: c.__name__)
def test_the_relay_passes(binary: str, check: Check) -> None:
    check(binary)


@plain_only
@pytest.mark.parametrize("check", OF_COST, ids=lambda c: c.__name__)
def test_the_relay_is_cheap(binary: str, check: Check) -> None:
    check(binary)


@pytest.mark.parametrize("check", THERE_TOO, ids=lambda c: c.__name__)
def test_docker_proxy_fails(check: Check) -> None:
    assert DOCKER_PROXY.exists(), "docker-proxy is missing; `make test` installs it"
    with pytest.raises((AssertionError, OSError, pytest.fail.Exception)):
        check(str(DOCKER_PROXY))


def test_every_report_has_a_test() -> None:
    shown = {name for names in ENTRIES.values() for name in names}
    checks = {check.__name__ for check in CHECKS}
    for name in shown - checks:
        module, _, test = name.partition("::")
        assert hasattr(importlib.import_module(f"tests.integration.{module}"), test), name
    assert {check.__name__ for check in THERE_TOO} <= checks


def test_nobody_is_let_in_before_the_rules_are_there(binary: str) -> None:
    """Rules are made between ``add``, which reserves the port, and ``start``."""
    relay = Controlled(binary)
    try:
        with socket.create_server(("127.0.0.1", 0)) as backend:
            line = f"tcp 127.0.0.1 0 127.0.0.1 {backend.getsockname()[1]}"
            added = relay.done(channel.add(line))
            with socket.create_connection(("127.0.0.1", added.other), BOUND_S) as client:
                client.sendall(b"early")
                backend.settimeout(PATIENCE_S)
                with pytest.raises(TimeoutError):
                    backend.accept()
                relay.done(channel.start(added.number))
                backend.settimeout(BOUND_S)
                accepted, _ = backend.accept()
                with accepted:
                    accepted.settimeout(BOUND_S)
                    assert accepted.recv(5) == b"early"
    finally:
        relay.end()
