"""pyshim-monitor: holds what a container must not lose, while no Python runs.

It is the parent of the container's processes, pumps their output, keeps descriptors and an opaque
state, and activates a service (Python) when something happens.  ``protocol.md`` says all that it
does; types, tables and limits are in ``monitor.pxd``.

It must never exit because of anything that a service says, never wait for anybody except in its
one epoll_wait, never wake up without a cause, and never touch a Python object: Cython compiles this
file to C without the Python runtime.

One epoll_wait, one event, one dispatch: an event is handled before the next is asked for, so no
event can speak of a descriptor that the one before it has closed.
"""

import cython
from cython.cimports.linux import (
    AF_UNIX,
    AT_EMPTY_PATH,
    CLOCK_MONOTONIC,
    CLOCK_REALTIME,
    CMSG_DATA,
    CMSG_FIRSTHDR,
    CMSG_LEN,
    CMSG_NXTHDR,
    CMSG_SPACE,
    E2BIG,
    EACCES,
    EAGAIN,
    EALREADY,
    EBADMSG,
    ECANCELED,
    ECONNABORTED,
    ECONNRESET,
    EEXIST,
    EINTR,
    EINVAL,
    EIO,
    EMFILE,
    ENFILE,
    ENOBUFS,
    ENOENT,
    ENOMEM,
    ENOSPC,
    ENOTDIR,
    ENOTSOCK,
    EPERM,
    EPOLL_CLOEXEC,
    EPOLL_CTL_ADD,
    EPOLL_CTL_DEL,
    EPOLL_CTL_MOD,
    EPOLLERR,
    EPOLLHUP,
    EPOLLIN,
    EPOLLOUT,
    EPOLLRDHUP,
    EPROTO,
    ESRCH,
    ETIMEDOUT,
    F_DUPFD_CLOEXEC,
    F_GETFL,
    F_GETPIPE_SZ,
    F_SETFD,
    F_SETFL,
    F_SETPIPE_SZ,
    FD_CLOEXEC,
    FIONREAD,
    MADV_DONTNEED,
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_PRIVATE,
    MFD_CLOEXEC,
    MSG_CMSG_CLOEXEC,
    MSG_CTRUNC,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    MSG_TRUNC,
    O_CLOEXEC,
    O_NOCTTY,
    O_NONBLOCK,
    O_PATH,
    O_RDONLY,
    O_RDWR,
    O_WRONLY,
    P_PID,
    POLLIN,
    POLLOUT,
    POLLRDHUP,
    PR_SET_CHILD_SUBREAPER,
    PR_SET_NAME,
    PR_SET_PDEATHSIG,
    PROT_READ,
    PROT_WRITE,
    RLIMIT_NOFILE,
    S_IFCHR,
    S_IFIFO,
    S_IFMT,
    S_IFREG,
    SCM_RIGHTS,
    SFD_CLOEXEC,
    SFD_NONBLOCK,
    SHUT_RDWR,
    SIG_DFL,
    SIG_IGN,
    SIG_SETMASK,
    SIGCHLD,
    SIGHUP,
    SIGINT,
    SIGKILL,
    SIGPIPE,
    SIGTERM,
    SIGUSR1,
    SIGUSR2,
    SIGXFSZ,
    SO_PEERCRED,
    SO_SNDBUF,
    SOCK_CLOEXEC,
    SOCK_NONBLOCK,
    SOCK_SEQPACKET,
    SOL_SOCKET,
    SPLICE_F_MOVE,
    SPLICE_F_NONBLOCK,
    WEXITED,
    WNOHANG,
    WNOWAIT,
    SYS_close_range,
    SYS_execveat,
    SYS_rt_sigprocmask,
    _exit,
    accept4,
    chdir,
    clock_gettime,
    close,
    cmsghdr,
    connect,
    dup2,
    environ,
    epoll_create1,
    epoll_ctl,
    epoll_event,
    epoll_wait,
    errno,
    execve,
    fcntl,
    fstat,
    fstat_mode,
    getegid,
    geteuid,
    getpid,
    getppid,
    getrlimit,
    getsockopt,
    ioctl,
    iovec,
    kill,
    madvise,
    memcpy,
    memfd_create,
    memset,
    mmap,
    msghdr,
    munmap,
    open,
    pid_t,
    poll,
    pollfd,
    prctl,
    pread,
    read,
    recv,
    recvmsg,
    rlimit,
    send,
    sendmsg,
    setrlimit,
    setsid,
    setsockopt,
    shutdown,
    sigaddset,
    sigemptyset,
    siginfo_t,
    signal,
    signalfd,
    signalfd_siginfo,
    sigprocmask,
    sigset_t,
    sockaddr,
    sockaddr_un,
    socket,
    socketpair,
    splice,
    stat_mode_t,
    stat_t,
    strchr,
    strcmp,
    strlen,
    strrchr,
    syscall,
    timespec,
    ucred,
    umask,
    vfork,
    waitid,
    waitpid,
    write,
)


def program_main(argc, argv):
    """What the monitor does, from beginning to end; QUIT ends it in ``finish``."""
    read_command_line(argc, argv)
    if way_of_life == START:
        start()
    else:
        resume()
    loop()
    return 0


# --- Start ---------------------------------------------------------------------------------------


def read_command_line(argc, argv):
    """Obeys ``--zygote SOCKET --python PATH`` or ``--version``; anything else ends the monitor.

    ``--resume FD`` and ``--undone ERRNO`` come from a monitor that has executed us in its place,
    ``--rehearse FD`` from one that asks whether it may.
    """
    global zygote_path, python_path, program_name, way_of_life, snapshot_fd, upgrade_error
    at: cython.int = 1
    program_name = argv[0]
    way_of_life = START
    while at < argc:
        if strcmp(argv[at], b"--version") == 0:
            write(1, IDENTITY, strlen(IDENTITY))
            _exit(0)
        elif at + 1 < argc and strcmp(argv[at], b"--zygote") == 0:
            zygote_path = argv[at + 1]
        elif at + 1 < argc and strcmp(argv[at], b"--python") == 0:
            python_path = argv[at + 1]
        elif at + 1 < argc and strcmp(argv[at], b"--resume") == 0:
            way_of_life = RESUME
            snapshot_fd = to_number(argv[at + 1])
        elif at + 1 < argc and strcmp(argv[at], b"--rehearse") == 0:
            way_of_life = REHEARSE
            snapshot_fd = to_number(argv[at + 1])
        elif at + 1 < argc and strcmp(argv[at], b"--undone") == 0:
            upgrade_error = to_number(argv[at + 1])
        else:
            refuse(b"unknown option, or its value is missing: ", argv[at])
        at += 2
    if zygote_path == cython.NULL or python_path == cython.NULL:
        refuse(b"usage: pyshim-monitor --zygote SOCKET --python PATH | --version", b"")
    if strlen(zygote_path) > SOCKET_PATH_BYTES:
        refuse(b"--zygote: a socket's path has at most 107 bytes: ", zygote_path)


def to_number(text):
    """The decimal number ``text``; -1 when it is none."""
    number: cython.int = 0
    at: cython.int = 0
    while ord(b"0") <= text[at] and text[at] <= ord(b"9") and at < 9:
        number = number * 10 + text[at] - ord(b"0")
        at += 1
    return number if at > 0 and text[at] == 0 else -1


def decimal(end, number):
    """Writes ``number``, which is not negative, in front of ``end``; where it begins."""
    while True:
        end -= 1
        end[0] = ord(b"0") + number % 10
        number //= 10
        if number == 0:
            return end


def refuse(problem, subject):
    """Says in one line on stderr why the monitor does not start, and ends it."""
    write(2, b"pyshim-monitor: ", 16)
    write(2, problem, strlen(problem))
    write(2, subject, strlen(subject))
    write(2, b"\n", 1)
    _exit(EXIT_USAGE)


def start():
    """Takes over what the launcher prepared: descriptors 3 and 4."""
    global state_fd, next_accepted_tag, previous_program, look_at
    about: stat_t
    listener: cython.pointer(Held)
    if fstat(LISTENER_FD, cython.address(about)) != 0:
        refuse(b"descriptor 3 must be the listening socket; it is closed", b"")
    if fstat(STATE_FD, cython.address(about)) != 0:
        refuse(b"descriptor 4 must be the memfd of the first state; it is closed", b"")
    close_strangers()
    state_fd = move_up(STATE_FD)
    getrlimit(RLIMIT_NOFILE, cython.address(limit_at_start))
    next_accepted_tag = FIRST_ACCEPTED_TAG
    previous_program = -1
    set_up()
    listener = new_held(LISTENER_TAG, move_up(LISTENER_FD), HOLD_ACCEPT)
    set_nonblocking(listener.fd)
    watch_held(listener)
    # Who started us may have been killed since, and nobody else knows of us.
    look_at = now_ms() + FIRST_LOOK_MS


def set_up():
    """What a monitor needs in every life: signals, an epoll, memory, orphans, descriptors."""
    global poller, null_fd, reserve_fd, own_pid, scratch, channel
    channel = -1
    reserve_fd = -1
    own_pid = getpid()
    spare_descriptors(0)
    # Whatever our starter's is, nobody else shall write what the runtime leaves in the bundle.
    umask(UMASK)
    set_up_signals()
    null_fd = move_up(open(b"/dev/null", O_RDWR | O_CLOEXEC))
    poller = epoll_create1(EPOLL_CLOEXEC)
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    scratch = cython.cast(
        cython.p_char,
        mmap(
            cython.NULL,
            SCRATCH_BYTES,
            PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS,
            -1,
            0,
        ),
    )
    if poller < 0 or signals < 0 or null_fd < 0 or scratch == MAP_FAILED:
        refuse(b"no descriptors or memory to start with; check the host's limits", b"")
    keep_reserve()
    set_interest(signals, 0, EPOLLIN, ON_SIGNAL, 0)


def set_up_signals():
    """Ours come by signalfd, and none that is not a fault ends us."""
    global signals
    wanted_signals: sigset_t
    blocked_signals: sigset_t
    number: cython.int
    # Who has executed us in its place has set what follows, and at no moment may it be otherwise.
    if way_of_life == START:
        for number in range(1, 32):
            signal(number, SIG_DFL)
    signal(SIGPIPE, SIG_IGN)
    signal(SIGHUP, SIG_IGN)
    signal(SIGXFSZ, SIG_IGN)
    sigemptyset(cython.address(wanted_signals))
    sigaddset(cython.address(wanted_signals), SIGCHLD)
    sigaddset(cython.address(wanted_signals), SIGTERM)
    sigaddset(cython.address(wanted_signals), SIGINT)
    blocked_signals = wanted_signals
    # What containerd's documentation has people send to a shim for its stacks; they stay pending.
    sigaddset(cython.address(blocked_signals), SIGUSR1)
    sigaddset(cython.address(blocked_signals), SIGUSR2)
    sigprocmask(SIG_SETMASK, cython.address(blocked_signals), cython.NULL)
    signals = signalfd(-1, cython.address(wanted_signals), SFD_CLOEXEC | SFD_NONBLOCK)


def close_strangers():
    """Whatever else the launcher had open is not ours to keep open."""
    fd: cython.int
    if syscall(SYS_close_range, 5, 0x7FFFFFFF, 0) != 0:
        for fd in range(5, 1024):
            close(fd)


def spare_descriptors(count):
    """Allows ourselves all descriptors but ``count``, where there are many more than that.

    Connections and relays need them; children get the limit that we found.
    """
    limit: rlimit = limit_at_start
    limit.rlim_cur = limit.rlim_max
    if limit.rlim_max > 2 * count:
        limit.rlim_cur -= count
    setrlimit(RLIMIT_NOFILE, cython.address(limit))


def move_up(fd):
    """The same descriptor above those that a child's stdio uses, closed on exec."""
    moved: cython.int = fcntl(fd, F_DUPFD_CLOEXEC, 10)
    if moved >= 0:
        close(fd)
    return moved


# --- The loop ------------------------------------------------------------------------------------


def loop():
    """Waits for one event, handles it, and sets right what follows from it."""
    event: epoll_event
    count: cython.int
    while True:
        count = epoll_wait(poller, cython.address(event), 1, time_to_wait())
        if count > 0:
            dispatch(event.data.u64, event.events)
        if always_ready_count:
            pump_always_ready()
        keep_deadlines()
        keep_reserve()
        settle()


def dispatch(data, events):
    """Hands an event to what it belongs to."""
    kind: cython.int = cython.cast(cython.int, data >> 32)
    index: cython.int = cython.cast(cython.int, data & 0x7FFFFFFF)
    if kind == ON_SIGNAL:
        take_signals()
    elif kind == ON_CHANNEL:
        channel_event(events)
    elif kind == ON_HELD:
        held_event(helds + index, events)
    elif kind == ON_RELAY_SOURCE or kind == ON_RELAY_DESTINATION:
        pump(relays + index)


def settle():
    """Brings the service, and what is watched while there is none, in line with what is so now."""
    global watching
    idle: cython.bint
    flush()
    if undo_error:
        go_back()
    if upgrade_stage == HANDING_OVER and channel < 0 and not quitting:
        hand_over()
    # Again where it failed at once: no event would bring us back here before the first pause.
    while channel < 0 and wanted and not quitting and retry_at == 0 and not upgrade_stage:
        activate()
    if channel >= 0:
        watch_channel()
    idle = channel < 0 and not wanted and not quitting
    if idle != watching:
        watching = idle
        watch_all()
        if idle:
            madvise(scratch, SCRATCH_BYTES, MADV_DONTNEED)
    if quitting and piece_count == 0 and draining_count == 0:
        if channel < 0 or deaf or not dirty:
            finish()


