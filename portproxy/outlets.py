"""Where a service tells others of its work: the access log, and the metrics' endpoint.

A reload opens what is new beside what is there, so that a file that is refused in the end has
opened nothing that stays, and closed nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from portproxy.accesslog import AccessLog
from portproxy.config import Config

if TYPE_CHECKING:  # imported when it is needed: most instances have no metrics
    from portproxy.metrics import Endpoint, Reading


class OutletError(Exception):
    """A log or an endpoint cannot be opened; the message is one line."""


@dataclass
class Outlets:
    """``read`` and ``unready`` are what the endpoint asks (see ``portproxy.metrics``)."""

    read: Callable[[], Awaitable[Reading]]
    unready: Callable[[], Awaitable[str]]
    log: AccessLog | None = None
    endpoint: Endpoint | None = None
    config: Config = field(default_factory=Config)

    async def opened(self, config: Config) -> Outlets:
        """What ``config`` asks for: as it is here, if that is the same, or opened.

        Raises OutletError; then nothing is open that was not.
        """
        made = Outlets(self.read, self.unready, self.log, self.endpoint, config)
        before = self.config
        if (config.access_log, config.log_format) != (before.access_log, before.log_format):
            made.log = _log(config)
        if config.metrics != before.metrics:
            try:
                made.endpoint = await self._endpoint(config.metrics)
            except OutletError:
                made.close_beside(self)
                raise
        return made

    def close_beside(self, other: Outlets | None) -> None:
        """Closes what ``other`` does not have, too."""
        if self.log is not None and (other is None or self.log is not other.log):
            self.log.close()
        if self.endpoint is not None and (other is None or self.endpoint is not other.endpoint):
            self.endpoint.close()

    def reopen_log(self) -> None:
        """Opens the log's file anew, so that the old one can be moved away."""
        if self.log is not None:
            with contextlib.suppress(OSError):
                self.log.reopen()

    @property
    def reports_one_in(self) -> int:
        """Of how many connections one is to be reported; 0 if none."""
        return self.config.log_sample if self.log is not None else 0

    async def _endpoint(self, where: str) -> Endpoint | None:
        if not where:
            return None
        from portproxy.metrics import Endpoint

        made = Endpoint(self.read, self.unready)
        try:
            await made.listen(where)
        except OSError as error:
            raise OutletError(f"metrics: cannot listen on {where}: {error}") from error
        return made


def _log(config: Config) -> AccessLog | None:
    if not config.access_log:
        return None
    try:
        return AccessLog(config.access_log, config.log_format)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise OutletError(f"access_log: cannot open {config.access_log}: {reason}") from error
