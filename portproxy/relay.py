"""portproxy-relay: forwards one TCP port of the host to one port of a container.

It takes docker-proxy's place: its options, its status pipe (fd 3), its listener from the engine
(fd 4), its exit codes.  One epoll loop serves all connections: small data is copied through one
buffer that all share, bulk data goes through a pipe with splice(2), and a pipe is held only while
bytes are in it.

It must never lose a byte or turn a reset into a clean end, never read what it cannot hand on,
never exit because of one connection or a lack of file descriptors, and never touch a Python object:
Cython compiles this file to C without the Python runtime (types are in ``relay.pxd``).

Sockets are watched edge-triggered, once, for everything.  ``readable`` and ``writable`` remember
what the edges said, until a call answers EAGAIN.
"""

import cython
from cython.cimports.linux import (
    AF_INET,
    AF_INET6,
    CLOCK_MONOTONIC,
    EACCES,
    EADDRINUSE,
    EADDRNOTAVAIL,
    EAGAIN,
    ECONNABORTED,
    ECONNREFUSED,
    EINPROGRESS,
    EINTR,
    EINVAL,
    EPOLL_CLOEXEC,
    EPOLL_CTL_ADD,
    EPOLL_CTL_MOD,
    EPOLLERR,
    EPOLLET,
    EPOLLHUP,
    EPOLLIN,
    EPOLLOUT,
    EPOLLPRI,
    EPOLLRDHUP,
    F_GETFL,
    F_SETFD,
    F_SETFL,
    F_SETPIPE_SZ,
    FD_CLOEXEC,
    IPPROTO_IPV6,
    IPPROTO_TCP,
    IPV6_V6ONLY,
    MSG_NOSIGNAL,
    O_ACCMODE,
    O_CLOEXEC,
    O_NONBLOCK,
    O_RDONLY,
    O_RDWR,
    POLLOUT,
    RLIMIT_NOFILE,
    S_ISFIFO,
    SHUT_WR,
    SIG_IGN,
    SIG_UNBLOCK,
    SIGHUP,
    SIGINT,
    SIGPIPE,
    SIGTERM,
    SO_ACCEPTCONN,
    SO_DOMAIN,
    SO_ERROR,
    SO_KEEPALIVE,
    SO_LINGER,
    SO_PROTOCOL,
    SO_REUSEADDR,
    SO_TYPE,
    SOCK_CLOEXEC,
    SOCK_NONBLOCK,
    SOCK_STREAM,
    SOL_SOCKET,
    SPLICE_F_NONBLOCK,
    TCP_KEEPCNT,
    TCP_KEEPIDLE,
    TCP_KEEPINTVL,
    TCP_NODELAY,
    _exit,
    accept4,
    bind,
    calloc,
    clock_gettime,
    close,
    connect,
    epoll_create1,
    epoll_ctl,
    epoll_event,
    epoll_wait,
    errno,
    fcntl,
    free,
    fstat_mode,
    getenv,
    getrlimit,
    getsockopt,
    htons,
    inet_pton,
    linger,
    listen,
    malloc,
    memcpy,
    memset,
    open,
    pipe2,
    poll,
    pollfd,
    recv,
    rlimit,
    send,
    setrlimit,
    setsockopt,
    shutdown,
    sigaddset,
    sigemptyset,
    signal,
    sigprocmask,
    sigset_t,
    sockaddr,
    sockaddr_in,
    sockaddr_in6,
    socket,
    splice,
    stat_mode_t,
    strcmp,
    strerror,
    strlen,
    strncmp,
    timespec,
    write,
)


def program_main(argc, argv):
    """What a port proxy does, from beginning to end."""
    read_options(argc, argv)
    hold_standard_fds()
    find_status_pipe()
    hold_signals()
    raise_fd_limit()
    if strcmp(protocol, b"udp") == 0 or strcmp(protocol, b"sctp") == 0:
        begin(protocol)
        say(b" is not supported yet; only tcp is")
        fail()
    if strcmp(protocol, b"tcp") != 0:
        begin(b"unsupported protocol ")
        say(protocol)
        fail()
    if use_listen_fd:
        take_listener()
    else:
        open_listener()
    serve()
    return 0