def sooner(one, other):
    """The earlier of two times, where 0 is never."""
    if one == 0 or (other != 0 and other < one):
        return other
    return one


def time_to_wait():
    """How long epoll_wait may sleep: for ever unless something is due."""
    due: cython.longlong = 0
    left: cython.longlong
    at: cython.int
    if always_ready_count:
        for at in range(relay_top):
            if relays[at].state == RELAY_READING and relays[at].always_ready:
                return 0
    due = sooner(due, hello_until)
    due = sooner(due, retry_at)
    due = sooner(due, alarm_at)
    due = sooner(due, look_at)
    due = sooner(due, end_signal_until)
    due = sooner(due, quit_at)
    due = sooner(due, accept_again_at)
    due = sooner(due, upgrade_until)
    due = sooner(due, confirm_until)
    due = sooner(due, release_at)
    if resting_count:
        for at in range(relay_top):
            due = sooner(due, relays[at].rest_until)
    if draining_count:
        for at in range(relay_top):
            if relays[at].draining:
                due = sooner(due, relays[at].drain_until)
    if unread_count:
        for at in range(relay_top):
            if relays[at].state == RELAY_UNREAD:
                due = sooner(due, relays[at].look_again_at)
    if due == 0:
        return -1
    left = due - now_ms()
    if left < 0:
        return 0
    return cython.cast(cython.int, left) if left < 0x7FFFFFFF else 0x7FFFFFFF


def keep_deadlines():
    """Does what has become due."""
    global hello_until, retry_at, alarm_at, alarm_unsent, dirty, accept_again_at
    global confirm_until, undo_error, look_at
    at: cython.int
    now: cython.longlong
    if (
        hello_until == 0
        and retry_at == 0
        and alarm_at == 0
        and look_at == 0
        and end_signal_until == 0
        and quit_at == 0
        and accept_again_at == 0
        and upgrade_until == 0
        and confirm_until == 0
        and draining_count == 0
        and unread_count == 0
        and resting_count == 0
        and release_at == 0
    ):
        return
    now = now_ms()
    if release_at != 0 and now >= release_at:
        release(now)
    if resting_count:
        for at in range(relay_top):
            if relays[at].rest_until != 0 and now >= relays[at].rest_until:
                rouse(relays + at, now)
    if quit_at != 0 and now >= quit_at:
        finish()
    if end_signal_until != 0 and now >= end_signal_until:
        finish()
    if hello_until != 0 and now >= hello_until:
        hello_until = 0
        lose_service()
    if retry_at != 0 and now >= retry_at:
        retry_at = 0
    if alarm_at != 0 and now >= alarm_at:
        alarm_at = 0
        if channel >= 0 and not parking:
            alarm_unsent = 1
        want(True)
    if look_at != 0 and now >= look_at:
        look_at = 0
        want(True)
    if accept_again_at != 0 and now >= accept_again_at:
        accept_again_at = 0
        watch_all()
    if upgrade_until != 0 and now >= upgrade_until:
        give_up_upgrade(ETIMEDOUT)
    if confirm_until != 0 and now >= confirm_until:
        confirm_until = 0
        undo_error = ETIMEDOUT
    if draining_count:
        for at in range(relay_top):
            if relays[at].draining and now >= relays[at].drain_until:
                # A slow reader is waited for, one that has stopped is not.
                if relays[at].state == RELAY_BLOCKED and relays[at].moved == relays[at].drain_moved:
                    end_relay(relays + at, 0)
                else:
                    relays[at].drain_moved = relays[at].moved
                    relays[at].drain_until = now + DRAIN_MS
    if unread_count:
        for at in range(relay_top):
            if relays[at].state == RELAY_UNREAD and now >= relays[at].look_again_at:
                if is_ready(relays[at].destination, 0):
                    relays[at].look_again_at = now + UNREAD_POLL_MS
                else:
                    end_relay(relays + at, 0)


def finish():
    """The end; the kernel closes what is held."""
    _exit(0)


def now_ms():
    """A clock that only moves forward."""
    now: timespec
    clock_gettime(CLOCK_MONOTONIC, cython.address(now))
    return cython.cast(cython.longlong, now.tv_sec) * 1000 + now.tv_nsec // 1000000


def set_interest(fd, before, after, kind, index):
    """Makes epoll watch ``fd`` for ``after``; returns what it watches it for then."""
    event: epoll_event
    result: cython.int
    if before == after:
        return after
    event.events = after
    event.data.u64 = (cython.cast(cython.ulonglong, kind) << 32) | cython.cast(cython.uint, index)
    if after == 0:
        epoll_ctl(poller, EPOLL_CTL_DEL, fd, cython.address(event))
        return 0
    if before == 0:
        result = epoll_ctl(poller, EPOLL_CTL_ADD, fd, cython.address(event))
    else:
        result = epoll_ctl(poller, EPOLL_CTL_MOD, fd, cython.address(event))
    return after if result == 0 else before


def want(event):
    """Something has happened: the service there is must be told, or there must be one."""
    global wanted, dirty
    if channel >= 0:
        dirty = True
    if (channel < 0 or parking) and event:
        wanted = True


# --- Signals and processes -----------------------------------------------------------------------


def take_signals():
    """SIGCHLD: reap.  SIGTERM and SIGINT: a service shall decide what becomes of the container."""
    global end_signal, end_signal_sent, end_signal_until
    info: signalfd_siginfo
    while read(signals, cython.address(info), cython.sizeof(info)) == cython.sizeof(info):
        if info.ssi_signo == SIGCHLD:
            continue
        if end_signal_until == 0:
            end_signal_until = now_ms() + SIGNAL_ANSWER_MS
        end_signal = info.ssi_signo
        end_signal_sent = 0
        want(True)
    reap()


def reap():
    """Collects every process that has died."""
    status: cython.int = 0
    pid: pid_t
    while True:
        pid = waitpid(-1, cython.address(status), WNOHANG)
        if pid <= 0:
            return
        remember_exit(pid, status)


def remember_exit(pid, status):
    """Writes down the exit of a process that somebody asked for, or may yet ask for."""
    global direct_pid, rehearsal_pid
    now: timespec
    process: cython.pointer(Process)
    if pid == direct_pid:
        direct_pid = 0
        return
    if pid == rehearsal_pid:
        rehearsal_pid = 0
        rehearsed(status)
        return
    process = find_process(pid, False)
    if process == cython.NULL:
        if spawned_count == 0:
            return
        process = find_unclaimed(pid)  # the number was used before: the later exit counts
        if process == cython.NULL:
            process = new_process(pid)
        if process == cython.NULL:
            return
        process.record.flags = RECORD_UNCLAIMED
    clock_gettime(CLOCK_REALTIME, cython.address(now))
    process.record.flags |= RECORD_EXITED
    process.record.status = status
    process.record.seconds = now.tv_sec
    process.record.nanoseconds = now.tv_nsec
    if not process.record.flags & RECORD_UNCLAIMED:
        process.sent = 0
        want(True)


def find_process(pid, exited):
    """The entry of a pid that has exited, or of one that has not; pids are used again."""
    at: cython.int
    for at in range(process_top):
        if processes[at].used and processes[at].record.pid == pid:
            if ((processes[at].record.flags & RECORD_EXITED) != 0) == exited:
                return processes + at
    return cython.NULL


def find_unclaimed(pid):
    """The entry of a pid that has exited while nobody had asked for it."""
    at: cython.int
    for at in range(process_top):
        if processes[at].used and processes[at].record.pid == pid:
            if processes[at].record.flags & RECORD_UNCLAIMED:
                return processes + at
    return cython.NULL


def is_child(pid):
    """Whether ``pid`` is a child of ours that has not been reaped."""
    about: siginfo_t
    return waitid(P_PID, pid, cython.address(about), WEXITED | WNOHANG | WNOWAIT) == 0


def new_process(pid):
    """A fresh entry, or NULL when the table is full."""
    global process_top
    at: cython.int = 0
    while at < process_top and processes[at].used:
        at += 1
    if at == PROCESSES:
        at = oldest_unclaimed()
        if at < 0:
            return cython.NULL
    if at == process_top:
        process_top += 1
    memset(processes + at, 0, cython.sizeof(processes[0]))
    processes[at].used = True
    processes[at].sent = 1
    processes[at].record.pid = pid
    return processes + at


def oldest_unclaimed():
    """The index of the exit that was remembered first, the likeliest to be nobody's; or -1."""
    at: cython.int
    oldest: cython.int = -1
    for at in range(process_top):
        if not processes[at].record.flags & RECORD_UNCLAIMED:
            continue
        if (
            oldest < 0
            or processes[at].record.seconds < processes[oldest].record.seconds
            or (
                processes[at].record.seconds == processes[oldest].record.seconds
                and processes[at].record.nanoseconds < processes[oldest].record.nanoseconds
            )
        ):
            oldest = at
    return oldest


def track(pid, value):
    """TRACK; the error for the reply."""
    global dirty
    process: cython.pointer(Process) = find_process(pid, False)
    if process == cython.NULL:
        process = find_unclaimed(pid)
    # What was claimed has exited; a child of ours with its number is another process.
    if process == cython.NULL and not is_child(pid):
        process = find_process(pid, True)
    if process != cython.NULL:
        process.record.flags = (process.record.flags & ~RECORD_UNCLAIMED) | RECORD_TRACKED
        if process.record.flags & RECORD_EXITED:
            value[0] = 1
            process.sent = 0
            dirty = True
        return 0
    # A runtime's file may name anything: nobody else's process is ever signalled.
    if pid <= 0 or not is_child(pid):
        return ESRCH
    process = new_process(pid)
    if process == cython.NULL:
        return ENOSPC
    process.record.flags = RECORD_TRACKED
    return 0


def forget(pid):
    """FORGET; with the last spawned process go the exits that nobody asked for."""
    global spawned_count, process_top
    at: cython.int
    process: cython.pointer(Process) = find_process(pid, True)
    if process == cython.NULL:
        process = find_process(pid, False)
    if process == cython.NULL:
        return
    process.used = False
    if process.record.flags & RECORD_SPAWNED:
        spawned_count -= 1
        if spawned_count == 0:
            for at in range(process_top):
                if processes[at].record.flags & RECORD_UNCLAIMED:
                    processes[at].used = False
    while process_top > 0 and not processes[process_top - 1].used:
        process_top -= 1


# --- Spawn ---------------------------------------------------------------------------------------


def spawn(body, fds, count, value):
    """SPAWN; the error for the reply.  The descriptors stay the caller's."""
    global child_argv, child_env, child_cwd, child_fds, child_fd_count, child_dies_with_us
    global child_is_service, child_program, spawned_count
    about: stat_t
    size: cython.size_t
    whole: cython.size_t
    got: cython.ssize_t
    at: cython.size_t = 0
    memory: cython.p_char
    counts: cython.pointer(cython.uint)
    process: cython.pointer(Process)
    pid: cython.int
    if fstat(fds[0], cython.address(about)) != 0 or about.st_size < 8:
        return EINVAL
    if about.st_size > PROGRAM_BYTES:
        return E2BIG
    process = new_process(0)
    if process == cython.NULL:
        return ENOSPC
    process.used = False
    size = about.st_size
    # Every string takes a byte at least, so there are no more pointers than bytes.
    whole = (size + 15) // 8 * 8
    memory = cython.cast(
        cython.p_char,
        mmap(
            cython.NULL,
            whole + size * cython.sizeof(cython.p_char),
            PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS,
            -1,
            0,
        ),
    )
    if memory == MAP_FAILED:
        return ENOMEM
    while at < size:
        got = pread(fds[0], memory + at, size - at, at)
        if got <= 0:
            break
        at += got
    counts = cython.cast(cython.pointer(cython.uint), memory)
    child_argv = cython.cast(cython.pp_char, memory + whole)
    if at == size and parse_program(memory + 8, size - 8, child_argv, counts[0], counts[1]):
        child_env = child_argv + counts[0] + 1
        child_cwd = memory + 8
        child_fds = fds + 1
        child_fd_count = count - 1
        child_program = -1
        if body.flags & SPAWN_EXECUTABLE:
            child_fd_count -= 1
            child_program = fds[count - 1]
        child_dies_with_us = (body.flags & SPAWN_DIE_WITH_MONITOR) != 0
        child_is_service = False
        pid = start_child()
    else:
        pid = -EINVAL
    munmap(memory, whole + size * cython.sizeof(cython.p_char))
    if pid < 0:
        return -pid
    # A tracked one of this number has ended without our seeing it: this exit will answer for both.
    process = find_process(pid, False)
    if process == cython.NULL:
        process = find_unclaimed(pid)
    if process == cython.NULL:
        process = new_process(pid)
    process.sent = 1
    process.record.flags = (process.record.flags & RECORD_TRACKED) | RECORD_SPAWNED
    process.record.token = body.token
    spawned_count += 1
    value[0] = pid
    return 0


def parse_program(text, size, pointers, argc, envc):
    """Points to the strings in ``text``; false unless they are exactly as many as announced."""
    at: cython.size_t = 0
    index: cython.size_t = 0
    strings: cython.ulonglong = cython.cast(cython.ulonglong, argc) + envc + 1
    if argc < 1 or strings > size or text[size - 1] != 0:
        return False
    while at < size:
        if index >= strings:
            return False
        if index > argc:
            pointers[index] = text + at  # a NULL stands between arguments and environment
        elif index > 0:
            pointers[index - 1] = text + at
        index += 1
        at += strlen(text + at) + 1
    pointers[argc] = cython.NULL
    pointers[argc + 1 + envc] = cython.NULL
    return index == strings


