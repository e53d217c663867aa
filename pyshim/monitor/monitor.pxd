# The C side of monitor.py: the channel's format, the tables, the globals and the signatures.
# The numbers and structs of the first part are those of protocol.md.
from linux cimport iovec, pid_t, signalfd_siginfo, sigset_t, rlimit

cdef extern from *:
    """
    /* In one piece, so that it can be found in the file of a running program too. */
    #define IDENTITY "pyshim-monitor " PYSHIM_VERSION " " PYSHIM_BUILD "\\n"
    """
    const char* IDENTITY

cdef extern from *:
    """
    #define FIRST_ACCEPTED_TAG 0x80000000u
    """
    unsigned int FIRST_ACCEPTED_TAG

cdef enum:
    VERSION = 1
    ZYGOTE_MAGIC = 0x5053595A
    ZYGOTE_ACTIVATE = 1

    HELLO = 1
    STATE = 2
    SPAWN = 3
    TRACK = 4
    FORGET = 5
    KILL = 6
    HOLD = 7
    DROP = 8
    RELAY = 9
    RELAY_STOP = 10
    SEND = 11
    CONSUME = 12
    ALARM = 13
    PARK = 14
    QUIT = 15
    UPGRADE = 16
    CONFIRM = 17
    HOME = 18
    WELCOME = 101
    HELD = 102
    RECORD = 103
    RELAY_STATUS = 104
    READY = 105
    REPLY = 106
    RANG = 107

    WELCOME_DIED = 1
    WELCOME_PROBATION = 2
    WELCOME_UPGRADES = 4
    WELCOME_EXECUTABLES = 8
    HOLD_WATCH = 1
    HOLD_ACCEPT = 2
    HOLD_OPEN = 4
    RECORD_EXITED = 1
    RECORD_SPAWNED = 2
    RECORD_TRACKED = 4
    RECORD_UNCLAIMED = 8
    RELAY_STDIN = 1
    RELAY_OPEN_SOURCE = 2
    RELAY_OPEN_DESTINATION = 4
    RELAY_ENDED = 1
    RELAY_NOBODY_READS = 2
    SPAWN_DIE_WITH_MONITOR = 1
    SPAWN_EXECUTABLE = 2
    STOP_NOW = 0
    STOP_DRAIN = 1
    STOP_FORGET = 2

cdef enum:
    PROCESSES = 8192
    HELDS = 4096
    RELAYS = 4096
    PIECES = 1024
    DATAGRAM_BYTES = 131072
    DATAGRAM_WORDS = 16384  # of 8 bytes, as are those of a batch
    DATAGRAM_FDS = 64
    REPLIES = 8192
    # A datagram can hold 5,461 requests that are replied to: what is free must take them all.
    REPLIES_TO_READ = 2048
    BATCH_BYTES = 16384
    BATCH_WORDS = 2048
    BATCH_MESSAGES = 256
    SCRATCH_BYTES = 262144
    PIPE_BYTES = 65536  # what a pipe holds unless somebody changes it
    WIDE_PIPE_BYTES = 262144
    # A write that does not fit into what is left of a page begins another: half may stay free.
    FULL_PIPE_BYTES = 32768
    FULL_WIDE_PIPE_BYTES = 131072
    ROW_BEFORE_REST = 16
    RELAY_ROUNDS = 16
    ACCEPT_ROUNDS = 16
    PROGRAM_BYTES = 16777216
    PATH_BYTES = 4096
    FD_PATH_BYTES = 32
    PROC_FD_BYTES = 14
    LISTENER_FD = 3
    STATE_FD = 4
    LISTENER_TAG = 1
    CHILD_FD_FLOOR = 64
    SERVICE_FD = 3
    CHANNEL_BUFFER_BYTES = 262144
    TERMINAL_QUEUE_BYTES = 65536
    KERNEL_SIGSET_BYTES = 8
    PAGE_BYTES = 4096
    FREE_RETRIES = 3
    EXIT_USAGE = 2
    UMASK = 18  # 022
    EXIT_ABLE = 100  # of a rehearsal: no other program answers so by chance
    NAMES_BYTES = 12288  # of PATH_BYTES each: the zygote's socket, the interpreter, the program
    NUMBER_BYTES = 16
    SOCKET_PATH_BYTES = 107
    SNAPSHOT_MAGIC = 0x4D53594E
    SNAPSHOT_VERSION = 1
    SNAPSHOT_VITAL = 1

    FIRST_LOOK_MS = 5000
    ZYGOTE_HELLO_MS = 5000
    DIRECT_HELLO_MS = 60000
    FIRST_PAUSE_MS = 100
    LONGEST_PAUSE_MS = 30000
    DRAIN_MS = 2000
    UNREAD_POLL_MS = 500
    REST_MS = 1
    SILENCE_MS = 100
    RELEASE_MS = 1000
    SIGNAL_ANSWER_MS = 10000
    QUIT_MS = 3000  # longer than a drain that nobody reads
    NO_DESCRIPTORS_PAUSE_MS = 500
    SPARE_DESCRIPTORS = 128
    REHEARSAL_MS = 5000
    HANDOVER_MS = 5000
    CONFIRM_MS = 30000

