# The C side of init.py: signatures, constants and the program's few globals.
from linux cimport pid_t, siginfo_t, signal_handler

cdef extern from *:
    const char* PYSHIM_VERSION

cdef enum:
    LINE_BYTES = 512  # longer messages are cut
    PATH_BYTES = 4096  # PATH_MAX, with its terminating zero
    KERNEL_SIGSET_BYTES = 8
    LAST_SIGNAL = 64
    ASCII_ZERO = 48
    BASE_VERBOSITY = 1
    WARNING = 1
    INFO = 2
    DEBUG = 3

    EXIT_INIT_FAILED = 1
    EXIT_CANNOT_RUN = 126
    EXIT_NOT_FOUND = 127
    EXIT_SIGNAL_BASE = 128

# What the options and the environment ask for.
cdef int verbosity
cdef bint warn_of_orphans
cdef bint forward_to_group
cdef bint be_subreaper
cdef int parent_death_signal
cdef bint counts_as_success[256]

# What pyinit found when it was started; the command gets it back.
cdef unsigned long long mask_at_start
cdef signal_handler sigchld_at_start

cdef char line[LINE_BYTES]
cdef size_t line_length
cdef char path[PATH_BYTES]

cdef public int program_main(int argc, char** argv) noexcept nogil

cdef char** read_options(int argc, char** argv) noexcept nogil
cdef void read_cluster(const char* letters, const char* following, bint* took) noexcept nogil
cdef void read_environment() noexcept nogil
cdef void print_version() noexcept nogil
cdef void print_help() noexcept nogil
cdef void accept_status(const char* text) noexcept nogil

cdef void hold_signals() noexcept nogil
cdef void die_with_parent(pid_t parent) noexcept nogil
cdef void adopt_orphans() noexcept nogil

cdef bint owns_terminal() noexcept nogil
cdef pid_t spawn(char** command, bint take_terminal) noexcept nogil
cdef void become_command(char** command, bint take_terminal) noexcept nogil
cdef void fail_to_run(const char* name, int reason) noexcept nogil
cdef int search_and_execute(char** command) noexcept nogil
cdef int execute(char* file, char** command) noexcept nogil
cdef bint join_path(const char* folder, size_t folder_length, const char* name) noexcept nogil

cdef int supervise(pid_t child) noexcept nogil
cdef int next_signal(siginfo_t* info) noexcept nogil
cdef void forward(siginfo_t* info, pid_t child) noexcept nogil
cdef int reap(pid_t child) noexcept nogil
cdef int exit_status(int wait_status) noexcept nogil
cdef void return_terminal(pid_t child) noexcept nogil

cdef unsigned long long bit(int number) noexcept nogil
cdef unsigned long long everything_but_faults() noexcept nogil
cdef void set_mask(unsigned long long wanted, unsigned long long* previous) noexcept nogil
cdef int number_in(const char* text) noexcept nogil
cdef int signal_named(const char* name) noexcept nogil
cdef const char* signal_names() noexcept nogil

cdef void begin() noexcept nogil
cdef void say(const char* text) noexcept nogil
cdef void say_bytes(const char* text, size_t length) noexcept nogil
cdef void say_number(long number) noexcept nogil
cdef void say_signal(int number) noexcept nogil
cdef void print_line(int fd) noexcept nogil
cdef void fail() noexcept nogil
cdef void refuse(const char* problem, const char* subject) noexcept nogil