# --- What is asked for -------------------------------------------------------------------------


def read_options(argc, argv):
    """Reads docker-proxy's options as Go's flag package does: -x v, -x=v, --x v, --x=v."""
    global protocol, host_text, container_text, host_port, container_port, resets_become_fins
    protocol = b"tcp"
    host_text = b"0.0.0.0"
    container_text = cython.NULL
    host_port = NOT_GIVEN
    container_port = NOT_GIVEN
    at: cython.int = 1
    name: cython.p_char
    length: cython.size_t
    while at < argc and argv[at][0] == b"-" and argv[at][1] != 0:
        name = argv[at] + 1
        if name[0] == b"-":
            name += 1
            if name[0] == 0:
                break
        length = 0
        while name[length] != 0 and name[length] != b"=":
            length += 1
        if is_flag(name, length):
            if name[length] == b"=":
                set_flag(name, length, name + length + 1)
            else:
                set_flag(name, length, b"true")
        elif name[length] == b"=":
            set_option(name, length, name + length + 1)
        else:
            set_option(name, length, argv[at + 1] if at + 1 < argc else cython.NULL)
            at += 1
        at += 1
    if container_text == cython.NULL or container_port == NOT_GIVEN:
        begin(b"-container-ip and -container-port say where to forward to; both are needed")
        refuse()
    if host_port == NOT_GIVEN and not use_listen_fd:
        begin(
            b"-host-port says where to listen; give it, or -use-listen-fd with a listener on fd 4"
        )
        refuse()
    reset: cython.p_char = getenv(b"PORTPROXY_RESET")
    resets_become_fins = reset != cython.NULL and strcmp(reset, b"fin") == 0


def set_option(name, length, value):
    """One option that has a value; NULL when the command line ends before it."""
    global protocol, host_text, container_text, host_port, container_port
    known: cython.bint = named(b"proto", name, length) or named(b"host-ip", name, length)
    known = known or named(b"host-port", name, length)
    known = known or named(b"container-ip", name, length)
    if not known and not named(b"container-port", name, length):
        begin(b"flag provided but not defined: -")
        say_bytes(name, length)
        refuse()
    if value == cython.NULL:
        begin(b"flag needs an argument: -")
        say_bytes(name, length)
        refuse()
    if named(b"proto", name, length):
        protocol = value
    elif named(b"host-port", name, length):
        host_port = port_in(name, length, value)
    elif named(b"container-port", name, length):
        container_port = port_in(name, length, value)
    else:
        unused: sockaddr_in6
        if not read_address(value, 0, cython.address(unused)):
            begin(b'invalid value "')
            say(value)
            say(b'" for flag -')
            say_bytes(name, length)
            say(b": not an IP address")
            refuse()
        if named(b"host-ip", name, length):
            host_text = value
        else:
            container_text = value


def set_flag(name, length, value):
    """One option that is true or false, in Go's spellings."""
    global use_listen_fd
    text: cython.p_const_char = value
    yes: cython.bint = strcmp(text, b"true") == 0 or strcmp(text, b"1") == 0
    yes = yes or strcmp(text, b"t") == 0 or strcmp(text, b"T") == 0
    yes = yes or strcmp(text, b"TRUE") == 0 or strcmp(text, b"True") == 0
    no: cython.bint = strcmp(text, b"false") == 0 or strcmp(text, b"0") == 0
    no = no or strcmp(text, b"f") == 0 or strcmp(text, b"F") == 0
    no = no or strcmp(text, b"FALSE") == 0 or strcmp(text, b"False") == 0
    if not yes and not no:
        begin(b'invalid boolean value "')
        say(text)
        say(b'" for -')
        say_bytes(name, length)
        refuse()
    if named(b"use-listen-fd", name, length):
        use_listen_fd = yes
    elif yes and (named(b"h", name, length) or named(b"help", name, length)):
        print_help()
    elif yes:
        print_version()


def named(wanted, name, length):
    """Whether the first ``length`` bytes of ``name`` are ``wanted``."""
    return strlen(wanted) == length and strncmp(wanted, name, length) == 0


def is_flag(name, length):
    """Whether the option takes no separate value."""
    found: cython.bint = named(b"use-listen-fd", name, length) or named(b"v", name, length)
    found = found or named(b"version", name, length) or named(b"h", name, length)
    return found or named(b"help", name, length)


