"""pyinit: process 1 of a container.

It starts one command, hands every signal that it gets to that command, reaps whatever dies, and
ends with the command's exit code.  Options, environment and exit codes are those of tini, which it
replaces.  The command must find what it would find without an init: the same signal mask, the same
dispositions, the same file descriptors.

It must never wake up without a cause, never end before the command does, and never touch a Python
object: Cython compiles this file to C without the Python runtime (types are in ``init.pxd``).

It installs no signal handler.  Signals stay blocked and are fetched one by one, so nothing here can
be interrupted half-way.  The signal calls are raw system calls because musl reserves 32 to 34 for
itself and hides them in its own sigprocmask, while 34 is the SIGRTMIN of every glibc program.
"""

import cython
from cython.cimports.linux import (
    E2BIG,
    EACCES,
    ENOENT,
    ENOEXEC,
    ENOTDIR,
    ESRCH,
    PR_GET_CHILD_SUBREAPER,
    PR_SET_CHILD_SUBREAPER,
    PR_SET_PDEATHSIG,
    SI_QUEUE,
    SIG_DFL,
    SIG_IGN,
    SIG_SETMASK,
    SIGABRT,
    SIGBUS,
    SIGCHLD,
    SIGFPE,
    SIGILL,
    SIGPIPE,
    SIGSEGV,
    SIGSYS,
    SIGTRAP,
    SIGTTIN,
    SIGTTOU,
    WEXITSTATUS,
    WIFEXITED,
    WNOHANG,
    WTERMSIG,
    SYS_rt_sigprocmask,
    SYS_rt_sigqueueinfo,
    SYS_rt_sigtimedwait,
    _exit,
    environ,
    errno,
    execve,
    getenv,
    getpgrp,
    getpid,
    getppid,
    kill,
    memcpy,
    pid_t,
    prctl,
    setpgid,
    siginfo_t,
    signal,
    strchr,
    strcmp,
    strerror,
    strlen,
    strncasecmp,
    syscall,
    tcgetpgrp,
    tcsetpgrp,
    vfork,
    waitpid,
    write,
)


def program_main(argc, argv):
    """What an init does, from beginning to end."""
    parent: pid_t = getppid()
    command: cython.pp_char = read_options(argc, argv)
    read_environment()
    hold_signals()
    if parent_death_signal:
        die_with_parent(parent)
    adopt_orphans()
    return supervise(spawn(command, owns_terminal()))


# --- What is asked for -------------------------------------------------------------------------


def read_options(argc, argv):
    """Obeys the options in front of the command and returns where the command begins."""
    global verbosity
    verbosity = BASE_VERBOSITY
    at: cython.int = 1
    took: cython.bint
    ended: cython.bint = False
    while at < argc and argv[at][0] == b"-" and argv[at][1] != 0 and not ended:
        if strcmp(argv[at], b"--") == 0:
            ended = True
        elif strcmp(argv[at], b"--version") == 0:
            print_version()
        elif argv[at][1] == b"-":
            refuse(b"unknown option", argv[at])
        else:
            took = False
            read_cluster(argv[at] + 1, argv[at + 1], cython.address(took))
            at += took
        at += 1
    if at >= argc:
        begin()
        say(b"no command to run; give one, as in 'pyinit -- COMMAND ARG...', or see 'pyinit -h'")
        fail()
    # tini documents PROGRAM -- ARGS as well; there the -- belongs to the init.
    if not ended and at + 1 < argc and strcmp(argv[at + 1], b"--") == 0:
        argv[at + 1] = argv[at]
        at += 1
    return argv + at


