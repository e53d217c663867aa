from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class UpgradeRequest(_message.Message):
    __slots__ = ("monitor", "python", "zygote", "patience_ms")
    MONITOR_FIELD_NUMBER: _ClassVar[int]
    PYTHON_FIELD_NUMBER: _ClassVar[int]
    ZYGOTE_FIELD_NUMBER: _ClassVar[int]
    PATIENCE_MS_FIELD_NUMBER: _ClassVar[int]
    monitor: str
    python: str
    zygote: str
    patience_ms: int
    def __init__(self, monitor: _Optional[str] = ..., python: _Optional[str] = ..., zygote: _Optional[str] = ..., patience_ms: _Optional[int] = ...) -> None: ...

class UpgradeResponse(_message.Message):
    __slots__ = ("version", "build", "pid")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BUILD_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    version: str
    build: str
    pid: int
    def __init__(self, version: _Optional[str] = ..., build: _Optional[str] = ..., pid: _Optional[int] = ...) -> None: ...
