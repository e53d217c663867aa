# The C side of init.py: signatures, constants and the program's globals.
from linux cimport linux_dirent64, pid_t, siginfo_t

cdef extern from *:
    const char* PYSHIM_VERSION

cdef enum:
    LINE_BYTES = 512  # longer messages are cut
    PATH_BYTES = 4096  # PATH_MAX, with its terminating zero
    CROWD_BYTES = 4096
    POINTER_BYTES = 8
    SIGSET_BYTES = 8
    LAST_SIGNAL = 64
    FIRST_REAL_TIME = 34  # of every C library: the two before are its own
    MOST_ID = 0x7fffffff  # of users and groups
    LONGEST_MS = 86400000  # 24 hours
    KILLED_MS = 1000
    AT_ONCE_MS = 1  # what 0 is taken for where 0 means that there is no such limit
    FIRST_REST_NS = 500000
    LONGEST_REST_NS = 16000000
    MOST_RESTS = 64  # about a second
    UNREADY_NS = 100000
    LAST_FD = 0x7fffffff
    ASCII_ZERO = 48
    ASCII_A = 97

    NATIVE = 0
    TINI = 1
    DUMB_INIT = 2
    CATATONIT = 3
    PAUSE = 4

    FATAL = 0
    WARNING = 1
    INFO = 2
    DEBUG = 3

    EXIT_INIT_FAILED = 1
    EXIT_DUMB_INIT = 2
    EXIT_TIMED_OUT = 124
    EXIT_NATIVE_FAILED = 125
    EXIT_CANNOT_RUN = 126
    EXIT_NOT_FOUND = 127
    EXIT_SIGNAL_BASE = 128

    MOST_ADDED = 16
    MOST_DELAYS = 4
    MOST_GROUPS = 33
    MOST_IN_CROWD = 1024
    MOST_WORDS = 64

    # What can be due: first as many delays as there may be.
    DUE_STOP = 4
    DUE_TIMEOUT = 5
    DUE_ZOMBIES = 6
    DUE_GRACE = 7
    DUE_KINDS = 8

    LOG_TEXT = 1
    LOG_JSON = 2

    # The life of an init: with its command; after it, waiting for others; the same, having killed
    # them; and with nothing left to do.
    RUNNING = 0
    WAITING = 1
    KILLING = 2
    ENDED = 3

# What the name, the options and the environment ask for.
cdef int persona
cdef int status_of_refusal  # the exit code for an error of our own
cdef const char* called
cdef int first_option
cdef bint options_ended
cdef int verbosity
cdef bint verbosity_is_set
cdef bint warn_of_orphans
cdef bint forward_to_group
cdef bint to_everybody
cdef bint own_group
cdef bint be_subreaper
cdef bint never_subreaper
cdef bint only_reaps
cdef bint keep_stdio
cdef bint say_why
cdef bint lock_calls
cdef bint no_new_privileges
cdef bint wait_for_all
cdef bint wait_for_last
cdef bint stop_twice
cdef int parent_death_signal
cdef int child_death_signal
cdef int stop_signal
cdef int log_format
cdef int log_fd
cdef long stop_ms
cdef long grace_ms
cdef long timeout_ms
cdef long zombies_ms
cdef unsigned long long stop_on
cdef unsigned long long absorbed
cdef char* folder_of_command
cdef int user
cdef int groups[MOST_GROUPS]
cdef int group_count
cdef char* added[MOST_ADDED]
cdef int added_count
cdef int delays
cdef int delay_signal[MOST_DELAYS]
cdef long delay_ms[MOST_DELAYS]
# 0: as it is; otherwise what it becomes, and one.
cdef unsigned char rewritten[LAST_SIGNAL + 1]
cdef short exit_map[256]

# What pyinit found when it was started; the command gets it back.
cdef char** environment
cdef unsigned long long mask_at_start
cdef bint was_ignored
cdef long oom_kills_at_start
cdef unsigned long long early

# The command, and how far we are with it.
cdef char** command_words
cdef int child
cdef int init_pid
cdef int init_at_start
cdef int spawn_error
cdef const char* refused_call  # what failed before the exec; NULL for none
cdef bint shares_dispositions
cdef bint has_terminal
cdef bint leads_session
cdef bint watches_stops
cdef long rest_ns
cdef int rests  # since everybody who had died was collected
cdef bint may_let_kernel_reap
cdef bint kernel_reaps
cdef int exit_file
cdef int phase
cdef int final_status
cdef bint timed_out
cdef bint armed
cdef long long due_at[DUE_KINDS]

