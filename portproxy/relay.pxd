# The C side of relay.py: signatures, constants, structs and the program's few globals.
from linux cimport (
    epoll_event,
    in6_addr,
    iovec,
    mmsghdr,
    msghdr,
    nlattr,
    nlmsghdr,
    sigset_t,
    sockaddr_in6,
    sock_filter,
    sockaddr_un,
)

cdef extern from *:
    const char* PYSHIM_VERSION
    const char* PYSHIM_BUILD

cdef enum:
    STATUS_FD = 3
    LISTENER_FD = 4
    LINE_BYTES = 8192  # longer messages are cut
    SHOWN_BYTES = 6000  # so long may a mapping's line be, to be shown in one of ours
    PREFIX_BYTES = 17  # "portproxy-relay: "
    BUFFER_BYTES = 65536
    PROCESS_LINE_BYTES = 512  # more than the last line of a list has
    PIPE_BYTES = 262144
    SPLICE_BYTES = 1048576
    SPARE_PIPES = 16
    FULL_READ_BYTES = 32768  # a read of this size makes a direction splice
    SHORT_READ_BYTES = 8192  # so many of these make it copy again
    SHORT_READS = 8
    TURNS = 16  # moves of one direction before others get their turn
    EVENTS = 64
    ACCEPTS = 8  # ... and no more: those that are served already come first
    SHED = 64
    FIRST_PAUSE_MS = 10
    LONGEST_PAUSE_MS = 1000
    COMPLAINT_INTERVAL_MS = 1000
    KEEPALIVE_S = 15
    KEEPALIVE_PROBES = 9
    BACKLOG = 2147483647  # the kernel cuts it to somaxconn
    FAST_OPEN_QUEUE = 256
    LAST_PORT = 65535
    NOT_GIVEN = -1
    FIRST_RETRY_MS = 10
    LONGEST_RETRY_MS = 200
    HEADER_WAIT_MS = 3000
    HEADER_V1_BYTES = 107
    HEADER_V2_BYTES = 4096
    BACKENDS = 8
    BACKEND_FAILURES = 3  # so many in BACKEND_WINDOW_MS put a backend out for BACKEND_OUT_MS
    BACKEND_WINDOW_MS = 10000
    BACKEND_OUT_MS = 10000
    RULES = 256
    CLIENT_BUCKETS = 1024
    SETTINGS_BYTES = 1048576  # the largest file of settings or mappings
    WORD_BYTES = 256
    STATS_INTERVAL_MS = 10000
    LONGEST_DRAIN_MS = 5000
    THROTTLE_MS = 20
    BATCH = 32
    DATAGRAM_BYTES = 65536
    CONTROL_BYTES = 128
    SEND_TRIES = 4
    LARGEST_SEGMENT = 1400  # more may not fit into what a link carries
    UDP_SEGMENT = 103
    FIRST_SESSION_BUCKETS = 64
    UDP_TIMEOUT_MS = 90000
    FLOWS_S = 1  # between two answers about the flows that the kernel tracks
    UDP_SESSIONS = 32768

    # <linux/…> has these; libc's headers lack some of them.
    IPPROTO_MPTCP = 262
    IP_BIND_ADDRESS_NO_PORT = 24
    IPV6_TRANSPARENT = 75
    TCP_FASTOPEN_CONNECT = 30
    CONGESTION_BYTES = 16
    SCTP_SNDRCV = 1
    SCTP_INITMSG = 2
    SCTP_NODELAY = 3
    SCTP_EVENTS = 11
    SCTP_STREAMS = 65535

    EXIT_FAILED = 1
    EXIT_USAGE = 2

    # What an event or a timer belongs to.
    OF_SIDE = 1
    OF_STREAMS = 2
    OF_DATAGRAMS = 3
    OF_SESSION = 4
    OF_LINK = 5
    OF_STATS = 6
    OF_MAPPING = 7
    OF_CONTROL = 8
    OF_CONTROLLER = 9

    # How far a connection is.
    AWAITS_HEADER = 0
    WAITS = 1
    CONNECTS = 2
    OPEN = 3

    FIRST = 0
    ROUND_ROBIN = 1
    LEAST = 2
    SOURCE = 3

    CONTROL_VERSION = 1
    ORDERED = 128  # sockets in one order
    PASSED = 16  # descriptors that one command may have with it
    DIAL_CLASSES = 14  # up to 1, 2, 4 ... 4096 ms, and all that took longer
    CAPABILITY_VERSION = 0x20080522

    PARSE_MORE = 0
    PARSE_BAD = -1

