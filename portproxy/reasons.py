"""Why a mapping cannot be had, in people's words."""

from __future__ import annotations

import errno
import os

from portproxy.holder import holder_of
from portproxy.mapping import endpoint
from portproxy.spec import Spec


def told(spec: Spec | None, text: str) -> str:
    """The text, behind the place where the mapping was asked for."""
    return text if spec is None or spec.origin == "-p" else f"{spec.origin}: {text}"


def cannot_listen(spec: Spec, port: int, number: int) -> str:
    """What an errno means for a mapping, one of whose ports cannot be opened."""
    where = endpoint(spec.mapping.bind, port)
    return f"cannot listen on {where}: {reason(spec, port, number)}"


def reason(spec: Spec, port: int, number: int) -> str:
    """What an errno means for a listener, and who is to blame if that can be found out."""
    protocol = spec.mapping.protocol
    if number == errno.EPROTONOSUPPORT:
        return f"this kernel has no {protocol}; load the module {protocol}"
    if number == errno.EMFILE:
        return "too many open files; raise the limit (ulimit -n, LimitNOFILE=)"
    text = os.strerror(number).lower()
    if number == errno.EADDRINUSE and not spec.mapping.listen_netns:
        holder = holder_of(protocol, port)
        return f"{text} (by {holder})" if holder else text
    if number == errno.EACCES and port < 1024:
        return f"{text}; ports below 1024 need root or CAP_NET_BIND_SERVICE"
    return text