def read_cluster(letters, following, took):
    """Obeys the one-letter options in ``letters``; ``took`` is set when ``following`` is used."""
    global verbosity, warn_of_orphans, forward_to_group, be_subreaper, parent_death_signal
    shown: cython.char[3]
    letter: cython.char
    value: cython.p_const_char
    while letters[0] != 0:
        letter = letters[0]
        letters += 1
        shown[0] = b"-"
        shown[1] = letter
        shown[2] = 0
        if letter == b"h":
            print_help()
        elif letter == b"l":
            begin()
            say(b"Apache License 2.0, https://www.apache.org/licenses/LICENSE-2.0")
            print_line(1)
            _exit(0)
        elif letter == b"s":
            be_subreaper = True
        elif letter == b"v":
            verbosity += 1
        elif letter == b"w":
            warn_of_orphans = True
        elif letter == b"g":
            forward_to_group = True
        elif letter == b"p" or letter == b"e":
            value = letters
            if value[0] == 0:
                value = following
                took[0] = True
            if value == cython.NULL:
                refuse(b"a value is missing after", shown)
            if letter == b"e":
                accept_status(value)
            else:
                parent_death_signal = signal_named(value)
                if parent_death_signal == 0:
                    refuse(b"-p: no such signal:", value)
            return
        else:
            refuse(b"unknown option", shown)


def accept_status(text):
    """``-e``: the command's exit code ``text`` becomes 0."""
    status: cython.int = number_in(text)
    if status < 0 or status > 255:
        refuse(b"-e: not an exit code from 0 to 255:", text)
    counts_as_success[status] = True


def read_environment():
    """The only options that ``docker run --init`` can pass; they stay set for a nested init."""
    global verbosity, forward_to_group, be_subreaper
    wanted: cython.p_const_char = getenv(b"TINI_VERBOSITY")
    if wanted != cython.NULL:
        verbosity = number_in(wanted)
    # As in tini, presence counts: "=0" enables as well.
    if getenv(b"TINI_SUBREAPER") != cython.NULL:
        be_subreaper = True
    if getenv(b"TINI_KILL_PROCESS_GROUP") != cython.NULL:
        forward_to_group = True


def print_version():
    """dockerd runs ``--version`` and looks for "tini version" in what it gets."""
    global line_length
    line_length = 0
    say(b"tini version 0.19.0 - pyinit ")
    say(PYSHIM_VERSION)
    print_line(1)
    _exit(0)


def print_help():
    """``-h``."""
    text: cython.p_const_char = (
        b"usage: pyinit [OPTIONS] [--] COMMAND [ARG...] | --version\n\n"
        b"Runs COMMAND, forwards signals to it, reaps processes, ends with its exit code.\n\n"
        b"  --version  print the version\n"
        b"  -h         print this help\n"
        b"  -l         print the licence\n"
        b"  -s         adopt orphans although not PID 1 (child subreaper)\n"
        b"  -p SIGNAL  get SIGNAL when the parent of pyinit dies\n"
        b"  -v         say more on stderr; up to three times\n"
        b"  -w         warn of each orphan that is reaped\n"
        b"  -g         forward signals to the command's process group\n"
        b"  -e STATUS  turn the exit code STATUS into 0; may be repeated\n\n"
        b"Environment: TINI_SUBREAPER (-s), TINI_KILL_PROCESS_GROUP (-g), TINI_VERBOSITY=0..3\n"
        b"Exit codes: the command's; 128+N after signal N; 127 not found; 126 cannot be run;\n"
        b"1 for an error of pyinit itself.\n"
    )
    write(1, text, strlen(text))
    _exit(0)


# --- Before the command ------------------------------------------------------------------------


def hold_signals():
    """Blocks what is to be forwarded, and makes children waitable."""
    global sigchld_at_start
    set_mask(everything_but_faults(), cython.address(mask_at_start))
    # With SIGCHLD ignored, which an exec inherits, the kernel reaps for us and keeps the status.
    sigchld_at_start = signal(SIGCHLD, SIG_DFL)


def die_with_parent(parent):
    """``-p``: the signal comes when the parent dies, or now if it died before we could ask."""
    prctl(PR_SET_PDEATHSIG, parent_death_signal, 0, 0, 0)
    if getppid() != parent:
        kill(getpid(), parent_death_signal)