# In a heap by ``at_ms``; ``place`` 0 means not in it.
cdef struct Timer:
    unsigned char kind
    int place
    long at_ms

cdef struct Bucket:
    long tokens
    long at_ms

cdef struct Rule:
    unsigned char[16] address
    unsigned char bits
    unsigned char denies

cdef struct Rules:
    int count
    bint allows  # has a rule that allows: what none matches is refused
    Rule[RULES] rules

cdef struct Client:
    Client* next
    long connections
    unsigned char[16] address

cdef struct Backend:
    sockaddr_in6 address
    sockaddr_un* path  # NULL: it is no Unix socket
    unsigned int path_size
    bint down  # the control plane says so
    long connections
    int failures
    long first_failure_ms
    long out_until_ms

cdef struct Mapping:
    Timer timer  # of one that has been removed
    int ports
    int wire  # IPPROTO_…
    bint given  # the listener is an inherited descriptor
    int[PASSED] given_fds  # one for each port
    int listen_netns
    int backend_netns
    bint partial  # ports that cannot be opened are left out
    char* text  # what the words are parts of
    char* shown
    bint within_host  # the engine's: from the host to a container of its own
    bint spread  # each port of a range has its own port behind it
    const char* host_text
    long drain_ms  # this and the two below are the whole process's, once the mapping is read
    const char* log_text
    const char* stats_path
    sockaddr_in6 host
    bint any_host
    int backend_count
    int next_backend
    Backend[BACKENDS] backends

    bint resets_become_fins
    bint refusal_is_reset
    bint denial_is_silent
    bint nodelay
    bint fast_open
    bint transparent
    bint flushes_flows
    int balance
    int header_out
    long keepalive_s
    long user_timeout_ms
    long connect_timeout_ms
    long connect_retry_ms
    long half_close_ms
    long idle_ms
    long mark
    long tos
    long most_connections
    long most_per_client
    long client_bits_v4
    long client_bits_v6
    long connections_per_s
    long bytes_per_s
    long bytes_per_s_each
    long receive_bytes
    long udp_timeout_ms
    long udp_oneshot_ms
    long udp_sessions
    bint has_source
    sockaddr_in6 source
    char[16] interface
    char[CONGESTION_BYTES] congestion  # towards the container; empty: the kernel's
    Rules* access
    Rules* trusted

    # What has become of it; an update changes only what stands before this.
    long serial
    Mapping* next
    Listener* listeners
    bint serving
    bint shared  # other workers accept from its listeners as well
    bint removed
    long spliced
    long dial_ms
    long[DIAL_CLASSES] dials
    Client** clients
    Bucket accept_bucket
    Bucket byte_bucket
    Session* oldest
    Session* newest
    long connections
    long sessions
    # Counters.
    long accepted
    long denied
    long limited
    long failed
    long bad_headers
    long shed
    long pauses
    long sent_up
    long sent_down
    long datagrams_lost
    long datagrams_overflowed
    long evicted
    long pending_errors
    long other_ports  # transparent: with the client's address, not its port
    long other_addresses  # ... with neither

cdef struct Listener:
    unsigned char kind
    unsigned char batch
    bint paused
    unsigned short offset
    int fd
    unsigned int overflow
    Mapping* mapping
    Listener* next_paused

