"""pyinit: process 1 of a container.

It starts one command, hands every signal that it gets to that command, reaps whatever dies, and
ends with the command's exit code.  It is tini, dumb-init, catatonit or a Kubernetes pause, by the
name under which it is started (docs/pyinit.md).  A *persona* fixes defaults, texts and exit codes;
what is put right here is right in each of them.  The command must find what it would find without
an init: the same signal mask, the same dispositions, the same file descriptors.

It must never wake up without a cause, never end before the command does, and never touch a Python
object: Cython compiles this file to C without the Python runtime (types are in ``init.pxd``).  Nor
does it use a libc, which would cost it more pages and more system calls than all of its own.

It installs no signal handler.  Signals stay blocked and are fetched one by one, so nothing here can
be interrupted half-way.  The command is started in our memory, as vfork(2) does it: we go on when
it has been executed, so no signal can reach a child that is not the command yet.
"""

import cython
from cython.cimports.linux import (
    CHILD_STACK,
    CLOCK_MONOTONIC,
    CLOCK_REALTIME,
    CLONE_SIGHAND,
    E2BIG,
    EACCES,
    ECHILD,
    EINVAL,
    ENOENT,
    ENOEXEC,
    ENOTDIR,
    ESRCH,
    F_GETFL,
    O_ACCMODE,
    O_CLOEXEC,
    O_NOCTTY,
    O_PATH,
    O_RDONLY,
    O_RDWR,
    PIDFD_GET_INFO,
    PIDFD_INFO_COREDUMP,
    PIDFD_INFO_EXIT,
    PR_GET_CHILD_SUBREAPER,
    PR_SET_CHILD_SUBREAPER,
    PR_SET_NO_NEW_PRIVS,
    PR_SET_PDEATHSIG,
    PR_SET_SECCOMP,
    SA_NOCLDWAIT,
    SI_KERNEL,
    SI_QUEUE,
    SI_USER,
    SIG_IGN,
    SIG_SETMASK,
    SIGABRT,
    SIGBUS,
    SIGCHLD,
    SIGCONT,
    SIGFPE,
    SIGHUP,
    SIGILL,
    SIGINT,
    SIGKILL,
    SIGPIPE,
    SIGQUIT,
    SIGSEGV,
    SIGSTOP,
    SIGSYS,
    SIGTERM,
    SIGTRAP,
    SIGTSTP,
    SIGTTIN,
    SIGTTOU,
    SIGWINCH,
    THIS_AUDIT_ARCH,
    TIOCGPGRP,
    TIOCNOTTY,
    TIOCSCTTY,
    TIOCSPGRP,
    WCOREDUMP,
    WEXITSTATUS,
    WIFEXITED,
    WIFSTOPPED,
    WNOHANG,
    WSTOPSIG,
    WTERMSIG,
    WUNTRACED,
    SYS_brk,
    SYS_chdir,
    SYS_clock_gettime,
    SYS_close,
    SYS_close_range,
    SYS_dup3,
    SYS_execve,
    SYS_exit_group,
    SYS_fcntl,
    SYS_getdents64,
    SYS_getpgid,
    SYS_getpid,
    SYS_getppid,
    SYS_getsid,
    SYS_ioctl,
    SYS_kill,
    SYS_openat,
    SYS_pidfd_open,
    SYS_prctl,
    SYS_read,
    SYS_restart_syscall,
    SYS_rt_sigaction,
    SYS_rt_sigprocmask,
    SYS_rt_sigqueueinfo,
    SYS_rt_sigtimedwait,
    SYS_setgroups,
    SYS_setpgid,
    SYS_setresgid,
    SYS_setresuid,
    SYS_setsid,
    SYS_wait4,
    SYS_write,
    filter_program,
    kernel_action,
    kernel_call,
    linux_dirent64,
    memcpy,
    pidfd_information,
    siginfo_t,
    spawn_sharing_memory,
    strchr,
    strcmp,
    strlen,
    strncmp,
    timespec,
)


def program_main(argc, argv):
    """What an init does, from beginning to end."""
    command: cython.pp_char
    find_environment(argc, argv)
    choose_persona(argc, argv)
    command = read_everything(argc, argv)
    hold_signals()
    watch_parent()
    adopt_orphans()
    if only_reaps:
        return pause()
    spawn(command)
    let_go()
    return supervise()


# --- Who we are ----------------------------------------------------------------------------------


def choose_persona(argc, argv):
    """By the name of the program, ``PYINIT_AS``, or ``--as=NAME`` in front of everything else."""
    global persona, called, first_option, verbosity, own_group, log_fd, status_of_refusal
    wanted: cython.p_const_char = variable(b"PYINIT_AS")
    called = b"pyinit"
    if argc > 0:
        called = argv[0]
        persona = persona_named(base_name(called))
        if persona < 0:
            persona = NATIVE
    first_option = 1
    if argc > 1 and strncmp(argv[1], b"--as=", 5) == 0:
        wanted = argv[1] + 5
        first_option = 2
    if wanted != cython.NULL:
        persona = persona_named(wanted)
        if persona < 0:
            persona = NATIVE
            status_of_refusal = EXIT_NATIVE_FAILED
            refuse(b"no such persona", wanted)
    # Also for PYINIT_OPTS, which is read as the native persona reads it.
    status_of_refusal = EXIT_NATIVE_FAILED if persona == NATIVE else EXIT_INIT_FAILED
    own_group = True
    log_fd = 2
    verbosity = WARNING if persona == NATIVE or persona == TINI else FATAL


def persona_named(name):
    """The number of a persona; -1 when there is none of that name."""
    key: cython.int = key_of(
        b"0native 1tini 1tini-static 1docker-init 1podman-init 1init 2dumb-init 3catatonit 4pause ",
        name,
        False,
    )
    return key - ASCII_ZERO if key else -1


def base_name(path_name):
    """What follows the last slash."""
    slash: cython.p_char = strchr(path_name, b"/")
    while slash != cython.NULL:
        path_name = slash + 1
        slash = strchr(path_name, b"/")
    return path_name


def letters():
    """The one-letter options that this persona has; a colon follows one that takes a value."""
    if persona == TINI:
        return b"hvwgslp:e:"
    if persona == DUMB_INIT:
        return b"hvVcr:"
    if persona == CATATONIT:
        return b"ghLPV"
    return b"hvwgslp:e:Vcr:LP"


def long_names():
    """The long options that this persona has, each behind its key (see ``obey``)."""
    if persona == TINI:
        return b""
    if persona == DUMB_INIT:
        return b"hhelp Vversion vverbose csingle-child rrewrite "
    if persona == CATATONIT:
        return b"Vversion "
    return (
        b"hhelp Vversion vverbose csingle-child rrewrite llicence ssubreaper Sno-subreaper "
        b"wwarn ggroup pparent-death eexit rmap Ppause Okeep-stdio 0stop 1stop-on 2twice 3grace "
        b"4wait 5all 6delay 7log 8log-fd 9why Aabsorb Zzombies Dchild-pdeath Uuser Cchdir Eenv "
        b"Nnnp Klock Ttimeout "
    )


def key_of(table, name, may_be_short):
    """The letter before ``name`` in ``table``, also for an unambiguous beginning; 0 if none."""
    length: cython.size_t = strlen(name)
    size: cython.size_t
    found: cython.int = 0
    while table[0] != 0:
        size = strchr(table, b" ") - table - 1
        if size >= length and strncmp(table + 1, name, length) == 0:
            if size == length:
                return table[0]
            if found != 0 and found != table[0]:
                may_be_short = False
            found = table[0]
        table += size + 2
    return found if may_be_short else 0


# --- What is asked for ---------------------------------------------------------------------------


def read_everything(argc, argv):
    """Obeys environment and command line, which come in this order; returns the command."""
    at: cython.int
    read_environment()
    read_own_environment()
    if persona == PAUSE:
        read_pause_options(argc, argv)
        return cython.NULL
    if persona == TINI and argc - first_option == 1 and strcmp(argv[argc - 1], b"--version") == 0:
        print_version()
    at = read_options(argv, first_option, argc)
    if only_reaps:
        return cython.NULL
    if at >= argc:
        refuse_nothing()
    # tini documents PROGRAM -- ARGS as well; there the -- belongs to the init.
    if (
        (persona == TINI or persona == CATATONIT)
        and not options_ended
        and at + 1 < argc
        and strcmp(argv[at + 1], b"--") == 0
    ):
        argv[at + 1] = argv[at]
        at += 1
    return argv + at


def read_options(words, at, count):
    """Obeys the options from ``words[at]`` on; returns where they end."""
    global options_ended
    word: cython.p_char
    while at < count and words[at][0] == b"-" and words[at][1] != 0:
        word = words[at]
        at += 1
        if strcmp(word, b"--") == 0:
            options_ended = True
            return at
        if word[1] == b"-" and persona != TINI:
            at += read_long(word + 2, words[at] if at < count else cython.NULL)
        else:
            at += read_cluster(word + 1, words[at] if at < count else cython.NULL)
    return at


def read_cluster(cluster, following):
    """Obeys the one-letter options in ``cluster``; returns whether ``following`` was a value."""
    known: cython.p_const_char = letters()
    found: cython.p_char
    letter: cython.char
    while cluster[0] != 0:
        letter = cluster[0]
        cluster += 1
        option_text[0] = b"-"
        option_text[1] = letter
        found = strchr(known, letter)
        if letter == b":" or found == cython.NULL:
            refuse_option(b"invalid option -- '", option_text + 1)
        if found[1] != b":":
            obey(letter, cython.NULL)
        elif cluster[0] != 0:
            obey(letter, cluster)
            return 0
        else:
            if following == cython.NULL:
                refuse_option(b"option requires an argument -- '", option_text + 1)
            obey(letter, following)
            return 1
    return 0


def read_long(name, following):
    """Obeys a long option, given without its dashes; returns whether ``following`` was a value."""
    value: cython.p_char = strchr(name, b"=")
    key: cython.int
    if value != cython.NULL:
        value[0] = 0
        value += 1
    key = key_of(long_names(), name, True)
    if key == 0:
        refuse_option(b"unrecognized option '--", name)
    if strchr(b"4D", key) == cython.NULL:  # those may do without a value
        if strchr(b"per01368AZUCET7", key) == cython.NULL:
            if value != cython.NULL:
                refuse_option(b"no value is wanted by '--", name)
        elif value == cython.NULL:
            if following == cython.NULL:
                refuse_option(b"option requires an argument '--", name)
            obey(key, following)
            return 1
    obey(key, value)
    return 0


def obey(key, value):
    """One option, by the key that stands for it in ``letters`` and ``long_names``."""
    if not obey_classic(key, value):
        obey_own(key, value)