def start_child():
    """Starts the child that the ``child_`` variables describe: its pid, or minus errno."""
    global child_error
    status: cython.int
    everything: cython.ulonglong = ~cython.cast(cython.ulonglong, 0)
    before: cython.ulonglong = 0
    pid: pid_t
    child_error = 0
    # The child runs in our memory: nothing may interrupt it there.
    syscall(
        SYS_rt_sigprocmask,
        SIG_SETMASK,
        cython.address(everything),
        cython.address(before),
        KERNEL_SIGSET_BYTES,
    )
    pid = fork_child()
    if pid < 0:
        child_error = errno
    syscall(
        SYS_rt_sigprocmask,
        SIG_SETMASK,
        cython.address(before),
        cython.NULL,
        KERNEL_SIGSET_BYTES,
    )
    if child_error == 0:
        return pid
    if pid > 0:
        while waitpid(pid, cython.address(status), 0) < 0 and errno == EINTR:
            pass
    return -child_error


def fork_child():
    """vfork: the parent goes on when the child has executed its program or failed to."""
    pid: pid_t = vfork()
    if pid == 0:
        become_child()
    return pid


def become_child():
    """The child, in the monitor's memory: executes its program or ends, and never returns."""
    global child_program
    nothing: cython.ulonglong = 0
    fd: cython.int
    at: cython.int
    setsid()
    if child_dies_with_us:
        prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
        if getppid() != own_pid:
            fail_child(ESRCH)
    # All go above the numbers that will be given out, then each to its place.
    for at in range(child_fd_count):
        if child_fds[at] < CHILD_FD_FLOOR:
            fd = fcntl(child_fds[at], F_DUPFD_CLOEXEC, CHILD_FD_FLOOR)
            if fd < 0:
                fail_child(errno)
            moved_fds[at] = fd
        else:
            moved_fds[at] = child_fds[at]
    if 0 <= child_program and child_program < CHILD_FD_FLOOR:
        child_program = fcntl(child_program, F_DUPFD_CLOEXEC, CHILD_FD_FLOOR)
    for at in range(3):
        dup2(null_fd, at)
    for at in range(child_fd_count):
        if dup2(moved_fds[at], SERVICE_FD if child_is_service else at) < 0:
            fail_child(errno)
    setrlimit(RLIMIT_NOFILE, cython.address(limit_at_start))
    if child_cwd != cython.NULL and child_cwd[0] != 0 and chdir(child_cwd) != 0:
        fail_child(errno)
    signal(SIGPIPE, SIG_DFL)
    signal(SIGHUP, SIG_DFL)
    signal(SIGXFSZ, SIG_DFL)
    syscall(
        SYS_rt_sigprocmask,
        SIG_SETMASK,
        cython.address(nothing),
        cython.NULL,
        KERNEL_SIGSET_BYTES,
    )
    if child_program >= 0:
        # What cannot be executed so, as where the host forbids programs in memory, has a path yet.
        syscall(SYS_execveat, child_program, b"", child_argv, child_env, AT_EMPTY_PATH)
    fail_child(search_and_execute())


def fail_child(error):
    """Leaves the reason where the parent reads it."""
    global child_error
    child_error = error
    _exit(127)


def search_and_execute():
    """execvp with the PATH of the child's own environment; returns only an error."""
    name: cython.p_char = child_argv[0]
    folder: cython.p_const_char = search_path()
    length: cython.size_t
    name_length: cython.size_t = strlen(name)
    best: cython.int = ENOENT
    if name_length == 0:
        return ENOENT
    if strchr(name, ord(b"/")) != cython.NULL:
        execve(name, child_argv, child_env)
        return errno
    while True:
        length = 0
        while folder[length] != 0 and folder[length] != b":":
            length += 1
        if length + name_length + 2 <= PATH_BYTES:
            memcpy(path, folder, length)
            path[length] = b"/"
            memcpy(path + length + (length > 0), name, name_length + 1)
            execve(path, child_argv, child_env)
            if errno == EACCES:
                best = EACCES
            elif errno != ENOENT and errno != ENOTDIR:
                return errno
        if folder[length] == 0:
            return best
        folder += length + 1


def search_path():
    """The value of PATH in the child's environment."""
    at: cython.int = 0
    while child_env[at] != cython.NULL:
        if (
            child_env[at][0] == b"P"
            and child_env[at][1] == b"A"
            and child_env[at][2] == b"T"
            and child_env[at][3] == b"H"
            and child_env[at][4] == b"="
        ):
            return child_env[at] + 5
        at += 1
    return b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


# --- Held descriptors ----------------------------------------------------------------------------


def find_held(tag):
    """The entry of a tag, or NULL; 0 is no tag but the mark of a free place."""
    at: cython.int
    for at in range(held_top):
        if helds[at].tag == tag and tag != 0:
            return helds + at
    return cython.NULL


def new_held(tag, fd, flags):
    """A fresh entry, or NULL when the table is full."""
    global held_top
    at: cython.int = 0
    while at < held_top and helds[at].tag != 0:
        at += 1
    if at == HELDS:
        return cython.NULL
    if at == held_top:
        held_top += 1
    memset(helds + at, 0, cython.sizeof(helds[0]))
    helds[at].tag = tag
    helds[at].fd = fd
    helds[at].flags = flags
    helds[at].sent = 1
    return helds + at


def drop(held):
    """Closes what is held; what SEND has not written yet is lost."""
    global held_top
    drop_pieces(held)
    # Closing is not enough: a service may still have the same description open.
    held.interest = set_interest(held.fd, held.interest, 0, ON_HELD, held - helds)
    close(held.fd)
    held.tag = 0
    while held_top > 0 and helds[held_top - 1].tag == 0:
        held_top -= 1


def watch_held(held):
    """What epoll has to say of an entry depends on whether there is a service that reads it."""
    interest: cython.uint = 0
    if held.flags & HOLD_ACCEPT and accept_again_at == 0:
        interest |= EPOLLIN
    if held.flags & HOLD_WATCH and watching:
        interest |= EPOLLIN | EPOLLRDHUP
    if held.first_piece:
        interest |= EPOLLOUT
    held.interest = set_interest(held.fd, held.interest, interest, ON_HELD, held - helds)


def watch_all():
    """Brings every entry in line."""
    at: cython.int
    for at in range(held_top):
        if helds[at].tag != 0:
            watch_held(helds + at)


def held_event(held, events):
    """An entry is readable, writable or hung up."""
    if held.tag == 0:
        return
    if held.first_piece and events & (EPOLLOUT | EPOLLERR | EPOLLHUP):
        write_pieces(held)
    if held.flags & HOLD_ACCEPT:
        accept_connections(held)
    elif held.flags & HOLD_WATCH and watching and events & ~EPOLLOUT:
        want(True)


def accept_connections(listener):
    """Takes what waits at a listening socket, and leaves some descriptors.

    We need them for what the connections ask for, and each service, which gets all that is held,
    for its own files.
    """
    spare_descriptors(SPARE_DESCRIPTORS)
    accept_waiting(listener)
    spare_descriptors(0)


def accept_waiting(listener):
    """Takes what waits, as long as there are descriptors."""
    global accept_again_at
    fd: cython.int
    round: cython.int
    for round in range(ACCEPT_ROUNDS):
        fd = accept4(listener.fd, cython.NULL, cython.NULL, SOCK_CLOEXEC | SOCK_NONBLOCK)
        if fd >= 0:
            hold_accepted(listener, fd)
        elif errno == EMFILE or errno == ENFILE or errno == ENOBUFS or errno == ENOMEM:
            # The connection stays in the queue and would be reported again at once.
            accept_again_at = now_ms() + NO_DESCRIPTORS_PAUSE_MS
            watch_all()
            return
        elif errno == EAGAIN:
            return
        elif errno != ECONNABORTED and errno != EINTR and errno != EPROTO and errno != EPERM:
            listener.flags &= ~HOLD_ACCEPT  # not a listening socket, and never will be
            watch_held(listener)
            return


def hold_accepted(listener, fd):
    """Keeps a connection, unless it comes from somebody else."""
    global next_accepted_tag
    peer: ucred
    size: cython.uint = cython.sizeof(peer)
    held: cython.pointer(Held) = cython.NULL
    if getsockopt(fd, SOL_SOCKET, SO_PEERCRED, cython.address(peer), cython.address(size)) == 0:
        # Both, as the Go shim.
        if peer.uid == geteuid() and peer.gid == getegid():
            while find_held(next_accepted_tag) != cython.NULL:
                next_accepted_tag = (next_accepted_tag + 1) | FIRST_ACCEPTED_TAG
            held = new_held(next_accepted_tag, fd, HOLD_WATCH)
    if held == cython.NULL:
        close(fd)
        return
    next_accepted_tag = (next_accepted_tag + 1) | FIRST_ACCEPTED_TAG
    held.parent = listener.tag
    held.sent = 0
    watch_held(held)
    want(True)


def send_piece(tag, data, size, fd):
    """SEND: ``size`` bytes of ``data`` or of the memfd ``fd``, which is the monitor's from here."""
    held: cython.pointer(Held) = find_held(tag)
    piece: cython.int
    # To a listening socket it would fail, and shutting that down would be the end of it.
    if held == cython.NULL or held.flags & HOLD_ACCEPT or size == 0:
        if fd >= 0:
            close(fd)
        return
    piece = new_piece(data, size, fd)
    if piece == 0:
        if fd >= 0:
            close(fd)
        drop_pieces(held)
        shutdown(held.fd, SHUT_RDWR)
        watch_held(held)
        return
    append_piece(held, piece)
    if held.first_piece == piece:
        write_pieces(held)


def append_piece(held, piece):
    """Puts a piece behind those that wait already."""
    if held.first_piece:
        pieces[held.last_piece - 1].next = piece
    else:
        held.first_piece = piece
    held.last_piece = piece