cdef struct Side:
    unsigned char kind
    unsigned char short_reads
    unsigned char readable
    unsigned char writable
    unsigned char hung_up  # the peer has sent FIN: the next edge will not come
    unsigned char has_fin  # ... and no error: all that it will ever send is here
    unsigned char urgent  # out-of-band data cut reads short, so a short read proves nothing
    unsigned char in_parts  # so do descriptors that come through a Unix socket
    unsigned char splices
    unsigned char cannot_splice
    unsigned char ended  # everything was read
    unsigned char finished  # ... and handed on, with the FIN
    unsigned char broken  # reset, or given up by the kernel
    unsigned char owes_header  # what is owed begins the connection: more may follow at once
    int fd
    Link* link
    Side* other
    # What was read here and could not be written to the other side yet: in a pipe or in memory.
    char* owed
    int pipe_in
    int pipe_out
    unsigned int owed_from
    unsigned int owed_to
    unsigned int piped
    long bytes

cdef struct Link:
    Timer timer
    Side[2] sides  # the client and the container
    Mapping* mapping
    Client* client
    Link* next_busy
    Link* next_closed
    long begun_ms
    long active_ms
    long until_ms  # the end of the phase before OPEN; 0: none
    long retry_until_ms
    long wake_ms  # the next try, or the next bytes; 0: none
    Bucket bucket
    Link* newer
    Link* older
    long serial
    long dialled_ms
    long dial_ms  # -1: not reached yet
    long first_byte_ms
    sockaddr_in6 peer
    sockaddr_in6 sender  # who connected, whoever that speaks for
    sockaddr_in6 local
    int backend  # -1: none, or one that has been taken away
    unsigned short offset
    unsigned short retry_ms
    unsigned char phase
    unsigned char tried  # a bit for each backend
    unsigned char busy
    unsigned char closed
    unsigned char local_known

cdef struct Local:
    unsigned char[16] address
    unsigned int interface

cdef struct Session:
    Timer timer
    Listener* listener
    Session* next_in_bucket
    Session* older
    Session* newer
    Session* next_ended
    long active_ms
    sockaddr_in6 client
    Local local
    unsigned int hash
    int fd
    unsigned char batch
    unsigned char requests  # 0, 1 or "more"
    unsigned char answered
    unsigned char requests_singly  # the way there cannot take several as one
    unsigned char answers_singly
    unsigned char ended

# What the relay asks its broker for.
cdef struct Order:
    int family
    int kind
    int wire
    int binds
    int count
    int receive_bytes
    sockaddr_in6 address

# ... and what it got: so many sockets, and the errno for which there are no more.
cdef struct Fulfilment:
    int made
    int number

# One end of the control channel, as epoll knows it.
cdef struct Control:
    unsigned char kind
    int fd

cdef struct SctpInfo:
    unsigned short stream
    unsigned short ssn
    unsigned short flags
    unsigned short unused
    unsigned int ppid
    unsigned int context
    unsigned int life
    unsigned int tsn
    unsigned int cumtsn
    int association

# What the options ask for.
cdef const char* protocol
cdef const char* host_text
cdef const char* container_text
cdef const char* mappings_path
cdef int host_port
cdef int container_port
cdef bint use_listen_fd
cdef long drain_ms
cdef const char* log_text
cdef const char* stats_path

cdef int control_fd  # -1: there is no control plane
cdef int broker_fd
cdef bint changes_user
cdef long run_as_uid
cdef long run_as_gid
cdef bint keeps_net_admin
cdef bint filters_calls
cdef Control commander  # the control plane
cdef Control controller  # where the next one comes
cdef int[PASSED] passed
cdef int passed_count
cdef int[PASSED] handed  # ... and the answer
cdef int handed_count
cdef char[BUFFER_BYTES] reply
cdef size_t reply_length
cdef int failed_errno
cdef long next_serial
cdef long last_link_serial
cdef Link* newest_link
cdef bint forgotten  # a mapping has been removed, or its last connection has ended
cdef long reports_closes  # 0: none, n: every nth
cdef long closes_seen
cdef long events_lost
cdef int pipes_open