def obey_classic(key, value):
    """The options that tini, dumb-init and catatonit have; false when it is none of them."""
    global verbosity, warn_of_orphans, forward_to_group, be_subreaper, parent_death_signal
    global own_group, only_reaps
    if key == b"h":
        print_help()
    elif key == b"V":
        print_version()
    elif key == b"l" or key == b"L":
        print_licence()
    elif key == b"s":
        be_subreaper = True
    elif key == b"v":
        # In tini the variable has the last word.
        if not verbosity_is_set:
            verbosity = DEBUG if persona == DUMB_INIT else verbosity + 1
    elif key == b"w":
        warn_of_orphans = True
    elif key == b"g":
        forward_to_group = True
    elif key == b"c":
        own_group = False
    elif key == b"P":
        only_reaps = True
    elif key == b"p":
        parent_death_signal = signal_or_refuse(b"-p", value)
    elif key == b"r":
        rewrite(value)
    elif key == b"e":
        map_exit(value)
    else:
        return False
    return True


def obey_own(key, value):
    """The options that only we have; every persona can have them by ``PYINIT_OPTS``."""
    global stop_ms, stop_signal, stop_on, stop_twice, grace_ms, wait_for_all, wait_for_last
    global to_everybody, log_format, log_fd, say_why, absorbed, zombies_ms, child_death_signal
    global folder_of_command, no_new_privileges, lock_calls, timeout_ms, keep_stdio
    global never_subreaper
    end: cython.p_char
    if key == b"S":
        never_subreaper = True
    elif key == b"0":
        end = strchr(value, b":")
        stop_signal = SIGKILL if end == cython.NULL else signal_or_refuse(b"--stop", end + 1)
        stop_ms = duration_or_refuse(b"--stop", value, end) or AT_ONCE_MS
    elif key == b"1":
        stop_on = signals_or_refuse(b"--stop-on", value)
    elif key == b"2":
        stop_twice = True
    elif key == b"3":
        grace_ms = duration_or_refuse(b"--grace", value, cython.NULL) or AT_ONCE_MS
    elif key == b"4":
        wait_for_all = True
        wait_for_last = value != cython.NULL and strcmp(value, b"last") == 0
        if value != cython.NULL and not wait_for_last:
            refuse(b"--wait: only 'last' can be given, not", value)
    elif key == b"5":
        to_everybody = True
    elif key == b"6":
        add_delay(value)
    elif key == b"7":
        log_format = LOG_JSON if strcmp(value, b"json") == 0 else LOG_TEXT
        if log_format == LOG_TEXT and strcmp(value, b"text") != 0:
            refuse(b"--log: neither json nor text:", value)
    elif key == b"8":
        log_fd = number_or_refuse(b"--log-fd", value, 1 << 20)
        if not is_writable(log_fd):
            refuse_value(b"--log-fd", b"nothing is open for writing under the number", value)
    elif key == b"9":
        say_why = True
    elif key == b"A":
        absorbed = signals_or_refuse(b"--absorb", value)
    elif key == b"Z":
        zombies_ms = duration_or_refuse(b"--zombies", value, cython.NULL)
    elif key == b"D":
        child_death_signal = SIGKILL
        if value != cython.NULL:
            child_death_signal = signal_or_refuse(b"--child-pdeath", value)
    elif key == b"U":
        read_user(value)
    elif key == b"C":
        folder_of_command = value
    elif key == b"E":
        add_variable(value)
    elif key == b"N":
        no_new_privileges = True
    elif key == b"K":
        lock_calls = True
    elif key == b"T":
        timeout_ms = duration_or_refuse(b"--timeout", value, cython.NULL)
    else:
        keep_stdio = True


def read_environment():
    """What the programs that we stand for take from the environment; it stays set, for another."""
    global verbosity, verbosity_is_set, forward_to_group, be_subreaper, own_group
    found: cython.p_char
    if persona == TINI or persona == NATIVE:
        found = variable(b"TINI_VERBOSITY")
        if found != cython.NULL:
            verbosity = level_in(found)
            verbosity_is_set = True
        # As in tini, presence counts: "=0" enables as well.
        if variable(b"TINI_SUBREAPER") != cython.NULL:
            be_subreaper = True
        if variable(b"TINI_KILL_PROCESS_GROUP") != cython.NULL:
            forward_to_group = True
    elif persona == DUMB_INIT:
        found = variable(b"DUMB_INIT_DEBUG")
        if found != cython.NULL and strcmp(found, b"1") == 0:
            verbosity = DEBUG
        found = variable(b"DUMB_INIT_SETSID")
        if found != cython.NULL and strcmp(found, b"0") == 0:
            own_group = False
    elif persona == CATATONIT:
        if variable(b"CATATONIT_DEBUG") != cython.NULL:
            verbosity = DEBUG
        if variable(b"CATATONIT_KILLPG") != cython.NULL:
            forward_to_group = True
        if variable(b"CATATONIT_LOG") != cython.NULL:
            begin(FATAL)
            say(b"CATATONIT_LOG is not supported; unset it")
            fail()


def read_own_environment():
    """``PYINIT_OPTS``: options by the only channel that ``docker run --init`` leaves open.

    They are read as the native persona reads them.  The command sees no ``PYINIT_`` variable.
    """
    global persona, called, options_ended
    words: cython.p_char[MOST_WORDS]
    count: cython.int = 0
    real: cython.int = persona
    real_name: cython.p_const_char = called
    text: cython.p_char = variable(b"PYINIT_OPTS")
    at: cython.int = 0
    while text != cython.NULL and text[0] != 0:
        while text[0] == b" ":
            text[0] = 0
            text += 1
        if text[0] == 0:
            break
        if count == MOST_WORDS:
            refuse(b"PYINIT_OPTS has too many words, from", text)
        words[count] = text
        count += 1
        while text[0] != 0 and text[0] != b" ":
            text += 1
    persona = NATIVE
    called = b"PYINIT_OPTS"
    at = read_options(words, 0, count)
    if at < count:
        refuse(b"PYINIT_OPTS holds what is no option:", words[at])
    persona = real
    called = real_name
    options_ended = False
    drop_variables(b"PYINIT_")


def read_pause_options(argc, argv):
    """Kubernetes' pause has -v for its version and ignores the rest."""
    global only_reaps
    at: cython.int
    only_reaps = True
    for at in range(first_option, argc):
        if strcmp(argv[at], b"-v") == 0:
            print_version()


def rewrite(text):
    """``-r``: the signal S is forwarded as R, or dropped if R is 0."""
    colon: cython.p_char = strchr(text, b":")
    received: cython.int = 0
    sent: cython.int = -1
    if colon != cython.NULL:
        received = signal_in(text, colon - text)
        sent = signal_in(colon + 1, strlen(colon + 1))
        if sent < 0 and number_in(colon + 1, strlen(colon + 1)) == 0:
            sent = 0
    if received <= 0 or sent < 0:
        if persona != DUMB_INIT:
            refuse(b"-r: not SIGNAL:SIGNAL or SIGNAL:0:", text)
        begin_plain()
        say(b"Usage: -r option takes <signum>:<signum>, where <signum> is between 1 and 31.\n")
        say(b"This option can be specified multiple times.\nUse --help for full usage.")
        fail()
    rewritten[received] = sent + 1


def map_exit(text):
    """``-e N[:M]``: the command's exit code N becomes M, or 0."""
    colon: cython.p_char = strchr(text, b":")
    length: cython.size_t = strlen(text) if colon == cython.NULL else colon - text
    code: cython.long = number_in(text, length)
    result: cython.long = 0
    if length == 0 and persona == TINI:
        code = 0
    if colon != cython.NULL:
        result = number_in(colon + 1, strlen(colon + 1))
    if code < 0 or code > 255 or result < 0 or result > 255:
        refuse(b"Not a valid option for -e:", text)
    exit_map[code] = result + 1


def add_variable(text):
    """``--env=K=V``; the last one for the same K counts."""
    global added_count
    at: cython.int = 0
    if strchr(text, b"=") == cython.NULL:
        refuse(b"--env: not K=V:", text)
    while at < added_count and not is_variable(added[at], text):
        at += 1
    if at == MOST_ADDED:
        refuse(b"--env: too many, from", text)
    if at == added_count:
        added_count += 1
    added[at] = text


def add_delay(text):
    """``--delay=SIGNAL:DURATION``."""
    colon: cython.p_char = strchr(text, b":")
    if colon == cython.NULL or delays == MOST_DELAYS:
        refuse(b"--delay: not SIGNAL:DURATION, or too many:", text)
    add_delay_of(signal_in(text, colon - text), duration_in(colon + 1, strlen(colon + 1)), text)


def add_delay_of(number, duration, text):
    """The same, read; ``text`` is for the message."""
    global delays
    if number <= 0 or duration < 0:
        refuse(b"--delay: not SIGNAL:DURATION:", text)
    delay_signal[delays] = number
    delay_ms[delays] = duration
    delays += 1


def read_user(text):
    """``--user=UID[:GID[,GID...]]``; without a group its number is that of the user."""
    global user, group_count
    whole: cython.p_char = text
    size: cython.size_t = span(text, b":")
    user = id_in(text, size)
    groups[0] = user
    group_count = 1
    if text[size] != 0:
        group_count = 0
        while text[size] != 0 and group_count < MOST_GROUPS:
            text += size + 1
            size = span(text, b",")
            groups[group_count] = id_in(text, size)
            if groups[group_count] < 0:
                user = -1
            group_count += 1
    if user < 0 or text[size] != 0:
        refuse(b"--user: not UID[:GID[,GID...]] in numbers:", whole)


def id_in(text, length):
    """The number of a user or group, none of which is cut to another one, such as root; or -1."""
    number: cython.long = number_in(text, length)
    return cython.cast(cython.int, number) if number <= MOST_ID else -1


def signal_or_refuse(option, text):
    """A signal by name or number."""
    number: cython.int = signal_in(text, strlen(text))
    if number <= 0:
        refuse_value(option, b"no such signal:", text)
    return number


def signals_or_refuse(option, text):
    """The mask of signals that are separated by commas."""
    mask: cython.ulonglong = 0
    size: cython.size_t
    number: cython.int
    while True:
        size = span(text, b",")
        number = signal_in(text, size)
        if number <= 0:
            refuse_value(option, b"no such signal:", text)
        mask |= bit(number)
        if text[size] == 0:
            return mask
        text += size + 1


def number_or_refuse(option, text, most):
    """A number from 0 to ``most``."""
    number: cython.long = number_in(text, strlen(text))
    if number < 0 or number > most:
        refuse_value(option, b"no such number:", text)
    return number


def duration_or_refuse(option, text, end):
    """Milliseconds that are written from ``text`` to ``end``, or to its end if that is NULL."""
    length: cython.size_t = strlen(text) if end == cython.NULL else end - text
    duration: cython.long = duration_in(text, length)
    if duration < 0:
        refuse_value(option, b"not a duration such as 10s, 500ms or 2m, up to 24 hours:", text)
    return duration


def is_writable(fd):
    """Whether ``fd`` is open for writing, so that a log is not lost without a word."""
    flags: cython.long = kernel_call(SYS_fcntl, fd, F_GETFL)
    return flags >= 0 and (flags & O_ACCMODE) != O_RDONLY and not flags & O_PATH


# --- Numbers, durations, signals in text ---------------------------------------------------------


def span(text, stop):
    """How many characters there are before ``stop`` or the end."""
    length: cython.size_t = 0
    while text[length] != 0 and text[length] != stop:
        length += 1
    return length