def adopt_orphans():
    """Makes sure that orphans come to us, or says that they will not."""
    already: cython.int = 0
    if be_subreaper:
        if prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            begin()
            say(b"cannot become a subreaper: ")
            say(strerror(errno))
            say(b"; run as PID 1, or without -s and TINI_SUBREAPER")
            fail()
    elif verbosity >= WARNING and getpid() != 1:
        prctl(PR_GET_CHILD_SUBREAPER, cython.address(already), 0, 0, 0)
        if not already:
            begin()
            say(b"not PID 1 and not a subreaper, so zombie reaping won't work; ")
            say(b"use -s or TINI_SUBREAPER, or run as PID 1")
            print_line(2)


# --- The command -------------------------------------------------------------------------------


def owns_terminal():
    """Whether the command may have the terminal.

    A background job must not take it from its shell, which would then read end-of-file.  PID 1 may
    always: the group in the foreground can be invisible from inside its namespace.
    """
    return getpid() == 1 or tcgetpgrp(0) == getpgrp()


def spawn(command, take_terminal):
    """Starts the command and returns its pid.

    With vfork we go on only when the command has been executed: its process group exists by then,
    and no signal can be forwarded to a child that is not the command yet.
    """
    child: pid_t = vfork()
    if child == 0:
        become_command(command, take_terminal)
    if child < 0:
        begin()
        say(b"cannot start a process: ")
        say(strerror(errno))
        say(b"; check the limits on processes and memory")
        fail()
    if verbosity >= INFO:
        begin()
        say(b"Spawned child process '")
        say(command[0])
        say(b"' with pid ")
        say_number(child)
        print_line(2)
    return child


def become_command(command, take_terminal):
    """The child, in its parent's memory: executes the command or ends, and never returns."""
    name: cython.p_const_char = command[0]
    setpgid(0, 0)
    # Without a terminal, with stdin closed, or without the right to it: the command runs anyhow.
    # SIGTTOU is still blocked, so the kernel lets a background group do this.
    if take_terminal:
        tcsetpgrp(0, getpid())
    if sigchld_at_start == SIG_IGN:
        signal(SIGCHLD, SIG_IGN)
    set_mask(mask_at_start, cython.NULL)
    fail_to_run(name, search_and_execute(command))


def fail_to_run(name, reason):
    """Says why the command could not be executed and ends with the status that tells it.

    tini ends with 1 for reasons other than ENOENT and EACCES; shells, env and timeout with 126,
    which cannot be mistaken for the command's own failure.
    """
    # A reader of stderr that is gone must not turn the status into 128+SIGPIPE.
    set_mask(everything_but_faults(), cython.NULL)
    begin()
    say(b"cannot run '")
    say(name)
    say(b"': ")
    say(strerror(reason))
    if reason == ENOENT and strchr(name, b"/") == cython.NULL:
        say(b"; check the command and the image's PATH")
    elif reason == ENOENT:
        say(b"; check that the file and the interpreter that it names exist")
    elif reason == EACCES:
        say(b"; check that it is a file that this user may execute")
    elif reason == ENOEXEC:
        say(b"; check that it was built for this machine")
    elif reason == E2BIG:
        say(b"; shorten the arguments or the environment")
    print_line(2)
    _exit(EXIT_NOT_FOUND if reason == ENOENT else EXIT_CANNOT_RUN)


def search_and_execute(command):
    """execvp(3) as glibc has it; returns the errno that says best why nothing was executed."""
    name: cython.p_char = command[0]
    folder: cython.p_const_char = getenv(b"PATH")
    length: cython.size_t
    result: cython.int
    best: cython.int = ENOENT
    if strchr(name, b"/") != cython.NULL:
        return execute(name, command)
    if name[0] == 0:
        return ENOENT
    if folder == cython.NULL:
        folder = b"/usr/local/bin:/bin:/usr/bin"
    while True:
        length = 0
        while folder[length] != 0 and folder[length] != b":":
            length += 1
        if join_path(folder, length, name):
            result = execute(path, command)
            if result == EACCES:
                best = EACCES  # seen but not allowed says more than not found elsewhere
            elif result != ENOENT and result != ENOTDIR:
                return result
        if folder[length] == 0:
            return best
        folder += length + 1