def new_piece(data, size, fd):
    """Stores what is to be sent; its index + 1, or 0 when that cannot be done."""
    global piece_count
    at: cython.int = 0
    memory: cython.p_char = cython.NULL
    if piece_count == PIECES:
        return 0
    while pieces[at].used:
        at += 1
    if fd < 0:
        memory = cython.cast(
            cython.p_char,
            mmap(cython.NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
        )
        if memory == MAP_FAILED:
            return 0
        memcpy(memory, data, size)
    pieces[at].used = True
    pieces[at].next = 0
    pieces[at].fd = fd
    pieces[at].data = memory
    pieces[at].size = size
    pieces[at].at = 0
    piece_count += 1
    return at + 1


def free_piece(index):
    """Gives a piece's memory or descriptor back."""
    global piece_count
    if pieces[index].fd >= 0:
        close(pieces[index].fd)
    else:
        munmap(pieces[index].data, pieces[index].size)
    pieces[index].used = False
    piece_count -= 1


def drop_pieces(held):
    """Throws away what is not sent yet."""
    piece: cython.int
    while held.first_piece:
        piece = held.first_piece
        held.first_piece = pieces[piece - 1].next
        free_piece(piece - 1)
    held.last_piece = 0


def write_pieces(held):
    """Sends as much as the peer takes."""
    piece: cython.pointer(Piece)
    sent: cython.ssize_t
    next_piece: cython.int
    while held.first_piece:
        piece = pieces + held.first_piece - 1
        sent = write_piece(held, piece)
        if sent < 0 and errno == EINTR:
            continue
        if sent < 0 and errno == EAGAIN:
            break
        if sent <= 0:
            drop_pieces(held)
            shutdown(held.fd, SHUT_RDWR)
            break
        piece.at += sent
        if piece.at == piece.size:
            next_piece = piece.next
            free_piece(held.first_piece - 1)
            held.first_piece = next_piece
    watch_held(held)


def write_piece(held, piece):
    """One send(2)."""
    size: cython.size_t = piece.size - piece.at
    got: cython.ssize_t
    if piece.fd < 0:
        return send(held.fd, piece.data + piece.at, size, MSG_DONTWAIT | MSG_NOSIGNAL)
    got = pread(piece.fd, scratch, size if size < SCRATCH_BYTES else SCRATCH_BYTES, piece.at)
    if got <= 0:
        return 0
    return send(held.fd, scratch, got, MSG_DONTWAIT | MSG_NOSIGNAL)


def consume(tag, size, value):
    """CONSUME; the error for the reply."""
    held: cython.pointer(Held) = find_held(tag)
    left: cython.size_t = size
    got: cython.ssize_t
    part: cython.size_t
    if held == cython.NULL:
        return ENOENT
    while left > 0:
        part = left if left < SCRATCH_BYTES else SCRATCH_BYTES
        got = recv(held.fd, scratch, part, MSG_DONTWAIT)
        if got < 0 and errno == ENOTSOCK:
            if not is_ready(held.fd, POLLIN):
                return EAGAIN if left == size else consumed(value, size - left)
            got = read(held.fd, scratch, part)
        if got < 0 and errno == EINTR:
            continue
        if got < 0 and left == size:
            return errno
        if got <= 0:
            break
        left -= got
    return consumed(value, size - left)


def consumed(value, size):
    """The reply of a CONSUME that read something."""
    value[0] = size
    return 0


def is_ready(fd, events):
    """Whether poll(2) says so at this moment."""
    entry: pollfd
    entry.fd = fd
    entry.events = events
    entry.revents = 0
    return poll(cython.address(entry), 1, 0) > 0


# --- Relays --------------------------------------------------------------------------------------


def find_relay(id):
    """The entry of a relay, running or over, or NULL."""
    at: cython.int
    for at in range(relay_top):
        if relays[at].state != RELAY_FREE and relays[at].id == id:
            return relays + at
    return cython.NULL


def start_relay(id, flags, source, destination):
    """RELAY: 0, and both descriptors are the monitor's, or the error for the reply."""
    global relay_top
    at: cython.int = 0
    relay: cython.pointer(Relay) = find_relay(id)
    if relay != cython.NULL:
        if relay.state != RELAY_OVER:
            return EEXIST
        free_relay(relay)
    while at < relay_top and relays[at].state != RELAY_FREE:
        at += 1
    if at == RELAYS:
        return ENOSPC
    if at == relay_top:
        relay_top += 1
    relay = relays + at
    memset(relay, 0, cython.sizeof(relays[0]))
    relay.id = id
    relay.flags = flags
    relay.source = source
    relay.destination = destination
    relay.sent = 1
    relay.by_copy = not can_splice(source, destination)
    relay.is_terminal = kind_of(source) == S_IFCHR
    set_nonblocking(source)
    set_nonblocking(destination)
    read_source(relay)
    return 0


def can_splice(source, destination):
    """splice(2) wants a pipe at one end, is of no use to terminals, and into files it is slow.

    It writes a file page by page: copies of many pages are more than twice as fast.
    """
    one: cython.uint = kind_of(source)
    other: cython.uint = kind_of(destination)
    if one == S_IFCHR or other == S_IFCHR or other == S_IFREG:
        return False
    return one == S_IFIFO or other == S_IFIFO


def open_ends(flags, fds):
    """Opens those ends of a relay that were given as O_PATH; the error for the reply."""
    opened: cython.int
    if flags & RELAY_OPEN_SOURCE:
        opened = reopen(fds[0], O_RDONLY)
        if opened < 0:
            return errno
        close(fds[0])
        fds[0] = opened
    if flags & RELAY_OPEN_DESTINATION:
        opened = reopen(fds[1], O_RDWR)
        if opened < 0:
            return errno
        close(fds[1])
        fds[1] = opened
    return 0


def reopen(fd, flags):
    """Opens what an O_PATH descriptor stands for; -1 when that fails.

    A fifo that a service opens and does not live to hand over shows its other end an end of file.
    It must not fail for want of a descriptor, since nobody could do it later: the caller closes
    ``fd`` next, and until then the reserve makes room.
    """
    global reserve_fd
    name: cython.char[FD_PATH_BYTES]
    path: cython.p_char = path_of(fd, name)
    opened: cython.int
    keep_reserve()
    flags |= O_NONBLOCK | O_NOCTTY | O_CLOEXEC
    opened = open(path, flags)
    if opened < 0 and errno == EMFILE and reserve_fd >= 0:
        close(reserve_fd)
        reserve_fd = -1
        opened = open(path, flags)
    return opened


def keep_reserve():
    """Has a descriptor in reserve again, if there is one."""
    global reserve_fd
    if reserve_fd < 0:
        reserve_fd = fcntl(null_fd, F_DUPFD_CLOEXEC, 0)


def path_of(fd, name):
    """The name of a descriptor of ours in /proc, written into the FD_PATH_BYTES of ``name``."""
    start: cython.p_char
    name[FD_PATH_BYTES - 1] = 0
    start = decimal(name + FD_PATH_BYTES - 1, fd) - PROC_FD_BYTES
    memcpy(start, b"/proc/self/fd/", PROC_FD_BYTES)
    return start


def kind_of(fd):
    """The file type bits of a descriptor."""
    about: stat_mode_t
    if fstat_mode(fd, cython.address(about)) != 0:
        return 0
    return about.st_mode & S_IFMT


def set_nonblocking(fd):
    """The flag is the open description's; the other end of a pipe has another one."""
    flags: cython.int
    if kind_of(fd) != S_IFREG:
        flags = fcntl(fd, F_GETFL, 0)
        if flags >= 0 and not flags & O_NONBLOCK:
            fcntl(fd, F_SETFL, flags | O_NONBLOCK)


def stop_relay(id, mode):
    """RELAY_STOP; an unknown relay has been stopped already."""
    relay: cython.pointer(Relay) = find_relay(id)
    if relay == cython.NULL:
        return
    if relay.state == RELAY_OVER:
        if mode == STOP_FORGET:
            free_relay(relay)
    elif mode == STOP_NOW:
        end_relay(relay, relay.error)
    elif mode == STOP_DRAIN and not relay.draining:
        begin_draining(relay)


def begin_draining(relay):
    """What the source holds now is still moved; what comes later is not."""
    global draining_count
    waiting: cython.int = 0
    if relay.destination < 0 or relay.state == RELAY_UNREAD:
        end_relay(relay, relay.error)
        return
    if kind_of(relay.source) == S_IFCHR or ioctl(relay.source, FIONREAD, cython.address(waiting)):
        # A terminal does not tell what is still in its queue; it never has more than this.
        waiting = TERMINAL_QUEUE_BYTES
    if relay.rest_until != 0:
        read_source(relay)
    relay.draining = True
    relay.drain_left = waiting
    relay.drain_moved = relay.moved
    relay.drain_until = now_ms() + DRAIN_MS
    draining_count += 1
    if relay.state == RELAY_READING:
        pump(relay)


def read_source(relay):
    """Waits for the source only: a destination that is writable would wake us for nothing."""
    global always_ready_count
    index: cython.int = relay - relays
    end_rest(relay)
    relay.state = RELAY_READING
    if relay.destination >= 0:
        relay.destination_interest = set_interest(
            relay.destination, relay.destination_interest, 0, ON_RELAY_DESTINATION, index
        )
    if relay.always_ready:
        return
    relay.source_interest = set_interest(
        relay.source, relay.source_interest, EPOLLIN, ON_RELAY_SOURCE, index
    )
    if relay.source_interest != 0:
        return
    if errno != EPERM:
        end_relay(relay, errno)
        return
    relay.always_ready = True  # a regular file: epoll refuses it because it never blocks
    always_ready_count += 1


def wait_for_destination(relay):
    """Waits for the destination only: a source that is hung up would wake us for nothing."""
    index: cython.int = relay - relays
    end_rest(relay)
    relay.state = RELAY_BLOCKED
    relay.source_interest = set_interest(
        relay.source, relay.source_interest, 0, ON_RELAY_SOURCE, index
    )
    relay.destination_interest = set_interest(
        relay.destination, relay.destination_interest, EPOLLOUT, ON_RELAY_DESTINATION, index
    )
    if relay.destination_interest == 0:
        destination_failed(relay, EIO)


def close_source(relay):
    """Lets go of the source."""
    global always_ready_count
    if relay.source < 0:
        return
    relay.source_interest = set_interest(
        relay.source, relay.source_interest, 0, ON_RELAY_SOURCE, relay - relays
    )
    close(relay.source)
    relay.source = -1
    if relay.always_ready:
        relay.always_ready = False
        always_ready_count -= 1


def close_destination(relay):
    """Lets go of the destination and of what was read for it."""
    if relay.destination >= 0:
        relay.destination_interest = set_interest(
            relay.destination,
            relay.destination_interest,
            0,
            ON_RELAY_DESTINATION,
            relay - relays,
        )
        close(relay.destination)
        relay.destination = -1
    drop_residue(relay)


def drop_residue(relay):
    """Throws away what was read and not yet written."""
    if relay.residue != cython.NULL:
        munmap(relay.residue, SCRATCH_BYTES)
        relay.residue = cython.NULL
    relay.residue_size = 0


def end_relay(relay, error):
    """Closes both ends and leaves the record."""
    global draining_count, unread_count
    if relay.state == RELAY_UNREAD:
        unread_count -= 1
    close_source(relay)
    close_destination(relay)
    if relay.draining:
        relay.draining = False
        draining_count -= 1
    end_rest(relay)
    relay.state = RELAY_OVER
    relay.error = error
    relay.sent = 0
    want(True)


def free_relay(relay):
    """Drops the record of a relay that is over."""
    global relay_top
    relay.state = RELAY_FREE
    while relay_top > 0 and relays[relay_top - 1].state == RELAY_FREE:
        relay_top -= 1


def destination_failed(relay, error):
    """A container must not block on a log that is gone: from now on its output is thrown away.

    Of a file only what it did not take is: there may be room for what comes next.
    """
    if relay.flags & RELAY_STDIN or relay.draining:
        end_relay(relay, error)
        return
    relay.error = error
    if kind_of(relay.destination) == S_IFREG:
        drop_residue(relay)
    else:
        close_destination(relay)
    read_source(relay)


def pump(relay):
    """Moves bytes while there are some, as long as it is fair to everybody else."""
    round: cython.int
    before: cython.ulonglong = relay.moved
    was_blocked: cython.bint = relay.state == RELAY_BLOCKED
    if was_blocked:
        relay.state = RELAY_READING
    for round in range(RELAY_ROUNDS):
        if relay.state != RELAY_READING or not pump_once(relay):
            break
    if was_blocked and relay.state == RELAY_READING:
        read_source(relay)
    keep_pace(relay, relay.moved - before)


def pump_once(relay):
    """Moves one block; false when the relay has to wait or is over."""
    size: cython.ssize_t = SCRATCH_BYTES
    if relay.residue_size and not write_residue(relay):
        return False
    if relay.draining:
        if relay.drain_left <= 0:
            end_relay(relay, 0)
            return False
        if relay.drain_left < size:
            size = relay.drain_left
    if relay.streams and not relay.by_copy and relay.destination >= 0:
        size = splice(
            relay.source,
            cython.NULL,
            relay.destination,
            cython.NULL,
            size,
            SPLICE_F_NONBLOCK | SPLICE_F_MOVE,
        )
        if size > 0:
            relay.streams = size >= PAGE_BYTES
            count_moved(relay, size)
            return True
        if size < 0 and errno == EAGAIN:
            if not is_ready(relay.source, POLLIN):
                return source_failed(relay, EAGAIN)
            if not is_ready(relay.destination, POLLOUT):
                wait_for_destination(relay)
                return False
        if size < 0:
            # Which end refused is not said; read and write say it.
            relay.by_copy = errno != EINTR
            return True
        return source_failed(relay, 0)
    if not relay.by_copy and size > PIPE_BYTES:
        size = PIPE_BYTES  # what the other end holds at most; the rest would be copied twice
    if relay.is_terminal:
        size = read_terminal(relay.source, size)
    else:
        size = read(relay.source, scratch, size)
        # Small writes share pages when they are copied, and have one each when they are spliced.
        relay.streams = size >= FULL_PIPE_BYTES
        if relay.streams:
            widen(relay)
    if size > 0:
        return write_copied(relay, size)
    return source_failed(relay, errno if size < 0 else 0)


def read_terminal(fd, size):
    """What a terminal has, into the scratch buffer; as read(2).

    It gives 4 KiB at a time, and to write each by itself would wake the reader for each.
    """
    done: cython.ssize_t = 0
    part: cython.ssize_t
    if size > TERMINAL_QUEUE_BYTES:
        size = TERMINAL_QUEUE_BYTES
    while True:
        part = read(fd, scratch + done, size - done)
        if part <= 0:
            return done if done > 0 else part
        done += part
        if done == cython.cast(cython.ssize_t, size):
            return done


def widen(relay):
    """Gives a pipe that is found full more room, so that its writer waits less often.

    What it may not have beyond the user's limit (pipe(7)) it does without.
    """
    if relay.is_wide or relay.flags & RELAY_STDIN or relay.always_ready:
        return
    relay.is_wide = resize(relay.source, PIPE_BYTES, WIDE_PIPE_BYTES)
    if not relay.by_copy:
        relay.is_far_end_wide = resize(relay.destination, PIPE_BYTES, WIDE_PIPE_BYTES)


def resize(fd, before, after):
    """Gives a pipe of ``before`` bytes ``after``; whether it has them.

    One of another size has it from somebody else, who knows why.
    """
    return fcntl(fd, F_GETPIPE_SZ, 0) == before and fcntl(fd, F_SETPIPE_SZ, after) >= after


def keep_pace(relay, moved):
    """Lets a relay rest whose source is written to in small pieces, one after the other.

    To be woken for each would cost us, and the writer that wakes us, more than the copying does.
    Not while somebody writes to a stdin: what comes may be an answer that is waited for.
    """
    global release_at, spoken_at
    now: cython.longlong
    if moved == 0 and relay.row == 0:
        return
    now = now_ms()
    if moved > PAGE_BYTES and release_at == 0:
        release_at = now + RELEASE_MS
    if relay.flags & RELAY_STDIN:
        spoken_at = now
        return
    relay.moved_much = relay.moved_much or moved > PAGE_BYTES
    if (
        moved == 0
        or moved >= (FULL_WIDE_PIPE_BYTES if relay.is_wide else FULL_PIPE_BYTES)
        or now - relay.paced_at > REST_MS
        or relay.is_terminal
        or relay.always_ready
    ):
        relay.row = 0
    elif relay.row < ROW_BEFORE_REST:
        relay.row += 1
    relay.paced_at = now
    if relay.row == ROW_BEFORE_REST and now - spoken_at > SILENCE_MS:
        begin_rest(relay, now)


def begin_rest(relay, now):
    """Looks at nothing of a relay for a while."""
    global resting_count
    if relay.state != RELAY_READING or relay.draining or relay.rest_until != 0:
        return
    relay.source_interest = set_interest(
        relay.source, relay.source_interest, 0, ON_RELAY_SOURCE, relay - relays
    )
    relay.rest_until = now + REST_MS
    resting_count += 1


def end_rest(relay):
    """A relay is not resting any more, if it was; what it waits for is the caller's to say."""
    global resting_count
    if relay.rest_until != 0:
        relay.rest_until = 0
        resting_count -= 1


def rouse(relay, now):
    """A rest is over: what has come meanwhile is moved."""
    read_source(relay)
    relay.paced_at = now
    if relay.state == RELAY_READING:
        pump(relay)


def release(now):
    """Gives back what large pieces needed, once there have been none for a while."""
    global release_at
    at: cython.int
    is_needed: cython.bint = False
    for at in range(relay_top):
        is_needed = is_needed or relays[at].moved_much
        relays[at].moved_much = False
    release_at = now + RELEASE_MS if is_needed else 0
    if is_needed:
        return
    madvise(scratch, SCRATCH_BYTES, MADV_DONTNEED)
    for at in range(relay_top):
        if relays[at].is_wide:
            relays[at].is_wide = not resize(relays[at].source, WIDE_PIPE_BYTES, PIPE_BYTES)
        if relays[at].is_far_end_wide:
            resize(relays[at].destination, WIDE_PIPE_BYTES, PIPE_BYTES)
            relays[at].is_far_end_wide = False


def source_failed(relay, error):
    """The source gave nothing: later, again, or never; true when it is worth another try."""
    if error == EINTR:
        return True
    if error == EAGAIN:
        if relay.draining:
            end_relay(relay, 0)
        return False
    # EIO is how a terminal says that its last user has gone.
    if error == 0 or error == EIO:
        error = relay.error
        if error == 0 and keep_unread(relay):
            return False
    end_relay(relay, error)
    return False


def keep_unread(relay):
    """Keeps what a fifo holds that has no reader, for the next; true when it is such a one.

    The kernel throws it away with the fifo's last opener.  That there is a reader is seen only
    from the write end, and only while we are none.
    """
    global unread_count
    writer: cython.int
    waiting: cython.int = 0
    if relay.destination < 0 or relay.draining or not relay.flags & RELAY_OPEN_DESTINATION:
        return False
    if ioctl(relay.destination, FIONREAD, cython.address(waiting)) != 0 or waiting == 0:
        return False
    writer = reopen(relay.destination, O_WRONLY)
    if writer < 0:
        return False
    close_destination(relay)
    if not is_ready(writer, 0):
        close(writer)
        return False
    close_source(relay)
    relay.destination = writer
    relay.state = RELAY_UNREAD
    relay.look_again_at = now_ms() + UNREAD_POLL_MS
    relay.sent = 0
    unread_count += 1
    want(True)
    return True


def write_copied(relay, size):
    """Writes what is in the scratch buffer; keeps what does not fit."""
    done: cython.ssize_t
    is_blocked: cython.bint
    if relay.destination < 0:
        return True
    if relay.draining:
        relay.drain_left -= size
    done = write(relay.destination, scratch, size)
    if done < 0 and errno != EAGAIN and errno != EINTR:
        destination_failed(relay, errno)
        return relay.state == RELAY_READING
    is_blocked = done < 0
    if is_blocked:
        done = 0
    relay.moved += done
    if done == cython.cast(cython.ssize_t, size):
        return True
    if relay.residue == cython.NULL:
        relay.residue = new_residue()
        if relay.residue == cython.NULL:
            destination_failed(relay, ENOMEM)
            return False
    relay.residue_at = 0
    relay.residue_size = size - done
    memcpy(relay.residue, scratch + done, size - done)
    if is_blocked:
        wait_for_destination(relay)
        return False
    # The next write says what stopped this one; a file can only be asked, not waited for.
    return write_residue(relay)


def new_residue():
    """Memory for what was read and could not be written; NULL when there is none."""
    memory: cython.p_char = cython.cast(
        cython.p_char,
        mmap(
            cython.NULL,
            SCRATCH_BYTES,
            PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS,
            -1,
            0,
        ),
    )
    return memory if memory != MAP_FAILED else cython.NULL


def write_residue(relay):
    """Writes what was kept; true when all of it is gone."""
    done: cython.ssize_t
    while relay.residue_size:
        done = write(relay.destination, relay.residue + relay.residue_at, relay.residue_size)
        if done < 0 and errno == EINTR:
            continue
        if done < 0 and errno == EAGAIN:
            wait_for_destination(relay)
            return False
        if done < 0:
            destination_failed(relay, errno)
            return False
        relay.moved += done
        relay.residue_at += done
        relay.residue_size -= done
    munmap(relay.residue, SCRATCH_BYTES)
    relay.residue = cython.NULL
    return True


def count_moved(relay, size):
    """Accounts for what splice moved."""
    relay.moved += size
    if relay.draining:
        relay.drain_left -= size


def pump_always_ready():
    """The sources that epoll does not know."""
    at: cython.int
    for at in range(relay_top):
        if relays[at].always_ready and relays[at].state == RELAY_READING:
            pump(relays + at)


# --- The service's life --------------------------------------------------------------------------


def activate():
    """Asks the zygote for a service, or executes Python when that cannot be done."""
    global wanted, by_zygote, hello_until, look_at
    fd: cython.int
    wanted = False
    look_at = 0
    fd = open_channel()
    if fd < 0:
        count_failure()
        return
    by_zygote = ask_zygote(fd)
    close(fd)
    if by_zygote:
        hello_until = now_ms() + ZYGOTE_HELLO_MS
    else:
        close_channel()
        start_directly()


def ask_zygote(fd):
    """Sends the service's end of the channel to the zygote; never waits for it."""
    where: sockaddr_un
    sent: cython.bint = False
    connection: cython.int = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)
    if connection < 0:
        return False
    memset(cython.address(where), 0, cython.sizeof(where))
    where.sun_family = AF_UNIX
    memcpy(where.sun_path, zygote_path, strlen(zygote_path))
    if connect(
        connection,
        cython.cast(cython.pointer(sockaddr), cython.address(where)),
        cython.sizeof(where),
    ) == 0 and is_ours(connection):
        sent = send_to_zygote(connection, fd)
    close(connection)  # what was sent is still there to be read
    return sent