# What an event of epoll belongs to; the low half of its data is an index into a table.
cdef enum:
    ON_SIGNAL = 1
    ON_CHANNEL = 2
    ON_HELD = 3
    ON_RELAY_SOURCE = 4
    ON_RELAY_DESTINATION = 5

# How far the service that has the channel is.
cdef enum:
    SILENT = 0
    GREETED = 1
    DUMPING = 2
    SERVING = 3

cdef enum:
    RELAY_FREE = 0
    RELAY_READING = 1
    RELAY_BLOCKED = 2
    RELAY_OVER = 3
    RELAY_UNREAD = 4  # the source has ended, and the fifo has bytes but no reader

# How far an upgrade is, in the monitor that is to be replaced.
cdef enum:
    NO_UPGRADE = 0
    REHEARSING = 1
    HANDING_OVER = 2  # as soon as the service has gone

cdef enum:
    START = 0
    RESUME = 1
    REHEARSE = 2

# The records of a snapshot; a number is never used again for something else.
cdef enum:
    OF_MONITOR = 1
    OF_PREVIOUS = 2
    OF_HELD = 3
    OF_PIECE = 4
    OF_PROCESS = 5
    OF_RELAY = 6
    OF_END = 7

    WAS_DEAD = 1
    ALARM_UNSENT = 2
    DRAINING = 1
    BY_COPY = 2

ctypedef struct SnapshotHead:
    unsigned int magic
    unsigned int version

# `length` counts all, without padding; `fixed` is the part that a struct below describes.  Fields are
# only ever added at the end of one: a reader takes those that it knows, and 0 for those that are not there.
ctypedef struct SnapshotRecord:
    unsigned int length
    unsigned short kind
    unsigned short flags
    unsigned int fixed
    unsigned int reserved

ctypedef struct OfMonitor:
    int state_fd
    unsigned int next_accepted_tag
    unsigned int flags
    int end_signal
    int direct_pid
    unsigned int reserved
    long long alarm_at
    long long end_signal_until
    unsigned long long limit_current
    unsigned long long limit_most

ctypedef struct OfPrevious:
    int program
    unsigned int patience_ms

ctypedef struct OfHeld:
    unsigned int tag
    unsigned int parent
    unsigned int flags
    int fd

ctypedef struct OfPiece:
    unsigned int tag
    int fd
    unsigned long long size
    unsigned long long at

ctypedef struct OfRelay:
    unsigned int id
    unsigned int flags
    int state
    int source
    int destination
    int error
    unsigned long long moved
    long long drain_left
    long long drain_until
    unsigned long long drain_moved
    long long look_again_at
    unsigned int bits
    unsigned int reserved

ctypedef struct Header:
    unsigned int length
    unsigned short type
    unsigned short fds
    unsigned long long sequence

ctypedef struct Words:
    unsigned int a
    unsigned int b

