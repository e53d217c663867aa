# The C side of launcher.py: signatures, constants and the program's few globals.
from linux cimport pid_t, uint32_t, uint64_t

cdef extern from *:
    const char* PYSHIM_VERSION
    const char* PYSHIM_BUILD

cdef enum:
    PATH_BYTES = 4096  # PATH_MAX, with its terminating zero
    LINE_BYTES = 1024  # longer messages are cut
    BUFFER_BYTES = 16384
    MAX_ARGUMENTS = 256
    MIN_DESCRIPTORS = 32
    MAX_PROGRAM_BYTES = 67108864
    KERNEL_SIGSET_BYTES = 8
    LAST_SIGNAL = 64
    ASCII_ZERO = 48

    # containerd ends `delete` after 5 s: doing without a zygote must fit into what this leaves.
    BEGIN_TIMEOUT_MS = 2000
    # Longer than all that `delete` waits for; what is killed then is done again without a zygote.
    ANSWER_TIMEOUT_MS = 6000
    ZYGOTE_ATTEMPTS = 3
    CHILD_END_TIMEOUT_MS = 500
    ZYGOTE_RETRY_MS = 5
    CONNECT_TIMEOUT_S = 1
    WRITABLE_BY_ALL = 2
    LAST_CLOSED_FD = 65536  # where the kernel has no close_range

    # monitor/protocol.md, "The zygote's socket"
    MAGIC = 0x5053595A
    KIND_RUN = 2
    KIND_EXIT = 3
    KIND_START_MONITOR = 4
    KIND_STARTED = 5
    KIND_BEGUN = 6
    KIND_GO = 7
    RUN_FDS = 3
    MONITOR_FDS = 3
    HEADER_BYTES = 8
    VALUE_BYTES = 12  # a header and a value
    TEXT_BYTES = 65536

    # What became of a request to the zygote.
    NO_ANSWER = -1
    SILENCE = -2

cdef struct Datagram:
    uint32_t magic
    uint32_t kind
    int value
    char[TEXT_BYTES] text

cdef char interpreter[PATH_BYTES]
cdef char run_folder[PATH_BYTES]
cdef char socket_path[PATH_BYTES]
cdef char scratch[PATH_BYTES]
cdef Datagram answer
cdef long long begin_by
cdef pid_t starter
cdef char buffer[BUFFER_BYTES]
cdef size_t buffered
cdef char line[LINE_BYTES]
cdef size_t line_length

cdef public int program_main(int argc, char** argv) noexcept nogil

cdef bint asks_for_version(const char* argument) noexcept nogil
cdef void print_version() noexcept nogil
cdef void fill_standard_fds() noexcept nogil

cdef bint find_interpreter() noexcept nogil
cdef bint find_beside_program() noexcept nogil
cdef bint read_interpreter_file(const char* path) noexcept nogil
cdef void find_run_folder() noexcept nogil
cdef bint find_socket_path() noexcept nogil

cdef int reach_zygote() noexcept nogil
cdef void reap_starter() noexcept nogil
cdef int connect_once() noexcept nogil
cdef pid_t start_zygote() noexcept nogil

cdef int run_in_zygote(int zygote, int argc, char** argv) noexcept nogil
cdef bint send_request(int zygote, int argc, char** argv) noexcept nogil
cdef int write_request(int argc, char** argv) noexcept nogil
cdef int await_exit(int zygote) noexcept nogil
cdef bint end_child(int child) noexcept nogil
cdef bint await_end_of(int process) noexcept nogil
cdef int end_with(const char* text, size_t size) noexcept nogil
cdef bint tell(int zygote, uint32_t kind, int value) noexcept nogil
cdef ssize_t receive(int zygote, int* fds) noexcept nogil
cdef bint send_datagram(int zygote, Datagram* datagram, size_t size, int* fds, size_t count) noexcept nogil

cdef int start_monitor(int program, int listener, int state) noexcept nogil
cdef int spawn(const char* cwd, char** argv, char** envp, int listener, int state) noexcept nogil
cdef void become(const char* cwd, char** argv, char** envp, int listener, int state) noexcept nogil
cdef void reset_signals() noexcept nogil
cdef void close_from(int first) noexcept nogil
cdef void close_all(int* fds, int count) noexcept nogil
cdef bint share_core() noexcept nogil

cdef int run_directly(int argc, char** argv) noexcept nogil

cdef bint put(int fd, const char* data, size_t size) noexcept nogil
cdef bint flush(int fd) noexcept nogil
cdef bint join(char* target, const char* folder, const char* name) noexcept nogil
cdef long long now_ms() noexcept nogil
cdef void begin() noexcept nogil
cdef void say(const char* text) noexcept nogil
cdef int fail() noexcept nogil