def port_in(name, length, value):
    """The port number in ``value``."""
    port: cython.int = 0
    at: cython.size_t = 0
    while b"0" <= value[at] <= b"9" and port <= LAST_PORT:
        port = port * 10 + (value[at] - 48)
        at += 1
    if at == 0 or value[at] != 0 or port > LAST_PORT:
        begin(b'invalid value "')
        say(value)
        say(b'" for flag -')
        say_bytes(name, length)
        say(b": a port is a number from 0 to 65535")
        refuse()
    return port


def print_help():
    """Prints the options and ends."""
    text: cython.p_const_char = (
        b"Usage: portproxy-relay [OPTIONS]\n"
        b"Forwards one TCP port; takes the place of docker-proxy.\n"
        b"  -proto tcp            protocol\n"
        b"  -host-ip IP           address to listen on (0.0.0.0)\n"
        b"  -host-port PORT       port to listen on\n"
        b"  -container-ip IP      address to forward to\n"
        b"  -container-port PORT  port to forward to\n"
        b"  -use-listen-fd        take the listening socket from fd 4\n"
        b"  -v, -version          print the version\n"
        b"fd 3, if it is a pipe, gets 0 and a newline once the port is open, or 1 and why not.\n"
        b"PORTPROXY_RESET=fin ends a connection cleanly where the other side was reset.\n"
    )
    write(1, text, strlen(text))
    _exit(0)


def print_version():
    """Prints a line of docker-proxy's shape and ends."""
    global line_length
    line_length = 0
    say(b"docker-proxy (commit ")
    say(PYSHIM_BUILD)
    say(b") version ")
    say(PYSHIM_VERSION)
    say(b" portproxy-relay")
    print_line(1)
    _exit(0)


# --- What it starts with -----------------------------------------------------------------------


def hold_standard_fds():
    """Fills 0 to 2 when they are closed, so that no connection becomes our stderr."""
    fd: cython.int = open(b"/dev/null", O_RDWR | O_CLOEXEC)
    while 0 <= fd < STATUS_FD:
        fd = open(b"/dev/null", O_RDWR | O_CLOEXEC)
    if fd >= 0:
        close(fd)


def find_status_pipe():
    """Fd 3 is the engine's only if it is a FIFO that can be written; else it is a stray."""
    global has_status_pipe
    about: stat_mode_t
    if fstat_mode(STATUS_FD, cython.address(about)) < 0 or not S_ISFIFO(about.st_mode):
        return
    mode: cython.int = fcntl(STATUS_FD, F_GETFL)
    if (mode & O_ACCMODE) == O_RDONLY:
        return
    fcntl(STATUS_FD, F_SETFD, FD_CLOEXEC)
    has_status_pipe = True


def hold_signals():
    """SIGINT and SIGTERM end the process, whatever mask or dispositions it inherited."""
    wanted: sigset_t
    signal(SIGPIPE, SIG_IGN)
    signal(SIGHUP, SIG_IGN)
    signal(SIGINT, leave)
    signal(SIGTERM, leave)
    sigemptyset(cython.address(wanted))
    sigaddset(cython.address(wanted), SIGINT)
    sigaddset(cython.address(wanted), SIGTERM)
    sigprocmask(SIG_UNBLOCK, cython.address(wanted), cython.NULL)


def leave(number):
    """Ends at once: the engine waits for us; the kernel closes what is open."""
    _exit(0)


def raise_fd_limit():
    """Raises the soft limit of open files to the hard one."""
    limit: rlimit
    if getrlimit(RLIMIT_NOFILE, cython.address(limit)) == 0:
        limit.rlim_cur = limit.rlim_max
        setrlimit(RLIMIT_NOFILE, cython.address(limit))


# --- The listener ------------------------------------------------------------------------------