ctypedef struct SpawnBody:
    unsigned long long token
    unsigned int flags
    unsigned int reserved

ctypedef struct FourWords:
    unsigned int a
    unsigned int b
    unsigned int c
    unsigned int d

ctypedef struct RecordBody:
    int pid
    unsigned int flags
    unsigned long long token
    int status
    unsigned int reserved
    long long seconds
    long long nanoseconds

ctypedef struct RelayBody:
    unsigned int id
    unsigned int flags
    int error
    unsigned int reserved
    unsigned long long moved

ctypedef struct ReplyBody:
    int error
    unsigned int reserved
    long long value

ctypedef struct Process:
    RecordBody record
    bint used
    unsigned char sent

ctypedef struct Held:
    unsigned int tag  # 0: the slot is free
    unsigned int parent
    unsigned int flags
    int fd
    unsigned int interest  # what epoll watches it for
    int first_piece  # index into pieces + 1, 0 for none
    int last_piece
    unsigned char sent

ctypedef struct Relay:
    unsigned int id
    unsigned int flags
    int state
    int source
    int destination  # -1: what comes is thrown away
    unsigned int source_interest
    unsigned int destination_interest
    int error
    unsigned long long moved
    long long drain_left
    long long drain_until
    unsigned long long drain_moved  # `moved` when drain_until was set
    long long look_again_at  # whether an unread fifo has a reader
    long long rest_until  # 0: it does not rest
    long long paced_at  # when it last moved something
    int row  # how often it was woken for little, each time at once after the time before
    char* residue  # read from the source and not yet written
    size_t residue_at
    size_t residue_size
    bint draining
    bint by_copy
    bint always_ready
    bint is_terminal
    bint is_wide  # its source
    bint is_far_end_wide
    bint streams  # it moves much at a time
    bint moved_much  # since release() has last looked
    unsigned char sent

ctypedef struct Piece:
    bint used
    int next
    int fd  # a memfd to take the bytes from, or -1
    char* data
    size_t size
    size_t at

ctypedef struct Reply:
    unsigned long long sequence
    int error
    long long value

# --- Tables: untouched pages of them cost nothing ------------------------------------------------
cdef Process processes[PROCESSES]
cdef int process_top
cdef int spawned_count
cdef Held helds[HELDS]
cdef int held_top
cdef unsigned int next_accepted_tag
cdef Relay relays[RELAYS]
cdef int relay_top
cdef int draining_count
cdef int unread_count
cdef int resting_count
cdef long long release_at  # when to look whether what large pieces needed is needed still; 0: never
cdef long long spoken_at  # when a stdin was last written to
cdef int always_ready_count
cdef Piece pieces[PIECES]
cdef int piece_count
cdef Reply replies[REPLIES]
cdef int reply_first
cdef int reply_end

# --- The service ---------------------------------------------------------------------------------
cdef int channel
cdef unsigned int channel_interest
cdef bint channel_full
cdef bint deaf  # the service has gone; what it sent is still read
cdef int stage
cdef bint by_zygote
cdef bint parking
cdef bint dirty
cdef bint wanted
cdef bint watching
cdef bint previous_died
cdef pid_t direct_pid
cdef int failures
cdef unsigned long long events_sent
cdef long long hello_until
cdef long long retry_at
cdef long long alarm_at
cdef long long look_at
cdef unsigned char alarm_unsent
cdef int end_signal
cdef unsigned char end_signal_sent
cdef long long end_signal_until
cdef bint quitting
cdef long long quit_at
cdef long long accept_again_at

# --- The upgrade ---------------------------------------------------------------------------------
cdef int way_of_life
cdef int snapshot_fd
cdef int upgrade_stage
cdef int upgrade_error  # why the last one came to nothing
cdef int upgrade_program
cdef unsigned int upgrade_patience
cdef unsigned long long upgrade_sequence
cdef long long upgrade_until
cdef pid_t rehearsal_pid
cdef char upgrade_names[NAMES_BYTES]
cdef size_t upgrade_names_size
cdef int previous_program  # -1 when there is none to go back to
cdef long long confirm_until
cdef int undo_error
cdef char previous_names[NAMES_BYTES]
cdef size_t previous_names_size
cdef char home_names[NAMES_BYTES]
cdef char next_home_names[NAMES_BYTES]