def join_path(folder, folder_length, name):
    """Puts ``folder/name`` into ``path``; false when it does not fit.  No folder means here."""
    name_length: cython.size_t = strlen(name)
    at: cython.size_t = 0
    if folder_length + name_length + 2 > PATH_BYTES:
        return False
    if folder_length:
        memcpy(path, folder, folder_length)
        path[folder_length] = b"/"
        at = folder_length + 1
    memcpy(path + at, name, name_length + 1)
    return True


def execute(file, command):
    """Executes ``file``, as a shell script if the kernel knows no format for it."""
    name: cython.p_char = command[0]
    shell: cython.pp_char = command - 1
    before: cython.p_char = shell[0]
    execve(file, command, environ)
    if errno != ENOEXEC:
        return errno
    # The shell needs one argument more; the slot before the command was an argument of ours.
    shell[0] = cython.cast(cython.p_char, b"/bin/sh")
    command[0] = file
    execve(shell[0], shell, environ)
    shell[0] = before
    command[0] = name
    return ENOEXEC


# --- While it runs -----------------------------------------------------------------------------


def supervise(child):
    """Forwards and reaps until the command has ended; returns the exit code for pyinit."""
    info: siginfo_t
    status: cython.int
    while True:
        if next_signal(cython.address(info)) == SIGCHLD:
            if verbosity >= DEBUG:
                begin()
                say(b"Received SIGCHLD")
                print_line(2)
        else:
            forward(cython.address(info), child)
        # After every signal: the kernel hands out low numbers first, so a stream of them would
        # keep SIGCHLD waiting for ever.
        status = reap(child)
        if status >= 0:
            return_terminal(child)
            return 0 if counts_as_success[status] else status


def next_signal(info):
    """Sleeps until there is a signal."""
    wanted: cython.ulonglong = everything_but_faults()
    number: cython.long
    while True:
        number = syscall(
            SYS_rt_sigtimedwait, cython.address(wanted), info, cython.NULL, KERNEL_SIGSET_BYTES
        )
        if number > 0:
            return number


def forward(info, child):
    """Sends the signal that ``info`` describes to the command, or with ``-g`` to its group."""
    number: cython.int = info.si_signo
    result: cython.long
    # The first two mean "you are in the background", which concerns nobody but us.
    if number == SIGTTIN or number == SIGTTOU:
        return
    # Our own message to a stderr that nobody reads any more is not the command's business either.
    if number == SIGPIPE and info.si_pid == getpid():
        return
    if verbosity >= DEBUG:
        begin()
        say(b"Passing signal: ")
        say_signal(number)
        print_line(2)
    if forward_to_group:
        result = kill(-child, number)
        if result != 0 and errno == ESRCH:  # it has left the group that we made for it
            result = kill(child, number)
    elif info.si_code == SI_QUEUE:
        result = syscall(SYS_rt_sigqueueinfo, child, number, info)  # keeps the queued value
    else:
        result = kill(child, number)
    if result != 0 and verbosity >= WARNING:
        begin()
        say(b"cannot forward ")
        say_signal(number)
        say(b" to process ")
        say_number(child)
        say(b": ")
        say(strerror(errno))
        print_line(2)


def reap(child):
    """Collects every process that has died; the command's exit code if it is one, or -1."""
    wait_status: cython.int = 0
    status: cython.int = -1
    pid: pid_t
    while True:
        pid = waitpid(-1, cython.address(wait_status), WNOHANG)
        if pid <= 0:
            return status
        if pid == child:
            status = exit_status(wait_status)
        if (pid != child and warn_of_orphans and verbosity >= WARNING) or verbosity >= DEBUG:
            begin()
            say(b"Reaped zombie process with pid=")
            say_number(pid)
            print_line(2)


def exit_status(wait_status):
    """The exit code that stands for how the command ended, as a shell counts it."""
    if WIFEXITED(wait_status):
        if verbosity >= INFO:
            begin()
            say(b"Main child exited with status ")
            say_number(WEXITSTATUS(wait_status))
            print_line(2)
        return WEXITSTATUS(wait_status)
    if verbosity >= INFO:
        begin()
        say(b"Main child was ended by ")
        say_signal(WTERMSIG(wait_status))
        print_line(2)
    return EXIT_SIGNAL_BASE + WTERMSIG(wait_status)