def read_address(text, port, address):
    """Reads an IPv4 or IPv6 address; a mapped one becomes IPv4.  False if it is neither."""
    four: cython.pointer(sockaddr_in) = cython.cast(cython.pointer(sockaddr_in), address)
    memset(address, 0, cython.sizeof(sockaddr_in6))
    if inet_pton(AF_INET, text, cython.address(four.sin_addr)) == 1:
        four.sin_family = AF_INET
        four.sin_port = htons(port)
        return True
    if inet_pton(AF_INET6, text, cython.address(address.sin6_addr)) != 1:
        return False
    address.sin6_family = AF_INET6
    address.sin6_port = htons(port)
    at: cython.int
    for at in range(12):
        if address.sin6_addr.s6_addr[at] != (0 if at < 10 else 255):
            return True
    memcpy(cython.address(four.sin_addr), cython.address(address.sin6_addr.s6_addr[12]), 4)
    four.sin_family = AF_INET
    return True


def address_bytes(address):
    """The size of the address that ``address`` holds."""
    if address.sin6_family == AF_INET:
        return cython.sizeof(sockaddr_in)
    return cython.sizeof(sockaddr_in6)


def set_number(fd, level, name, value):
    """Sets a socket option; the relay works without each of them."""
    setsockopt(fd, level, name, cython.address(value), cython.sizeof(cython.int))


def tune(fd):
    """No delay, and keepalive as docker-proxy has it.  Accepted sockets inherit a listener's."""
    set_number(fd, IPPROTO_TCP, TCP_NODELAY, 1)
    set_number(fd, SOL_SOCKET, SO_KEEPALIVE, 1)
    set_number(fd, IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE_S)
    set_number(fd, IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_S)
    set_number(fd, IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_PROBES)


def open_listener():
    """Opens the host's port, or reports why it cannot and ends."""
    global listener
    read_address(host_text, host_port, cython.address(host))
    listener = socket(host.sin6_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)
    if listener < 0:
        fail_to_listen(b"socket")
    set_number(listener, SOL_SOCKET, SO_REUSEADDR, 1)
    if host.sin6_family == AF_INET6:
        set_number(listener, IPPROTO_IPV6, IPV6_V6ONLY, 1)
    address: cython.pointer(sockaddr) = cython.cast(cython.pointer(sockaddr), cython.address(host))
    if bind(listener, address, address_bytes(cython.address(host))) < 0:
        fail_to_listen(b"bind")
    if listen(listener, BACKLOG) < 0:
        fail_to_listen(b"listen")


def take_listener():
    """Takes fd 4 as the listener, if it is one for TCP; otherwise reports that and ends."""
    global listener
    domain: cython.int = number_of(LISTENER_FD, SO_DOMAIN)
    kind: cython.int = number_of(LISTENER_FD, SO_TYPE)
    wire: cython.int = number_of(LISTENER_FD, SO_PROTOCOL)
    good: cython.bint = domain == AF_INET or domain == AF_INET6
    good = good and kind == SOCK_STREAM and (wire == IPPROTO_TCP or wire == IPPROTO_MPTCP)
    if not good:
        begin(b"unexpected socket type for listener fd: fd 4 is not a TCP socket")
        fail()
    listener = LISTENER_FD
    fcntl(listener, F_SETFD, FD_CLOEXEC)
    fcntl(listener, F_SETFL, fcntl(listener, F_GETFL) | O_NONBLOCK)
    if number_of(listener, SO_ACCEPTCONN) == 0 and listen(listener, BACKLOG) < 0:
        fail_to_listen(b"listen")


def number_of(fd, name):
    """A socket option's value; -1 when there is none."""
    value: cython.int = -1
    size: cython.uint = cython.sizeof(cython.int)
    getsockopt(fd, SOL_SOCKET, name, cython.address(value), cython.address(size))
    return value


def fail_to_listen(what):
    """Reports errno of the call ``what`` in docker-proxy's words and ends."""
    number: cython.int = errno
    begin(b"failed to listen on ")
    say_address(host_text, host_port)
    say(b": listen tcp")
    say(b"4 " if host.sin6_family == AF_INET else b"6 ")
    say_address(host_text, host_port)
    say(b": ")
    say(what)
    say(b": ")
    say(reason(number))
    fail()


def reason(number):
    """Go's words for an errno, which people and tools look for; musl's for the rest."""
    if number == EADDRINUSE:
        return b"address already in use"
    if number == EADDRNOTAVAIL:
        return b"cannot assign requested address"
    if number == EACCES:
        return b"permission denied"
    if number == ECONNREFUSED:
        return b"connection refused"
    return strerror(number)