# --- The process ---------------------------------------------------------------------------------
cdef char* program_name
cdef char* zygote_path
cdef char* python_path
cdef int poller
cdef int signals
cdef int state_fd
cdef int null_fd
cdef int reserve_fd  # makes room for one more; -1 while it does
cdef pid_t own_pid
cdef rlimit limit_at_start
cdef char* scratch
cdef unsigned long long datagram[DATAGRAM_WORDS]
cdef unsigned long long control[64]
cdef int arrived[DATAGRAM_FDS]
cdef int arrived_count

cdef unsigned long long batch[BATCH_WORDS]
cdef size_t batch_bytes
cdef int batch_fds[DATAGRAM_FDS]
cdef int batch_fd_count
cdef unsigned char* batch_marks[BATCH_MESSAGES]
cdef int batch_mark_count
cdef int batch_event_count

cdef char** child_argv
cdef char** child_env
cdef char* child_cwd
cdef int* child_fds
cdef int child_fd_count
cdef bint child_dies_with_us
cdef bint child_is_service
cdef int child_program  # what it is to execute instead of what its first argument names; or -1
cdef int child_error
cdef int moved_fds[DATAGRAM_FDS]
cdef char path[PATH_BYTES]

# --- Outline -------------------------------------------------------------------------------------
cdef public int program_main(int argc, char** argv) noexcept nogil
cdef void read_command_line(int argc, char** argv) noexcept nogil
cdef void refuse(const char* problem, const char* subject) noexcept nogil
cdef void start() noexcept nogil
cdef void set_up() noexcept nogil
cdef void set_up_signals() noexcept nogil
cdef int to_number(const char* text) noexcept nogil
cdef char* decimal(char* end, int number) noexcept nogil
cdef void spare_descriptors(int count) noexcept nogil
cdef void close_strangers() noexcept nogil
cdef int move_up(int fd) noexcept nogil
cdef void loop() noexcept nogil
cdef void dispatch(unsigned long long data, unsigned int events) noexcept nogil
cdef void settle() noexcept nogil
cdef int time_to_wait() noexcept nogil
cdef long long sooner(long long one, long long other) noexcept nogil
cdef void keep_deadlines() noexcept nogil
cdef void finish() noexcept nogil
cdef long long now_ms() noexcept nogil
cdef unsigned int set_interest(int fd, unsigned int before, unsigned int after, int kind, int index) noexcept nogil
cdef void want(bint event) noexcept nogil

cdef void take_signals() noexcept nogil
cdef void reap() noexcept nogil
cdef void remember_exit(pid_t pid, int status) noexcept nogil
cdef Process* find_process(pid_t pid, bint exited) noexcept nogil
cdef Process* find_unclaimed(pid_t pid) noexcept nogil
cdef bint is_child(pid_t pid) noexcept nogil
cdef Process* new_process(pid_t pid) noexcept nogil
cdef int oldest_unclaimed() noexcept nogil
cdef int track(pid_t pid, long long* value) noexcept nogil
cdef void forget(pid_t pid) noexcept nogil

cdef int spawn(SpawnBody* body, int* fds, int count, long long* value) noexcept nogil
cdef int start_child() noexcept nogil
cdef pid_t fork_child() noexcept nogil
cdef void become_child() noexcept nogil
cdef void fail_child(int error) noexcept nogil
cdef int search_and_execute() noexcept nogil
cdef const char* search_path() noexcept nogil
cdef bint parse_program(char* text, size_t size, char** pointers, unsigned int argc, unsigned int envc) noexcept nogil

