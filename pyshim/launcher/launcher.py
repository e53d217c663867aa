"""containerd-shim-pyshim-v2: what containerd executes for `start`, `delete` and `-info`.

It hands its arguments, environment, folder and stdin to the zygote, where Python is already
running, and ends with the answer.  When there is no zygote it starts one; when that fails it
becomes a Python interpreter itself.  The monitor is started here and not by the zygote, so that it
has containerd's cgroup, namespaces, limits and environment.

It must never write anything but the answer or one line of error: containerd reads stdout and stderr
as one text, until everybody has closed them; so nobody else ever gets them.  What the zygote's
child does may be repeated, so one that is killed is followed by another.  It must never touch a
Python object: Cython compiles this file to C without the Python runtime (types are in
``launcher.pxd``).
"""

import cython
from cython.cimports.linux import (
    AF_UNIX,
    CLOCK_MONOTONIC,
    CMSG_DATA,
    CMSG_FIRSTHDR,
    CMSG_LEN,
    CMSG_NXTHDR,
    CMSG_SPACE,
    EINTR,
    EINVAL,
    ENODEV,
    ENOENT,
    F_DUPFD_CLOEXEC,
    F_SETFD,
    FD_CLOEXEC,
    MAP_FAILED,
    MAP_PRIVATE,
    MFD_CLOEXEC,
    MSG_CMSG_CLOEXEC,
    MSG_NOSIGNAL,
    O_CLOEXEC,
    O_DIRECTORY,
    O_NONBLOCK,
    O_PATH,
    O_RDONLY,
    O_RDWR,
    POLLIN,
    PROT_READ,
    PROT_WRITE,
    RLIMIT_NOFILE,
    SCM_RIGHTS,
    SIG_DFL,
    SIG_SETMASK,
    SIGCHLD,
    SIGKILL,
    SO_PEERCRED,
    SO_SNDTIMEO,
    SOCK_CLOEXEC,
    SOCK_SEQPACKET,
    SOL_SOCKET,
    WEXITSTATUS,
    WIFEXITED,
    WNOHANG,
    X_OK,
    SYS_close_range,
    SYS_pidfd_open,
    SYS_pidfd_send_signal,
    SYS_rt_sigprocmask,
    _exit,
    access,
    calloc,
    chdir,
    clock_gettime,
    close,
    cmsghdr,
    connect,
    dup2,
    environ,
    errno,
    execve,
    fcntl,
    fork,
    fstat,
    fstat_mode,
    getcwd,
    getenv,
    geteuid,
    getrlimit,
    getsockopt,
    iovec,
    memcpy,
    memfd_create,
    memset,
    mmap,
    msghdr,
    open,
    pid_t,
    pipe2,
    poll,
    pollfd,
    prctl,
    read,
    readlink,
    recvmsg,
    rlimit,
    sendmsg,
    setsid,
    setsockopt,
    signal,
    snprintf,
    sockaddr,
    sockaddr_un,
    socket,
    stat_mode_t,
    stat_t,
    strcmp,
    strerror,
    strlen,
    strrchr,
    syscall,
    timespec,
    timeval,
    ucred,
    uint32_t,
    uint64_t,
    waitpid,
    write,
)


def program_main(argc, argv):
    """Zygote first, interpreter second."""
    global begin_by
    zygote: cython.int
    code: cython.int
    if argc > 1 and asks_for_version(argv[1]):
        print_version()
        return 0
    fill_standard_fds()
    signal(SIGCHLD, SIG_DFL)  # children must stay until they are waited for
    find_run_folder()
    if not find_interpreter():
        begin()
        say(b"no Python interpreter found in $PYSHIM_PYTHON, beside this program, in ")
        say(b"/etc/pyshim/interpreter or in ")
        say(run_folder)
        say(b"/interpreter; write the path of the one that has pyshim into the second of these")
        say(b" (a file that others may write does not count)")
        return fail()
    if find_socket_path():
        begin_by = now_ms() + BEGIN_TIMEOUT_MS
        for _ in range(ZYGOTE_ATTEMPTS):
            zygote = reach_zygote()
            if zygote < 0:
                break
            code = run_in_zygote(zygote, argc, argv)
            close(zygote)
            if code >= 0:
                reap_starter()
                return code
            if code == SILENCE:
                break
    return run_directly(argc, argv)