cdef Mapping* mappings
cdef Mapping plain  # what a mapping has before anybody asks for something else
cdef bint has_status_pipe
cdef int poller
cdef int[2] next_sockets  # for the next connections to IPv4 and IPv6: accepted means served
cdef int reserve_fd  # given up for a moment to take a client that cannot be served
cdef Listener* paused_first
cdef int pause_ms  # how long the last pause without an accepted client was
cdef long resume_at_ms
cdef long complain_at_ms
cdef long loop_ms
cdef bint told_to_end
cdef bint forgets_at_end
cdef bint draining
cdef long links
cdef Link* busy_first
cdef Link* busy_last
cdef Link* closed_first
cdef Session* ended_first
cdef Session** session_buckets
cdef unsigned int session_bucket_count
cdef unsigned int session_count
cdef Timer** timers
cdef int timer_count
cdef int timer_room
cdef Timer stats_timer
cdef int[SPARE_PIPES][2] spare_pipes
cdef int spare_count
cdef char[BUFFER_BYTES] buffer
cdef char line[LINE_BYTES]
cdef char report[LINE_BYTES + 2]
cdef size_t line_length
cdef int log_fd
cdef int stats_fd
cdef sockaddr_un stats_address
cdef mmsghdr[BATCH] messages
cdef iovec[BATCH] vectors
cdef sockaddr_in6[BATCH] names
cdef Local[BATCH] locals_
cdef long[BATCH][16] controls  # CONTROL_BYTES each, aligned
cdef char[BATCH][DATAGRAM_BYTES] datagrams

cdef public int program_main(int argc, char** argv) noexcept nogil

cdef void set_defaults() noexcept nogil
cdef void read_options(int argc, char** argv) noexcept nogil
cdef void set_option(const char* name, size_t length, const char* value) noexcept nogil
cdef void set_flag(const char* name, size_t length, const char* value) noexcept nogil
cdef int truth(const char* text) noexcept nogil
cdef bint named(const char* wanted, const char* name, size_t length) noexcept nogil
cdef bint is_flag(const char* name, size_t length) noexcept nogil
cdef int port_in(const char* name, size_t length, const char* value) noexcept nogil
cdef long whole_number(const char* text, size_t* at) noexcept nogil
cdef void print_help() noexcept nogil
cdef void print_version() noexcept nogil

cdef void add_docker_mapping() noexcept nogil
cdef void adopt_for_all(Mapping* mapping) noexcept nogil
cdef Mapping* new_mapping(const char* name) noexcept nogil
cdef bint take_environment(Mapping* mapping) noexcept nogil
cdef char* read_whole(const char* path) noexcept nogil
cdef void take_settings_file(Mapping* mapping) noexcept nogil
cdef const char* take_toml_line(char* text, Mapping* draft, bint* applies, bint* has_settings) noexcept nogil
cdef int holds(const char* name, size_t length, const char* value) noexcept nogil
cdef char* cut_at(char* text, char byte) noexcept nogil
cdef char* skip_blanks(char* text) noexcept nogil
cdef void squeeze(char* text) noexcept nogil
cdef bint is_setting(const char* wanted, const char* name, size_t length) noexcept nogil
cdef const char* set_setting(Mapping* mapping, const char* name, size_t length, const char* value) noexcept nogil
cdef long* duration_named(Mapping* mapping, const char* name, size_t length) noexcept nogil
cdef long* count_named(Mapping* mapping, const char* name, size_t length) noexcept nogil
cdef bint* flag_named(Mapping* mapping, const char* name, size_t length) noexcept nogil
cdef const char* set_word(Mapping* mapping, const char* name, size_t length, const char* value) noexcept nogil
cdef const char* unless(bint good, const char* text) noexcept nogil
cdef const char* choose(bint* flag, const char* value, const char* no, const char* yes) noexcept nogil
cdef long duration(const char* text) noexcept nogil
cdef long amount(const char* text) noexcept nogil
cdef bint next_word(const char* text, size_t* at, char* word) noexcept nogil
cdef Rules* read_rules(const char* text) noexcept nogil
cdef bint read_rule(char* word, Rule* rule) noexcept nogil
cdef const char* read_backends(Mapping* mapping, const char* text) noexcept nogil
cdef bint read_backend(const char* text, int port, Backend* backend) noexcept nogil
cdef void read_mappings() noexcept nogil
cdef const char* read_mapping(char* text) noexcept nogil
cdef const char* take_words(Mapping* mapping, char* text) noexcept nogil
cdef bint read_ports(const char* text, int* first, int* last) noexcept nogil