cdef Held* find_held(unsigned int tag) noexcept nogil
cdef Held* new_held(unsigned int tag, int fd, unsigned int flags) noexcept nogil
cdef void drop(Held* held) noexcept nogil
cdef void watch_held(Held* held) noexcept nogil
cdef void watch_all() noexcept nogil
cdef void held_event(Held* held, unsigned int events) noexcept nogil
cdef void accept_connections(Held* listener) noexcept nogil
cdef void accept_waiting(Held* listener) noexcept nogil
cdef void hold_accepted(Held* listener, int fd) noexcept nogil
cdef void send_piece(unsigned int tag, const char* data, size_t size, int fd) noexcept nogil
cdef int new_piece(const char* data, size_t size, int fd) noexcept nogil
cdef void append_piece(Held* held, int piece) noexcept nogil
cdef void free_piece(int index) noexcept nogil
cdef void drop_pieces(Held* held) noexcept nogil
cdef void write_pieces(Held* held) noexcept nogil
cdef ssize_t write_piece(Held* held, Piece* piece) noexcept nogil
cdef int consume(unsigned int tag, unsigned int size, long long* value) noexcept nogil
cdef int consumed(long long* value, size_t size) noexcept nogil
cdef bint is_ready(int fd, short events) noexcept nogil

cdef Relay* find_relay(unsigned int id) noexcept nogil
cdef int start_relay(unsigned int id, unsigned int flags, int source, int destination) noexcept nogil
cdef bint can_splice(int source, int destination) noexcept nogil
cdef char* path_of(int fd, char* name) noexcept nogil
cdef int reopen(int fd, int flags) noexcept nogil
cdef void keep_reserve() noexcept nogil
cdef int open_ends(unsigned int flags, int* fds) noexcept nogil
cdef unsigned int kind_of(int fd) noexcept nogil
cdef void set_nonblocking(int fd) noexcept nogil
cdef void stop_relay(unsigned int id, unsigned int mode) noexcept nogil
cdef void begin_draining(Relay* relay) noexcept nogil
cdef bint keep_unread(Relay* relay) noexcept nogil
cdef void read_source(Relay* relay) noexcept nogil
cdef void wait_for_destination(Relay* relay) noexcept nogil
cdef void close_source(Relay* relay) noexcept nogil
cdef void close_destination(Relay* relay) noexcept nogil
cdef void drop_residue(Relay* relay) noexcept nogil
cdef void end_relay(Relay* relay, int error) noexcept nogil
cdef void free_relay(Relay* relay) noexcept nogil
cdef void destination_failed(Relay* relay, int error) noexcept nogil
cdef void pump(Relay* relay) noexcept nogil
cdef bint pump_once(Relay* relay) noexcept nogil
cdef ssize_t read_terminal(int fd, ssize_t size) noexcept nogil
cdef void widen(Relay* relay) noexcept nogil
cdef bint resize(int fd, int before, int after) noexcept nogil
cdef void keep_pace(Relay* relay, unsigned long long moved) noexcept nogil
cdef void begin_rest(Relay* relay, long long now) noexcept nogil
cdef void end_rest(Relay* relay) noexcept nogil
cdef void rouse(Relay* relay, long long now) noexcept nogil
cdef void release(long long now) noexcept nogil
cdef bint source_failed(Relay* relay, int error) noexcept nogil
cdef bint write_copied(Relay* relay, size_t size) noexcept nogil
cdef char* new_residue() noexcept nogil
cdef bint write_residue(Relay* relay) noexcept nogil
cdef void count_moved(Relay* relay, size_t size) noexcept nogil
cdef void pump_always_ready() noexcept nogil

cdef void activate() noexcept nogil
cdef bint ask_zygote(int fd) noexcept nogil
cdef bint is_ours(int connection) noexcept nogil
cdef bint send_to_zygote(int connection, int fd) noexcept nogil
cdef void start_directly() noexcept nogil
cdef int open_channel() noexcept nogil
cdef void close_channel() noexcept nogil
cdef void* first_page_of_datagram() noexcept nogil
cdef void count_failure() noexcept nogil
cdef void lose_service() noexcept nogil
cdef void begin_dump() noexcept nogil
cdef void let_go() noexcept nogil
cdef unsigned char* alarm_mark() noexcept nogil