# --- What needs no Python ------------------------------------------------------------------------


def asks_for_version(argument):
    """Whether it is -v, --v, -version or --version."""
    if argument[0] == b"-" and argument[1] == b"-":
        argument += 1
    return strcmp(argument, b"-v") == 0 or strcmp(argument, b"-version") == 0


def print_version():
    """The three lines that containerd and people expect."""
    global line_length
    line_length = 0
    say(b"containerd-shim-pyshim-v2:\n  Version:  ")
    say(PYSHIM_VERSION)
    say(b"\n  Revision: ")
    say(PYSHIM_BUILD)
    say(b"\n")
    write(1, line, line_length)


def fill_standard_fds():
    """Opens /dev/null for each of 0, 1, 2 that is closed, before anything else takes its number."""
    fd: cython.int = 0
    while fd >= 0 and fd <= 2:
        fd = open(b"/dev/null", O_RDWR)
    if fd > 2:
        close(fd)


# --- Where things are ----------------------------------------------------------------------------


def find_run_folder():
    """The folder of the zygote's socket."""
    named: cython.p_const_char = getenv(b"PYSHIM_RUNTIME_DIR")
    if named == cython.NULL or named[0] == 0 or strlen(named) >= PATH_BYTES:
        named = b"/run/pyshim"
    memcpy(run_folder, named, strlen(named) + 1)


def find_interpreter():
    """Fills ``interpreter``; false when none of the known places names one."""
    named: cython.p_const_char = getenv(b"PYSHIM_PYTHON")
    if named != cython.NULL and named[0] != 0 and strlen(named) < PATH_BYTES:
        memcpy(interpreter, named, strlen(named) + 1)
        return True
    if find_beside_program():
        return True
    if read_interpreter_file(b"/etc/pyshim/interpreter"):
        return True
    return join(scratch, run_folder, b"interpreter") and read_interpreter_file(scratch)


def find_beside_program():
    """The interpreter of the environment that this program is installed in."""
    length: cython.ssize_t = readlink(b"/proc/self/exe", scratch, PATH_BYTES - 32)
    end: cython.p_char
    if length <= 0:
        return False
    scratch[length] = 0
    end = strrchr(scratch, b"/")
    if end == cython.NULL:
        return False
    end[0] = 0
    if not join(interpreter, scratch, b"pyshim-monitor") or access(interpreter, X_OK) != 0:
        return False
    if join(interpreter, scratch, b"python3") and access(interpreter, X_OK) == 0:
        return True
    return join(interpreter, scratch, b"python") and access(interpreter, X_OK) == 0


def read_interpreter_file(path):
    """Takes the first line of ``path``; false when there is none, or somebody else may write it."""
    about: stat_mode_t
    length: cython.ssize_t
    at: cython.ssize_t = 0
    fd: cython.int = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
    if fd < 0:
        return False
    # Who can write it chooses what we execute.
    if (
        fstat_mode(fd, cython.address(about)) != 0
        or (about.st_uid != 0 and about.st_uid != geteuid())
        or about.st_mode & WRITABLE_BY_ALL
    ):
        close(fd)
        return False
    length = read(fd, interpreter, PATH_BYTES - 1)
    close(fd)
    while at < length and interpreter[at] != b"\n":
        at += 1
    interpreter[at] = 0
    return at > 0


