from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Output(_message.Message):
    __slots__ = ("source_tag", "uri")
    SOURCE_TAG_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    source_tag: int
    uri: str
    def __init__(self, source_tag: _Optional[int] = ..., uri: _Optional[str] = ...) -> None: ...

class Process(_message.Message):
    __slots__ = ("id", "pid", "status", "stdin", "stdout", "stderr", "terminal", "spec", "exit_status", "exited_seconds", "exited_nanos", "relays", "stdin_relay", "keeper_tag", "console_tag", "master_tag", "console_path", "starting", "failed", "outputs", "logger_token")
    ID_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    STDIN_FIELD_NUMBER: _ClassVar[int]
    STDOUT_FIELD_NUMBER: _ClassVar[int]
    STDERR_FIELD_NUMBER: _ClassVar[int]
    TERMINAL_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    EXIT_STATUS_FIELD_NUMBER: _ClassVar[int]
    EXITED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    EXITED_NANOS_FIELD_NUMBER: _ClassVar[int]
    RELAYS_FIELD_NUMBER: _ClassVar[int]
    STDIN_RELAY_FIELD_NUMBER: _ClassVar[int]
    KEEPER_TAG_FIELD_NUMBER: _ClassVar[int]
    CONSOLE_TAG_FIELD_NUMBER: _ClassVar[int]
    MASTER_TAG_FIELD_NUMBER: _ClassVar[int]
    CONSOLE_PATH_FIELD_NUMBER: _ClassVar[int]
    STARTING_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    LOGGER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    id: str
    pid: int
    status: int
    stdin: str
    stdout: str
    stderr: str
    terminal: bool
    spec: bytes
    exit_status: int
    exited_seconds: int
    exited_nanos: int
    relays: _containers.RepeatedScalarFieldContainer[int]
    stdin_relay: int
    keeper_tag: int
    console_tag: int
    master_tag: int
    console_path: str
    starting: bool
    failed: bool
    outputs: _containers.RepeatedCompositeFieldContainer[Output]
    logger_token: int
    def __init__(self, id: _Optional[str] = ..., pid: _Optional[int] = ..., status: _Optional[int] = ..., stdin: _Optional[str] = ..., stdout: _Optional[str] = ..., stderr: _Optional[str] = ..., terminal: bool = ..., spec: _Optional[bytes] = ..., exit_status: _Optional[int] = ..., exited_seconds: _Optional[int] = ..., exited_nanos: _Optional[int] = ..., relays: _Optional[_Iterable[int]] = ..., stdin_relay: _Optional[int] = ..., keeper_tag: _Optional[int] = ..., console_tag: _Optional[int] = ..., master_tag: _Optional[int] = ..., console_path: _Optional[str] = ..., starting: bool = ..., failed: bool = ..., outputs: _Optional[_Iterable[_Union[Output, _Mapping]]] = ..., logger_token: _Optional[int] = ...) -> None: ...