# --- The loop ----------------------------------------------------------------------------------


def serve():
    """Reports success and serves connections for ever."""
    global poller
    events: epoll_event[EVENTS]
    count: cython.int
    at: cython.int
    read_address(container_text, container_port, cython.address(container))
    tune(listener)
    poller = epoll_create1(EPOLL_CLOEXEC)
    if poller < 0 or not watch(listener, cython.NULL, EPOLLIN, EPOLL_CTL_ADD):
        fail_to_listen(b"epoll")
    if not prepare_socket():
        pause()
    if has_status_pipe:
        write(STATUS_FD, b"0\n", 2)
        close(STATUS_FD)
    while True:
        count = epoll_wait(poller, events, EVENTS, patience())
        for at in range(count):
            if events[at].data.ptr == cython.NULL:
                accept_clients()
            else:
                take_event(
                    cython.cast(cython.pointer(Side), events[at].data.ptr), events[at].events
                )
        run_busy()
        free_closed()
        if paused and now_ms() >= resume_at_ms:
            resume()


def patience():
    """How long epoll_wait may take, in milliseconds."""
    if busy_first != cython.NULL:
        return 0
    if not paused:
        return -1
    left: cython.long = resume_at_ms - now_ms()
    return cython.cast(cython.int, left) if left > 0 else 0


def now_ms():
    """The monotonic clock, in milliseconds."""
    now: timespec
    clock_gettime(CLOCK_MONOTONIC, cython.address(now))
    return now.tv_sec * 1000 + now.tv_nsec // 1000000


def watch(fd, side, events, operation):
    """Has epoll report ``events`` of ``fd`` as those of ``side``; NULL stands for the listener."""
    event: epoll_event
    event.events = events
    event.data.ptr = side
    return epoll_ctl(poller, operation, fd, cython.address(event)) == 0


def accept_clients():
    """Accepts what waits.  Each client finds the socket for its container side ready."""
    global pause_ms
    client: cython.int
    for _ in range(ACCEPTS):
        if paused:
            return
        client = accept4(listener, cython.NULL, cython.NULL, SOCK_CLOEXEC | SOCK_NONBLOCK)
        if client >= 0:
            begin_link(client)
            if prepare_socket():
                pause_ms = 0
            else:
                pause()
        elif errno == EAGAIN:
            return
        elif errno != EINTR and errno != ECONNABORTED and not free_spare_pipes():
            pause()


def prepare_socket():
    """Makes the next connection's socket in advance.  False if there is no file descriptor."""
    global next_socket
    next_socket = socket(container.sin6_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)
    if next_socket < 0 and free_spare_pipes():
        next_socket = socket(container.sin6_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)
    if next_socket < 0:
        return False
    tune(next_socket)
    return True


def pause():
    """Leaves clients in the backlog for a while; doubled each time, shorter if an fd gets free."""
    global paused, pause_ms, resume_at_ms
    paused = True
    pause_ms = FIRST_PAUSE_MS if pause_ms == 0 else pause_ms * 2
    if pause_ms > LONGEST_PAUSE_MS:
        pause_ms = LONGEST_PAUSE_MS
    resume_at_ms = now_ms() + pause_ms
    watch(listener, cython.NULL, 0, EPOLL_CTL_MOD)


def resume():
    """Accepts again, unless there is still no file descriptor."""
    global paused
    if next_socket < 0 and not prepare_socket():
        pause()
        return
    paused = False
    watch(listener, cython.NULL, EPOLLIN, EPOLL_CTL_MOD)


