"""What all tests share: the table of the compatibility tests, also over several processes."""

from __future__ import annotations

import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.compat.table import KEY, Table

OUTPUT = "compat"
# So many tests may need a second attempt before all of them count as failed: real daemons on a
# busy machine now and then miss a bound of a test; a fault of ours comes again, or often.
SECOND_ATTEMPTS = 3

# How long an example takes is the machine's affair.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")


@pytest.fixture(scope="session", autouse=True)
def reachable(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Lets every user come to the folders of the tests, however pytest was started."""
    top = Path(tempfile.gettempdir())
    folders = [tmp_path_factory.getbasetemp(), *tmp_path_factory.getbasetemp().parents]
    if top in folders:
        for folder in folders[: folders.index(top)]:
            folder.chmod(0o755)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In a process that pytest-xdist has started: sends the table to the first one.

    In the first one: fails when too many tests have passed only when they were run again.
    """
    if _are_too_many(first_attempts(session.config)) and not session.exitstatus:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    output = getattr(session.config, "workeroutput", None)
    table = session.config.stash.get(KEY, None)
    if output is not None and table is not None:
        output[OUTPUT] = table.plain()


class Controller:
    """What the first process does when another has ended."""

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:  # noqa: ANN401
        """Adds its table to that of all."""
        output = getattr(node, "workeroutput", None) or {}
        if OUTPUT in output:
            node.config.stash.setdefault(KEY, Table()).merge(output[OUTPUT])


def pytest_configure(config: pytest.Config) -> None:
    """Registers the hooks that only pytest-xdist knows, and undoes what our starter ignores.

    Whoever starts us in the background has us ignore what tests send, and their children too.
    """
    for number in (signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config.pluginmanager.register(Controller())


def first_attempts(config: pytest.Config) -> list[pytest.TestReport]:
    """The reports of the attempts that failed and were followed by another."""
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    return reporter.stats.get("rerun", []) if reporter is not None else []


def _are_too_many(reports: list[pytest.TestReport]) -> bool:
    # A test that fails may fail again while it tidies up.
    return len({report.nodeid for report in reports}) > SECOND_ATTEMPTS


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Prints the table; what could not be tested, and what failed at first: nobody may miss it."""
    for report in first_attempts(config):
        terminalreporter.section(f"failed at first: {report.nodeid}", red=True, bold=True)
        terminalreporter.write_line(report.longreprtext)
    if _are_too_many(first_attempts(config)):
        said = f"more than {SECOND_ATTEMPTS} tests failed at first: the run has failed"
        terminalreporter.write_line(said, red=True, bold=True)
    table = config.stash.get(KEY, None)
    if table is None:
        return
    terminalreporter.section("the two shims, scenario by generation")
    for line in table.lines():
        terminalreporter.write_line(line)
    for name, reason in table.not_tested.items():
        terminalreporter.write_line(f"!!! NOT TESTED: {name}: {reason}", red=True, bold=True)
