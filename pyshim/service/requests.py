"""The requests of the Task service as they arrive: decoded, and free of what none may hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, cast

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from pyshim.api import state_pb2
from pyshim.ttrpc.status import Code, StatusError

Request = TypeVar("Request", bound=Message)


def decode(kind: type[Request], call: state_pb2.Call) -> Request:
    """The request of ``call``, which is one of ``kind``.

    Raises DecodeError when it is none, and StatusError INVALID_ARGUMENT when one of its texts holds
    a NUL byte: texts are ids, paths and arguments here, and the kernel would take their beginning.
    """
    request = kind.FromString(call.payload)
    if name := with_nul(request):
        raise StatusError(Code.INVALID_ARGUMENT, f"{call.method}: {name} holds a NUL byte")
    return request


def check_environment(process: dict[str, Any]) -> None:
    """Refuses a process (of config.json's form) with a variable that holds a NUL byte.

    The runtime would, too, but with the value in its words, and so in the logs of whoever hears
    them.  Raises StatusError INVALID_ARGUMENT.
    """
    variables = process.get("env")
    for variable in variables if isinstance(variables, list) else ():
        if isinstance(variable, str) and "\0" in variable:
            name = variable.partition("=")[0].partition("\0")[0]
            text = f"the variable {name!r} of the environment holds a NUL byte"
            raise StatusError(Code.INVALID_ARGUMENT, text)


def with_nul(message: Message) -> str:
    """The name of the first text in ``message`` that holds a NUL byte; "" when none does."""
    for field, value in message.ListFields():
        if any(_holds_nul(each) for each in _values(field, value)):
            return str(field.name)
    return ""


def _values(field: FieldDescriptor, value: object) -> Iterable[object]:
    """What a field has, whether it is one, a list or a map."""
    if isinstance(value, (str, bytes, int, float, Message)):
        return [value]
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return (each for pair in cast(Mapping[str, str], value).items() for each in pair)
    return cast(Iterable[object], value)


def _holds_nul(value: object) -> bool:
    if isinstance(value, str):
        return "\0" in value
    return isinstance(value, Message) and bool(with_nul(value))