def begin_link(client):
    """Connects a new client to the container."""
    global next_socket
    link: cython.pointer(Link) = cython.cast(cython.pointer(Link), calloc(1, cython.sizeof(Link)))
    if link == cython.NULL:
        reset_on_close(client)
        close(client)
        close(next_socket)
        next_socket = -1
        return
    at: cython.int
    for at in range(2):
        link.sides[at].link = link
        link.sides[at].other = cython.address(link.sides[1 - at])
        link.sides[at].pipe_in = -1
    link.sides[0].fd = client
    link.sides[1].fd = next_socket
    next_socket = -1
    link.sides[0].writable = True
    link.connecting = True
    address: cython.pointer(sockaddr) = cython.cast(
        cython.pointer(sockaddr), cython.address(container)
    )
    failed: cython.int = connect(
        link.sides[1].fd, address, address_bytes(cython.address(container))
    )
    if failed < 0 and errno != EINPROGRESS:
        complain(errno)
        close_link(link, False)
        return
    for at in range(2):
        if not watch(
            link.sides[at].fd,
            cython.address(link.sides[at]),
            EPOLLIN | EPOLLOUT | EPOLLPRI | EPOLLRDHUP | EPOLLET,
            EPOLL_CTL_ADD,
        ):
            close_link(link, True)
            return


def take_event(side, events):
    """Remembers what an edge says and lets the connection run."""
    link: cython.pointer(Link) = side.link
    if link.closed:
        return
    if link.connecting and side == cython.address(link.sides[1]):
        if events & (EPOLLOUT | EPOLLERR | EPOLLHUP):
            finish_connecting(link)
        if link.closed or link.connecting:
            return
    if events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR):
        side.readable = True
    if events & (EPOLLOUT | EPOLLHUP | EPOLLERR):
        side.writable = True
    if events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR):
        side.hung_up = True
    if events & EPOLLPRI:
        side.urgent = True
    # The first call to see a socket's error takes it away; here nothing can miss it.
    if events & EPOLLERR and number_of(side.fd, SO_ERROR) > 0:
        side.broken = True
    if link.connecting:
        if side.broken:
            close_link(link, True)
        return
    make_busy(link)


def finish_connecting(link):
    """The container's side has answered: either it can be used or the client is let go."""
    number: cython.int = number_of(link.sides[1].fd, SO_ERROR)
    if number != 0:
        complain(number)
        close_link(link, False)
        return
    link.connecting = False


def make_busy(link):
    """Queues a connection that may have something to do."""
    global busy_first, busy_last
    if link.busy:
        return
    link.busy = True
    link.next_busy = cython.NULL
    if busy_first == cython.NULL:
        busy_first = link
    else:
        busy_last.next_busy = link
    busy_last = link


def run_busy():
    """Gives every queued connection one turn; those that could do more are queued again."""
    global busy_first
    link: cython.pointer(Link) = busy_first
    following: cython.pointer(Link)
    busy_first = cython.NULL
    while link != cython.NULL:
        following = link.next_busy
        link.busy = False
        if not link.closed and run(link):
            make_busy(link)
        link = following


# --- One connection ----------------------------------------------------------------------------


def run(link):
    """Moves bytes both ways.  True if it stopped only to let others have their turn."""
    client_more: cython.bint = move(cython.address(link.sides[0]))
    container_more: cython.bint = move(cython.address(link.sides[1]))
    settle(link)
    return not link.closed and (client_more or container_more)


def move(side):
    """Moves bytes from ``side`` to the other.  True if there may be more to move at once."""
    for _ in range(TURNS):
        if side.finished or side.other.broken:
            return False
        if not hand_over(side):
            return False
        if side.ended:
            if not side.broken:
                shutdown(side.other.fd, SHUT_WR)
            side.finished = True
            return False
        if not side.readable or not side.other.writable:
            return False
        if not take_in(side):
            return False
    return True


def hand_over(side):
    """Writes what is owed to the other side.  True if nothing is owed any more."""
    other: cython.pointer(Side) = side.other
    done: cython.ssize_t
    while side.piped != 0 or side.owed != cython.NULL:
        if not other.writable:
            return False
        if side.piped != 0:
            done = splice(
                side.pipe_in,
                cython.NULL,
                other.fd,
                cython.NULL,
                side.piped,
                SPLICE_F_NONBLOCK,
            )
        else:
            done = send(
                other.fd, side.owed + side.owed_from, side.owed_to - side.owed_from, MSG_NOSIGNAL
            )
        if done < 0:
            if errno == EINTR:
                continue
            other.writable = False
            if errno != EAGAIN:
                other.broken = True
            return False
        if side.piped != 0:
            side.piped -= done
            if side.piped == 0:
                give_pipe_back(side)
        else:
            side.owed_from += done
            if side.owed_from == side.owed_to:
                free(side.owed)
                side.owed = cython.NULL
    return True