def is_ours(connection):
    """Whether the other end is of our user: it would get all that we hold, and tell us what to run.

    A socket's mode does not say who bound it, where others may write into its folder.
    """
    peer: ucred
    size: cython.uint = cython.sizeof(peer)
    found: cython.int = getsockopt(
        connection, SOL_SOCKET, SO_PEERCRED, cython.address(peer), cython.address(size)
    )
    return found == 0 and peer.uid == geteuid()


def send_to_zygote(connection, fd):
    """The datagram of kind 1."""
    words: cython.uint[2]
    words[0] = ZYGOTE_MAGIC
    words[1] = ZYGOTE_ACTIVATE
    return send_batch(connection, words, 8, cython.address(fd), 1) == 0


def start_directly():
    """Executes Python with a channel of its own."""
    global child_argv, child_env, child_cwd, child_fds, child_fd_count, child_dies_with_us
    global child_is_service, child_program, direct_pid, by_zygote, hello_until
    arguments: cython.p_char[7]
    fd: cython.int = open_channel()
    pid: cython.int
    if fd < 0:
        count_failure()
        return
    by_zygote = False
    arguments[0] = python_path
    arguments[1] = cython.cast(cython.p_char, b"-I")
    arguments[2] = cython.cast(cython.p_char, b"-X")
    arguments[3] = cython.cast(cython.p_char, b"utf8")
    arguments[4] = cython.cast(cython.p_char, b"-m")
    arguments[5] = cython.cast(cython.p_char, b"pyshim.service")
    arguments[6] = cython.NULL
    child_argv = arguments
    child_env = environ
    child_cwd = cython.NULL
    child_fds = cython.address(fd)
    child_fd_count = 1
    child_dies_with_us = False
    child_is_service = True
    child_program = -1
    pid = start_child()
    close(fd)
    if pid < 0:
        close_channel()
        count_failure()
        return
    direct_pid = pid
    hello_until = now_ms() + DIRECT_HELLO_MS


def open_channel():
    """Makes the channel; returns the service's end, or -1."""
    global channel, channel_interest
    ends: cython.int[2]
    size: cython.int = CHANNEL_BUFFER_BYTES
    if socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0:
        return -1
    setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, cython.address(size), cython.sizeof(size))
    setsockopt(ends[1], SOL_SOCKET, SO_SNDBUF, cython.address(size), cython.sizeof(size))
    channel = ends[0]
    channel_interest = 0
    begin_dump()
    watch_channel()
    return ends[1]


def begin_dump():
    """A new service knows nothing yet."""
    global stage, parking, dirty, channel_full, events_sent, reply_first, reply_end
    global end_signal_sent, deaf
    at: cython.int
    stage = SILENT
    deaf = False
    parking = False
    dirty = False
    channel_full = False
    events_sent = 0
    reply_first = 0
    reply_end = 0
    end_signal_sent = 0
    for at in range(process_top):
        processes[at].sent = 0
    for at in range(held_top):
        helds[at].sent = 0
    for at in range(relay_top):
        relays[at].sent = 0


def close_channel():
    """Lets go of the service."""
    global channel, channel_interest, hello_until, dirty, parking, reply_first, reply_end
    if channel < 0:
        return
    channel_interest = set_interest(channel, channel_interest, 0, ON_CHANNEL, 0)
    close(channel)
    channel = -1
    hello_until = 0
    dirty = False
    parking = False
    reply_first = 0
    reply_end = 0
    # One request can fill all of it; that memory is not kept.
    madvise(first_page_of_datagram(), DATAGRAM_BYTES - PAGE_BYTES, MADV_DONTNEED)


def first_page_of_datagram():
    """Where the first whole page of the table begins."""
    start: cython.size_t = cython.cast(cython.size_t, datagram)
    start = (start + PAGE_BYTES - 1) // PAGE_BYTES * PAGE_BYTES
    return cython.cast(cython.p_void, start)


def lose_service():
    """The channel has ended, or nobody came to it, without a PARK."""
    global direct_pid, wanted
    never_came: cython.bint = stage == SILENT
    if channel < 0:
        return
    close_channel()
    if never_came and by_zygote:
        start_directly()
        return
    if never_came and direct_pid > 0:
        kill(direct_pid, SIGKILL)
    if upgrade_stage == HANDING_OVER:
        wanted = True  # it has done what it was told
        return
    count_failure()


def count_failure():
    """Another service must come: three times at once, then after a pause that grows."""
    global wanted, failures, previous_died, retry_at
    pause: cython.longlong = FIRST_PAUSE_MS
    at: cython.int
    wanted = True
    previous_died = True
    failures += 1
    if failures <= FREE_RETRIES:
        return
    at = FREE_RETRIES + 1
    while at < failures and pause < LONGEST_PAUSE_MS:
        pause *= 2
        at += 1
    if pause > LONGEST_PAUSE_MS:
        pause = LONGEST_PAUSE_MS
    retry_at = now_ms() + pause


# --- Requests ------------------------------------------------------------------------------------


def channel_event(events):
    """The service has sent something, can be sent more, or has gone."""
    global channel_full, dirty, deaf, reply_first, reply_end
    if channel < 0:
        return
    if events & EPOLLOUT:
        channel_full = False
        dirty = True
    if events & (EPOLLHUP | EPOLLERR):
        deaf = True
        channel_full = False
        reply_first = 0
        reply_end = 0
    if events & (EPOLLIN | EPOLLHUP | EPOLLERR):
        receive()


def watch_channel():
    """Requests are read only while there is room for their replies."""
    global channel_interest
    interest: cython.uint = 0
    if reply_end <= REPLIES_TO_READ and not parking:
        interest |= EPOLLIN
    if channel_full:
        interest |= EPOLLOUT
    if interest == 0:
        interest = EPOLLRDHUP
    channel_interest = set_interest(channel, channel_interest, interest, ON_CHANNEL, 0)


def receive():
    """Takes one datagram."""
    global arrived_count, end_signal_until
    part: iovec
    message: msghdr
    head: cython.pointer(cmsghdr)
    size: cython.ssize_t
    count: cython.int
    memset(cython.address(message), 0, cython.sizeof(message))
    part.iov_base = datagram
    part.iov_len = DATAGRAM_BYTES
    message.msg_iov = cython.address(part)
    message.msg_iovlen = 1
    message.msg_control = control
    message.msg_controllen = CMSG_SPACE(DATAGRAM_FDS * cython.sizeof(cython.int))
    size = recvmsg(channel, cython.address(message), MSG_DONTWAIT | MSG_CMSG_CLOEXEC)
    # ECONNRESET: it has gone without reading all; what it sent is still to come.
    if size < 0 and (errno == EAGAIN or errno == EINTR or errno == ECONNRESET):
        return
    if size < 0:
        lose_service()
        return
    arrived_count = 0
    head = CMSG_FIRSTHDR(cython.address(message))
    while head != cython.NULL:
        if head.cmsg_level == SOL_SOCKET and head.cmsg_type == SCM_RIGHTS:
            count = (head.cmsg_len - CMSG_LEN(0)) // cython.sizeof(cython.int)
            if count > DATAGRAM_FDS:
                count = DATAGRAM_FDS
            memcpy(arrived, CMSG_DATA(head), count * cython.sizeof(cython.int))
            arrived_count = count
        head = CMSG_NXTHDR(cython.address(message), head)
    if size == 0 and has_ended():
        close_all(arrived, arrived_count)
        lose_service()
        return
    if end_signal_sent:
        # It stays to be told to the next service: what has come may have been sent before this one
        # read of it, and it may die before it acts.
        end_signal_until = 0
    if size == 0:
        close_all(arrived, arrived_count)
        reply(0, EBADMSG, 0)
        return
    if message.msg_flags & MSG_CTRUNC:
        # For want of descriptors: what the service has sent since then rests on this transaction.
        close_all(arrived, arrived_count)
        lose_service()
        return
    if message.msg_flags & MSG_TRUNC:
        close_all(arrived, arrived_count)
        reply(cython.cast(cython.pointer(Header), datagram).sequence, EBADMSG, 0)
        return
    carry_out(size)