def return_terminal(child):
    """Lets whoever started us read the terminal again, unless the command has passed it on."""
    if getpid() != 1 and tcgetpgrp(0) == child:
        tcsetpgrp(0, getpgrp())


# --- Signals -----------------------------------------------------------------------------------


def bit(number):
    """The bit of a signal in the kernel's mask."""
    return cython.cast(cython.ulonglong, 1) << (number - 1)


def everything_but_faults():
    """All signals that can be blocked and are not the kernel's word for a bug in this program."""
    faults: cython.ulonglong = bit(SIGILL) | bit(SIGTRAP) | bit(SIGABRT) | bit(SIGBUS)
    faults |= bit(SIGFPE) | bit(SIGSEGV) | bit(SIGSYS)
    return ~faults


def set_mask(wanted, previous):
    """sigprocmask(2) for all 64 signals."""
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, cython.address(wanted), previous, KERNEL_SIGSET_BYTES)


def signal_names():
    """The names of signals 1 to 31 in order, the same on x86-64 and aarch64."""
    return (
        b"HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT "
        b"STOP TSTP TTIN TTOU URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS "
    )


def signal_named(name):
    """The number of a signal given as SIGTERM, term or 15; 0 when there is none such."""
    number: cython.int = number_in(name)
    names: cython.p_const_char = signal_names()
    length: cython.size_t
    if number >= 0:
        return number if number <= LAST_SIGNAL else 0
    if strncasecmp(name, b"SIG", 3) == 0:
        name += 3
    number = 1
    while names[0] != 0:
        length = strchr(names, b" ") - names
        if strlen(name) == length and strncasecmp(name, names, length) == 0:
            return number
        names += length + 1
        number += 1
    return 0


def number_in(text):
    """A decimal number, with the blanks and the plus that strtol(3) allows; or -1."""
    number: cython.int = 0
    while text[0] == b" " or text[0] == b"\t":
        text += 1
    if text[0] == b"+":
        text += 1
    if text[0] == 0:
        return -1
    while text[0] >= b"0" and text[0] <= b"9" and number < 100000:
        number = number * 10 + text[0] - ASCII_ZERO
        text += 1
    return number if text[0] == 0 else -1


# --- Messages: one line, one write, no allocation ------------------------------------------------


def begin():
    """Starts a line."""
    global line_length
    line_length = 0
    say(b"pyinit: ")


def say(text):
    """Adds ``text`` to the line."""
    say_bytes(text, strlen(text))


def say_bytes(text, length):
    """Adds as much as fits before the newline."""
    global line_length
    room: cython.size_t = LINE_BYTES - 1 - line_length
    if length > room:
        length = room
    memcpy(line + line_length, text, length)
    line_length += length


def say_number(number):
    """Adds a number that is not negative."""
    digits: cython.char[20]
    at: cython.int = 20
    while True:
        at -= 1
        digits[at] = ASCII_ZERO + number % 10
        number //= 10
        if number == 0:
            break
    say_bytes(digits + at, 20 - at)


def say_signal(number):
    """Adds a signal's name; real-time signals have only numbers."""
    names: cython.p_const_char = signal_names()
    if number > 31:
        say(b"signal ")
        say_number(number)
        return
    while number > 1:
        names = strchr(names, b" ") + 1
        number -= 1
    say(b"SIG")
    say_bytes(names, strchr(names, b" ") - names)


def print_line(fd):
    """Writes the line; there is nobody to tell when that fails."""
    line[line_length] = b"\n"
    write(fd, line, line_length + 1)


def refuse(problem, subject):
    """Ends pyinit because of what stands on its command line."""
    begin()
    say(problem)
    say(b" '")
    say(subject)
    say(b"'; see 'pyinit -h'")
    fail()


def fail():
    """Prints the line and ends pyinit, before there is a command."""
    print_line(2)
    _exit(EXIT_INIT_FAILED)