class Container(_message.Message):
    __slots__ = ("id", "bundle", "runtime", "root", "systemd_cgroup", "no_pivot_root", "no_new_keyring", "private_pids", "init", "execs", "mounted", "created", "cgroups", "io_uid", "io_gid", "oom_tag", "oom_kills", "checkpoint", "criu_path", "criu_work_path", "plain_start")
    class ExecsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Process
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Process, _Mapping]] = ...) -> None: ...
    class CgroupsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    ROOT_FIELD_NUMBER: _ClassVar[int]
    SYSTEMD_CGROUP_FIELD_NUMBER: _ClassVar[int]
    NO_PIVOT_ROOT_FIELD_NUMBER: _ClassVar[int]
    NO_NEW_KEYRING_FIELD_NUMBER: _ClassVar[int]
    PRIVATE_PIDS_FIELD_NUMBER: _ClassVar[int]
    INIT_FIELD_NUMBER: _ClassVar[int]
    EXECS_FIELD_NUMBER: _ClassVar[int]
    MOUNTED_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    CGROUPS_FIELD_NUMBER: _ClassVar[int]
    IO_UID_FIELD_NUMBER: _ClassVar[int]
    IO_GID_FIELD_NUMBER: _ClassVar[int]
    OOM_TAG_FIELD_NUMBER: _ClassVar[int]
    OOM_KILLS_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    CRIU_PATH_FIELD_NUMBER: _ClassVar[int]
    CRIU_WORK_PATH_FIELD_NUMBER: _ClassVar[int]
    PLAIN_START_FIELD_NUMBER: _ClassVar[int]
    id: str
    bundle: str
    runtime: str
    root: str
    systemd_cgroup: bool
    no_pivot_root: bool
    no_new_keyring: bool
    private_pids: bool
    init: Process
    execs: _containers.MessageMap[str, Process]
    mounted: bool
    created: bool
    cgroups: _containers.ScalarMap[str, str]
    io_uid: int
    io_gid: int
    oom_tag: int
    oom_kills: int
    checkpoint: str
    criu_path: str
    criu_work_path: str
    plain_start: bool
    def __init__(self, id: _Optional[str] = ..., bundle: _Optional[str] = ..., runtime: _Optional[str] = ..., root: _Optional[str] = ..., systemd_cgroup: bool = ..., no_pivot_root: bool = ..., no_new_keyring: bool = ..., private_pids: bool = ..., init: _Optional[_Union[Process, _Mapping]] = ..., execs: _Optional[_Mapping[str, Process]] = ..., mounted: bool = ..., created: bool = ..., cgroups: _Optional[_Mapping[str, str]] = ..., io_uid: _Optional[int] = ..., io_gid: _Optional[int] = ..., oom_tag: _Optional[int] = ..., oom_kills: _Optional[int] = ..., checkpoint: _Optional[str] = ..., criu_path: _Optional[str] = ..., criu_work_path: _Optional[str] = ..., plain_start: bool = ...) -> None: ...

class Deleted(_message.Message):
    __slots__ = ("id", "exec_id", "pid", "exit_status", "exited_seconds", "exited_nanos")
    ID_FIELD_NUMBER: _ClassVar[int]
    EXEC_ID_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    EXIT_STATUS_FIELD_NUMBER: _ClassVar[int]
    EXITED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    EXITED_NANOS_FIELD_NUMBER: _ClassVar[int]
    id: str
    exec_id: str
    pid: int
    exit_status: int
    exited_seconds: int
    exited_nanos: int
    def __init__(self, id: _Optional[str] = ..., exec_id: _Optional[str] = ..., pid: _Optional[int] = ..., exit_status: _Optional[int] = ..., exited_seconds: _Optional[int] = ..., exited_nanos: _Optional[int] = ...) -> None: ...

class Connection(_message.Message):
    __slots__ = ("tag", "pending", "discarding")
    TAG_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    DISCARDING_FIELD_NUMBER: _ClassVar[int]
    tag: int
    pending: bytes
    discarding: int
    def __init__(self, tag: _Optional[int] = ..., pending: _Optional[bytes] = ..., discarding: _Optional[int] = ...) -> None: ...