def take_in(side):
    """Reads from ``side`` while nothing is owed.  False if there is nothing to do now."""
    if side.splices and not side.cannot_splice and take_pipe(side):
        return fill_pipe(side)
    return copy(side)


def copy(side):
    """Reads into the shared buffer and writes from it; what does not fit out is kept."""
    other: cython.pointer(Side) = side.other
    size: cython.ssize_t = recv(side.fd, buffer, BUFFER_BYTES, 0)
    if size <= 0:
        if size < 0 and errno == EINTR:
            return True
        if size < 0 and errno == EAGAIN:
            side.readable = False
            return False
        side.ended = True
        side.broken = side.broken or size < 0
        return True
    if size >= FULL_READ_BYTES:
        side.splices = True
        side.short_reads = 0
    # A short read has emptied the socket, and what comes later makes an edge; a FIN or an
    # out-of-band mark that is already there does not.
    if size < BUFFER_BYTES and not side.hung_up and not side.urgent:
        side.readable = False
    done: cython.ssize_t = send(other.fd, buffer, size, MSG_NOSIGNAL)
    if done < 0:
        if errno != EAGAIN and errno != EINTR:
            other.broken = True
            return False
        if errno == EAGAIN:
            other.writable = False
        done = 0
    if done < size and not keep(side, buffer + done, size - done):
        side.broken = True
        other.broken = True
        return False
    return True


def keep(side, data, n):
    """Keeps bytes that the other side did not take.  False if there is no memory."""
    side.owed = cython.cast(cython.p_char, malloc(n))
    if side.owed == cython.NULL:
        return False
    memcpy(side.owed, data, n)
    side.owed_from = 0
    side.owed_to = n
    return True


def fill_pipe(side):
    """Splices from ``side`` into its pipe, which is empty: so EAGAIN can only mean the socket."""
    size: cython.ssize_t = splice(
        side.fd, cython.NULL, side.pipe_out, cython.NULL, SPLICE_BYTES, SPLICE_F_NONBLOCK
    )
    if size > 0:
        side.piped = size
        side.short_reads = side.short_reads + 1 if size < SHORT_READ_BYTES else 0
        if side.short_reads >= SHORT_READS:
            side.splices = False
        return True
    number: cython.int = errno
    give_pipe_back(side)
    if size < 0 and number == EINTR:
        return True
    if size < 0 and number == EAGAIN:
        side.readable = False
        return False
    if size < 0 and number == EINVAL:
        side.cannot_splice = True
        return True
    side.ended = True
    side.broken = side.broken or size < 0
    return True


def settle(link):
    """Closes a connection that is over: both ends were handed on, or one side was reset.

    What a side sent before its reset is handed on first.  Then the other side gets a reset too, so
    that a truncated answer never looks complete.
    """
    at: cython.int
    side: cython.pointer(Side)
    for at in range(2):
        side = cython.address(link.sides[at])
        if side.broken and (side.finished or side.other.broken):
            close_link(link, not resets_become_fins)
            return
    if link.sides[0].finished and link.sides[1].finished:
        close_link(link, False)


def close_link(link, reset):
    """Closes both sides, with a reset if asked to, and frees what the connection held."""
    global closed_first
    at: cython.int
    side: cython.pointer(Side)
    link.closed = True
    for at in range(2):
        side = cython.address(link.sides[at])
        if reset:
            reset_on_close(side.fd)
        close(side.fd)
        if side.pipe_in >= 0:
            give_pipe_back(side)
        free(side.owed)
    # Events of this round may still name it; see free_closed().
    link.next_closed = closed_first
    closed_first = link


def free_closed():
    """Frees the closed connections, when no event and no queue can name them any more."""
    global closed_first, resume_at_ms
    link: cython.pointer(Link) = closed_first
    following: cython.pointer(Link)
    if link != cython.NULL and paused:
        resume_at_ms = 0
    while link != cython.NULL:
        following = link.next_closed
        free(link)
        link = following
    closed_first = cython.NULL