def number_in(text, length):
    """A decimal number, with the blanks and the plus that strtol(3) allows; or -1."""
    number: cython.long = 0
    at: cython.size_t = 0
    while at < length and (text[at] == b" " or text[at] == b"\t"):
        at += 1
    if at < length and text[at] == b"+":
        at += 1
    if at == length:
        return -1
    while at < length and text[at] >= b"0" and text[at] <= b"9" and number < 1000000000:
        number = number * 10 + text[at] - ASCII_ZERO
        at += 1
    return number if at == length else -1


def duration_in(text, length):
    """Milliseconds: a decimal number with ms, s (which may be left out) or m; or -1."""
    whole: cython.size_t = 0
    unit: cython.long = 1000
    scale: cython.long
    result: cython.long
    if length > 1 and text[length - 1] == b"s" and text[length - 2] == b"m":
        unit = 1
        length -= 2
    elif length > 0 and text[length - 1] == b"m":
        unit = 60000
        length -= 1
    elif length > 0 and text[length - 1] == b"s":
        length -= 1
    while whole < length and text[whole] != b".":
        whole += 1
    result = number_in(text, whole) * unit
    if result < 0 or result > LONGEST_MS:
        return -1
    scale = unit
    whole += 1
    while whole < length:
        if text[whole] < b"0" or text[whole] > b"9":
            return -1
        scale //= 10
        result += (text[whole] - ASCII_ZERO) * scale
        whole += 1
    return result if result <= LONGEST_MS else -1


def signal_in(text, length):
    """The number of a signal given as SIGTERM, term, 15, RTMIN+1 or RTMAX-1; -1 if none such."""
    number: cython.long = number_in(text, length)
    if number < 0 and persona == DUMB_INIT:
        number = leading_number(text, length)
    if number >= 0:
        return number if 0 < number <= LAST_SIGNAL else -1
    if same_word(text, 3, b"SIG") and length > 3:
        text += 3
        length -= 3
    if length >= 5 and same_word(text, 5, b"RTMIN"):
        return real_time(FIRST_REAL_TIME, text + 5, length - 5)
    if length >= 5 and same_word(text, 5, b"RTMAX"):
        return real_time(LAST_SIGNAL, text + 5, length - 5)
    return signal_named(text, length)


def leading_number(text, length):
    """As sscanf(3) reads it for dumb-init: whatever follows the digits does not matter."""
    digits: cython.size_t = 0
    while digits < length and text[digits] >= b"0" and text[digits] <= b"9":
        digits += 1
    return number_in(text, digits)


def level_in(text):
    """As atoi(3) reads it for tini, whose level has no sign: one below 0 is above all."""
    number: cython.long = number_in(text, strlen(text))
    if number >= 0:
        return cython.cast(cython.int, number)
    if text[0] == b"-":
        return DEBUG if leading_number(text + 1, strlen(text) - 1) > 0 else 0
    number = leading_number(text, strlen(text))
    return cython.cast(cython.int, number) if number > 0 else 0


def real_time(base, text, length):
    """``base`` with what is added or subtracted in ``text``; -1 if that is no real-time signal."""
    offset: cython.long
    if length == 0:
        return base
    offset = number_in(text + 1, length - 1)
    if offset < 0 or offset > LAST_SIGNAL or (text[0] != b"+" and text[0] != b"-"):
        return -1
    base = base + offset if text[0] == b"+" else base - offset
    return base if FIRST_REAL_TIME <= base <= LAST_SIGNAL else -1


def signal_named(text, length):
    """The number of the signal of that name, without SIG; -1 when there is none such."""
    names: cython.p_const_char = signal_names()
    size: cython.size_t
    number: cython.int = 1
    while names[0] != 0:
        size = strchr(names, b" ") - names
        if size == length and same_word(text, length, names):
            return number
        names += size + 1
        number += 1
    return SIGABRT if length == 3 and same_word(text, 3, b"IOT") else -1


def same_word(text, length, capitals):
    """Whether ``text`` is ``capitals``, in whatever case."""
    at: cython.size_t
    letter: cython.char
    for at in range(length):
        letter = text[at]
        if letter >= b"a" and letter <= b"z":
            letter -= 32
        if letter != capitals[at]:
            return False
    return True


def signal_names():
    """The names of signals 1 to 31 in order, the same on x86-64 and aarch64."""
    return (
        b"HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT "
        b"STOP TSTP TTIN TTOU URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS "
    )


# --- The environment -----------------------------------------------------------------------------


def find_environment(argc, argv):
    """Linux puts the environment behind the arguments."""
    global environment
    environment = argv + argc + 1


def variable(name):
    """getenv(3)."""
    at: cython.pp_char = environment
    while at[0] != cython.NULL:
        if is_variable(at[0], name):
            return at[0] + strlen(name) + 1
        at += 1
    return cython.NULL


def is_variable(text, name):
    """Whether ``text`` is ``name=`` and something, the name ending where ``=`` stands in it."""
    length: cython.size_t = span(name, b"=")
    return strncmp(text, name, length) == 0 and text[length] == b"="


def drop_variables(prefix):
    """Takes all variables away whose names begin so."""
    source: cython.pp_char = environment
    target: cython.pp_char = environment
    while source[0] != cython.NULL:
        if strncmp(source[0], prefix, strlen(prefix)) != 0:
            target[0] = source[0]
            target += 1
        source += 1
    target[0] = cython.NULL


def add_variables():
    """``--env``: a longer environment, in new memory; what is replaced is left out."""
    global environment
    count: cython.size_t = 0
    at: cython.size_t = 0
    wanted: cython.int
    longer: cython.pp_char
    kept: cython.bint
    while environment[count] != cython.NULL:
        count += 1
    longer = cython.cast(cython.pp_char, more_memory((count + added_count + 1) * POINTER_BYTES))
    for wanted in range(added_count):
        longer[at] = added[wanted]
        at += 1
    while environment[0] != cython.NULL:
        kept = True
        for wanted in range(added_count):
            if is_variable(environment[0], added[wanted]):
                kept = False
        if kept:
            longer[at] = environment[0]
            at += 1
        environment += 1
    environment = longer


def more_memory(size):
    """Memory behind our own; ends pyinit when there is none."""
    start: cython.long = (kernel_call(SYS_brk, 0) + 15) & ~15
    end: cython.long = start + size
    if kernel_call(SYS_brk, end) < end:
        begin(FATAL)
        say(b"no memory for the environment")
        fail()
    return cython.cast(cython.p_char, start)


# --- Before the command --------------------------------------------------------------------------


def hold_signals():
    """Blocks what is to be forwarded."""
    set_mask(ours(), cython.address(mask_at_start))
    if only_reaps:  # so the kernel may do it
        receive_deaths(SA_NOCLDWAIT)
    elif persona == DUMB_INIT and own_group:
        leave_terminal()


def receive_deaths(flags):
    """Gives SIGCHLD its default disposition, with ``flags``; returns whether it was ignored.

    That is inherited through an exec, and then the kernel reaps for us and keeps the status.
    """
    action: kernel_action
    found: kernel_action
    action.handler = cython.NULL
    action.flags = flags
    action.mask = 0
    action.restorer = cython.NULL
    kernel_call(
        SYS_rt_sigaction, SIGCHLD, cython.address(action), cython.address(found), SIGSET_BYTES
    )
    return found.handler == SIG_IGN


def leave_terminal():
    """The command's session gets the terminal, so ours must not have it.

    A session leader that does this is sent HUP and CONT by the kernel, as if it had sent them
    itself.  They are fetched here, and those that somebody else has sent are kept for the command.
    """
    global early, init_pid
    info: siginfo_t
    hang_up: cython.ulonglong = bit(SIGHUP) | bit(SIGCONT)
    at_once: timespec
    number: cython.long
    at_once.tv_sec = at_once.tv_nsec = 0
    if kernel_call(SYS_ioctl, 0, TIOCNOTTY, 0) != 0:
        return
    if kernel_call(SYS_getsid, 0) != kernel_call(SYS_getpid):
        if verbosity >= DEBUG:
            begin(DEBUG)
            say(b"Detached from controlling tty, but was not session leader.")
            print_line()
        return
    init_pid = kernel_call(SYS_getpid)
    while True:
        number = kernel_call(
            SYS_rt_sigtimedwait,
            cython.address(hang_up),
            cython.address(info),
            cython.address(at_once),
            SIGSET_BYTES,
        )
        if number <= 0:
            return
        if info.si_pid != init_pid:
            early |= bit(number)
        elif verbosity >= DEBUG:
            begin(DEBUG)
            say(b"Ignoring tty hand-off signal ")
            say_number(number)
            say(b".")
            print_line()


def watch_parent():
    """``-p``: the signal comes when the parent dies, or now if it died before we could ask."""
    parent: cython.long
    if parent_death_signal == 0:
        return
    parent = kernel_call(SYS_getppid)
    kernel_call(SYS_prctl, PR_SET_PDEATHSIG, parent_death_signal)
    if kernel_call(SYS_getppid) != parent:
        kernel_call(SYS_kill, kernel_call(SYS_getpid), parent_death_signal)