cdef void hold_standard_fds() noexcept nogil
cdef void find_status_pipe() noexcept nogil
cdef void hold_signals() noexcept nogil
cdef void leave(int number) noexcept nogil
cdef void raise_fd_limit() noexcept nogil

cdef bint read_address(const char* text, int port, sockaddr_in6* address) noexcept nogil
cdef void unmap(sockaddr_in6* address) noexcept nogil
cdef unsigned int address_bytes(const sockaddr_in6* address) noexcept nogil
cdef void flatten(const sockaddr_in6* address, unsigned char* target) noexcept nogil
cdef bint is_within(const unsigned char* address, const unsigned char* network, int bits) noexcept nogil
cdef bint admits(Rules* rules, const sockaddr_in6* peer) noexcept nogil
cdef bint is_any(const sockaddr_in6* address) noexcept nogil

cdef void set_number(int fd, int level, int name, int value) noexcept nogil
cdef void tune(int fd, Mapping* mapping) noexcept nogil
cdef void choose_congestion(int fd, Mapping* mapping) noexcept nogil
cdef void avoid_pacing(Listener* listener) noexcept nogil
cdef bint is_loopback(const sockaddr_in6* address) noexcept nogil
cdef void tune_sctp(int fd) noexcept nogil
cdef int kind_of(Mapping* mapping) noexcept nogil
cdef int new_socket(Mapping* mapping, int family) noexcept nogil
cdef void open_all() noexcept nogil
cdef bint prepare_listeners(Mapping* mapping) noexcept nogil
cdef void prepare_clients(Mapping* mapping) noexcept nogil
cdef bint open_listener(Listener* listener) noexcept nogil
cdef bint bind_listener(Listener* listener) noexcept nogil
cdef int bound_socket(
    int family, int kind, int wire, const sockaddr_in6* address, const char** what
) noexcept nogil
cdef bint take_listener(Listener* listener) noexcept nogil
cdef void tune_datagrams(Listener* listener) noexcept nogil
cdef int number_of(int fd, int name) noexcept nogil
cdef const char* protocol_name(int wire, bint large) noexcept nogil
cdef const char* either(bint first, const char* yes, const char* no) noexcept nogil
cdef bint cannot_listen(Mapping* mapping, int offset, const char* what) noexcept nogil
cdef const char* reason(int number) noexcept nogil

cdef void serve() noexcept nogil
cdef void take_any_event(unsigned char* what, unsigned int events) noexcept nogil
cdef int patience() noexcept nogil
cdef long now_ms() noexcept nogil
cdef bint watch(int fd, void* what, unsigned int events, int operation) noexcept nogil
cdef void begin_drain() noexcept nogil
cdef long least(long a, long b) noexcept nogil
cdef void set_timer(Timer* timer, long at_ms) noexcept nogil
cdef void drop_timer(Timer* timer) noexcept nogil
cdef void sift(Timer* timer) noexcept nogil
cdef void run_timers() noexcept nogil