cdef char option_text[3]
cdef char line[LINE_BYTES]
cdef size_t line_length
cdef char listener[36]
cdef char file_name[80]
cdef unsigned long long filters[64]
cdef int filter_count
cdef int crowd_size
# Untouched, and so not resident, unless they are needed.
cdef int crowd[MOST_IN_CROWD]
cdef char path[PATH_BYTES]

cdef public int program_main(int argc, char** argv) noexcept nogil

cdef void choose_persona(int argc, char** argv) noexcept nogil
cdef int persona_named(const char* name) noexcept nogil
cdef const char* base_name(const char* path_name) noexcept nogil
cdef const char* letters() noexcept nogil
cdef const char* long_names() noexcept nogil
cdef int key_of(const char* table, const char* name, bint may_be_short) noexcept nogil

cdef char** read_everything(int argc, char** argv) noexcept nogil
cdef int read_options(char** words, int at, int count) noexcept nogil
cdef int read_cluster(char* cluster, char* following) noexcept nogil
cdef int read_long(char* name, char* following) noexcept nogil
cdef void obey(int key, char* value) noexcept nogil
cdef bint obey_classic(int key, char* value) noexcept nogil
cdef void obey_own(int key, char* value) noexcept nogil
cdef void read_environment() noexcept nogil
cdef void read_own_environment() noexcept nogil
cdef void read_pause_options(int argc, char** argv) noexcept nogil
cdef void rewrite(char* text) noexcept nogil
cdef void map_exit(char* text) noexcept nogil
cdef void add_variable(char* text) noexcept nogil
cdef void add_delay(char* text) noexcept nogil
cdef void add_delay_of(int number, long duration, const char* text) noexcept nogil
cdef int id_in(const char* text, size_t length) noexcept nogil
cdef void read_user(char* text) noexcept nogil
cdef int signal_or_refuse(const char* option, const char* text) noexcept nogil
cdef unsigned long long signals_or_refuse(const char* option, const char* text) noexcept nogil
cdef long number_or_refuse(const char* option, const char* text, long most) noexcept nogil
cdef long duration_or_refuse(const char* option, const char* text, char* end) noexcept nogil
cdef bint is_writable(int fd) noexcept nogil

cdef size_t span(const char* text, char stop) noexcept nogil
cdef long number_in(const char* text, size_t length) noexcept nogil
cdef long duration_in(const char* text, size_t length) noexcept nogil
cdef int signal_in(const char* text, size_t length) noexcept nogil
cdef int level_in(const char* text) noexcept nogil
cdef long leading_number(const char* text, size_t length) noexcept nogil
cdef int real_time(int base, const char* text, size_t length) noexcept nogil
cdef int signal_named(const char* text, size_t length) noexcept nogil
cdef bint same_word(const char* text, size_t length, const char* capitals) noexcept nogil
cdef const char* signal_names() noexcept nogil

cdef void find_environment(int argc, char** argv) noexcept nogil
cdef char* variable(const char* name) noexcept nogil
cdef bint is_variable(const char* text, const char* name) noexcept nogil
cdef void drop_variables(const char* prefix) noexcept nogil
cdef void add_variables() noexcept nogil
cdef char* more_memory(size_t size) noexcept nogil

cdef void hold_signals() noexcept nogil
cdef bint receive_deaths(unsigned long flags) noexcept nogil
cdef void leave_terminal() noexcept nogil
cdef void watch_parent() noexcept nogil
cdef void adopt_orphans() noexcept nogil

cdef void spawn(char** command) noexcept nogil
cdef long spawn_child() noexcept nogil
cdef void become_command() noexcept nogil
cdef void arrange_group() noexcept nogil
cdef int arrange_rights() noexcept nogil
cdef void ignore_children() noexcept nogil
cdef void tell_listener() noexcept nogil
cdef void fail_to_run() noexcept nogil
cdef int failure_status() noexcept nogil
cdef void say_refused_call() noexcept nogil
cdef void say_advice(int reason) noexcept nogil
cdef int search_and_execute(char** command) noexcept nogil
cdef bint join_path(const char* folder, size_t folder_length, const char* name) noexcept nogil
cdef int execute(char* file, char** command) noexcept nogil
cdef bint is_program(const char* name) noexcept nogil
cdef void let_go() noexcept nogil