def find_socket_path():
    """The zygote's address, as ``pyshim.zygote.address`` computes it; false when it is too long."""
    hashed: uint64_t = 0xCBF29CE484222325  # FNV-1a
    prime: uint64_t = 0x100000001B3
    address: sockaddr_un
    at: cython.size_t = 0
    length: cython.int
    while interpreter[at] != 0:
        hashed = (hashed ^ cython.cast(cython.uchar, interpreter[at])) * prime
        at += 1
    length = snprintf(
        socket_path,
        PATH_BYTES,
        b"%s/zygote-%s-%016llx.sock",
        cython.cast(cython.p_char, run_folder),
        PYSHIM_BUILD,
        cython.cast(cython.ulonglong, hashed),
    )
    return length > 0 and cython.cast(cython.size_t, length) < cython.sizeof(address.sun_path)


# --- The zygote ----------------------------------------------------------------------------------


def reach_zygote():
    """A connection to the zygote, which is started when there is none; or -1."""
    global starter
    status: cython.int = 0
    fd: cython.int = connect_once()
    if fd != NO_ANSWER:
        return fd
    if access(interpreter, X_OK) != 0:
        return -1
    reap_starter()
    starter = start_zygote()
    while starter >= 0 and now_ms() < begin_by:
        poll(cython.NULL, 0, ZYGOTE_RETRY_MS)
        fd = connect_once()
        if fd != NO_ANSWER:
            return fd
        # It daemonizes: the process that we started ends well at once, or badly.
        if starter > 0 and waitpid(starter, cython.address(status), WNOHANG) == starter:
            starter = 0
            if not WIFEXITED(status) or WEXITSTATUS(status) != 0:
                return -1
    return -1


def reap_starter():
    """Waits for what we started as a zygote: it has forked, or has found another one.

    Who leaves it behind makes it a zombie of process 1, which may be a containerd that waits for
    none but its own children.
    """
    global starter
    process: cython.int
    if starter > 0:
        process = syscall(SYS_pidfd_open, starter, 0)
        await_end_of(process)
        waitpid(starter, cython.NULL, WNOHANG)
    starter = 0


def connect_once():
    """A connection; NO_ANSWER when nobody listens; -2 when it can never succeed."""
    address: sockaddr_un
    patience: timeval
    peer: ucred
    size: uint32_t = cython.sizeof(ucred)
    fd: cython.int = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)
    if fd < 0:
        return -2
    patience.tv_sec = CONNECT_TIMEOUT_S
    patience.tv_usec = 0
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, cython.address(patience), cython.sizeof(timeval))
    memset(cython.address(address), 0, cython.sizeof(sockaddr_un))
    address.sun_family = AF_UNIX
    memcpy(address.sun_path, socket_path, strlen(socket_path) + 1)
    if (
        connect(
            fd,
            cython.cast(cython.pointer(sockaddr), cython.address(address)),
            cython.sizeof(sockaddr_un),
        )
        != 0
    ):
        close(fd)
        return NO_ANSWER
    # Whoever listens there gets our environment and chooses what we execute.
    if (
        getsockopt(fd, SOL_SOCKET, SO_PEERCRED, cython.address(peer), cython.address(size)) != 0
        or peer.uid != geteuid()
    ):
        close(fd)
        return -2
    return fd


def start_zygote():
    """Starts one in the background; its lock decides when several do so at once."""
    arguments: cython.p_char[9]
    child: pid_t = fork()
    if child == 0:
        arguments[0] = interpreter
        arguments[1] = cython.cast(cython.p_char, b"-I")
        arguments[2] = cython.cast(cython.p_char, b"-X")
        arguments[3] = cython.cast(cython.p_char, b"utf8")
        arguments[4] = cython.cast(cython.p_char, b"-m")
        arguments[5] = cython.cast(cython.p_char, b"pyshim.zygote")
        arguments[6] = cython.cast(cython.p_char, b"--socket")
        arguments[7] = socket_path
        arguments[8] = cython.NULL
        become(b"/", arguments, environ, -1, -1)
        _exit(1)
    return child