def reset_on_close(fd):
    """Makes close() send a reset."""
    at_once: linger
    at_once.l_onoff = 1
    at_once.l_linger = 0
    setsockopt(fd, SOL_SOCKET, SO_LINGER, cython.address(at_once), cython.sizeof(linger))


# --- Pipes -------------------------------------------------------------------------------------


def take_pipe(side):
    """Gives ``side`` an empty pipe.  False if there is none: then bytes are copied."""
    global spare_count
    ends: cython.int[2]
    if spare_count > 0:
        spare_count -= 1
        side.pipe_in = spare_pipes[spare_count][0]
        side.pipe_out = spare_pipes[spare_count][1]
        return True
    if pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0:
        return False
    fcntl(ends[0], F_SETPIPE_SZ, PIPE_BYTES)
    side.pipe_in = ends[0]
    side.pipe_out = ends[1]
    return True


def give_pipe_back(side):
    """Keeps an empty pipe for the next who needs one, if there are few; else closes it."""
    global spare_count
    if side.piped == 0 and spare_count < SPARE_PIPES and not paused:
        spare_pipes[spare_count][0] = side.pipe_in
        spare_pipes[spare_count][1] = side.pipe_out
        spare_count += 1
    else:
        close(side.pipe_in)
        close(side.pipe_out)
    side.pipe_in = -1
    side.piped = 0


def free_spare_pipes():
    """Closes all pipes that nobody uses.  False if there is none."""
    global spare_count
    if spare_count == 0:
        return False
    while spare_count > 0:
        spare_count -= 1
        close(spare_pipes[spare_count][0])
        close(spare_pipes[spare_count][1])
    return True


# --- Messages ----------------------------------------------------------------------------------


def begin(text):
    """Begins the one line that is built at a time."""
    global line_length
    line_length = 0
    say(b"portproxy-relay: ")
    say(text)


def say(text):
    """Adds ``text``."""
    say_bytes(text, strlen(text))


def say_bytes(text, length):
    """Adds as much as fits before the newline."""
    global line_length
    fits: cython.size_t = length
    if fits > LINE_BYTES - 1 - line_length:
        fits = LINE_BYTES - 1 - line_length
    memcpy(line + line_length, text, fits)
    line_length += fits


def say_number(number):
    """Adds a decimal number that is not negative."""
    digits: cython.char[20]
    at: cython.int = 20
    while at == 20 or number > 0:
        at -= 1
        digits[at] = 48 + number % 10
        number = number // 10
    say_bytes(cython.address(digits[at]), 20 - at)


def say_address(text, port):
    """Adds an address and a port, with brackets around an IPv6 address."""
    has_colon: cython.bint = False
    at: cython.size_t = 0
    while text[at] != 0:
        has_colon = has_colon or text[at] == b":"
        at += 1
    say(b"[" if has_colon else b"")
    say(text)
    say(b"]:" if has_colon else b":")
    say_number(port if port > 0 else 0)


def print_line(fd):
    """Writes the line with its newline, in one call."""
    line[line_length] = b"\n"
    write(fd, line, line_length + 1)


def refuse():
    """Prints what is wrong with the command line and ends."""
    say(b"; see portproxy-relay -h")
    print_line(2)
    _exit(EXIT_USAGE)


def fail():
    """Reports the line to whoever started us, on the status pipe or on stderr, and ends."""
    if not has_status_pipe:
        print_line(2)
        _exit(EXIT_FAILED)
    # dockerd puts words of its own before the reason.
    memcpy(report, b"1\n", 2)
    memcpy(report + 2, line + PREFIX_BYTES, line_length - PREFIX_BYTES)
    write(STATUS_FD, report, line_length - PREFIX_BYTES + 2)
    _exit(EXIT_FAILED)


def complain(number):
    """Says on stderr that the container is out of reach: seldom, and never blocked."""
    global complain_at_ms
    where: pollfd
    if now_ms() < complain_at_ms:
        return
    complain_at_ms = now_ms() + COMPLAINT_INTERVAL_MS
    where.fd = 2
    where.events = POLLOUT
    where.revents = 0
    if poll(cython.address(where), 1, 0) != 1 or not where.revents & POLLOUT:
        return
    begin(b"cannot connect to ")
    say_address(container_text, container_port)
    say(b": ")
    say(reason(number))
    print_line(2)