def has_ended():
    """Whether nothing more can come, when nothing was read: an empty datagram reads the same."""
    waiting: cython.int = 0
    if not is_ready(channel, POLLRDHUP):
        return False
    return ioctl(channel, FIONREAD, cython.address(waiting)) != 0 or waiting == 0


def carry_out(size):
    """A datagram is a transaction: all of its messages, before anything else."""
    at: cython.size_t = 0
    used: cython.int = 0
    header: cython.pointer(Header)
    sequence: cython.ulonglong
    understood: cython.bint
    while at < size and channel >= 0:
        sequence = 0
        understood = False
        header = cython.cast(cython.pointer(Header), cython.cast(cython.p_char, datagram) + at)
        if size - at >= cython.sizeof(header[0]):
            sequence = header.sequence
            if header.length <= size - at and header.fds <= arrived_count - used:
                understood = is_well_formed(header) and carry_out_one(
                    header,
                    cython.cast(cython.p_char, header) + cython.sizeof(header[0]),
                    arrived + used,
                )
        if not understood:
            reply(sequence, EBADMSG, 0)
            break
        used += header.fds
        at += (cython.cast(cython.size_t, header.length) + 7) // 8 * 8
    close_all(arrived + used, arrived_count - used)


def is_well_formed(header):
    """Whether a request is as long, and has as many descriptors, as its type wants."""
    kind: cython.int = header.type
    fds: cython.int = header.fds
    size: cython.int = -1
    words: cython.pointer(Words)
    if header.length < cython.sizeof(header[0]):
        return False
    size = header.length - cython.sizeof(header[0])
    # HELLO comes first and once.
    if (kind == HELLO) != (stage == SILENT):
        return False
    if kind == STATE or kind == QUIT:
        return size == 0 and fds == (kind == STATE)
    if kind == HOME:
        return size == 0 and fds == 1
    if kind == UPGRADE:
        return size == 8 and fds == 2
    if kind == SPAWN:
        return size == 16 and fds >= 1
    if kind == RELAY:
        return size == 8 and fds == 2
    if kind == HOLD:
        return size == 8 and fds == 1
    if kind == SEND:
        if size < 8 or fds > 1:
            return False
        words = cython.cast(
            cython.pointer(Words), cython.cast(cython.p_char, header) + cython.sizeof(header[0])
        )
        return size == 8 if fds == 1 else words.b == cython.cast(cython.uint, size - 8)
    return ((HELLO <= kind and kind <= PARK) or kind == CONFIRM) and size == 8 and fds == 0


def carry_out_one(header, body, fds):
    """Carries out one request; false, with its descriptors untouched, when it makes no sense."""
    global state_fd, alarm_at, alarm_unsent, quitting, quit_at, stage, dirty, hello_until
    global failures
    kind: cython.int = header.type
    words: cython.pointer(Words) = cython.cast(cython.pointer(Words), body)
    about: stat_t
    process: cython.pointer(Process)
    held: cython.pointer(Held)
    value: cython.longlong = 0
    error: cython.int = 0
    if kind == HELLO:
        hello_until = 0
        if words.a != VERSION:
            hello_until = 1  # nobody has come who can be understood; keep_deadlines acts on it
        else:
            stage = GREETED
            dirty = True
    elif kind == STATE:
        close(state_fd)
        state_fd = fds[0]
    elif kind == SPAWN:
        if cython.cast(cython.pointer(SpawnBody), body).flags & ~(
            SPAWN_DIE_WITH_MONITOR | SPAWN_EXECUTABLE
        ):
            return False
        if cython.cast(cython.pointer(SpawnBody), body).flags & SPAWN_EXECUTABLE and header.fds < 2:
            return False
        error = spawn(
            cython.cast(cython.pointer(SpawnBody), body), fds, header.fds, cython.address(value)
        )
        close_all(fds, header.fds)
        reply(header.sequence, error, value)
    elif kind == TRACK:
        error = track(cython.cast(cython.int, words.a), cython.address(value))
        reply(header.sequence, error, value)
    elif kind == FORGET:
        forget(cython.cast(cython.int, words.a))
    elif kind == KILL:
        process = find_process(cython.cast(cython.int, words.a), False)
        if process == cython.NULL:
            error = ESRCH
        elif kill(process.record.pid, cython.cast(cython.int, words.b)) != 0:
            error = errno
        reply(header.sequence, error, 0)
    elif kind == HOLD:
        return hold(words.a, words.b, fds[0], header.sequence)
    elif kind == DROP:
        held = find_held(words.a)
        if held != cython.NULL:
            drop(held)
    elif kind == RELAY:
        if words.b & ~(RELAY_STDIN | RELAY_OPEN_SOURCE | RELAY_OPEN_DESTINATION):
            return False
        error = open_ends(words.b, fds)
        if error == 0:
            error = start_relay(words.a, words.b, fds[0], fds[1])
        if error != 0:
            close_all(fds, 2)
            reply(header.sequence, error, 0)
    elif kind == RELAY_STOP:
        if words.b > STOP_FORGET:
            return False
        stop_relay(words.a, words.b)
    elif kind == SEND:
        failures = 0
        if header.fds == 1:
            if fstat(fds[0], cython.address(about)) != 0 or about.st_size < 0:
                return False
            send_piece(words.a, cython.NULL, about.st_size, fds[0])
        else:
            send_piece(words.a, cython.cast(cython.p_char, body) + 8, words.b, -1)
    elif kind == CONSUME:
        error = consume(words.a, words.b, cython.address(value))
        reply(header.sequence, error, value)
    elif kind == ALARM:
        alarm_unsent = 0
        alarm_at = now_ms() + words.a if words.a else 0
    elif kind == PARK:
        park(header.sequence, cython.cast(cython.pointer(cython.ulonglong), body)[0])
    elif kind == QUIT:
        quitting = True
        quit_at = now_ms() + QUIT_MS
        if upgrade_stage:
            give_up_upgrade(ECANCELED)
    elif kind == UPGRADE:
        error = begin_upgrade(fds, words.a, header.sequence)
        if error != 0:
            close_all(fds, 2)
            reply(header.sequence, error, 0)
    elif kind == CONFIRM:
        confirm(cython.cast(cython.int, words.a))
    elif kind == HOME:
        error = move_home(fds[0])
        close(fds[0])
        reply(header.sequence, error, 0)
    return True


def hold(tag, flags, fd, sequence):
    """HOLD; false when the tag is not a service's or a flag is unknown."""
    held: cython.pointer(Held)
    opened: cython.int
    if tag == 0 or tag >= FIRST_ACCEPTED_TAG:
        return False
    if flags & ~(HOLD_WATCH | HOLD_ACCEPT | HOLD_OPEN):
        return False
    if flags & HOLD_OPEN:
        # Before the one of the same tag is closed: its fifo must not be without a writer.
        opened = reopen(fd, O_WRONLY)
        if opened < 0:
            reply(sequence, errno, 0)
        close(fd)
        if opened < 0:
            return True
        fd = opened
    held = find_held(tag)
    if held != cython.NULL:
        drop(held)
    held = new_held(tag, fd, flags & ~HOLD_OPEN)
    if held == cython.NULL:
        close(fd)
        reply(sequence, ENOSPC, 0)
        return True
    if flags & HOLD_OPEN:
        reply(sequence, 0, 0)
    if flags & HOLD_ACCEPT:
        set_nonblocking(fd)
    watch_held(held)
    return True


def park(sequence, seen):
    """PARK: only when the service has seen all that there is to see."""
    global parking
    if stage != SERVING or seen != events_sent or has_unsent():
        reply(sequence, EAGAIN, 0)
        return
    parking = True
    reply(sequence, 0, 0)


def has_unsent():
    """Whether an event is still to be sent."""
    at: cython.int
    if alarm_unsent or (end_signal != 0 and not end_signal_sent):
        return True
    for at in range(process_top):
        if processes[at].used and not processes[at].sent:
            if not processes[at].record.flags & RECORD_UNCLAIMED:
                return True
    for at in range(held_top):
        if helds[at].tag != 0 and not helds[at].sent:
            return True
    for at in range(relay_top):
        if relays[at].state != RELAY_FREE and not relays[at].sent:
            return True
    return False


def close_all(fds, count):
    """Closes ``count`` descriptors."""
    at: cython.int
    for at in range(count):
        close(fds[at])


# --- What the service is told --------------------------------------------------------------------


def reply(sequence, error, value):
    """Queues a REPLY; there is room because nothing is read while there might not be."""
    global reply_end, dirty
    if channel < 0 or deaf or reply_end >= REPLIES:
        return
    replies[reply_end].sequence = sequence
    replies[reply_end].error = error
    replies[reply_end].value = value
    reply_end += 1
    dirty = True


def flush():
    """Sends what the service does not know yet, until it is all sent or the channel is full."""
    global dirty, channel_full, deaf, stage, events_sent, reply_first, reply_end
    global batch_bytes, batch_fd_count, batch_mark_count, previous_died
    global batch_event_count
    next_stage: cython.int
    sent_replies: cython.int
    error: cython.int
    at: cython.int
    while dirty and channel >= 0 and not channel_full and not deaf:
        batch_bytes = 0
        batch_fd_count = 0
        batch_mark_count = 0
        batch_event_count = 0
        next_stage = stage
        sent_replies = 0
        # The dump comes before the replies to what followed HELLO.
        if stage == GREETED and put_welcome():
            next_stage = DUMPING
        elif stage == SILENT or stage == SERVING:
            sent_replies = put_replies()
        if next_stage >= DUMPING and put_events() and next_stage == DUMPING:
            if put(READY, 0, cython.NULL, 0, -1, cython.NULL):
                next_stage = SERVING
        if batch_bytes == 0:
            dirty = False
            break
        error = send_batch(channel, batch, batch_bytes, batch_fds, batch_fd_count)
        if error == EAGAIN:
            channel_full = True
            break
        if error != 0:
            # It has gone, but what it sent before is carried out; the end of the channel follows.
            # From one that has not gone, and can be told nothing any more, the end comes by this.
            shutdown(channel, SHUT_RDWR)
            deaf = True
            break
        for at in range(batch_mark_count):
            batch_marks[at][0] = 1 - batch_marks[at][0] if batch_marks[at] == alarm_mark() else 1
        if stage == GREETED:
            previous_died = False
        stage = next_stage
        events_sent += batch_event_count
        reply_first += sent_replies
        if reply_first == reply_end:
            reply_first = 0
            reply_end = 0
            if parking:
                let_go()


def alarm_mark():
    """The one mark that says "unsent"."""
    return cython.address(alarm_unsent)


def let_go():
    """The service has its answer to PARK."""
    global failures
    close_channel()
    failures = 0


def put(type, sequence, body, size, fd, mark):
    """Adds a message to the batch; false when it is full.  A mark makes it an event."""
    global batch_bytes, batch_fd_count, batch_mark_count, batch_event_count
    header: cython.pointer(Header)
    if batch_bytes + cython.sizeof(header[0]) + size > BATCH_BYTES:
        return False
    if batch_mark_count == BATCH_MESSAGES or (fd >= 0 and batch_fd_count == DATAGRAM_FDS):
        return False
    header = cython.cast(cython.pointer(Header), cython.cast(cython.p_char, batch) + batch_bytes)
    header.length = cython.sizeof(header[0]) + size
    header.type = type
    header.fds = fd >= 0
    header.sequence = sequence
    if size:
        memcpy(cython.cast(cython.p_char, header) + cython.sizeof(header[0]), body, size)
    batch_bytes += cython.sizeof(header[0]) + size
    if fd >= 0:
        batch_fds[batch_fd_count] = fd
        batch_fd_count += 1
    if mark != cython.NULL:
        batch_marks[batch_mark_count] = mark
        batch_mark_count += 1
        batch_event_count += 1
    return True


def put_replies():
    """As many replies as the batch takes; how many."""
    body: ReplyBody
    at: cython.int = reply_first
    memset(cython.address(body), 0, cython.sizeof(body))
    while at < reply_end:
        body.error = replies[at].error
        body.value = replies[at].value
        if not put(
            REPLY,
            replies[at].sequence,
            cython.address(body),
            cython.sizeof(body),
            -1,
            cython.NULL,
        ):
            break
        at += 1
    return at - reply_first