def run_in_zygote(zygote, argc, argv):
    """The exit code; NO_ANSWER when the zygote has gone, SILENCE when it does not speak."""
    if not send_request(zygote, argc, argv):
        return NO_ANSWER
    return await_exit(zygote)


def send_request(zygote, argc, argv):
    """Sends arguments, environment, folder and stdin."""
    fds: cython.int[3]
    sent: cython.bint
    fds[0] = 0
    fds[1] = open(b".", O_PATH | O_DIRECTORY | O_CLOEXEC)
    fds[2] = write_request(argc, argv)
    answer.magic = MAGIC
    answer.kind = KIND_RUN
    sent = (
        fds[1] >= 0
        and fds[2] >= 0
        and send_datagram(zygote, cython.address(answer), HEADER_BYTES, fds, RUN_FDS)
    )
    close_all(fds + 1, 2)
    return sent


def write_request(argc, argv):
    """A memfd with arguments and environment in the layout of SPAWN; or -1."""
    counts: uint32_t[2]
    at: cython.int = 0
    written: cython.bint
    fd: cython.int = memfd_create(b"pyshim-request", MFD_CLOEXEC)
    if fd < 0:
        return -1
    counts[0] = argc
    counts[1] = 0
    while environ[counts[1]] != cython.NULL:
        counts[1] += 1
    if getcwd(scratch, PATH_BYTES) == cython.NULL:
        scratch[0] = 0
    written = put(fd, cython.cast(cython.p_char, counts), cython.sizeof(counts))
    written = written and put(fd, scratch, strlen(scratch) + 1)
    while written and at < argc:
        written = put(fd, argv[at], strlen(argv[at]) + 1)
        at += 1
    at = 0
    while written and environ[at] != cython.NULL:
        written = put(fd, environ[at], strlen(environ[at]) + 1)
        at += 1
    if not written or not flush(fd):
        close(fd)
        return -1
    return fd


def await_exit(zygote):
    """Serves the zygote's child until it says how we end.

    One that has begun and is silent for too long is killed, as all that it does may be done again.
    """
    deadline: cython.longlong = begin_by
    child: cython.int = -1  # a pidfd: it may be in another pid namespace
    left: cython.longlong
    size: cython.ssize_t
    fds: cython.int[3]
    waiting: pollfd
    begun: cython.bint = False
    while True:
        left = deadline - now_ms()
        if left <= 0:
            if not begun or end_child(child):
                return SILENCE
            begin()
            say(b"a child of the zygote neither answers nor ends when killed; end the zygote (")
            say(socket_path)
            say(b") and try again")
            return fail()
        waiting.fd = zygote
        waiting.events = POLLIN
        if poll(cython.address(waiting), 1, cython.cast(cython.int, left)) <= 0:
            continue
        size = receive(zygote, fds)
        if size == 0:
            await_end_of(child)
            return NO_ANSWER
        if answer.kind == KIND_EXIT and size >= VALUE_BYTES:
            close_all(fds, MONITOR_FDS)
            close_all(cython.address(child), 1)
            return end_with(answer.text, size - VALUE_BYTES)
        if answer.kind == KIND_BEGUN and not begun:
            # It does nothing before this word: one that wakes up late, when we have done without
            # it, finds that we have gone.
            close_all(cython.address(child), 1)
            child = fds[0]
            fds[0] = -1
            begun = tell(zygote, KIND_GO, 0)
            deadline = now_ms() + ANSWER_TIMEOUT_MS
        elif answer.kind == KIND_START_MONITOR and fds[2] >= 0:
            tell(zygote, KIND_STARTED, start_monitor(fds[0], fds[1], fds[2]))
        close_all(fds, MONITOR_FDS)


def end_child(child):
    """Kills the zygote's child of the pidfd ``child``, which is closed; whether it has gone."""
    if child >= 0:
        syscall(SYS_pidfd_send_signal, child, SIGKILL, cython.NULL, 0)
    return await_end_of(child)