cdef void accept_clients(Listener* listener) noexcept nogil
cdef bint await_clients(Listener* listener) noexcept nogil
cdef void let_others_first(Listener* listener) noexcept nogil
cdef bint prepare_socket(Mapping* mapping) noexcept nogil
cdef bint takes_prepared(Mapping* mapping, int family) noexcept nogil
cdef int take_socket(Mapping* mapping, int family) noexcept nogil
cdef void pause(Listener* listener) noexcept nogil
cdef void resume() noexcept nogil
cdef void shed(Listener* listener) noexcept nogil
cdef void turn_away(Mapping* mapping, int client) noexcept nogil
cdef bint within_limits(Mapping* mapping, const sockaddr_in6* peer, Client** counter) noexcept nogil
cdef Client* client_of(Mapping* mapping, const sockaddr_in6* peer) noexcept nogil
cdef void forget_client(Mapping* mapping, Client* client) noexcept nogil
cdef long refill(Bucket* bucket, long rate) noexcept nogil
cdef void begin_link(Listener* listener, int client, const sockaddr_in6* peer) noexcept nogil
cdef bint let_in(Link* link) noexcept nogil

cdef void read_header(Link* link) noexcept nogil
cdef int parse_header(const unsigned char* data, size_t n, sockaddr_in6* peer, sockaddr_in6* local) noexcept nogil
cdef int parse_binary_header(
    const unsigned char* data, size_t n, sockaddr_in6* peer, sockaddr_in6* local
) noexcept nogil
cdef int parse_text_header(
    const unsigned char* data, size_t n, sockaddr_in6* peer, sockaddr_in6* local
) noexcept nogil
cdef void set_address(
    sockaddr_in6* address, int family, const unsigned char* number, const unsigned char* port
) noexcept nogil
cdef bint read_named(int family, const char* text, const char* port, sockaddr_in6* address) noexcept nogil
cdef bint owe_header(Link* link) noexcept nogil
cdef void find_local(Link* link) noexcept nogil
cdef void say_raw(const sockaddr_in6* address, bint six) noexcept nogil

cdef void connect_first(Link* link) noexcept nogil
cdef int pick_backend(Mapping* mapping, const sockaddr_in6* peer, int tried) noexcept nogil
cdef void connect_backend(Link* link) noexcept nogil
cdef int connect_to(int fd, Backend* backend, const sockaddr_in6* address) noexcept nogil
cdef void place_socket(int fd, Mapping* mapping, const sockaddr_in6* peer, int family) noexcept nogil
cdef bint bind_source(int fd, const sockaddr_in6* source) noexcept nogil
cdef void connect_failed(Link* link, int number) noexcept nogil
cdef void leave_backend(Link* link) noexcept nogil
cdef void count_failure(Backend* backend) noexcept nogil
cdef void take_event(Side* side, unsigned int events) noexcept nogil
cdef void finish_connecting(Link* link, unsigned int events) noexcept nogil
cdef void schedule(Link* link) noexcept nogil
cdef long sooner(long a, long b) noexcept nogil
cdef void link_due(Link* link) noexcept nogil
cdef void make_busy(Link* link) noexcept nogil
cdef void run_busy() noexcept nogil

cdef bint run(Link* link) noexcept nogil
cdef bint move(Side* side) noexcept nogil
cdef size_t allowance(Link* link) noexcept nogil
cdef void count_bytes(Side* side, long n) noexcept nogil
cdef bint hand_over(Side* side) noexcept nogil
cdef bint take_in(Side* side, size_t most) noexcept nogil
cdef bint copy(Side* side, size_t most) noexcept nogil
cdef bint keep(Side* side, const char* data, size_t n) noexcept nogil
cdef bint fill_pipe(Side* side, size_t most) noexcept nogil
cdef void settle(Link* link) noexcept nogil
cdef void close_link(Link* link, bint reset, const char* why) noexcept nogil
cdef void free_closed() noexcept nogil
cdef void reset_on_close(int fd) noexcept nogil
cdef bint take_pipe(Side* side) noexcept nogil
cdef void give_pipe_back(Side* side) noexcept nogil
cdef bint free_spare_pipes() noexcept nogil