cdef void channel_event(unsigned int events) noexcept nogil
cdef void watch_channel() noexcept nogil
cdef void receive() noexcept nogil
cdef bint has_ended() noexcept nogil
cdef void carry_out(size_t size) noexcept nogil
cdef bint is_well_formed(Header* header) noexcept nogil
cdef bint carry_out_one(Header* header, void* body, int* fds) noexcept nogil
cdef bint hold(unsigned int tag, unsigned int flags, int fd, unsigned long long sequence) noexcept nogil
cdef void park(unsigned long long sequence, unsigned long long seen) noexcept nogil
cdef bint has_unsent() noexcept nogil
cdef void close_all(int* fds, int count) noexcept nogil
cdef void reply(unsigned long long sequence, int error, long long value) noexcept nogil

cdef void flush() noexcept nogil
cdef bint put(int type, unsigned long long sequence, const void* body, size_t size, int fd, unsigned char* mark) noexcept nogil
cdef int put_replies() noexcept nogil
cdef bint put_events() noexcept nogil
cdef bint put_helds() noexcept nogil
cdef bint put_records() noexcept nogil
cdef bint put_processes(unsigned int exited) noexcept nogil
cdef bint put_relays() noexcept nogil
cdef bint put_welcome() noexcept nogil
cdef int send_batch(int fd, void* data, size_t size, int* fds, int count) noexcept nogil

cdef int begin_upgrade(int* fds, unsigned int patience, unsigned long long sequence) noexcept nogil
cdef int read_names(int fd, char* names, size_t* size, int count) noexcept nogil
cdef bint are_names(const char* names, size_t size, int count) noexcept nogil
cdef char* name_at(char* names, int index) noexcept nogil
cdef size_t join_names(char* names) noexcept nogil
cdef int rehearse() noexcept nogil
cdef void rehearsed(int status) noexcept nogil
cdef void give_up_upgrade(int error) noexcept nogil
cdef void hand_over() noexcept nogil
cdef int execute(int program, char* names, int undone) noexcept nogil
cdef int become(int program, char* names, int snapshot, int undone) noexcept nogil
cdef bint keep_on_exec(bint kept) noexcept nogil
cdef bint keep_one(int fd, bint kept) noexcept nogil
cdef void confirm(int error) noexcept nogil
cdef void go_back() noexcept nogil
cdef int move_home(int fd) noexcept nogil

cdef int write_snapshot() noexcept nogil
cdef bint write_record(int fd, int kind, const void* fixed, size_t size, const void* more, size_t more_size) noexcept nogil
cdef bint write_whole(int fd, const void* data, size_t size) noexcept nogil
cdef bint write_monitor(int fd) noexcept nogil
cdef bint write_helds(int fd) noexcept nogil
cdef bint write_held_pieces(int fd, Held* held) noexcept nogil
cdef bint write_processes(int fd) noexcept nogil
cdef bint write_relays(int fd) noexcept nogil

cdef void resume() noexcept nogil
cdef const char* base_name(const char* text) noexcept nogil
cdef void take_over_descriptors() noexcept nogil
cdef void refuse_snapshot(int error) noexcept nogil
cdef int read_snapshot(int fd) noexcept nogil
cdef int read_records(char* data, size_t size) noexcept nogil
cdef int read_record(SnapshotRecord* record) noexcept nogil
cdef char* fixed_part(SnapshotRecord* record, void* target, size_t size) noexcept nogil
cdef size_t size_of_rest(SnapshotRecord* record) noexcept nogil
cdef int read_monitor(SnapshotRecord* record) noexcept nogil
cdef int read_previous(SnapshotRecord* record) noexcept nogil
cdef int read_held(SnapshotRecord* record) noexcept nogil
cdef int read_piece(SnapshotRecord* record) noexcept nogil
cdef int read_process(SnapshotRecord* record) noexcept nogil
cdef int read_relay(SnapshotRecord* record) noexcept nogil