def await_end_of(process):
    """Waits until the process of a pidfd is gone with all its descriptors; whether it is.

    Closes the pidfd.

    The connection of a zygote's child may be closed before a listener that it had made: whoever
    comes next must not take that for a monitor's.
    """
    waiting: pollfd
    gone: cython.bint
    if process < 0:
        return False
    waiting.fd = process
    waiting.events = POLLIN
    gone = poll(cython.address(waiting), 1, CHILD_END_TIMEOUT_MS) == 1
    close(process)
    return gone


def end_with(text, size):
    """Prints the answer, or the line of a failure; the exit code that goes with it."""
    done: cython.ssize_t
    while size > 0:
        done = write(1 if answer.value == 0 else 2, text, size)
        if done <= 0 and errno != EINTR:
            return 1
        if done > 0:
            text += done
            size -= done
    return answer.value & 0xFF


def tell(zygote, kind, value):
    """Sends a datagram of a kind and a value."""
    answer.magic = MAGIC
    answer.kind = kind
    answer.value = value
    return send_datagram(zygote, cython.address(answer), VALUE_BYTES, cython.NULL, 0)


def receive(zygote, fds):
    """One datagram into ``answer``, up to three descriptors (else -1); its size, 0 at the end."""
    message: msghdr
    part: iovec
    control: cython.char[128]
    head: cython.pointer(cmsghdr)
    size: cython.ssize_t
    count: cython.size_t
    at: cython.int
    for at in range(MONITOR_FDS):
        fds[at] = -1
    memset(cython.address(message), 0, cython.sizeof(msghdr))
    part.iov_base = cython.address(answer)
    part.iov_len = cython.sizeof(Datagram)
    message.msg_iov = cython.address(part)
    message.msg_iovlen = 1
    message.msg_control = control
    # CMSG_SPACE would round up, and the kernel would fill the padding with a fourth.
    message.msg_controllen = CMSG_LEN(MONITOR_FDS * cython.sizeof(cython.int))
    while True:
        size = recvmsg(zygote, cython.address(message), MSG_CMSG_CLOEXEC)
        if size >= 0 or errno != EINTR:
            break
    if size < 0:
        return 0
    head = CMSG_FIRSTHDR(cython.address(message))
    while head != cython.NULL:
        if head.cmsg_level == SOL_SOCKET and head.cmsg_type == SCM_RIGHTS:
            count = head.cmsg_len - CMSG_LEN(0)
            memcpy(fds, CMSG_DATA(head), count)
        head = CMSG_NXTHDR(cython.address(message), head)
    if size < HEADER_BYTES or answer.magic != MAGIC:
        close_all(fds, MONITOR_FDS)
        return 0
    return size


def send_datagram(zygote, datagram, size, fds, count):
    """Sends the first ``size`` bytes of ``datagram`` with ``count`` descriptors."""
    message: msghdr
    part: iovec
    control: cython.char[128]
    head: cython.pointer(cmsghdr)
    sent: cython.ssize_t
    memset(cython.address(message), 0, cython.sizeof(msghdr))
    memset(control, 0, cython.sizeof(control))
    part.iov_base = datagram
    part.iov_len = size
    message.msg_iov = cython.address(part)
    message.msg_iovlen = 1
    if count > 0:
        message.msg_control = control
        message.msg_controllen = CMSG_SPACE(count * cython.sizeof(cython.int))
        head = CMSG_FIRSTHDR(cython.address(message))
        head.cmsg_level = SOL_SOCKET
        head.cmsg_type = SCM_RIGHTS
        head.cmsg_len = CMSG_LEN(count * cython.sizeof(cython.int))
        memcpy(CMSG_DATA(head), fds, count * cython.sizeof(cython.int))
    while True:
        sent = sendmsg(zygote, cython.address(message), MSG_NOSIGNAL)
        if sent >= 0 or errno != EINTR:
            return sent >= 0


# --- The monitor ---------------------------------------------------------------------------------