cdef bint copy_message(Side* side) noexcept nogil
cdef ssize_t send_message(int fd, char* owed, size_t n) noexcept nogil

cdef int receive_batch(int fd, int most, unsigned char* batch) noexcept nogil
cdef void send_batch(
    int fd, int first, int end, Mapping* mapping, unsigned char* singly
) noexcept nogil
cdef int equals(int first, int end) noexcept nogil
cdef int send_as_one(int fd, int first, int count) noexcept nogil
cdef void receive_requests(Listener* listener) noexcept nogil
cdef long bytes_of(int first, int end) noexcept nogil
cdef void prepare_datagram(int at, Session* session) noexcept nogil
cdef void read_control(Listener* listener, int at) noexcept nogil
cdef bint is_same_client(int a, int b) noexcept nogil
cdef unsigned int hash_of(Listener* listener, const sockaddr_in6* client, const Local* local) noexcept nogil
cdef Session* session_of(Listener* listener, int at) noexcept nogil
cdef Session* new_session(Listener* listener, int at, unsigned int hashed) noexcept nogil
cdef int connect_session(Mapping* mapping, const sockaddr_in6* peer, int offset) noexcept nogil
cdef void link_session(Session* session) noexcept nogil
cdef bint grow_buckets() noexcept nogil
cdef void touch(Session* session) noexcept nogil
cdef void receive_answers(Session* session) noexcept nogil
cdef void write_control(Session* session, int at) noexcept nogil
cdef void session_due(Session* session) noexcept nogil
cdef void end_session(Session* session) noexcept nogil

cdef void open_stats() noexcept nogil
cdef void send_stats() noexcept nogil
cdef void send_close(Link* link, const char* why) noexcept nogil
cdef void send_totals() noexcept nogil
cdef void say_totals(Mapping* mapping) noexcept nogil
cdef void say_link(Link* link) noexcept nogil
cdef void say_backend(Link* link) noexcept nogil
cdef void begin_stats(Mapping* mapping, const char* event) noexcept nogil
cdef void say_count(const char* name, long number) noexcept nogil
cdef void begin(const char* text) noexcept nogil
cdef void say(const char* text) noexcept nogil
cdef void say_bytes(const char* text, size_t length) noexcept nogil
cdef void say_number(long number) noexcept nogil
cdef void say_address(const char* text, int port) noexcept nogil
cdef void say_ip(const sockaddr_in6* address, bint six) noexcept nogil
cdef void print_line(int fd) noexcept nogil
cdef void open_log() noexcept nogil
cdef void log_text_is_wrong() noexcept nogil
cdef void log_line() noexcept nogil
cdef void begin_record() noexcept nogil
cdef void refuse() noexcept nogil
cdef void fail() noexcept nogil
cdef void complain(const sockaddr_in6* address, int offset, int number) noexcept nogil