def adopt_orphans():
    """Makes sure that orphans come to us, or, in tini's persona, says that they will not."""
    already: cython.int = 0
    result: cython.long
    always: cython.bint = persona == CATATONIT or persona == NATIVE or only_reaps
    if be_subreaper or (always and not never_subreaper):
        result = kernel_call(SYS_prctl, PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        if result != 0 and (be_subreaper or persona == CATATONIT):
            begin(FATAL)
            say(b"cannot become a subreaper: ")
            say_error(result)
            say(b"; run as PID 1, or without -s and TINI_SUBREAPER")
            fail()
    elif persona == TINI and verbosity >= WARNING and kernel_call(SYS_getpid) != 1:
        kernel_call(SYS_prctl, PR_GET_CHILD_SUBREAPER, cython.address(already))
        if not already:
            begin(WARNING)
            say(b"Not PID 1 and not a child subreaper, so zombie reaping won't work; ")
            say(b"use -s or TINI_SUBREAPER, or run as PID 1.")
            print_line()


# --- The command ---------------------------------------------------------------------------------


def spawn(command):
    """Starts the command; what cannot be executed ends pyinit with the status that tells it."""
    global child, command_words, init_at_start, init_pid
    number: cython.int
    status: cython.int = 0
    result: cython.long
    command_words = command
    if added_count:
        add_variables()
    if child_death_signal:
        init_at_start = kernel_call(SYS_getpid)
    result = spawn_child()
    if result < 0:
        begin(FATAL)
        say(b"cannot start a process: ")
        say_error(result)
        say(b"; check the limits on processes and memory")
        fail()
    child = result
    if init_pid == 0:  # the command cannot see us from its pid namespace (or we not its memory)
        init_pid = kernel_call(SYS_getpid)
    if spawn_error:
        kernel_call(SYS_wait4, child, cython.address(status), 0, cython.NULL)
        fail_to_run()
    tell_spawned()
    for number in range(1, LAST_SIGNAL + 1):
        if early & bit(number):
            deliver(number, cython.NULL)


def spawn_child():
    """Runs ``become_command`` in a child; its pid, or -errno.

    Until it has executed something the child also has our dispositions, so that it can see to
    SIGCHLD for both.  Where that was ignored the two must differ, and there is a second child.
    """
    global shares_dispositions, was_ignored
    status: cython.int = 0
    result: cython.long
    shares_dispositions = True
    result = spawn_sharing_memory(become_command, CHILD_STACK, CLONE_SIGHAND)
    if result == -EINVAL:  # an emulator
        was_ignored = receive_deaths(0)
    elif not was_ignored:
        return result
    else:
        kernel_call(SYS_wait4, result, cython.address(status), 0, cython.NULL)
    shares_dispositions = False
    return spawn_sharing_memory(become_command, CHILD_STACK, 0)


def become_command():
    """The child, in its parent's memory: executes the command or ends, and never returns."""
    global init_pid, spawn_error, was_ignored
    if shares_dispositions:
        was_ignored = receive_deaths(0)
        if was_ignored:
            kernel_call(SYS_exit_group, 0)
    # The parent has no use for its own pid before, and so saves a call of its own.
    init_pid = kernel_call(SYS_getppid)
    arrange_group()
    spawn_error = arrange_rights()
    if spawn_error == 0:
        if was_ignored:
            ignore_children()
        tell_listener()
        set_mask(mask_at_start, cython.NULL)
        spawn_error = search_and_execute(command_words)
    # The parent tells more; but emulators copy the memory that it should share with us.
    kernel_call(SYS_exit_group, failure_status())


def arrange_group():
    """The child's group, session and terminal.

    Without a terminal, with stdin closed, or without the right to it: the command runs anyhow.
    """
    global has_terminal, leads_session, watches_stops
    mine: cython.long = kernel_call(SYS_getpid)
    before: cython.long
    front: cython.int = -1
    if not own_group:
        return
    if persona == DUMB_INIT:
        kernel_call(SYS_setsid)
        if kernel_call(SYS_ioctl, 0, TIOCSCTTY, 0) == 0:
            has_terminal = True
        return
    before = kernel_call(SYS_getpgid, 0)
    leads_session = kernel_call(SYS_getsid, 0) == init_pid
    watches_stops = leads_session or init_pid == 1
    kernel_call(SYS_setpgid, 0, 0)
    if kernel_call(SYS_ioctl, 0, TIOCGPGRP, cython.address(front)) != 0:
        return
    # A background job must not take the terminal from its shell, which would then read
    # end-of-file.  A session leader may: nobody else hands it out.  For PID 1 the group in the
    # foreground can be one that is invisible from inside its namespace.
    if front == before or watches_stops:
        front = mine
        # SIGTTOU is still blocked, so the kernel lets a background group do this.
        if kernel_call(SYS_ioctl, 0, TIOCSPGRP, cython.address(front)) == 0:
            has_terminal = True
            watches_stops = True


def arrange_rights():
    """``--user``, ``--nnp``, ``--chdir`` and ``--child-pdeath``; -errno, or 0."""
    global refused_call
    result: cython.long = 0
    if group_count:
        refused_call = b"setgroups"
        result = kernel_call(SYS_setgroups, group_count - 1, groups + 1)
        if result == 0:
            refused_call = b"setresgid"
            result = kernel_call(SYS_setresgid, groups[0], groups[0], groups[0])
        if result == 0:
            refused_call = b"setresuid"
            result = kernel_call(SYS_setresuid, user, user, user)
    if result == 0 and no_new_privileges:
        refused_call = b"set no_new_privs"
        result = kernel_call(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if result == 0 and folder_of_command != cython.NULL:
        refused_call = b"chdir"
        result = kernel_call(SYS_chdir, folder_of_command)
    if result == 0:
        refused_call = cython.NULL
    if child_death_signal:
        # After the change of user, which would clear it.
        kernel_call(SYS_prctl, PR_SET_PDEATHSIG, child_death_signal)
        # A parent in another pid namespace (unshare --pid) is 0 whether it lives or not.
        if init_pid and kernel_call(SYS_getppid) != init_at_start:
            kernel_call(SYS_exit_group, 1)
    return result


def ignore_children():
    """SIGCHLD as whoever started us had it."""
    action: kernel_action
    action.handler = SIG_IGN
    action.flags = action.mask = 0
    action.restorer = cython.NULL
    kernel_call(SYS_rt_sigaction, SIGCHLD, cython.address(action), cython.NULL, SIGSET_BYTES)


def tell_listener():
    """Socket activation: LISTEN_PID (sd_listen_fds(3)) named us, so it names the command now."""
    digits: cython.char[24]
    at: cython.pp_char = environment
    found: cython.p_char = variable(b"LISTEN_PID")
    length: cython.size_t
    if found == cython.NULL or number_in(found, strlen(found)) != init_pid:
        return
    length = digits_of(kernel_call(SYS_getpid), digits)
    if length <= strlen(found):
        memcpy(found, digits, length + 1)
    else:
        memcpy(listener, b"LISTEN_PID=", 11)
        memcpy(listener + 11, digits, length + 1)
        while at[0] + 11 != found:
            at += 1
        at[0] = listener
    drop_variables(b"LISTEN_PIDFDID=")


def fail_to_run():
    """Says why the command could not be executed and ends with the status that tells it."""
    status: cython.int = failure_status()
    begin(FATAL)
    if refused_call != cython.NULL:
        say_refused_call()
        fail()
    if persona == CATATONIT:
        say(b"failed to exec pid1: ")
        say_error(spawn_error)
    elif persona == NATIVE:
        say(b"cannot run '")
        say(command_words[0])
        say(b"': ")
        say_error(spawn_error)
        say_advice(-spawn_error)
    else:
        if persona == TINI:
            say(b"exec ")
        say(command_words[0])
        if persona == TINI:
            say(b" failed")
        say(b": ")
        say_error(spawn_error)
    print_line()
    # Nobody who has -e 127 in a script for tini should be surprised.
    if persona == TINI and exit_map[status]:
        status = exit_map[status] - 1
    kernel_call(SYS_exit_group, status)


def failure_status():
    """The exit code for a command that could not be executed."""
    reason: cython.int = -spawn_error
    if refused_call != cython.NULL:
        return status_of_refusal
    if persona == DUMB_INIT:
        return EXIT_DUMB_INIT
    if persona == CATATONIT:
        return EXIT_INIT_FAILED
    if reason == ENOENT:
        return EXIT_NOT_FOUND
    if persona == TINI:
        return EXIT_CANNOT_RUN if reason == EACCES else EXIT_INIT_FAILED
    # Shells, env and timeout use these, which cannot be mistaken for an error of ours.
    return EXIT_NOT_FOUND if reason == ENOTDIR else EXIT_CANNOT_RUN


def say_refused_call():
    """What could not be arranged for the command, by which option, and what to try."""
    option: cython.p_const_char = b"--user"
    advice: cython.p_const_char = b"; it needs root, or CAP_SETGID and CAP_SETUID"
    say(b"cannot ")
    say(refused_call)
    if strcmp(refused_call, b"chdir") == 0:
        say(b" to '")
        say(folder_of_command)
        say(b"'")
        option = b"--chdir"
        advice = b"; check that the folder is in the image and that this user may enter it"
    elif strcmp(refused_call, b"set no_new_privs") == 0:
        option = b"--nnp"
        advice = b"; it needs Linux 3.5"
    say(b" (")
    say(option)
    say(b"): ")
    say_error(spawn_error)
    say(advice)


def say_advice(reason):
    """What to try."""
    if reason == ENOENT and strchr(command_words[0], b"/") == cython.NULL:
        say(b"; check the command and the image's PATH")
    elif reason == ENOENT:
        say(b"; check that the file and the interpreter that it names exist")
    elif reason == EACCES:
        say(b"; check that it is a file that this user may execute")
    elif reason == ENOEXEC:
        say(b"; check that it was built for this machine")
    elif reason == E2BIG:
        say(b"; shorten the arguments or the environment")


def search_and_execute(command):
    """execvp(3) as glibc has it; returns the -errno that says best why nothing was executed."""
    name: cython.p_char = command[0]
    folder: cython.p_const_char = variable(b"PATH")
    length: cython.size_t
    result: cython.int
    best: cython.int = -ENOENT
    if strchr(name, b"/") != cython.NULL:
        return execute(name, command)
    if name[0] == 0:
        return -ENOENT
    if folder == cython.NULL:
        folder = b"/usr/local/bin:/bin:/usr/bin"
    while True:
        length = span(folder, b":")
        if join_path(folder, length, name):
            result = execute(path, command)
            if result == -EACCES:
                best = -EACCES  # seen but not allowed says more than not found elsewhere
            elif result != -ENOENT and result != -ENOTDIR:
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
    """Executes ``file``, as a shell script if the kernel knows no format for it.

    A program for another machine is no script, though execvp(3) takes it for one: what the shell
    made of it, a few odd messages and some exit code, has misled many.
    """
    name: cython.p_char = command[0]
    shell: cython.pp_char = command - 1
    before: cython.p_char = shell[0]
    result: cython.long = kernel_call(SYS_execve, file, command, environment)
    if result != -ENOEXEC or is_program(file):
        return result
    # The shell needs one argument more; the slot before the command was an argument of ours.
    shell[0] = cython.cast(cython.p_char, b"/bin/sh")
    command[0] = file
    result = kernel_call(SYS_execve, shell[0], shell, environment)
    shell[0] = before
    command[0] = name
    # The others tell of a shell that is missing, as execvp(3) does; so does their exit code.
    return -ENOEXEC if persona == NATIVE else result


def is_program(name):
    """Whether a file begins as elf(5) does, be it for this machine or another."""
    file: cython.long = open_file(name, O_RDONLY)
    file_name[0] = 0
    if file >= 0:
        kernel_call(SYS_read, file, file_name, 4)
        kernel_call(SYS_close, file)
    return strncmp(file_name, b"\x7fELF", 4) == 0


def let_go():
    """Once the command runs: holds no file, pipe or folder that whoever gave it may wait for.

    Input and output become copies of stderr, which is kept for messages.  So a pipe is closed when
    the command closes it, and what a cron job writes to /proc/1/fd/1 still reaches the log.
    """
    global stop_on, oom_kills_at_start, may_let_kernel_reap
    if not keep_stdio:
        if log_fd != 0 and kernel_call(SYS_dup3, 2, 0, 0) < 0:
            kernel_call(SYS_close, 0)
        if log_fd != 1 and kernel_call(SYS_dup3, 2, 1, 0) < 0:
            kernel_call(SYS_close, 1)
    if log_fd > 2:
        if log_fd > 3:
            kernel_call(SYS_close_range, 3, log_fd - 1, 0)
        kernel_call(SYS_close_range, log_fd + 1, LAST_FD, 0)
    else:
        kernel_call(SYS_close_range, 3, LAST_FD, 0)
    kernel_call(SYS_chdir, b"/")
    if stop_on == 0:
        stop_on = bit(SIGTERM) | bit(SIGINT) | bit(SIGQUIT)
    if say_why:
        oom_kills_at_start = oom_kills()
    if timeout_ms and not only_reaps:
        arm(DUE_TIMEOUT, timeout_ms)
    if zombies_ms:
        arm(DUE_ZOMBIES, zombies_ms)
    if lock_calls:
        lock()
    may_let_kernel_reap = init_pid == 1 and not (
        only_reaps
        or warn_of_orphans
        or wait_for_all
        or grace_ms
        or say_why
        or log_format
        or lock_calls
        or verbosity >= DEBUG
    )


# --- While it runs -------------------------------------------------------------------------------


def supervise():
    """Forwards and reaps until the command has ended; returns the exit code for pyinit."""
    info: siginfo_t
    while True:
        if next_signal(cython.address(info)):
            # Numbers below that of SIGCHLD are handed out before it.  A command that is dead by now
            # would take such a signal along, and those who are to be waited for not get it.
            if wait_for_all and reap(cython.address(info)):
                return final_status
            receive(cython.address(info))
        if armed:
            act_on_time()
        # After every signal: the kernel hands out low numbers first, so a stream of them would
        # keep SIGCHLD waiting for ever.
        if reap(cython.address(info)):
            return final_status


def pause():
    """Persona pause, ``-P``: reaps, and ends well on TERM and INT that were not ignored."""
    global init_pid
    info: siginfo_t
    found: kernel_action
    number: cython.int
    status: cython.int = 0
    ending: cython.ulonglong = 0
    for number in range(SIGINT, SIGTERM + 1):
        if number == SIGINT or number == SIGTERM:
            kernel_call(SYS_rt_sigaction, number, cython.NULL, cython.address(found), SIGSET_BYTES)
            # What is blocked is queued although it is ignored, so this must be asked.
            if found.handler != SIG_IGN:
                ending |= bit(number)
    init_pid = kernel_call(SYS_getpid)
    let_go()
    if persona == PAUSE and init_pid != 1:
        begin(WARNING)
        say(b"Warning: pause should be the first process")
        print_line()
    while True:
        # Whoever was dead before we were executed; the kernel reaps the others.
        while kernel_call(SYS_wait4, -1, cython.address(status), WNOHANG, cython.NULL) > 0:
            pass
        number = next_signal(cython.address(info))
        if armed:
            act_on_time()
        if number and bit(number) & ending and info.si_signo == number:
            break
    tell_signal(cython.address(info))
    if persona == PAUSE or verbosity > WARNING:
        begin(FATAL)
        say(b"Shutting down, got signal: ")
        say_signal(number)
        say_sender(cython.address(info))
        print_line()
    return 0


def next_signal(info):
    """Sleeps until there is a signal, or something is due; returns the number, or 0."""
    wanted: cython.ulonglong = ours()
    until: timespec
    number: cython.long
    due: cython.longlong = next_due() if armed else 0
    info.si_signo = 0
    if due:
        due -= now_ms()
        if due < 0:
            due = 0
        until.tv_sec = due // 1000
        until.tv_nsec = due % 1000 * 1000000
    if rest_ns and (due == 0 or until.tv_sec or until.tv_nsec > rest_ns):
        until.tv_sec = 0
        until.tv_nsec = rest_ns
        wanted &= ~bit(SIGCHLD)
    number = kernel_call(
        SYS_rt_sigtimedwait,
        cython.address(wanted),
        info,
        cython.address(until) if armed or rest_ns else cython.NULL,
        SIGSET_BYTES,
    )
    return number if number > 0 else 0


def receive(info):
    """Does with a signal what has been asked for: mostly, hands it on."""
    number: cython.int = info.si_signo
    if number == SIGCHLD:
        if verbosity >= DEBUG:
            tell_signal(info)
        return
    # Our own message to a stderr that nobody reads any more is not the command's business.  (Nor is
    # the hang-up when we let a terminal go.)
    if info.si_code == SI_USER and info.si_pid == init_pid and number == SIGPIPE:
        return
    tell_signal(info)
    if phase != RUNNING:
        everybody(outgoing(number))
        return
    if drops(number):
        return
    if absorbed & bit(number) and not catches(number):
        return
    if not hold_back(number):
        deliver(number, info)


def drops(number):
    """What says only that we are in the background, which concerns nobody but us."""
    if persona == DUMB_INIT:
        return False
    if number == SIGTSTP:
        return persona == CATATONIT
    return number == SIGTTIN or number == SIGTTOU


def hold_back(number):
    """``--delay``: whether the signal is to wait; another one that stops cancels what waits."""
    at: cython.int
    for at in range(delays):
        if delay_signal[at] == number:
            if due_at[at] == 0:
                arm(at, delay_ms[at])
            return True
    if stop_on & bit(number):
        for at in range(delays):
            due_at[at] = 0
    return False


def deliver(number, info):
    """Forwards a signal; ``info`` is what came with it, or NULL."""
    wanted: cython.int = outgoing(number)
    stops_us: cython.bint = persona == DUMB_INIT and (
        number == SIGTSTP or number == SIGTTIN or number == SIGTTOU
    )
    # The terminal has sent it to the command as well, which is in our group.
    twice: cython.bint = (
        not own_group
        and info != cython.NULL
        and info.si_code == SI_KERNEL
        and (stops_us or number == SIGINT or number == SIGQUIT or number == SIGWINCH)
    )
    if wanted != number:
        tell_rewritten(number, wanted)
    if wanted != 0 and not twice:
        send(wanted, info)
    if stop_ms and stop_on & bit(number):
        if due_at[DUE_STOP] and stop_twice:
            due_at[DUE_STOP] = 1
        elif due_at[DUE_STOP] == 0:
            arm(DUE_STOP, stop_ms)
    if stops_us:
        tell_suspended()
        kernel_call(SYS_kill, kernel_call(SYS_getpid), SIGSTOP)


def outgoing(number):
    """What a signal is forwarded as; 0 for not at all."""
    if rewritten[number]:
        return rewritten[number] - 1
    if (
        persona == DUMB_INIT
        and own_group
        and (number == SIGTSTP or number == SIGTTIN or number == SIGTTOU)
    ):
        return SIGSTOP  # a session without a shell ignores the others
    return number


def send(number, info):
    """Sends to the command, its group (``-g``, dumb-init) or everybody (``--all``)."""
    result: cython.long
    target: cython.int = child
    if to_everybody:
        everybody(number)
        return
    if forward_to_group or (persona == DUMB_INIT and own_group):
        target = -child
    if target > 0 and info != cython.NULL and info.si_code == SI_QUEUE:
        info.si_signo = number
        result = kernel_call(SYS_rt_sigqueueinfo, child, number, info)  # keeps the queued value
    else:
        result = kernel_call(SYS_kill, target, number)
        if result == -ESRCH and target < 0:  # it has left the group that we made for it
            result = kernel_call(SYS_kill, child, number)
    tell_forwarded(number, target, result)


def reap(info):
    """Collects every process that has died; true when pyinit is to end."""
    global final_status, rest_ns, rests, kernel_reaps
    wait_status: cython.int
    died: cython.bint = info.si_signo == SIGCHLD
    put_off: cython.bint
    target: cython.int
    usage: cython.long[18]
    # The kernel adds it all up, for each of them, so only if somebody wants to know.
    used: cython.p_long = usage if say_why or log_format else cython.NULL
    pid: cython.long
    some: cython.bint = False
    usage[4] = 0
    if may_let_kernel_reap and info.si_signo == SIGCHLD and info.si_pid != child:
        let_kernel_reap()
    if rest_ns and info.si_signo == 0:
        died = somebody_died()
        if not died and rests == 0:
            rest_ns = 0
            return False
    put_off = can_wait(info) if died else False
    rests = rests + 1 if put_off else 0
    # Looking for the one is quicker; what the kernel has left before it was told must be collected.
    target = child if put_off or kernel_reaps else -1
    while True:
        pid = kernel_call(SYS_wait4, target, cython.address(wait_status), WNOHANG, used)
        if pid <= 0:
            break
        some = True
        tell_reaped(pid, wait_status, info)
        if pid == child and phase == RUNNING:
            command_ended(wait_status, usage)
            # What else has died is left to whoever inherits it, unless it is to be told.
            if phase == ENDED and not warn_of_orphans:
                return True
            target = -1  # those who are to be waited for
        elif wait_for_last:
            final_status = status_of(wait_status)
    if exit_file:
        kernel_reaps = True
        if pid == -ECHILD:
            command_ended(kept_status(), usage)
    if phase == ENDED or (phase != RUNNING and pid == -ECHILD):
        return True
    if phase == KILLING and some:
        everybody(SIGKILL)  # whose parent has just died was nobody's before
    # Those who die meanwhile are collected together.
    if not died:
        rest_ns = 0
    elif rest_ns == 0:
        rest_ns = FIRST_REST_NS
    elif rest_ns < LONGEST_REST_NS:
        rest_ns *= 2
    if watches_stops and phase == RUNNING:
        # Apart, because the call above would take longer for every child if it looked for this.
        pid = kernel_call(
            SYS_wait4, child, cython.address(wait_status), WNOHANG | WUNTRACED, cython.NULL
        )
        if pid == child and WIFSTOPPED(wait_status):
            command_stopped(WSTOPSIG(wait_status))
        elif pid == child:
            command_ended(wait_status, usage)
            return phase == ENDED
    return False


def can_wait(info):
    """Whether it is better to collect orphans later: where one has died there may be thousands.

    Each wait4(2) walks past all of our children who live, and who die meanwhile are found by a walk
    of their own.  So a rain of them is left to end first, unless it goes on for too long.
    """
    return (
        phase == RUNNING
        and exit_file == 0
        and rests < MOST_RESTS
        and (info.si_signo == 0 or info.si_pid != child)
        and not (warn_of_orphans or log_format or verbosity >= DEBUG)
    )


def somebody_died():
    """Whether there is a SIGCHLD that was not fetched during a rest; fetches it."""
    return fetch(bit(SIGCHLD)) > 0


def fetch(wanted):
    """Takes one of the signals ``wanted`` that are there by now; its number, or an error."""
    info: siginfo_t
    at_once: timespec
    at_once.tv_sec = at_once.tv_nsec = 0
    return kernel_call(
        SYS_rt_sigtimedwait,
        cython.address(wanted),
        cython.address(info),
        cython.address(at_once),
        SIGSET_BYTES,
    )


def let_kernel_reap():
    """As PID 1 once there is an orphan: they cost nothing from now on (SA_NOCLDWAIT, sigaction(2)).

    They vanish as they die, instead of waiting, with all that is known of them long out of the
    processor's caches, until we collect them.  So does the command; but a pidfd keeps its status
    since Linux 6.16, and where it does not, all stays as it is.  This is not for an init that
    somebody has started to learn what its command takes: those who vanish are not in getrusage(2).
    """
    global may_let_kernel_reap, exit_file
    info: pidfd_information
    file: cython.long = kernel_call(SYS_pidfd_open, child, 0)
    may_let_kernel_reap = False
    if file < 0:
        return
    # That kernel is the first to tell this of a process that lives.
    info.mask = PIDFD_INFO_COREDUMP
    if (
        file == 0
        or kernel_call(SYS_ioctl, file, PIDFD_GET_INFO, cython.address(info)) != 0
        or not info.mask & PIDFD_INFO_COREDUMP
    ):
        kernel_call(SYS_close, file)
        return
    exit_file = file
    receive_deaths(SA_NOCLDWAIT)


def kept_status():
    """The wait status of the command that the kernel has reaped."""
    info: pidfd_information
    nothing: cython.ulonglong = 0
    moment: timespec
    while True:
        info.mask = PIDFD_INFO_EXIT
        if kernel_call(SYS_ioctl, exit_file, PIDFD_GET_INFO, cython.address(info)) != 0:
            return EXIT_INIT_FAILED << 8  # it has answered before
        if info.mask & PIDFD_INFO_EXIT:
            return info.exit_code
        # Its parent is told of its end just before the status is there.
        moment.tv_sec = 0
        moment.tv_nsec = UNREADY_NS
        kernel_call(
            SYS_rt_sigtimedwait,
            cython.address(nothing),
            cython.NULL,
            cython.address(moment),
            SIGSET_BYTES,
        )


def command_ended(wait_status, usage):
    """The command is gone: what the exit code is, and whether to stay for others."""
    global final_status, phase
    at: cython.int
    final_status = status_of(wait_status)
    if exit_map[final_status]:
        final_status = exit_map[final_status] - 1
    if timed_out:
        final_status = EXIT_TIMED_OUT
    if say_why or verbosity >= INFO or log_format:
        tell_ended(wait_status, usage[4])
    for at in range(DUE_GRACE):
        due_at[at] = 0
    return_terminal()
    if persona == DUMB_INIT and own_group and outgoing(SIGTERM):
        at = outgoing(SIGTERM)
        tell_forwarded(at, 0, kernel_call(SYS_kill, -child, at))
    if grace_ms:
        phase = WAITING
        everybody(SIGTERM)
        arm(DUE_GRACE, grace_ms)
    elif wait_for_all:
        phase = WAITING
    else:
        phase = ENDED
    if verbosity >= DEBUG and persona == DUMB_INIT:
        begin(DEBUG)
        say(b"Child exited with status ")
        say_number(final_status)
        say(b". Goodbye.")
        print_line()


def status_of(wait_status):
    """The exit code that stands for how a process ended, as a shell counts it."""
    if WIFEXITED(wait_status):
        return WEXITSTATUS(wait_status)
    return EXIT_SIGNAL_BASE + WTERMSIG(wait_status)


# --- Job control ---------------------------------------------------------------------------------


def command_stopped(number):
    """Ctrl-Z: with a shell above us, that gets the terminal; without one nothing stays stopped."""
    parent: cython.long
    if number != SIGTSTP and number != SIGTTIN and number != SIGTTOU:
        return
    if init_pid == 1 or leads_session:
        # Nobody could resume it: the kernel would not have stopped it in our place.
        kernel_call(SYS_kill, -child, SIGCONT)
        return
    parent = kernel_call(SYS_getppid)
    if parent == 0 or kernel_call(SYS_getsid, parent) != kernel_call(SYS_getsid, 0):
        return
    set_foreground(child, kernel_call(SYS_getpgid, 0))
    kernel_call(SYS_kill, init_pid, SIGSTOP)
    # Here the shell has resumed us, by a signal that the command gets from us below.
    fetch(bit(SIGCONT))
    set_foreground(kernel_call(SYS_getpgid, 0), child)
    kernel_call(SYS_kill, -child, SIGCONT)


def set_foreground(owner, wanted):
    """Makes ``wanted`` the terminal's foreground group if that is ``owner``."""
    front: cython.int = 0
    target: cython.int = wanted
    terminal: cython.long = open_file(b"/dev/tty", O_RDWR | O_NOCTTY)
    if terminal < 0:
        return
    kernel_call(SYS_ioctl, terminal, TIOCGPGRP, cython.address(front))
    if front == owner:
        kernel_call(SYS_ioctl, terminal, TIOCSPGRP, cython.address(target))
    kernel_call(SYS_close, terminal)


def return_terminal():
    """Lets whoever started us read the terminal again, unless the command has passed it on."""
    if has_terminal and init_pid != 1 and persona != DUMB_INIT:
        set_foreground(child, kernel_call(SYS_getpgid, 0))


# --- Deadlines -----------------------------------------------------------------------------------


def arm(which, milliseconds):
    """Has ``act_on_time`` do what ``which`` stands for after so long."""
    global armed
    due_at[which] = now_ms() + milliseconds
    armed = True


def now_ms():
    """Milliseconds of a clock that nobody sets."""
    now: timespec
    kernel_call(SYS_clock_gettime, CLOCK_MONOTONIC, cython.address(now))
    return now.tv_sec * 1000 + now.tv_nsec // 1000000 + 2  # 0 and 1 mean something else


def next_due():
    """When the next thing is due; notes when nothing is."""
    global armed
    at: cython.int
    first: cython.longlong = 0
    for at in range(DUE_KINDS):
        if due_at[at] and (first == 0 or due_at[at] < first):
            first = due_at[at]
    armed = first != 0
    return first


def act_on_time():
    """Does what is due."""
    global phase, timed_out
    at: cython.int
    now: cython.longlong = now_ms()
    for at in range(DUE_KINDS):
        if due_at[at] == 0 or due_at[at] > now:
            continue
        due_at[at] = 0
        if at < MOST_DELAYS:
            deliver(delay_signal[at], cython.NULL)
        elif at == DUE_STOP:
            tell_stop(stop_signal)
            if own_group:
                kernel_call(SYS_kill, -child, stop_signal)
            kernel_call(SYS_kill, child, stop_signal)
        elif at == DUE_TIMEOUT:
            timed_out = True
            tell_stop(SIGTERM)
            deliver(SIGTERM, cython.NULL)
        elif at == DUE_GRACE and phase == KILLING:
            phase = ENDED  # who is left cannot be seen, or is not ours to kill
        elif at == DUE_GRACE:
            phase = KILLING
            tell_stop(SIGKILL)
            everybody(SIGKILL)
            arm(DUE_GRACE, KILLED_MS)
        else:
            report_zombies()
            arm(DUE_ZOMBIES, zombies_ms)


# --- Everybody, and what /proc knows ------------------------------------------------------------


def everybody(number):
    """Signals every process below us: as PID 1 all that there are, otherwise never all."""
    global crowd_size
    at: cython.int = 0
    if number == 0:
        return
    if init_pid == 1:
        tell_forwarded(number, -1, kernel_call(SYS_kill, -1, number))
        return
    crowd_size = 0
    add_children(init_pid)
    while at < crowd_size:
        add_children(crowd[at])
        at += 1
    for at in range(crowd_size):
        tell_forwarded(number, crowd[at], kernel_call(SYS_kill, crowd[at], number))
    if crowd_size == 0:  # no /proc, or nobody
        kernel_call(SYS_kill, -child, number)


def add_children(parent):
    """Adds the children of a process to ``crowd`` (/proc/PID/task/TID/children, proc(5))."""
    global crowd_size
    number: cython.int = 0
    got: cython.long
    at: cython.long
    file: cython.long = open_of_process(parent, b"/task/", parent, b"/children")
    if file < 0:
        return
    while True:
        got = kernel_call(SYS_read, file, path, PATH_BYTES)
        if got <= 0:
            break
        for at in range(got):
            if path[at] >= b"0" and path[at] <= b"9":
                number = number * 10 + path[at] - ASCII_ZERO
            elif number:
                if crowd_size < MOST_IN_CROWD:
                    crowd[crowd_size] = number
                    crowd_size += 1
                number = 0
    kernel_call(SYS_close, file)


def catches(number):
    """Whether the command has a handler for a signal, as far as /proc tells."""
    file: cython.long = open_of_process(child, b"/status", -1, b"")
    mask: cython.ulonglong = 0
    digit: cython.char
    found: cython.p_char
    if file < 0 or not read_path_buffer(file):
        return True
    found = text_behind(path, b"SigCgt:\t")
    while found != cython.NULL and found[0] != b"\n" and found[0] != 0:
        digit = found[0]
        mask = mask * 16 + (digit - ASCII_ZERO if digit <= b"9" else digit - ASCII_A + 10)
        found += 1
    return mask & bit(number) != 0


def oom_kills():
    """How many processes of our control group the kernel has killed for want of memory."""
    found: cython.p_char = cython.NULL
    file: cython.long = open_file(b"/sys/fs/cgroup/memory.events", O_RDONLY)
    if file < 0:
        file = open_file(b"/sys/fs/cgroup/memory/memory.oom_control", O_RDONLY)
    if file >= 0 and read_path_buffer(file):
        found = text_behind(path, b"oom_kill ")
    return number_in(found, span(found, b"\n")) if found != cython.NULL else 0


def report_zombies():
    """``--zombies``: who is dead and not waited for, by a parent that lives and is not us."""
    folder: cython.long = open_file(b"/proc", O_RDONLY)
    entry: cython.pointer(linux_dirent64)
    names: cython.p_char = cython.cast(cython.p_char, crowd)
    got: cython.long
    at: cython.long
    pid: cython.long
    if folder < 0:
        return
    while True:
        got = kernel_call(SYS_getdents64, folder, names, CROWD_BYTES)
        if got <= 0:
            break
        at = 0
        while at < got:
            entry = cython.cast(cython.pointer(linux_dirent64), names + at)
            at += entry.d_reclen
            pid = number_in(entry.d_name, strlen(entry.d_name))
            if pid > 0:
                report_zombie(pid)
    kernel_call(SYS_close, folder)


def report_zombie(pid):
    """Tells of one process if it is such a zombie."""
    state: cython.p_char
    parent: cython.long
    name: cython.p_char = read_stat(pid)
    if name == cython.NULL:
        return
    state = name + strlen(name) + 2
    if state[0] != b"Z":
        return
    parent = number_in(state + 2, span(state + 2, b" "))
    if parent == init_pid or parent <= 0:
        return
    begin(FATAL)
    say(b"zombie ")
    say_number(pid)
    say(b" (")
    say(name)
    say(b"): its parent ")
    say_number(parent)
    name = read_stat(parent)
    if name != cython.NULL:
        say(b" (")
        say(name)
        say(b")")
    say(b" does not wait for it")
    print_line()


def read_stat(pid):
    """The name in /proc/PID/stat, as a string of its own; what follows is the state, after ') '."""
    file: cython.long = open_of_process(pid, b"/stat", -1, b"")
    name: cython.p_char
    end: cython.p_char = cython.NULL
    at: cython.p_char
    if file < 0 or not read_path_buffer(file):
        return cython.NULL
    name = strchr(path, b"(")
    if name == cython.NULL:
        return cython.NULL
    at = name
    while at[0] != 0:  # a name may hold parentheses; the last one ends it
        if at[0] == b")":
            end = at
        at += 1
    if end == cython.NULL:
        return cython.NULL
    end[0] = 0
    return name + 1


def text_behind(text, mark):
    """What follows ``mark`` at the beginning of a line; NULL if there is no such line."""
    while text != cython.NULL and text[0] != 0:
        if strncmp(text, mark, strlen(mark)) == 0:
            return text + strlen(mark)
        text = strchr(text, b"\n")
        if text != cython.NULL:
            text += 1
    return cython.NULL


def read_path_buffer(file):
    """Reads the beginning of ``file`` as a string into ``path``, and closes it."""
    got: cython.long = kernel_call(SYS_read, file, path, PATH_BYTES - 1)
    kernel_call(SYS_close, file)
    path[got if got > 0 else 0] = 0
    return got > 0


def open_of_process(pid, first, number, second):
    """Opens /proc/PID and what follows, ``number`` only if it is not negative; -errno."""
    at: cython.size_t = 6
    memcpy(file_name, b"/proc/", 6)
    at += digits_of(pid, file_name + at)
    memcpy(file_name + at, first, strlen(first) + 1)
    at += strlen(first)
    if number >= 0:
        at += digits_of(number, file_name + at)
        memcpy(file_name + at, second, strlen(second) + 1)
    return open_file(file_name, O_RDONLY)


def open_file(name, flags):
    """open(2)."""
    return kernel_call(SYS_openat, -100, name, flags | O_CLOEXEC, 0)


# --- Less to be misused --------------------------------------------------------------------------


def lock():
    """``--lock``: a seccomp filter that leaves the calls of the loop above and no other."""
    global filter_count
    program: filter_program
    filter_count = 0
    add_filter(0x20, 0, 0, 4)  # load the architecture
    add_filter(0x15, 1, 0, THIS_AUDIT_ARCH)
    add_filter(0x06, 0, 0, 0x80000000)  # another one: the end
    add_filter(0x20, 0, 0, 0)  # load the number of the call
    allow(SYS_rt_sigtimedwait)
    allow(SYS_wait4)
    allow(SYS_kill)
    allow(SYS_rt_sigqueueinfo)
    allow(SYS_write)
    allow(SYS_exit_group)
    allow(SYS_restart_syscall)
    allow(SYS_clock_gettime)
    allow(SYS_getpid)
    allow(SYS_getppid)
    allow(SYS_getsid)
    if (
        has_terminal
        or to_everybody
        or wait_for_all
        or grace_ms
        or zombies_ms
        or absorbed
        or say_why
    ):
        allow(SYS_openat)
        allow(SYS_read)
        allow(SYS_close)
    if zombies_ms:
        allow(SYS_getdents64)
    if has_terminal:
        allow(SYS_ioctl)
        allow(SYS_getpgid)
    add_filter(0x06, 0, 0, 0x00050001)  # anything else: EPERM
    program.length = filter_count
    program.filter = filters
    kernel_call(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if kernel_call(SYS_prctl, PR_SET_SECCOMP, 2, cython.address(program)) != 0:
        begin(WARNING)
        say(b"--lock: the kernel has no seccomp filters; running without")
        print_line()


def allow(call):
    """Lets one system call through."""
    add_filter(0x15, 0, 1, call)
    add_filter(0x06, 0, 0, 0x7FFF0000)


def add_filter(code, if_true, if_false, value):
    """One instruction (struct sock_filter, little-endian)."""
    global filter_count
    filters[filter_count] = (
        code
        | (cython.cast(cython.ulonglong, if_true) << 16)
        | (cython.cast(cython.ulonglong, if_false) << 24)
        | (cython.cast(cython.ulonglong, value) << 32)
    )
    filter_count += 1


# --- Signals -------------------------------------------------------------------------------------


def bit(number):
    """The bit of a signal in the kernel's mask."""
    return cython.cast(cython.ulonglong, 1) << (number - 1)


def ours():
    """The signals that we block and fetch.

    What a fault raises kills us anyhow.  What somebody sends under the name of a fault kills tini
    and catatonit; dumb-init forwards it, and so do we natively.
    """
    faults: cython.ulonglong = bit(SIGILL) | bit(SIGTRAP) | bit(SIGABRT) | bit(SIGBUS)
    faults |= bit(SIGFPE) | bit(SIGSEGV) | bit(SIGSYS)
    return ~faults if persona == TINI or persona == CATATONIT else ~cython.cast(cython.ulonglong, 0)


def set_mask(wanted, previous):
    """sigprocmask(2) for all 64 signals."""
    kernel_call(SYS_rt_sigprocmask, SIG_SETMASK, cython.address(wanted), previous, SIGSET_BYTES)


# --- Texts ---------------------------------------------------------------------------------------


def print_version():
    """dockerd looks for "tini version" in what it gets; podman's tests for "catatonit"."""
    begin_plain()
    if persona == DUMB_INIT:
        say(b"dumb-init v1.2.5")
        print_line()
        kernel_call(SYS_exit_group, 0)
    if persona == CATATONIT:
        say(b"tini version 0.2.1_catatonit - pyinit ")
    elif persona == TINI:
        say(b"tini version 0.19.0 - pyinit ")
    elif persona == PAUSE:
        say(b"pause 3.10 - pyinit ")
    else:
        say(b"tini version ")
        say(PYSHIM_VERSION)
        say(b"_pyinit - pyinit ")
    say(PYSHIM_VERSION)
    print_on(1)
    kernel_call(SYS_exit_group, 0)


def print_licence():
    """``-l`` and ``-L``."""
    begin_plain()
    say(b"pyinit, Apache License 2.0, https://www.apache.org/licenses/LICENSE-2.0")
    print_on(1)
    kernel_call(SYS_exit_group, 0)


def print_help():
    """``-h``."""
    tell_usage(1 if persona == TINI or persona == NATIVE else 2)
    kernel_call(SYS_exit_group, 0)


def tell_usage(fd):
    """The options of the persona."""
    lines: cython.p_const_char = (
        b"h this help\n"
        b"V the version\n"
        b"v more verbose output on stderr; in tini up to three times\n"
        b"s adopt orphans although not PID 1 (child subreaper)\n"
        b"p SIGNAL: get it when the parent of this init dies\n"
        b"w a line for each orphan that is reaped\n"
        b"g forward signals to the command's process group\n"
        b"e STATUS[:OTHER]: turn an exit code into 0, or OTHER; may be repeated\n"
        b"c no session for the command, signals only to itself (--single-child)\n"
        b"r SIGNAL:OTHER: forward OTHER for SIGNAL, 0 drops it (--rewrite)\n"
        b"P run nothing, only reap; ends on TERM and INT\n"
        b"l the licence\n"
        b"L the licence\n"
    )
    known: cython.p_const_char = letters()
    end: cython.p_char
    begin_plain()
    say(b"Usage: ")
    say(called)
    say(b" [OPTIONS] [--] COMMAND [ARGS] | --version")
    print_on(fd)
    begin_plain()
    say(b"Runs COMMAND under the supervision of a valid init process (pyinit ")
    say(PYSHIM_VERSION)
    say(b").\n")
    print_on(fd)
    while lines[0] != 0:
        end = strchr(lines, b"\n")
        if strchr(known, lines[0]) != cython.NULL:
            begin_plain()
            say(b"  -")
            say_bytes(lines, end - lines)
            print_on(fd)
        lines = end + 1
    if persona == NATIVE:
        write_text(
            fd,
            b"\n  --stop=DURATION[:SIGNAL]  so long after TERM, INT or QUIT: SIGNAL (KILL)\n"
            b"  --stop-on=SIGNAL,...  the signals that --stop is about\n"
            b"  --twice               a second one of them ends the wait\n"
            b"  --timeout=DURATION    TERM after so long; exit code 124\n"
            b"  --grace=DURATION      after the command: TERM to all others, then KILL\n"
            b"  --wait[=last]         after the command: stay until nobody is left\n"
            b"  --all                 forward to every process\n"
            b"  --delay=SIGNAL:DURATION  forward it so much later\n"
            b"  --absorb=SIGNAL,...   drop it until the command has a handler\n"
            b"  --user=UID[:GID,...] --chdir=DIR --env=K=V --nnp  for the command\n"
            b"  --child-pdeath[=SIGNAL]  for the command when this init dies (KILL)\n"
            b"  --log=json|text --log-fd=N --why  what happened\n"
            b"  --zombies=DURATION    report who is not waited for\n"
            b"  --lock                a seccomp filter for this init\n"
            b"  --keep-stdio --no-subreaper --as=tini|dumb-init|catatonit|pause|native\n\n"
            b"Environment: PYINIT_OPTS, PYINIT_AS, TINI_SUBREAPER (-s), TINI_VERBOSITY=0..3,\n"
            b"TINI_KILL_PROCESS_GROUP (-g).  Exit codes: the command's; 128+N after signal N;\n"
            b"127 not found; 126 cannot be run; 125 an error of pyinit itself.\n",
        )
    elif persona == TINI:
        write_text(
            fd,
            b"\nEnvironment: TINI_SUBREAPER (-s), TINI_KILL_PROCESS_GROUP (-g),\n"
            b"TINI_VERBOSITY=0..3, PYINIT_OPTS (more options).\n",
        )


def write_text(fd, text):
    """Writes a text at once."""
    kernel_call(SYS_write, fd, text, strlen(text))


# --- What happened -------------------------------------------------------------------------------


def tell_spawned():
    """The command runs."""
    if log_format:
        event(b"start")
        field_number(b"child", child)
        field_text(b"command", command_words[0])
        end_event()
    if verbosity < INFO:
        return
    if persona == DUMB_INIT and own_group:
        # Not by the child: if nobody reads this, the SIGPIPE must be ours.
        begin(INFO)
        say(b"setsid complete.")
        print_line()
    begin(INFO)
    if persona == DUMB_INIT:
        say(b"Child spawned with PID ")
        say_number(child)
        say(b".")
    else:
        say(b"Spawned child process '")
        say(command_words[0])
        say(b"' with pid ")
        say_number(child)
    print_line()


def tell_signal(info):
    """We have got a signal."""
    if log_format and info.si_signo != SIGCHLD:
        event(b"signal")
        field_signal(b"sig", info.si_signo)
        field_number(b"from", info.si_pid if info.si_code <= 0 else 0)
        field_number(b"uid", info.si_uid if info.si_code <= 0 else 0)
        end_event()
    if verbosity < DEBUG:
        return
    begin(DEBUG)
    if persona == DUMB_INIT:
        say(b"Received signal ")
        say_number(info.si_signo)
        say(b".")
    else:
        say(b"Received ")
        say_signal(info.si_signo)
        say_sender(info)
    print_line()


def say_sender(info):
    """Who sent it, when it was a process."""
    if info.si_signo != SIGCHLD and info.si_code <= 0:
        say(b" from process ")
        say_number(info.si_pid)
        say(b" of user ")
        say_number(info.si_uid)


def tell_rewritten(number, wanted):
    """Something else is sent for a signal, or nothing; dumb-init says so."""
    if persona != DUMB_INIT or verbosity < DEBUG:
        return
    begin(DEBUG)
    say(b"Translating signal ")
    say_number(number)
    say(b" to ")
    say_number(wanted)
    say(b".")
    print_line()
    if wanted == 0:
        begin(DEBUG)
        say(b"Not forwarding signal 0 to children (ignored).")
        print_line()


def tell_suspended():
    """We are about to stop with the command; only dumb-init does so."""
    if verbosity >= DEBUG:
        begin(DEBUG)
        say(b"Suspending self due to TTY signal.")
        print_line()


def tell_forwarded(number, target, result):
    """A signal has been sent, or could not be."""
    if log_format:
        event(b"forward")
        field_signal(b"sig", number)
        field_number(b"to", target)
        field_number(b"error", -result)
        end_event()
    if verbosity >= DEBUG:
        begin(DEBUG)
        if persona == DUMB_INIT:
            say(b"Forwarded signal ")
            say_number(number)
            say(b" to children.")
        else:
            say(b"Passing signal: ")
            say_signal(number)
        print_line()
    if result < 0 and verbosity >= WARNING and persona != DUMB_INIT:
        begin(WARNING)
        say(b"cannot forward ")
        say_signal(number)
        say(b" to process ")
        say_number(target)
        say(b": ")
        say_error(result)
        print_line()


def tell_stop(number):
    """A time limit has passed."""
    if log_format:
        event(b"stop")
        field_signal(b"sig", number)
        end_event()
    if verbosity >= INFO:
        begin(INFO)
        say(b"time is up; sending ")
        say_signal(number)
        print_line()


def tell_reaped(pid, wait_status, info):
    """A process has been waited for."""
    if log_format:
        event(b"reap")
        field_number(b"child", pid)
        if WIFEXITED(wait_status):
            field_number(b"code", WEXITSTATUS(wait_status))
        else:
            field_signal(b"sig", WTERMSIG(wait_status))
        end_event()
    if verbosity < DEBUG and (pid == child or not warn_of_orphans or verbosity < WARNING):
        return
    begin(DEBUG if pid == child else WARNING)
    if persona == DUMB_INIT:
        say(b"A child with PID ")
        say_number(pid)
        if WIFEXITED(wait_status):
            say(b" exited with exit status ")
            say_number(WEXITSTATUS(wait_status))
        else:
            say(b" was terminated by signal ")
            say_number(WTERMSIG(wait_status))
        say(b".")
    else:
        say(b"Reaped zombie process with pid=")
        say_number(pid)
        if persona == NATIVE:
            say(b" status=")
            say_number(status_of(wait_status))
            if info.si_signo == SIGCHLD and info.si_pid == pid:
                say(b" uid=")
                say_number(info.si_uid)
    print_line()


def tell_ended(wait_status, peak_kb):
    """How the command ended; with ``--why`` also what it took, and whether memory ran out."""
    starved: cython.bint = False
    if say_why and not WIFEXITED(wait_status) and WTERMSIG(wait_status) == SIGKILL:
        starved = oom_kills() > oom_kills_at_start
    if log_format:
        event(b"exit")
        field_number(b"code", final_status)
        if not WIFEXITED(wait_status):
            field_signal(b"sig", WTERMSIG(wait_status))
            field_number(b"core", 1 if WCOREDUMP(wait_status) else 0)
        field_number(b"maxrss_kb", peak_kb)
        if say_why:
            field_number(b"oom", starved)
        end_event()
    if persona == DUMB_INIT or (verbosity < INFO and (log_format or not say_why)):
        return
    begin(INFO)
    if WIFEXITED(wait_status):
        say(b"Main child exited with status ")
        say_number(WEXITSTATUS(wait_status))
    else:
        say(b"Main child was ended by ")
        say_signal(WTERMSIG(wait_status))
        if WCOREDUMP(wait_status):
            say(b", core dumped")
    if say_why:
        say(b", at most ")
        say_number(peak_kb)
        say(b" kB resident")
        if starved:
            say(b", out of memory")
    print_line()


# --- Events for machines: one object or one row of pairs a line -----------------------------------


def event(name):
    """Begins a line for ``--log``."""
    now: timespec
    digits: cython.char[24]
    kernel_call(SYS_clock_gettime, CLOCK_REALTIME, cython.address(now))
    begin_plain()
    say(b'{"t":' if log_format == LOG_JSON else b"t=")
    say_number(now.tv_sec)
    digits_of(now.tv_nsec // 1000000 + 1000, digits)
    digits[0] = b"."
    say(digits)
    field_number(b"pid", init_pid)
    field_text(b"ev", name)


def field(name):
    """The name of the next field."""
    if log_format == LOG_JSON:
        say(b',"')
        say(name)
        say(b'":')
    else:
        say(b" ")
        say(name)
        say(b"=")


def field_number(name, number):
    """A field that is a number."""
    field(name)
    say_number(number)


def field_signal(name, number):
    """A field that is a signal, without SIG."""
    field(name)
    if log_format == LOG_JSON:
        say(b'"')
    say_bare_signal(number)
    if log_format == LOG_JSON:
        say(b'"')


def field_text(name, text):
    """A field that is text; what JSON does not take as it is, is given as a question mark."""
    shown: cython.char
    field(name)
    if log_format == LOG_JSON:
        say(b'"')
    while text[0] != 0 and line_length < LINE_BYTES - 8:  # room for the end of the line
        shown = text[0]
        if shown < b" " or shown == b'"' or shown == b"\\" or shown > b"~":
            shown = b"?"
        say_bytes(cython.address(shown), 1)
        text += 1
    if log_format == LOG_JSON:
        say(b'"')


def end_event():
    """Writes the line."""
    if log_format == LOG_JSON:
        say(b"}")
    print_on(log_fd)


# --- Messages: one line, one write, no allocation ------------------------------------------------


def begin_plain():
    """Starts a line that has no prefix."""
    global line_length
    line_length = 0


def begin(level):
    """Starts a message as the persona does."""
    levels: cython.p_const_char = b"FATALWARN INFO DEBUG"
    begin_plain()
    if persona == NATIVE:
        say(b"pyinit: ")
    elif persona == DUMB_INIT:
        say(b"[dumb-init] ")
    elif persona == TINI:
        say(b"[")
        say_bytes(levels + level * 5, 5)
        say(b" tini (")
        say_number(kernel_call(SYS_getpid))
        say(b")] ")
    elif persona == CATATONIT:
        say(b"ERROR" if level == FATAL else b"WARN" if level == WARNING else b"DEBUG")
        say(b" (catatonit:")
        say_number(kernel_call(SYS_getpid))
        say(b"): ")


def say(text):
    """Adds ``text`` to the line."""
    say_bytes(text, strlen(text))


def say_bytes(text, length):
    """Adds as much as fits before the newline."""
    global line_length
    room: cython.size_t = LINE_BYTES - 3 - line_length
    if length > room:
        length = room
    memcpy(line + line_length, text, length)
    line_length += length


def say_number(number):
    """Adds a number."""
    digits: cython.char[24]
    say_bytes(digits, digits_of(number, digits))


def digits_of(number, digits):
    """Writes a number as a string and returns its length."""
    length: cython.size_t = 0
    rest: cython.long
    at: cython.size_t
    if number < 0:
        digits[0] = b"-"
        return digits_of(-number, digits + 1) + 1
    rest = number
    while True:
        length += 1
        rest //= 10
        if rest == 0:
            break
    for at in range(length):
        digits[length - 1 - at] = ASCII_ZERO + number % 10
        number //= 10
    digits[length] = 0
    return length


def say_signal(number):
    """Adds a signal's name; real-time signals have only numbers."""
    say(b"signal " if number > 31 else b"SIG")
    say_bare_signal(number)


def say_bare_signal(number):
    """The same without SIG."""
    names: cython.p_const_char = signal_names()
    if number > 31 or number < 1:
        say_number(number)
        return
    while number > 1:
        names = strchr(names, b" ") + 1
        number -= 1
    say_bytes(names, strchr(names, b" ") - names)


def say_error(result):
    """Adds what the kernel's answer ``-errno`` means, as strerror(3) says it."""
    texts: cython.p_const_char = (
        b"\x01Operation not permitted\n\x02No such file or directory\n\x05Input/output error\n"
        b"\x07Argument list too long\n\x08Exec format error\n\x09Bad file descriptor\n"
        b"\x0bResource temporarily unavailable\n\x0cCannot allocate memory\n"
        b"\x0dPermission denied\n\x03No such process\n\x14Not a directory\n\x15Is a directory\n"
        b"\x16Invalid argument\n\x17Too many open files in system\n\x18Too many open files\n"
        b"\x1aText file busy\n\x24File name too long\n\x26Function not implemented\n"
        b"\x28Too many levels of symbolic links\n"
    )
    while texts[0] != 0:
        if texts[0] == -result:
            say_bytes(texts + 1, strchr(texts, b"\n") - texts - 1)
            return
        texts = strchr(texts, b"\n") + 1
    say(b"error ")
    say_number(-result)


def print_line():
    """Writes the line to stderr; there is nobody to tell when that fails."""
    print_on(2)


def print_on(fd):
    """Writes the line."""
    line[line_length] = b"\n"
    kernel_call(SYS_write, fd, line, line_length + 1)


# --- The end before there is a command -----------------------------------------------------------


def refuse(problem, subject):
    """Ends pyinit because of what stands on its command line."""
    refuse_value(b"", problem, subject)


def refuse_value(option, problem, subject):
    """The same, for an option's value."""
    begin(FATAL)
    if option[0] != 0 and persona != NATIVE:
        say(b"Not a valid option for ")
        say(option)
        say(b":")
    else:
        if option[0] != 0:
            say(option)
            say(b": ")
        say(problem)
    if persona == NATIVE:
        say(b" '")
        say(subject)
        say(b"'; see 'pyinit -h'")
    else:
        say(b" ")
        say(subject)
    fail()


def refuse_option(problem, subject):
    """Ends pyinit because of an option that it does not have, in the words of getopt(3)."""
    begin_plain()
    say(called)
    say(b": ")
    say(problem)
    say(subject)
    say(b"'")
    if persona == NATIVE:
        say(b"; see 'pyinit -h'")
    elif persona == CATATONIT:
        print_line()
        begin_plain()
        say_usage_of_catatonit()
    elif persona == TINI:
        print_line()
        tell_usage(2)
        kernel_call(SYS_exit_group, EXIT_INIT_FAILED)
    fail()


def refuse_nothing():
    """Ends pyinit because there is no command."""
    if persona == TINI:
        tell_usage(2)
        kernel_call(SYS_exit_group, EXIT_INIT_FAILED)
    begin(FATAL)
    if persona == DUMB_INIT:
        begin_plain()
        say(b"Usage: ")
        say(called)
        say(b" [option] program [args]\nTry ")
        say(called)
        say(b" --help for full usage.")
    elif persona == CATATONIT:
        say(b"missing program name\n")
        say_usage_of_catatonit()
    else:
        say(b"no command to run; give one, as in 'pyinit -- COMMAND ARG...', or see 'pyinit -h'")
    fail()


def say_usage_of_catatonit():
    """What suites compare."""
    say(b"usage: catatonit [-ghLPV] [--] <progname> [<arguments>...]")


def fail():
    """Prints the line and ends pyinit, before there is a command."""
    print_line()
    kernel_call(SYS_exit_group, status_of_refusal)