def start_monitor(program, listener, state):
    """Starts what the memfd ``program`` describes; its pid, or minus errno."""
    about: stat_t
    text: cython.p_char
    counts: cython.pointer(uint32_t)
    pointers: cython.pointer(cython.p_char)
    size: cython.size_t
    at: cython.size_t = 8
    found: cython.size_t = 0
    total: cython.size_t
    if fstat(program, cython.address(about)) != 0:
        return -errno
    size = about.st_size
    if size < 9 or size > MAX_PROGRAM_BYTES:
        return -ENOENT
    text = cython.cast(
        cython.p_char,
        mmap(cython.NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE, program, 0),
    )
    if text == cython.cast(cython.p_char, MAP_FAILED):
        return -errno
    counts = cython.cast(cython.pointer(uint32_t), text)
    total = cython.cast(cython.size_t, counts[0]) + counts[1] + 1
    if text[size - 1] != 0 or counts[0] == 0 or total > size:
        return -ENOENT
    pointers = cython.cast(
        cython.pointer(cython.p_char), calloc(total + 2, cython.sizeof(cython.p_char))
    )
    if pointers == cython.NULL:
        return -errno
    # cwd, arguments, NULL, environment, NULL
    while found < total and at < size:
        pointers[found if found <= counts[0] else found + 1] = text + at
        at += strlen(text + at) + 1
        found += 1
    if found < total:
        return -ENOENT
    return spawn(pointers[0], pointers + 1, pointers + counts[0] + 2, listener, state)


def spawn(cwd, argv, envp, listener, state):
    """Starts a monitor and waits until it executes; its pid, or minus errno."""
    report: cython.int[2]
    reason: cython.int = 0
    size: cython.ssize_t
    child: pid_t
    if pipe2(report, O_CLOEXEC) != 0:
        return -errno
    child = fork()
    if child == 0:
        report[1] = fcntl(report[1], F_DUPFD_CLOEXEC, 10)  # out of the way of 3 and 4
        become(cwd, argv, envp, listener, state)
        reason = errno
        write(report[1], cython.address(reason), cython.sizeof(cython.int))
        _exit(127)
    close(report[1])
    if child < 0:
        close(report[0])
        return -errno
    while True:
        size = read(report[0], cython.address(reason), cython.sizeof(cython.int))
        if size >= 0 or errno != EINTR:
            break
    close(report[0])
    if size > 0:
        waitpid(child, cython.NULL, 0)
        return -reason
    return child


def become(cwd, argv, envp, listener, state):
    """In the child: a session of its own, nothing of ours but 3 and 4; returns when it fails."""
    null: cython.int
    kept: cython.int = 3
    setsid()
    reset_signals()
    null = open(b"/dev/null", O_RDWR)
    if null < 0 or chdir(cwd) != 0:
        return
    dup2(null, 0)
    dup2(null, 1)
    dup2(null, 2)
    if listener >= 0:
        # Neither may lie where the other has to go.
        listener = fcntl(listener, F_DUPFD_CLOEXEC, 10)
        state = fcntl(state, F_DUPFD_CLOEXEC, 10)
        if dup2(listener, 3) < 0 or dup2(state, 4) < 0 or not share_core():
            return
        kept = 5
    close_from(kept)
    execve(argv[0], argv, envp)


def reset_signals():
    """Default dispositions and an empty mask, whatever we were started with."""
    nothing: uint64_t = 0
    number: cython.int
    for number in range(1, LAST_SIGNAL + 1):
        signal(number, SIG_DFL)
    syscall(
        SYS_rt_sigprocmask, SIG_SETMASK, cython.address(nothing), cython.NULL, KERNEL_SIGSET_BYTES
    )


def share_core():
    """Gives the monitor a core-scheduling cookie of its own when containerd asks for it.

    A kernel without core scheduling leaves things as they are (prctl(2), PR_SCHED_CORE).
    """
    wanted: cython.p_const_char = getenv(b"SCHED_CORE")
    if wanted == cython.NULL or wanted[0] == 0:
        return True
    # PR_SCHED_CORE, CREATE, this process, its threads
    return prctl(62, 1, 0, 1, 0) == 0 or errno == EINVAL or errno == ENODEV