class Call(_message.Message):
    __slots__ = ("tag", "stream", "service", "method", "payload", "deadline_ns", "token", "namespace", "holding", "log_size", "signalled", "failure", "failure_code", "timed_out", "handed", "relay")
    TAG_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_NS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    HOLDING_FIELD_NUMBER: _ClassVar[int]
    LOG_SIZE_FIELD_NUMBER: _ClassVar[int]
    SIGNALLED_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    FAILURE_CODE_FIELD_NUMBER: _ClassVar[int]
    TIMED_OUT_FIELD_NUMBER: _ClassVar[int]
    HANDED_FIELD_NUMBER: _ClassVar[int]
    RELAY_FIELD_NUMBER: _ClassVar[int]
    tag: int
    stream: int
    service: str
    method: str
    payload: bytes
    deadline_ns: int
    token: int
    namespace: str
    holding: _containers.RepeatedScalarFieldContainer[int]
    log_size: int
    signalled: bool
    failure: str
    failure_code: int
    timed_out: bool
    handed: bool
    relay: int
    def __init__(self, tag: _Optional[int] = ..., stream: _Optional[int] = ..., service: _Optional[str] = ..., method: _Optional[str] = ..., payload: _Optional[bytes] = ..., deadline_ns: _Optional[int] = ..., token: _Optional[int] = ..., namespace: _Optional[str] = ..., holding: _Optional[_Iterable[int]] = ..., log_size: _Optional[int] = ..., signalled: bool = ..., failure: _Optional[str] = ..., failure_code: _Optional[int] = ..., timed_out: bool = ..., handed: bool = ..., relay: _Optional[int] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("number", "envelope", "container", "is_exit")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ENVELOPE_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_FIELD_NUMBER: _ClassVar[int]
    IS_EXIT_FIELD_NUMBER: _ClassVar[int]
    number: int
    envelope: bytes
    container: str
    is_exit: bool
    def __init__(self, number: _Optional[int] = ..., envelope: _Optional[bytes] = ..., container: _Optional[str] = ..., is_exit: bool = ...) -> None: ...

class State(_message.Message):
    __slots__ = ("version", "namespace", "id", "bundle", "address", "ttrpc_address", "publish_binary", "debug", "socket", "env", "next_tag", "next_relay", "next_number", "connections", "calls", "containers", "outbox", "publish_failures", "socket_inode", "deleted", "shared", "publisher_tag", "publisher_stream", "publishing", "publish_until_ns", "dropped", "ending", "empty_since_ns")
    class EnvEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class ContainersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Container
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Container, _Mapping]] = ...) -> None: ...
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    TTRPC_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PUBLISH_BINARY_FIELD_NUMBER: _ClassVar[int]
    DEBUG_FIELD_NUMBER: _ClassVar[int]
    SOCKET_FIELD_NUMBER: _ClassVar[int]
    ENV_FIELD_NUMBER: _ClassVar[int]
    NEXT_TAG_FIELD_NUMBER: _ClassVar[int]
    NEXT_RELAY_FIELD_NUMBER: _ClassVar[int]
    NEXT_NUMBER_FIELD_NUMBER: _ClassVar[int]
    CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    CONTAINERS_FIELD_NUMBER: _ClassVar[int]
    OUTBOX_FIELD_NUMBER: _ClassVar[int]
    PUBLISH_FAILURES_FIELD_NUMBER: _ClassVar[int]
    SOCKET_INODE_FIELD_NUMBER: _ClassVar[int]
    DELETED_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    PUBLISHER_TAG_FIELD_NUMBER: _ClassVar[int]
    PUBLISHER_STREAM_FIELD_NUMBER: _ClassVar[int]
    PUBLISHING_FIELD_NUMBER: _ClassVar[int]
    PUBLISH_UNTIL_NS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    ENDING_FIELD_NUMBER: _ClassVar[int]
    EMPTY_SINCE_NS_FIELD_NUMBER: _ClassVar[int]
    version: int
    namespace: str
    id: str
    bundle: str
    address: str
    ttrpc_address: str
    publish_binary: str
    debug: bool
    socket: str
    env: _containers.ScalarMap[str, str]
    next_tag: int
    next_relay: int
    next_number: int
    connections: _containers.RepeatedCompositeFieldContainer[Connection]
    calls: _containers.RepeatedCompositeFieldContainer[Call]
    containers: _containers.MessageMap[str, Container]
    outbox: _containers.RepeatedCompositeFieldContainer[Event]
    publish_failures: int
    socket_inode: int
    deleted: _containers.RepeatedCompositeFieldContainer[Deleted]
    shared: bool
    publisher_tag: int
    publisher_stream: int
    publishing: int
    publish_until_ns: int
    dropped: int
    ending: bool
    empty_since_ns: int
    def __init__(self, version: _Optional[int] = ..., namespace: _Optional[str] = ..., id: _Optional[str] = ..., bundle: _Optional[str] = ..., address: _Optional[str] = ..., ttrpc_address: _Optional[str] = ..., publish_binary: _Optional[str] = ..., debug: bool = ..., socket: _Optional[str] = ..., env: _Optional[_Mapping[str, str]] = ..., next_tag: _Optional[int] = ..., next_relay: _Optional[int] = ..., next_number: _Optional[int] = ..., connections: _Optional[_Iterable[_Union[Connection, _Mapping]]] = ..., calls: _Optional[_Iterable[_Union[Call, _Mapping]]] = ..., containers: _Optional[_Mapping[str, Container]] = ..., outbox: _Optional[_Iterable[_Union[Event, _Mapping]]] = ..., publish_failures: _Optional[int] = ..., socket_inode: _Optional[int] = ..., deleted: _Optional[_Iterable[_Union[Deleted, _Mapping]]] = ..., shared: bool = ..., publisher_tag: _Optional[int] = ..., publisher_stream: _Optional[int] = ..., publishing: _Optional[int] = ..., publish_until_ns: _Optional[int] = ..., dropped: _Optional[int] = ..., ending: bool = ..., empty_since_ns: _Optional[int] = ...) -> None: ...