def put_welcome():
    """The first message of the dump."""
    body: FourWords
    body.a = VERSION
    body.b = own_pid
    body.c = WELCOME_UPGRADES | WELCOME_EXECUTABLES
    if previous_died:
        body.c |= WELCOME_DIED
    if previous_program >= 0:
        body.c |= WELCOME_PROBATION
    body.d = upgrade_error
    return put(WELCOME, 0, cython.address(body), cython.sizeof(body), state_fd, cython.NULL)


def put_events():
    """All that is unsent; false when the batch is full before that."""
    if not (put_helds() and put_records() and put_relays()):
        return False
    if stage == SERVING and alarm_unsent:
        return put(RANG, 0, cython.NULL, 0, -1, alarm_mark())
    return True


def put_helds():
    """HELD for each entry that the service does not have."""
    body: FourWords
    at: cython.int
    for at in range(held_top):
        if helds[at].tag == 0 or helds[at].sent:
            continue
        body.a = helds[at].tag
        body.b = helds[at].parent
        body.c = helds[at].flags
        body.d = 0
        if not put(
            HELD,
            0,
            cython.address(body),
            cython.sizeof(body),
            helds[at].fd,
            cython.address(helds[at].sent),
        ):
            return False
    return True


def put_records():
    """RECORD for each process that has news."""
    body: RecordBody
    if end_signal != 0 and not end_signal_sent:
        memset(cython.address(body), 0, cython.sizeof(body))
        body.flags = RECORD_SPAWNED
        body.token = end_signal
        if not put(
            RECORD,
            0,
            cython.address(body),
            cython.sizeof(body),
            -1,
            cython.address(end_signal_sent),
        ):
            return False
    # Where a number was used again, what is said last is what is so.
    return put_processes(RECORD_EXITED) and put_processes(0)


def put_processes(exited):
    """RECORD for those processes that have exited, or for those that have not."""
    at: cython.int
    for at in range(process_top):
        if not processes[at].used or processes[at].sent:
            continue
        if processes[at].record.flags & RECORD_UNCLAIMED:
            continue
        if (processes[at].record.flags & RECORD_EXITED) != exited:
            continue
        if not put(
            RECORD,
            0,
            cython.address(processes[at].record),
            cython.sizeof(processes[at].record),
            -1,
            cython.address(processes[at].sent),
        ):
            return False
    return True


def put_relays():
    """RELAY for each relay that has news."""
    body: RelayBody
    at: cython.int
    memset(cython.address(body), 0, cython.sizeof(body))
    for at in range(relay_top):
        if relays[at].state == RELAY_FREE or relays[at].sent:
            continue
        body.id = relays[at].id
        body.flags = RELAY_ENDED if relays[at].state == RELAY_OVER else 0
        if relays[at].state == RELAY_UNREAD:
            body.flags = RELAY_NOBODY_READS
        body.error = relays[at].error
        body.moved = relays[at].moved
        if not put(
            RELAY_STATUS,
            0,
            cython.address(body),
            cython.sizeof(body),
            -1,
            cython.address(relays[at].sent),
        ):
            return False
    return True


def send_batch(fd, data, size, fds, count):
    """Sends one datagram; 0 or the error."""
    part: iovec
    message: msghdr
    head: cython.pointer(cmsghdr)
    part.iov_base = data
    part.iov_len = size
    memset(cython.address(message), 0, cython.sizeof(message))
    message.msg_iov = cython.address(part)
    message.msg_iovlen = 1
    if count:
        memset(control, 0, cython.sizeof(control))
        message.msg_control = control
        message.msg_controllen = CMSG_SPACE(count * cython.sizeof(cython.int))
        head = CMSG_FIRSTHDR(cython.address(message))
        head.cmsg_level = SOL_SOCKET
        head.cmsg_type = SCM_RIGHTS
        head.cmsg_len = CMSG_LEN(count * cython.sizeof(cython.int))
        memcpy(CMSG_DATA(head), fds, count * cython.sizeof(cython.int))
    while sendmsg(fd, cython.address(message), MSG_DONTWAIT | MSG_NOSIGNAL) < 0:
        if errno != EINTR:
            return errno
    return 0


# --- Upgrade -------------------------------------------------------------------------------------


def begin_upgrade(fds, patience, sequence):
    """UPGRADE: 0, and both descriptors are the monitor's, or the error for the reply.

    The reply comes when the new program has shown that it can take over what we hold, or has not.
    """
    global upgrade_stage, upgrade_program, upgrade_patience, upgrade_sequence, upgrade_error
    global upgrade_until
    error: cython.int
    if upgrade_stage or previous_program >= 0 or rehearsal_pid or quitting:
        return EALREADY
    error = read_names(fds[1], upgrade_names, cython.address(upgrade_names_size), 3)
    if error == 0:
        upgrade_program = fcntl(fds[0], F_DUPFD_CLOEXEC, 10)
        if upgrade_program < 0:
            error = errno
    if error == 0:
        error = rehearse()
        if error != 0:
            close(upgrade_program)
    upgrade_error = error
    if error != 0:
        return error
    upgrade_stage = REHEARSING
    upgrade_until = now_ms() + REHEARSAL_MS
    upgrade_patience = patience if patience else CONFIRM_MS
    upgrade_sequence = sequence
    close_all(fds, 2)
    return 0


def read_names(fd, names, size, count):
    """Reads ``count`` strings from a memfd, the first of which is a socket's path; or an error."""
    about: stat_t
    if fstat(fd, cython.address(about)) != 0 or about.st_size > NAMES_BYTES:
        return EINVAL
    size[0] = about.st_size
    if pread(fd, names, size[0], 0) != about.st_size or not are_names(names, size[0], count):
        return EINVAL
    return 0


def are_names(names, size, count):
    """Whether ``size`` bytes are exactly ``count`` strings, none of them empty."""
    at: cython.size_t = 0
    found: cython.int = 0
    if size == 0 or names[size - 1] != 0 or strlen(names) > SOCKET_PATH_BYTES:
        return False
    while at < size:
        if names[at] == 0:
            return False
        at += strlen(names + at) + 1
        found += 1
    return found == count


def name_at(names, index):
    """The string of that index."""
    while index > 0:
        names += strlen(names) + 1
        index -= 1
    return names


def rehearse():
    """Has the new program read a snapshot, in a process of its own; 0 or the error."""
    global child_argv, child_env, child_cwd, child_fds, child_fd_count, child_dies_with_us
    global child_is_service, child_program, rehearsal_pid
    program: cython.char[FD_PATH_BYTES]
    arguments: cython.p_char[8]
    fd: cython.int = write_snapshot()
    pid: cython.int
    if fd < 0:
        return errno
    arguments[0] = path_of(upgrade_program, program)
    arguments[1] = cython.cast(cython.p_char, b"--zygote")
    arguments[2] = name_at(upgrade_names, 0)
    arguments[3] = cython.cast(cython.p_char, b"--python")
    arguments[4] = name_at(upgrade_names, 1)
    arguments[5] = cython.cast(cython.p_char, b"--rehearse")
    arguments[6] = cython.cast(cython.p_char, b"3")
    arguments[7] = cython.NULL
    child_argv = arguments
    child_env = environ
    child_cwd = cython.NULL
    child_fds = cython.address(fd)
    child_fd_count = 1
    child_dies_with_us = True
    child_is_service = True
    child_program = -1
    pid = start_child()
    close(fd)
    if pid < 0:
        return -pid
    rehearsal_pid = pid
    return 0


def rehearsed(status):
    """The rehearsal has ended; when it went well, the service is told to go."""
    global upgrade_stage, upgrade_until
    if upgrade_stage != REHEARSING:
        return
    if status != EXIT_ABLE << 8:
        give_up_upgrade(EPROTO)
        return
    upgrade_stage = HANDING_OVER
    upgrade_until = now_ms() + HANDOVER_MS
    reply(upgrade_sequence, 0, 0)


def give_up_upgrade(error):
    """Goes on as what we are."""
    global upgrade_stage, upgrade_until, upgrade_error
    if upgrade_stage == REHEARSING:
        reply(upgrade_sequence, error, 0)
        if rehearsal_pid > 0:
            kill(rehearsal_pid, SIGKILL)
    close(upgrade_program)
    upgrade_stage = NO_UPGRADE
    upgrade_until = 0
    upgrade_error = error


def hand_over():
    """Becomes the new program; comes back only when that cannot be done."""
    global previous_program, previous_names_size
    error: cython.int
    previous_program = open(b"/proc/self/exe", O_PATH | O_CLOEXEC)
    previous_names_size = join_names(previous_names)
    error = errno
    if previous_program >= 0 and previous_names_size > 0:
        error = execute(upgrade_program, upgrade_names, 0)
    if previous_program >= 0:
        close(previous_program)
    previous_program = -1
    give_up_upgrade(error if error else EIO)


def join_names(names):
    """Our socket, interpreter and program one behind the other; how many bytes, 0 if too many."""
    parts: cython.p_char[3]
    size: cython.size_t = 0
    length: cython.size_t
    at: cython.int
    parts[0] = zygote_path
    parts[1] = python_path
    parts[2] = program_name
    for at in range(3):
        length = strlen(parts[at]) + 1
        if size + length > NAMES_BYTES:
            return 0
        memcpy(names + size, parts[at], length)
        size += length
    return size


def execute(program, names, undone):
    """Executes ``program`` in our place with a snapshot of what we hold; the error if it cannot."""
    error: cython.int
    fd: cython.int = write_snapshot()
    if fd < 0:
        return errno
    keep_on_exec(True)
    keep_one(fd, True)
    error = become(program, names, fd, undone)
    keep_on_exec(False)
    close(fd)
    return error


def become(program, names, snapshot, undone):
    """Executes ``program`` with a snapshot, and why it gets its place back; the error."""
    path_of_program: cython.char[FD_PATH_BYTES]
    snapshot_text: cython.char[NUMBER_BYTES]
    undone_text: cython.char[NUMBER_BYTES]
    arguments: cython.p_char[10]
    snapshot_text[NUMBER_BYTES - 1] = 0
    undone_text[NUMBER_BYTES - 1] = 0
    arguments[0] = name_at(names, 2)
    arguments[1] = cython.cast(cython.p_char, b"--zygote")
    arguments[2] = name_at(names, 0)
    arguments[3] = cython.cast(cython.p_char, b"--python")
    arguments[4] = name_at(names, 1)
    arguments[5] = cython.cast(cython.p_char, b"--resume")
    arguments[6] = decimal(snapshot_text + NUMBER_BYTES - 1, snapshot)
    arguments[7] = cython.NULL
    if undone != 0:
        arguments[7] = cython.cast(cython.p_char, b"--undone")
        arguments[8] = decimal(undone_text + NUMBER_BYTES - 1, undone)
        arguments[9] = cython.NULL
    execve(path_of(program, path_of_program), arguments, environ)
    return errno


def keep_on_exec(kept):
    """Whether what a snapshot names outlives an execve; false when there is no such descriptor."""
    at: cython.int
    good: cython.bint = keep_one(state_fd, kept)
    if previous_program >= 0:
        good = keep_one(previous_program, kept) and good
    for at in range(held_top):
        if helds[at].tag != 0:
            good = keep_one(helds[at].fd, kept) and good
    for at in range(PIECES if piece_count else 0):
        if pieces[at].used and pieces[at].fd >= 0:
            good = keep_one(pieces[at].fd, kept) and good
    for at in range(relay_top):
        if relays[at].state != RELAY_FREE and relays[at].source >= 0:
            good = keep_one(relays[at].source, kept) and good
        if relays[at].state != RELAY_FREE and relays[at].destination >= 0:
            good = keep_one(relays[at].destination, kept) and good
    return good


def keep_one(fd, kept):
    """The same for one descriptor."""
    return fcntl(fd, F_SETFD, 0 if kept else FD_CLOEXEC) == 0


def confirm(error):
    """CONFIRM: a service of the new version works, or knows that it will not."""
    global previous_program, confirm_until, undo_error
    if previous_program < 0:
        return
    confirm_until = 0
    if error != 0:
        undo_error = error
        return
    close(previous_program)
    previous_program = -1


def go_back():
    """Becomes what we were; when that cannot be done we stay what we are."""
    global previous_program, undo_error, upgrade_error
    error: cython.int = undo_error
    undo_error = 0
    if previous_program < 0 or quitting:
        return
    if channel >= 0:
        close_channel()
    if direct_pid > 0:
        kill(direct_pid, SIGKILL)
    upgrade_error = execute(previous_program, previous_names, error)
    close(previous_program)
    previous_program = -1
    want(True)


def move_home(fd):
    """HOME: services come from another zygote from now on; the error for the reply."""
    global zygote_path, python_path
    size: cython.size_t
    error: cython.int = read_names(fd, next_home_names, cython.address(size), 2)
    if error != 0:
        return error
    memcpy(home_names, next_home_names, size)
    zygote_path = home_names
    python_path = name_at(home_names, 1)
    return 0


# --- The snapshot --------------------------------------------------------------------------------


def write_snapshot():
    """A memfd with all that the next monitor has to know; -1 and errno when that cannot be done."""
    head: SnapshotHead
    fd: cython.int = memfd_create(b"pyshim-monitor", MFD_CLOEXEC)
    if fd < 0:
        return -1
    head.magic = SNAPSHOT_MAGIC
    head.version = SNAPSHOT_VERSION
    if (
        write_whole(fd, cython.address(head), cython.sizeof(head))
        and write_monitor(fd)
        and write_helds(fd)
        and write_processes(fd)
        and write_relays(fd)
        and write_record(fd, OF_END, cython.NULL, 0, cython.NULL, 0)
    ):
        return fd
    close(fd)  # which leaves errno as it is: it succeeds
    return -1


