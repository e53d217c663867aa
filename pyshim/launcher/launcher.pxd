# The C side of launcher.py: signatures, constants and the program's few globals.
from linux cimport pid_t, uint32_t, uint64_t

cdef extern from *:
    """
    /* FIPS 180-4, 5.3.3 and 4.2.2: roots of the first primes. */
    static const unsigned int SHA256_FIRST[8] = {
        0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
    };
    static const unsigned int SHA256_ROUNDS[64] = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
        0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
        0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
        0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
        0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
        0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
    };
    """
    const uint32_t* SHA256_FIRST
    const uint32_t* SHA256_ROUNDS

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

    # The plain start.  What is longer, or looks another way, is for Python.
    STATE_VERSION = 2  # service/migrations.py
    FLAG_BYTES = 1024
    PLAIN_NAME_BYTES = 128
    SOCKETS_BYTES = 108
    MAX_SOCKET_BYTES = 106  # bootstrap/address.py
    URL_BYTES = 128
    SCHEME_BYTES = 7  # unix://
    DIGEST_WORDS = 8
    DIGEST_HEX_BYTES = 64
    BLOCK_BYTES = 64
    MAX_CONFIG_BYTES = 1048576
    MAX_CONFIG_DEPTH = 32
    MAX_NUMBER_BYTES = 64
    FIRST_PRINTABLE = 32
    LAST_ASCII = 127
    SHIM_CGROUP_FIELD = 3  # api/options.proto
    # What containerd has to say it has written when it executes us; else Python waits for it.
    STDIN_TIMEOUT_MS = 200
    UMASK_PRIVATE = 63  # 0o077
    MODE_PRIVATE = 384  # 0o600
    MODE_FOLDER = 448  # 0o700
    BACKLOG = 128
    MAX_OOM_SCORE = 1000

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
cdef char bundle[PATH_BYTES]
cdef char draft[PATH_BYTES]
cdef char sockets[SOCKETS_BYTES]
cdef char shim_url[URL_BYTES]
cdef uint32_t digest[DIGEST_WORDS]
cdef uint64_t number
cdef const char* flag_namespace
cdef const char* flag_id
cdef const char* flag_address
cdef const char* flag_publish_binary
cdef const char* flag_bundle
cdef bint flag_debug
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

cdef int start_plainly(int argc, char** argv) noexcept nogil
cdef bint parse_flags(int argc, char** argv) noexcept nogil
cdef bint take_flag(const char* name, const char* value) noexcept nogil
cdef bint is_plain_name(const char* name) noexcept nogil
cdef bint is_plain_path(const char* path) noexcept nogil
cdef bint find_bundle() noexcept nogil
cdef bint is_plain_environment() noexcept nogil
cdef bint is_zygote_there() noexcept nogil

cdef bint is_plain_config() noexcept nogil
cdef bint is_json(const char* text, const char* end) noexcept nogil
cdef const char* skip_value(const char* text, const char* end, int depth) noexcept nogil
cdef const char* skip_members(const char* text, const char* end, int depth) noexcept nogil
cdef const char* skip_string(const char* text, const char* end) noexcept nogil
cdef const char* skip_number(const char* text, const char* end) noexcept nogil
cdef const char* skip_digits(const char* text, const char* end) noexcept nogil
cdef const char* skip_space(const char* text, const char* end) noexcept nogil
cdef const char* skip_word(const char* text, const char* end, const char* word) noexcept nogil
cdef bint is_letter(char character) noexcept nogil
cdef bint is_digit(char character) noexcept nogil
cdef bint is_ascii(const char* text, size_t size) noexcept nogil
cdef bint is_plain_stdin() noexcept nogil
cdef bint are_plain_options(int size) noexcept nogil
cdef bint is_any_of_options(const char* text, const char* end) noexcept nogil
cdef bint are_options(const char* text, const char* end) noexcept nogil
cdef const char* skip_number_field(const char* text, const char* end) noexcept nogil

cdef bint find_shim_path() noexcept nogil
cdef void digest_of(const char* text, size_t size) noexcept nogil
cdef void add_block(const unsigned char* block) noexcept nogil
cdef uint32_t rotated(uint32_t word, int count) noexcept nogil

cdef int claim() noexcept nogil
cdef bint is_served() noexcept nogil
cdef int listen_there() noexcept nogil
cdef int at_address(int fd, bint is_client) noexcept nogil
cdef bint write_address() noexcept nogil
cdef bint start_plain_monitor(int listener) noexcept nogil
cdef void raise_oom_score() noexcept nogil
cdef int write_state() noexcept nogil
cdef bint put_events_address(int fd) noexcept nogil
cdef bint put_text(int fd, uint32_t field, const char* text) noexcept nogil
cdef bint put_integer(int fd, uint32_t field, uint64_t value) noexcept nogil
cdef bint put_head(int fd, uint32_t field, size_t size) noexcept nogil
cdef bint put_varint(int fd, uint64_t value) noexcept nogil
cdef size_t fields_size(size_t size) noexcept nogil

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