cdef int supervise() noexcept nogil
cdef int pause() noexcept nogil
cdef int next_signal(siginfo_t* info) noexcept nogil
cdef void receive(siginfo_t* info) noexcept nogil
cdef bint drops(int number) noexcept nogil
cdef bint hold_back(int number) noexcept nogil
cdef void deliver(int number, siginfo_t* info) noexcept nogil
cdef int outgoing(int number) noexcept nogil
cdef void send(int number, siginfo_t* info) noexcept nogil
cdef bint reap(siginfo_t* info) noexcept nogil
cdef bint can_wait(siginfo_t* info) noexcept nogil
cdef bint somebody_died() noexcept nogil
cdef long fetch(unsigned long long wanted) noexcept nogil
cdef void let_kernel_reap() noexcept nogil
cdef int kept_status() noexcept nogil
cdef void command_ended(int wait_status, long* usage) noexcept nogil
cdef int status_of(int wait_status) noexcept nogil
cdef void command_stopped(int number) noexcept nogil
cdef void set_foreground(int owner, int wanted) noexcept nogil
cdef void return_terminal() noexcept nogil

cdef void arm(int which, long milliseconds) noexcept nogil
cdef long long now_ms() noexcept nogil
cdef long long next_due() noexcept nogil
cdef void act_on_time() noexcept nogil

cdef void everybody(int number) noexcept nogil
cdef void add_children(int parent) noexcept nogil
cdef bint catches(int number) noexcept nogil
cdef long oom_kills() noexcept nogil
cdef void report_zombies() noexcept nogil
cdef void report_zombie(int pid) noexcept nogil
cdef char* read_stat(int pid) noexcept nogil
cdef char* text_behind(char* text, const char* mark) noexcept nogil
cdef bint read_path_buffer(int file) noexcept nogil
cdef int open_of_process(int pid, const char* first, int number, const char* second) noexcept nogil
cdef int open_file(const char* name, int flags) noexcept nogil

cdef void lock() noexcept nogil
cdef void allow(int call) noexcept nogil
cdef void add_filter(int code, int if_true, int if_false, unsigned int value) noexcept nogil

cdef unsigned long long bit(int number) noexcept nogil
cdef unsigned long long ours() noexcept nogil
cdef void set_mask(unsigned long long wanted, unsigned long long* previous) noexcept nogil

cdef void print_version() noexcept nogil
cdef void print_licence() noexcept nogil
cdef void print_help() noexcept nogil
cdef void tell_usage(int fd) noexcept nogil
cdef void write_text(int fd, const char* text) noexcept nogil
cdef void tell_spawned() noexcept nogil
cdef void tell_signal(siginfo_t* info) noexcept nogil
cdef void say_sender(siginfo_t* info) noexcept nogil
cdef void tell_rewritten(int number, int wanted) noexcept nogil
cdef void tell_suspended() noexcept nogil
cdef void tell_forwarded(int number, int target, long result) noexcept nogil
cdef void tell_stop(int number) noexcept nogil
cdef void tell_reaped(int pid, int wait_status, siginfo_t* info) noexcept nogil
cdef void tell_ended(int wait_status, long peak_kb) noexcept nogil

cdef void event(const char* name) noexcept nogil
cdef void field(const char* name) noexcept nogil
cdef void field_number(const char* name, long number) noexcept nogil
cdef void field_signal(const char* name, int number) noexcept nogil
cdef void field_text(const char* name, const char* text) noexcept nogil
cdef void end_event() noexcept nogil

cdef void begin_plain() noexcept nogil
cdef void begin(int level) noexcept nogil
cdef void say(const char* text) noexcept nogil
cdef void say_bytes(const char* text, size_t length) noexcept nogil
cdef void say_number(long number) noexcept nogil
cdef size_t digits_of(long number, char* digits) noexcept nogil
cdef void say_signal(int number) noexcept nogil
cdef void say_bare_signal(int number) noexcept nogil
cdef void say_error(long result) noexcept nogil
cdef void print_line() noexcept nogil
cdef void print_on(int fd) noexcept nogil
cdef void refuse(const char* problem, const char* subject) noexcept nogil
cdef void refuse_value(const char* option, const char* problem, const char* subject) noexcept nogil
cdef void refuse_option(const char* problem, const char* subject) noexcept nogil
cdef void refuse_nothing() noexcept nogil
cdef void say_usage_of_catatonit() noexcept nogil
cdef void fail() noexcept nogil