cdef void begin_control() noexcept nogil
cdef void take_controller() noexcept nogil
cdef void lose_commander() noexcept nogil
cdef void take_commands() noexcept nogil
cdef void command(char* text) noexcept nogil
cdef long number_in(char** text) noexcept nogil
cdef Mapping* mapping_named(char** text) noexcept nogil
cdef void begin_reply() noexcept nogil
cdef bint reply_line() noexcept nogil
cdef bint list_line() noexcept nogil
cdef void reply_ok(long number, long other) noexcept nogil
cdef void reply_error(long port, long number, const char* text) noexcept nogil
cdef void say_hello() noexcept nogil
cdef char* copy_text(const char* text) noexcept nogil
cdef int take_passed(long number) noexcept nogil
cdef bint is_of_control(const char* word) noexcept nogil
cdef bint is_for_all(const char* word) noexcept nogil
cdef const char* set_of_control(Mapping* mapping, const char* word, const char* value) noexcept nogil
cdef const char* take_shared(Mapping* mapping, long first) noexcept nogil
cdef Mapping* read_draft(const char* text) noexcept nogil
cdef void add_mapping(const char* text) noexcept nogil
cdef void failed_errno_reset() noexcept nogil
cdef void refuse_mapping(Mapping* mapping, int offset) noexcept nogil
cdef void learn_port(Mapping* mapping) noexcept nogil
cdef void start_mapping(Mapping* mapping) noexcept nogil
cdef void share_mapping(Mapping* mapping) noexcept nogil
cdef void update_mapping(Mapping* mapping, const char* text) noexcept nogil
cdef void forget_backends(Mapping* mapping) noexcept nogil
cdef void exchange_settings(Mapping* mapping, Mapping* draft) noexcept nogil
cdef void remove_command(Mapping* mapping, char* text) noexcept nogil
cdef void remove_mapping(Mapping* mapping, long ms) noexcept nogil
cdef void close_listeners(Mapping* mapping) noexcept nogil
cdef void close_listener(Listener* listener) noexcept nogil
cdef void close_links_of(Mapping* mapping, const char* why) noexcept nogil
cdef void mapping_due(Mapping* mapping) noexcept nogil
cdef void free_mappings() noexcept nogil
cdef void free_mapping(Mapping* mapping) noexcept nogil
cdef void mark_backend(Mapping* mapping, char* text) noexcept nogil
cdef void list_mappings(long cursor) noexcept nogil
cdef void say_mapping(Mapping* mapping) noexcept nogil
cdef void say_process(long cursor) noexcept nogil
cdef void reply_length_add(size_t n) noexcept nogil
cdef void list_links(long cursor) noexcept nogil
cdef void say_connection(Link* link) noexcept nogil
cdef void kill_link(long serial) noexcept nogil
cdef void report_closes(long one_in) noexcept nogil
cdef void drain_all(long ms) noexcept nogil
cdef void count_dial(Link* link) noexcept nogil

cdef bint read_user(const char* text) noexcept nogil
cdef void begin_broker() noexcept nogil
cdef void serve_orders(int fd, int home) noexcept nogil
cdef void fulfil(Order* order, Fulfilment* done, int* made) noexcept nogil
cdef int ask_broker(int family, Mapping* mapping, int netns) noexcept nogil
cdef bint bind_by_broker(Listener* listener, const sockaddr_in6* address) noexcept nogil
cdef int place_order(Order* order, int netns, int* made) noexcept nogil
cdef int send_with_fds(int fd, void* data, size_t n, int* fds, int count) noexcept nogil
cdef int receive_with_fds(
    int fd, void* data, size_t n, int* fds, int most, int* count
) noexcept nogil
cdef void drop_privileges() noexcept nogil
cdef void filter_calls() noexcept nogil
cdef int add_filter(
    sock_filter* rules, int n, int code, int yes, int no, unsigned int value
) noexcept nogil
cdef int allowed_calls(int* calls) noexcept nogil
cdef int allow(int* calls, int n, int a, int b, int c, int d) noexcept nogil

cdef void forget_flows() noexcept nogil
cdef bint begin_flows(int* fds) noexcept nogil
cdef bint take_flows(int size, int fd) noexcept nogil
cdef void forget_flow(int fd, nlmsghdr* message) noexcept nogil
cdef bint is_own_flow(nlattr* flow) noexcept nogil
cdef nlattr* within(nlattr* outer, int kind) noexcept nogil
cdef nlattr* find_attribute(nlattr* first, size_t n, int kind) noexcept nogil
cdef size_t aligned(size_t n) noexcept nogil