def write_record(fd, kind, fixed, size, more, more_size):
    """One record: a struct, and what follows it; false and errno when it is not all written."""
    head: SnapshotRecord
    padding: cython.ulonglong = 0
    rest: cython.size_t
    head.length = cython.sizeof(head) + size + more_size
    head.kind = kind
    head.flags = SNAPSHOT_VITAL
    head.fixed = size
    head.reserved = 0
    rest = (8 - head.length % 8) % 8
    return (
        write_whole(fd, cython.address(head), cython.sizeof(head))
        and write_whole(fd, fixed, size)
        and write_whole(fd, more, more_size)
        and write_whole(fd, cython.address(padding), rest)
    )


def write_whole(fd, data, size):
    """All of it, or false and errno."""
    at: cython.size_t = 0
    done: cython.ssize_t
    while at < size:
        done = write(fd, cython.cast(cython.p_char, data) + at, size - at)
        if done < 0 and errno != EINTR:
            return False
        if done > 0:
            at += done
    return True


def write_monitor(fd):
    """What there is one of, and what to go back to."""
    body: OfMonitor
    previous: OfPrevious
    memset(cython.address(body), 0, cython.sizeof(body))
    body.state_fd = state_fd
    body.next_accepted_tag = next_accepted_tag
    body.flags = (WAS_DEAD if previous_died else 0) | (ALARM_UNSENT if alarm_unsent else 0)
    body.end_signal = end_signal
    body.direct_pid = direct_pid
    body.alarm_at = alarm_at
    body.end_signal_until = end_signal_until
    body.limit_current = limit_at_start.rlim_cur
    body.limit_most = limit_at_start.rlim_max
    if not write_record(fd, OF_MONITOR, cython.address(body), cython.sizeof(body), cython.NULL, 0):
        return False
    if previous_program < 0:
        return True
    previous.program = previous_program
    previous.patience_ms = upgrade_patience
    return write_record(
        fd,
        OF_PREVIOUS,
        cython.address(previous),
        cython.sizeof(previous),
        previous_names,
        previous_names_size,
    )


def write_helds(fd):
    """What is held, each with what is still to be sent on it."""
    body: OfHeld
    at: cython.int
    for at in range(held_top):
        if helds[at].tag == 0:
            continue
        body.tag = helds[at].tag
        body.parent = helds[at].parent
        body.flags = helds[at].flags
        body.fd = helds[at].fd
        if not write_record(fd, OF_HELD, cython.address(body), cython.sizeof(body), cython.NULL, 0):
            return False
        if not write_held_pieces(fd, helds + at):
            return False
    return True


def write_held_pieces(fd, held):
    """What SEND has left with one."""
    body: OfPiece
    piece: cython.pointer(Piece)
    next_piece: cython.int = held.first_piece
    data: cython.p_char
    size: cython.size_t
    while next_piece:
        piece = pieces + next_piece - 1
        data = cython.NULL
        size = 0
        body.tag = held.tag
        body.fd = piece.fd
        body.size = piece.size
        body.at = piece.at
        if piece.fd < 0:
            data = piece.data
            size = piece.size
        if not write_record(fd, OF_PIECE, cython.address(body), cython.sizeof(body), data, size):
            return False
        next_piece = piece.next
    return True


def write_processes(fd):
    """Those that run, and the exits that somebody may yet ask for."""
    at: cython.int
    for at in range(process_top):
        if processes[at].used and not write_record(
            fd,
            OF_PROCESS,
            cython.address(processes[at].record),
            cython.sizeof(processes[at].record),
            cython.NULL,
            0,
        ):
            return False
    return True


def write_relays(fd):
    """The relays, and what has left their sources and not reached their destinations."""
    body: OfRelay
    at: cython.int
    for at in range(relay_top):
        if relays[at].state == RELAY_FREE:
            continue
        memset(cython.address(body), 0, cython.sizeof(body))
        body.id = relays[at].id
        body.flags = relays[at].flags
        body.state = relays[at].state
        body.source = relays[at].source
        body.destination = relays[at].destination
        body.error = relays[at].error
        body.moved = relays[at].moved
        body.drain_left = relays[at].drain_left
        body.drain_until = relays[at].drain_until
        body.drain_moved = relays[at].drain_moved
        body.look_again_at = relays[at].look_again_at
        body.bits = (DRAINING if relays[at].draining else 0) | (
            BY_COPY if relays[at].by_copy else 0
        )
        if not write_record(
            fd,
            OF_RELAY,
            cython.address(body),
            cython.sizeof(body),
            relays[at].residue + relays[at].residue_at,
            relays[at].residue_size,
        ):
            return False
    return True


# --- The new program -----------------------------------------------------------------------------


def resume():
    """Goes on where another monitor has stopped, or only says whether we could."""
    global wanted, confirm_until, previous_program
    error: cython.int = read_snapshot(snapshot_fd)
    if error != 0:
        refuse_snapshot(error)
    if way_of_life == REHEARSE:
        _exit(EXIT_ABLE)
    set_up()
    prctl(PR_SET_NAME, base_name(program_name), 0, 0, 0)
    take_over_descriptors()
    if upgrade_error:
        # We are what somebody went back to.
        if previous_program >= 0:
            close(previous_program)
        previous_program = -1
    elif previous_program >= 0:
        confirm_until = now_ms() + upgrade_patience
    wanted = True
    reap()
    settle()


def base_name(text):
    """What follows the last slash."""
    slash: cython.p_char = strrchr(text, ord(b"/"))
    return slash + 1 if slash != cython.NULL else text


def take_over_descriptors():
    """Has everything closed on exec again, and watches what is to be watched."""
    at: cython.int
    keep_on_exec(False)
    close(snapshot_fd)
    watch_all()
    for at in range(relay_top):
        relays[at].is_terminal = kind_of(relays[at].source) == S_IFCHR
        if relays[at].state == RELAY_READING:
            read_source(relays + at)
        elif relays[at].state == RELAY_BLOCKED:
            wait_for_destination(relays + at)


def refuse_snapshot(error):
    """Has who executed us take its place back: it wrote what we do not understand."""
    if way_of_life == RESUME and previous_program >= 0 and upgrade_error == 0:
        become(previous_program, previous_names, snapshot_fd, error)
    refuse(b"the snapshot of the monitor before this one is not understood", b"")


def read_snapshot(fd):
    """Fills our tables with what a monitor has left; 0 or the error.  Touches no descriptor."""
    global previous_program, state_fd
    about: stat_t
    data: cython.p_char
    previous_program = -1
    state_fd = -1
    if fd < 0 or fstat(fd, cython.address(about)) != 0:
        return EINVAL
    if about.st_size < cython.cast(cython.long, cython.sizeof(SnapshotHead)):
        return EPROTO
    data = cython.cast(
        cython.p_char,
        mmap(cython.NULL, about.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0),
    )
    if data == MAP_FAILED:
        return errno
    error: cython.int = read_records(data, about.st_size)
    munmap(data, about.st_size)
    return error


def read_records(data, size):
    """All of them, to the one that is the end; 0 or the error."""
    head: cython.pointer(SnapshotHead) = cython.cast(cython.pointer(SnapshotHead), data)
    record: cython.pointer(SnapshotRecord)
    at: cython.size_t = cython.sizeof(head[0])
    error: cython.int
    if head.magic != SNAPSHOT_MAGIC or head.version != SNAPSHOT_VERSION:
        return EPROTO
    while size - at >= cython.sizeof(record[0]):
        record = cython.cast(cython.pointer(SnapshotRecord), data + at)
        if record.length > size - at or record.length < cython.sizeof(record[0]):
            return EPROTO
        if record.fixed > record.length - cython.sizeof(record[0]):
            return EPROTO
        if record.kind == OF_END:
            return 0 if state_fd >= 0 else EPROTO
        error = read_record(record)
        if error != 0:
            return error
        at += (cython.cast(cython.size_t, record.length) + 7) // 8 * 8
        if at > size:
            break
    return EPROTO


def read_record(record):
    """One record; 0 or the error.  What is unknown is left out, unless it is marked as vital."""
    if record.kind == OF_MONITOR:
        return read_monitor(record)
    if record.kind == OF_PREVIOUS:
        return read_previous(record)
    if record.kind == OF_HELD:
        return read_held(record)
    if record.kind == OF_PIECE:
        return read_piece(record)
    if record.kind == OF_PROCESS:
        return read_process(record)
    if record.kind == OF_RELAY:
        return read_relay(record)
    return EPROTO if record.flags & SNAPSHOT_VITAL else 0


def fixed_part(record, target, size):
    """Copies as much of a record's struct as both know; where what follows it begins."""
    start: cython.p_char = cython.cast(cython.p_char, record) + cython.sizeof(record[0])
    memset(target, 0, size)
    memcpy(target, start, size if size < record.fixed else record.fixed)
    return start + record.fixed


def size_of_rest(record):
    """How many bytes follow a record's struct."""
    return record.length - cython.sizeof(record[0]) - record.fixed


def read_monitor(record):
    """What there is one of."""
    global state_fd, next_accepted_tag, previous_died, alarm_unsent, end_signal, direct_pid
    global alarm_at, end_signal_until
    body: OfMonitor
    fixed_part(record, cython.address(body), cython.sizeof(body))
    state_fd = body.state_fd
    next_accepted_tag = body.next_accepted_tag | FIRST_ACCEPTED_TAG
    previous_died = body.flags & WAS_DEAD != 0
    alarm_unsent = 1 if body.flags & ALARM_UNSENT else 0
    end_signal = body.end_signal
    direct_pid = body.direct_pid
    alarm_at = body.alarm_at
    end_signal_until = body.end_signal_until
    getrlimit(RLIMIT_NOFILE, cython.address(limit_at_start))
    if body.limit_most:
        limit_at_start.rlim_cur = body.limit_current
        limit_at_start.rlim_max = body.limit_most
    return 0


def read_previous(record):
    """What to go back to."""
    global previous_program, previous_names_size, upgrade_patience
    body: OfPrevious
    names: cython.p_char = fixed_part(record, cython.address(body), cython.sizeof(body))
    previous_names_size = size_of_rest(record)
    if previous_names_size > NAMES_BYTES or not are_names(names, previous_names_size, 3):
        return EPROTO
    memcpy(previous_names, names, previous_names_size)
    previous_program = body.program
    upgrade_patience = body.patience_ms
    return 0


def read_held(record):
    """One descriptor."""
    body: OfHeld
    held: cython.pointer(Held)
    fixed_part(record, cython.address(body), cython.sizeof(body))
    if body.tag == 0 or body.fd < 0:
        return EPROTO
    held = new_held(body.tag, body.fd, body.flags)
    if held == cython.NULL:
        return ENOSPC
    held.parent = body.parent
    return 0


def read_piece(record):
    """What is still to be sent on a descriptor that came before."""
    body: OfPiece
    data: cython.p_char = fixed_part(record, cython.address(body), cython.sizeof(body))
    held: cython.pointer(Held) = find_held(body.tag)
    piece: cython.int
    if held == cython.NULL or body.at > body.size or body.size == 0:
        return EPROTO
    if body.fd < 0 and body.size != size_of_rest(record):
        return EPROTO
    piece = new_piece(data, body.size, body.fd if body.fd >= 0 else -1)
    if piece == 0:
        return ENOSPC
    pieces[piece - 1].at = body.at
    append_piece(held, piece)
    return 0


def read_process(record):
    """One process, or its exit."""
    global spawned_count
    body: RecordBody
    process: cython.pointer(Process)
    fixed_part(record, cython.address(body), cython.sizeof(body))
    process = new_process(body.pid)
    if process == cython.NULL:
        return ENOSPC
    process.record = body
    if body.flags & RECORD_SPAWNED:
        spawned_count += 1
    return 0


def read_relay(record):
    """One relay, running or over."""
    global relay_top, draining_count, unread_count
    body: OfRelay
    residue: cython.p_char = fixed_part(record, cython.address(body), cython.sizeof(body))
    size: cython.size_t = size_of_rest(record)
    relay: cython.pointer(Relay)
    if relay_top == RELAYS:
        return ENOSPC
    if body.state <= RELAY_FREE or body.state > RELAY_UNREAD or size > SCRATCH_BYTES:
        return EPROTO
    if (body.state == RELAY_READING or body.state == RELAY_BLOCKED) and body.source < 0:
        return EPROTO
    if (body.state == RELAY_BLOCKED or body.state == RELAY_UNREAD) and body.destination < 0:
        return EPROTO
    relay = relays + relay_top
    memset(relay, 0, cython.sizeof(relay[0]))
    if size > 0:
        relay.residue = new_residue()
        if relay.residue == cython.NULL:
            return ENOMEM
        memcpy(relay.residue, residue, size)
        relay.residue_size = size
    relay_top += 1
    relay.id = body.id
    relay.flags = body.flags
    relay.state = body.state
    relay.source = body.source
    relay.destination = body.destination
    relay.error = body.error
    relay.moved = body.moved
    relay.drain_left = body.drain_left
    relay.drain_until = body.drain_until
    relay.drain_moved = body.drain_moved
    relay.look_again_at = body.look_again_at
    relay.draining = body.bits & DRAINING != 0
    relay.by_copy = body.bits & BY_COPY != 0
    draining_count += relay.draining
    unread_count += relay.state == RELAY_UNREAD
    return 0