def close_from(first):
    """Lets execve close every descriptor from ``first`` on."""
    fd: cython.int
    if syscall(SYS_close_range, first, ~cython.cast(cython.uint, 0), 4) == 0:  # CLOEXEC
        return
    for fd in range(first, LAST_CLOSED_FD):
        fcntl(fd, F_SETFD, FD_CLOEXEC)


def close_all(fds, count):
    """Closes those that are descriptors."""
    at: cython.int
    for at in range(count):
        if fds[at] >= 0:
            close(fds[at])


# --- Without a zygote ----------------------------------------------------------------------------


def run_directly(argc, argv):
    """Becomes the interpreter; comes back only when that fails."""
    arguments: cython.p_char[264]  # MAX_ARGUMENTS + 8
    at: cython.int
    limit: rlimit
    if argc > MAX_ARGUMENTS:
        begin()
        say(b"too many arguments")
        return fail()
    # Python itself would end in many lines about its own affairs.
    if getrlimit(RLIMIT_NOFILE, cython.address(limit)) == 0 and limit.rlim_cur < MIN_DESCRIPTORS:
        begin()
        say(b"too few open files are allowed to start Python; raise RLIMIT_NOFILE to 1024")
        return fail()
    arguments[0] = interpreter
    arguments[1] = cython.cast(cython.p_char, b"-I")
    arguments[2] = cython.cast(cython.p_char, b"-X")
    arguments[3] = cython.cast(cython.p_char, b"utf8")
    arguments[4] = cython.cast(cython.p_char, b"-m")
    arguments[5] = cython.cast(cython.p_char, b"pyshim.bootstrap")
    for at in range(1, argc):
        arguments[5 + at] = argv[at]
    arguments[5 + argc] = cython.NULL
    execve(interpreter, arguments, environ)
    begin()
    say(b"cannot execute the interpreter ")
    say(interpreter)
    say(b": ")
    say(strerror(errno))
    return fail()


# --- Bytes and messages --------------------------------------------------------------------------


def put(fd, data, size):
    """Appends to the buffer, which goes to ``fd`` when it is full."""
    global buffered
    part: cython.size_t
    while size > 0:
        part = BUFFER_BYTES - buffered
        if part > size:
            part = size
        memcpy(buffer + buffered, data, part)
        buffered += part
        data += part
        size -= part
        if buffered == BUFFER_BYTES and not flush(fd):
            return False
    return True


def flush(fd):
    """Writes out the buffer."""
    global buffered
    at: cython.size_t = 0
    size: cython.ssize_t
    while at < buffered:
        size = write(fd, buffer + at, buffered - at)
        if size <= 0:
            return False
        at += size
    buffered = 0
    return True


def join(target, folder, name):
    """Makes ``folder/name``; false when it does not fit."""
    size: cython.int = snprintf(target, PATH_BYTES, b"%s/%s", folder, name)
    return size > 0 and size < PATH_BYTES


def now_ms():
    """Milliseconds of a clock that nobody sets."""
    now: timespec
    clock_gettime(CLOCK_MONOTONIC, cython.address(now))
    return cython.cast(cython.longlong, now.tv_sec) * 1000 + now.tv_nsec // 1000000


def begin():
    """Starts a line."""
    global line_length
    line_length = 0
    say(b"containerd-shim-pyshim-v2: ")


def say(text):
    """Adds as much of ``text`` as fits before the newline."""
    global line_length
    length: cython.size_t = strlen(text)
    if length > LINE_BYTES - 1 - line_length:
        length = LINE_BYTES - 1 - line_length
    memcpy(line + line_length, text, length)
    line_length += length


def fail():
    """Prints the line; the exit code of every failure."""
    line[line_length] = b"\n"
    write(2, line, line_length + 1)
    return 1
