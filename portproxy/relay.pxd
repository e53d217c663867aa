# The C side of relay.py: signatures, constants and the program's few globals.
from linux cimport sockaddr_in6

cdef extern from *:
    const char* PYSHIM_VERSION
    const char* PYSHIM_BUILD

cdef enum:
    STATUS_FD = 3
    LISTENER_FD = 4
    LINE_BYTES = 512  # longer messages are cut
    PREFIX_BYTES = 17  # "portproxy-relay: "
    BUFFER_BYTES = 65536
    PIPE_BYTES = 262144
    SPLICE_BYTES = 1048576
    SPARE_PIPES = 16
    FULL_READ_BYTES = 32768  # a read of this size makes a direction splice
    SHORT_READ_BYTES = 8192  # so many of these make it copy again
    SHORT_READS = 8
    TURNS = 16  # moves of one direction before others get their turn
    EVENTS = 64
    ACCEPTS = 64
    FIRST_PAUSE_MS = 10
    LONGEST_PAUSE_MS = 1000
    COMPLAINT_INTERVAL_MS = 1000
    KEEPALIVE_S = 15
    KEEPALIVE_PROBES = 9
    BACKLOG = 2147483647  # the kernel cuts it to somaxconn
    IPPROTO_MPTCP = 262
    LAST_PORT = 65535
    NOT_GIVEN = -1

    EXIT_FAILED = 1
    EXIT_USAGE = 2

cdef struct Side:
    Link* link
    Side* other
    # What was read here and could not be written to the other side yet: in a pipe or in memory.
    char* owed
    int pipe_in
    int pipe_out
    unsigned int owed_from
    unsigned int owed_to
    unsigned int piped
    int fd
    unsigned char short_reads
    bint readable
    bint writable
    bint hung_up  # the peer has sent FIN: the next edge will not come
    bint urgent  # out-of-band data cut reads short, so a short read proves nothing
    bint splices
    bint cannot_splice
    bint ended  # everything was read
    bint finished  # ... and handed on, with the FIN
    bint broken  # reset, or given up by the kernel

cdef struct Link:
    Side[2] sides  # the client and the container
    Link* next_busy
    Link* next_closed
    bint connecting
    bint busy
    bint closed

# What the options ask for.
cdef const char* protocol
cdef const char* host_text
cdef const char* container_text
cdef int host_port
cdef int container_port
cdef bint use_listen_fd
cdef bint resets_become_fins

cdef sockaddr_in6 host
cdef sockaddr_in6 container
cdef bint has_status_pipe
cdef int poller
cdef int listener
cdef int next_socket  # the socket of the next connection to the container: accepted means served
cdef bint paused
cdef int pause_ms  # how long the last pause without an accepted client was
cdef long resume_at_ms
cdef long complain_at_ms
cdef Link* busy_first
cdef Link* busy_last
cdef Link* closed_first
cdef int[SPARE_PIPES][2] spare_pipes
cdef int spare_count
cdef char[BUFFER_BYTES] buffer
cdef char line[LINE_BYTES]
cdef char report[LINE_BYTES + 2]
cdef size_t line_length

cdef public int program_main(int argc, char** argv) noexcept nogil

cdef void read_options(int argc, char** argv) noexcept nogil
cdef void set_option(const char* name, size_t length, const char* value) noexcept nogil
cdef void set_flag(const char* name, size_t length, const char* value) noexcept nogil
cdef bint named(const char* wanted, const char* name, size_t length) noexcept nogil
cdef bint is_flag(const char* name, size_t length) noexcept nogil
cdef int port_in(const char* name, size_t length, const char* value) noexcept nogil
cdef void print_help() noexcept nogil
cdef void print_version() noexcept nogil

cdef void hold_standard_fds() noexcept nogil
cdef void find_status_pipe() noexcept nogil
cdef void hold_signals() noexcept nogil
cdef void leave(int number) noexcept nogil
cdef void raise_fd_limit() noexcept nogil

cdef bint read_address(const char* text, int port, sockaddr_in6* address) noexcept nogil
cdef unsigned int address_bytes(sockaddr_in6* address) noexcept nogil
cdef void set_number(int fd, int level, int name, int value) noexcept nogil
cdef void tune(int fd) noexcept nogil
cdef void open_listener() noexcept nogil
cdef void take_listener() noexcept nogil
cdef int number_of(int fd, int name) noexcept nogil
cdef void fail_to_listen(const char* what) noexcept nogil
cdef const char* reason(int number) noexcept nogil

cdef void serve() noexcept nogil
cdef int patience() noexcept nogil
cdef long now_ms() noexcept nogil
cdef bint watch(int fd, Side* side, unsigned int events, int operation) noexcept nogil
cdef void accept_clients() noexcept nogil
cdef bint prepare_socket() noexcept nogil
cdef void pause() noexcept nogil
cdef void resume() noexcept nogil
cdef void begin_link(int client) noexcept nogil
cdef void take_event(Side* side, unsigned int events) noexcept nogil
cdef void finish_connecting(Link* link) noexcept nogil
cdef void make_busy(Link* link) noexcept nogil
cdef void run_busy() noexcept nogil

cdef bint run(Link* link) noexcept nogil
cdef bint move(Side* side) noexcept nogil
cdef bint hand_over(Side* side) noexcept nogil
cdef bint take_in(Side* side) noexcept nogil
cdef bint copy(Side* side) noexcept nogil
cdef bint keep(Side* side, char* data, size_t n) noexcept nogil
cdef bint fill_pipe(Side* side) noexcept nogil
cdef void settle(Link* link) noexcept nogil
cdef void close_link(Link* link, bint reset) noexcept nogil
cdef void free_closed() noexcept nogil
cdef void reset_on_close(int fd) noexcept nogil
cdef bint take_pipe(Side* side) noexcept nogil
cdef void give_pipe_back(Side* side) noexcept nogil
cdef bint free_spare_pipes() noexcept nogil

cdef void begin(const char* text) noexcept nogil
cdef void say(const char* text) noexcept nogil
cdef void say_bytes(const char* text, size_t length) noexcept nogil
cdef void say_number(long number) noexcept nogil
cdef void say_address(const char* text, int port) noexcept nogil
cdef void print_line(int fd) noexcept nogil
cdef void refuse() noexcept nogil
cdef void fail() noexcept nogil
cdef void complain(int number) noexcept nogil
