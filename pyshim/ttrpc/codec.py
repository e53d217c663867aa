"""Requests and responses as frames, and back.  No I/O."""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf.message import DecodeError

from pyshim.api import ttrpc_pb2
from pyshim.ttrpc.framing import MAX_BYTES, REQUEST, RESPONSE, encode_frame
from pyshim.ttrpc.status import Code, StatusError

MAX_ERROR_CHARS = 16 * 1024


def encode_request(
    stream: int,
    service: str,
    method: str,
    payload: bytes,
    timeout_ns: int = 0,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """One request's frame; ``timeout_ns`` 0 is none.  Raises FrameTooLarge."""
    request = ttrpc_pb2.Request(
        service=service, method=method, payload=payload, timeout_nano=timeout_ns
    )
    for key, value in (metadata or {}).items():
        request.metadata.add(key=key, value=value)
    return encode_frame(stream, REQUEST, request.SerializeToString())


def decode_request(payload: bytes) -> ttrpc_pb2.Request:
    """The request in a frame's payload; raises StatusError INVALID_ARGUMENT."""
    try:
        return ttrpc_pb2.Request.FromString(payload)
    except DecodeError as error:
        text = f"a payload of {len(payload)} bytes is no ttrpc request"
        raise StatusError(Code.INVALID_ARGUMENT, text) from error


def encode_response(stream: int, payload: bytes) -> bytes:
    """One response's frame.

    A response that is too large becomes an error: containerd's server would drop the connection,
    which containerd takes for the death of the shim.
    """
    response = ttrpc_pb2.Response(payload=payload).SerializeToString()
    if len(response) > MAX_BYTES:
        text = f"the response has {len(response)} bytes; the maximum is {MAX_BYTES}"
        return encode_error(stream, StatusError(Code.RESOURCE_EXHAUSTED, text))
    return encode_frame(stream, RESPONSE, response)


def encode_error(stream: int, error: StatusError) -> bytes:
    """One error's frame; a very long message is cut, and what is no Unicode in it becomes ``?``."""
    response = ttrpc_pb2.Response()
    response.status.code = int(error.code)
    # A message may quote a path or a runtime's output, which need not be UTF-8.
    text = error.message[:MAX_ERROR_CHARS].encode(errors="replace")
    response.status.message = text.decode()
    return encode_frame(stream, RESPONSE, response.SerializeToString())


def decode_response(payload: bytes) -> bytes:
    """What a response carries; raises StatusError for one that is an error, or garbage."""
    try:
        response = ttrpc_pb2.Response.FromString(payload)
    except DecodeError as error:
        raise StatusError(Code.INTERNAL, "the peer sent no ttrpc response") from error
    if response.status.code:
        raise StatusError(response.status.code, response.status.message)
    return response.payload
