"""portproxy-relay: forwards ports of the host to ports of containers.

It takes docker-proxy's place: its options, its status pipe (fd 3), its socket from the engine
(fd 4), its exit codes; or it serves any number of mappings that a file names.  One epoll loop
serves everything.  Small data is copied through one buffer that all share, bulk data goes through a
pipe with splice(2), and a pipe is held only while bytes are in it.  Datagrams are received and sent
in batches.

It must never lose a byte of a connection, never read what it cannot hand on, never exit because of
one connection or a lack of file descriptors, and never touch a Python object: Cython compiles this
file to C without the Python runtime (types are in ``relay.pxd``).

Sockets of connections are watched edge-triggered, once, for everything.  ``readable`` and
``writable`` remember what the edges said, until a call answers EAGAIN.  Listeners and sockets for
datagrams are watched level-triggered.
"""

import cython
from cython.cimports.linux import (
    AF_INET,
    AF_INET6,
    AF_NETLINK,
    AF_UNIX,
    BPF_ABS,
    BPF_JEQ,
    BPF_JMP,
    BPF_K,
    BPF_LD,
    BPF_RET,
    BPF_W,
    CALL_POLL,
    CAP_NET_ADMIN,
    CLOCK_MONOTONIC,
    CLONE_NEWNET,
    CMSG_DATA,
    CMSG_FIRSTHDR,
    CMSG_LEN,
    CMSG_NXTHDR,
    CMSG_SPACE,
    CTA_IP_V4_DST,
    CTA_IP_V6_DST,
    CTA_PROTO_DST_PORT,
    CTA_PROTO_NUM,
    CTA_TUPLE_IP,
    CTA_TUPLE_ORIG,
    CTA_TUPLE_PROTO,
    CTA_ZONE,
    EACCES,
    EADDRINUSE,
    EADDRNOTAVAIL,
    EAGAIN,
    ECONNABORTED,
    ECONNREFUSED,
    EINPROGRESS,
    EINTR,
    EINVAL,
    EIO,
    EMFILE,
    EMSGSIZE,
    ENOBUFS,
    EPERM,
    EPOLL_CLOEXEC,
    EPOLL_CTL_ADD,
    EPOLL_CTL_DEL,
    EPOLLERR,
    EPOLLET,
    EPOLLEXCLUSIVE,
    EPOLLHUP,
    EPOLLIN,
    EPOLLOUT,
    EPOLLPRI,
    EPOLLRDHUP,
    EPROTONOSUPPORT,
    ETIMEDOUT,
    F_DUPFD_CLOEXEC,
    F_GETFL,
    F_SETFD,
    F_SETFL,
    F_SETPIPE_SZ,
    FD_CLOEXEC,
    INET6_ADDRSTRLEN,
    IP_PKTINFO,
    IP_TOS,
    IP_TRANSPARENT,
    IPCTNL_MSG_CT_DELETE,
    IPCTNL_MSG_CT_GET,
    IPCTNL_MSG_CT_NEW,
    IPPROTO_IP,
    IPPROTO_IPV6,
    IPPROTO_SCTP,
    IPPROTO_TCP,
    IPPROTO_UDP,
    IPV6_PKTINFO,
    IPV6_RECVPKTINFO,
    IPV6_TCLASS,
    IPV6_V6ONLY,
    MSG_CMSG_CLOEXEC,
    MSG_DONTWAIT,
    MSG_MORE,
    MSG_NOSIGNAL,
    MSG_PEEK,
    MSG_TRUNC,
    NETLINK_NETFILTER,
    NFNL_SUBSYS_CTNETLINK,
    NLA_TYPE_MASK,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    O_ACCMODE,
    O_APPEND,
    O_CLOEXEC,
    O_CREAT,
    O_NONBLOCK,
    O_RDONLY,
    O_RDWR,
    O_WRONLY,
    POLLOUT,
    PR_SET_KEEPCAPS,
    PR_SET_NO_NEW_PRIVS,
    PR_SET_SECCOMP,
    RLIMIT_NOFILE,
    S_ISFIFO,
    SCM_RIGHTS,
    SECCOMP_MODE_FILTER,
    SECCOMP_RET_ALLOW,
    SECCOMP_RET_ERRNO,
    SECCOMP_RET_KILL_PROCESS,
    SHUT_WR,
    SIG_BLOCK,
    SIG_IGN,
    SIG_UNBLOCK,
    SIGALRM,
    SIGHUP,
    SIGINT,
    SIGPIPE,
    SIGTERM,
    SO_ACCEPTCONN,
    SO_BINDTODEVICE,
    SO_DOMAIN,
    SO_ERROR,
    SO_KEEPALIVE,
    SO_LINGER,
    SO_MARK,
    SO_PROTOCOL,
    SO_RCVBUF,
    SO_RCVBUFFORCE,
    SO_RCVTIMEO,
    SO_REUSEADDR,
    SO_RXQ_OVFL,
    SO_TYPE,
    SOCK_CLOEXEC,
    SOCK_DGRAM,
    SOCK_NONBLOCK,
    SOCK_RAW,
    SOCK_SEQPACKET,
    SOCK_STREAM,
    SOL_SOCKET,
    SPLICE_F_NONBLOCK,
    TCP_CONGESTION,
    TCP_FASTOPEN,
    TCP_INFO,
    TCP_KEEPCNT,
    TCP_KEEPIDLE,
    TCP_KEEPINTVL,
    TCP_NODELAY,
    TCP_QUICKACK,
    TCP_REPAIR,
    TCP_USER_TIMEOUT,
    THIS_AUDIT,
    SYS_accept4,
    SYS_bind,
    SYS_brk,
    SYS_capset,
    SYS_clock_gettime,
    SYS_close,
    SYS_close_range,
    SYS_connect,
    SYS_epoll_ctl,
    SYS_epoll_pwait,
    SYS_exit,
    SYS_exit_group,
    SYS_fcntl,
    SYS_getpid,
    SYS_getsockname,
    SYS_getsockopt,
    SYS_listen,
    SYS_madvise,
    SYS_mmap,
    SYS_mprotect,
    SYS_mremap,
    SYS_munmap,
    SYS_pipe2,
    SYS_read,
    SYS_recvfrom,
    SYS_recvmmsg,
    SYS_recvmsg,
    SYS_restart_syscall,
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_sendmmsg,
    SYS_sendmsg,
    SYS_sendto,
    SYS_setgroups,
    SYS_setitimer,
    SYS_setresgid,
    SYS_setresuid,
    SYS_setsockopt,
    SYS_shutdown,
    SYS_socket,
    SYS_splice,
    SYS_write,
    _exit,
    accept4,
    alarm,
    bind,
    calloc,
    clock_gettime,
    close,
    cmsghdr,
    connect,
    dup2,
    environ,
    epoll_create1,
    epoll_ctl,
    epoll_event,
    epoll_pwait,
    errno,
    fcntl,
    fork,
    free,
    fstat_mode,
    getenv,
    getpid,
    getrlimit,
    getsockname,
    getsockopt,
    htons,
    in6_pktinfo,
    in_pktinfo,
    inet_ntop,
    inet_pton,
    iovec,
    linger,
    listen,
    malloc,
    memcmp,
    memcpy,
    memset,
    msghdr,
    nfgenmsg,
    nlattr,
    nlmsghdr,
    ntohs,
    open,
    pipe2,
    poll,
    pollfd,
    prctl,
    read,
    realloc,
    recv,
    recvmsg,
    rlimit,
    send,
    sendmsg,
    sendto,
    set_errno,
    setns,
    setrlimit,
    setsockopt,
    shutdown,
    sigaddset,
    sigemptyset,
    signal,
    sigprocmask,
    sigset_t,
    sock_filter,
    sock_fprog,
    sockaddr,
    sockaddr_in,
    sockaddr_in6,
    sockaddr_un,
    socket,
    socketpair,
    splice,
    stat_mode_t,
    strchr,
    strcmp,
    strerror,
    strlen,
    strncmp,
    strrchr,
    syscall,
    tcp_info,
    timespec,
    timeval,
    write,
)


def program_main(argc, argv):
    """What a port proxy does, from beginning to end."""
    set_defaults()
    read_options(argc, argv)
    hold_standard_fds()
    find_status_pipe()
    hold_signals()
    raise_fd_limit()
    if control_fd >= 0:
        begin_control()
        serve()
    if mappings_path != cython.NULL:
        read_mappings()
    else:
        add_docker_mapping()
    open_all()
    serve()
    return 0


# --- What is asked for -------------------------------------------------------------------------


def set_defaults():
    """What docker-proxy does, where it can be chosen at all."""
    global protocol, host_text, container_text, host_port, container_port, log_fd, stats_fd
    global reserve_fd, control_fd, broker_fd, passed_count, next_serial, filters_calls
    at: cython.int
    protocol = b"tcp"
    host_text = b"0.0.0.0"
    host_port = NOT_GIVEN
    container_port = NOT_GIVEN
    log_fd = -1
    stats_fd = -1
    reserve_fd = -1
    control_fd = -1
    broker_fd = -1
    commander.fd = -1
    passed_count = 0
    next_serial = 1
    filters_calls = True
    next_sockets[0] = -1
    next_sockets[1] = -1
    plain.wire = IPPROTO_TCP
    plain.resets_become_fins = True
    plain.nodelay = True
    plain.keepalive_s = KEEPALIVE_S
    plain.client_bits_v4 = 32
    plain.client_bits_v6 = 64
    plain.udp_timeout_ms = UDP_TIMEOUT_MS
    plain.udp_sessions = UDP_SESSIONS
    for at in range(PASSED):
        plain.given_fds[at] = -1
    plain.listen_netns = -1
    plain.backend_netns = -1


def read_options(argc, argv):
    """Reads docker-proxy's options as Go's flag package does: -x v, -x=v, --x v, --x=v."""
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
    if mappings_path != cython.NULL or control_fd >= 0:
        return
    if container_text == cython.NULL or container_port == NOT_GIVEN:
        begin(b"-container-ip and -container-port say where to forward to; both are needed")
        refuse()
    if host_port == NOT_GIVEN and not use_listen_fd:
        begin(
            b"-host-port says where to listen; give it, or -use-listen-fd with a listener on fd 4"
        )
        refuse()


def set_option(name, length, value):
    """One option that has a value; NULL when the command line ends before it."""
    global protocol, host_text, container_text, host_port, container_port, mappings_path
    global control_fd
    known: cython.bint = named(b"proto", name, length) or named(b"host-ip", name, length)
    known = known or named(b"host-port", name, length)
    known = known or named(b"container-ip", name, length)
    known = known or named(b"container-port", name, length)
    known = known or named(b"control", name, length) or named(b"user", name, length)
    if not known and not named(b"mappings", name, length):
        begin(b"flag provided but not defined: -")
        say_bytes(name, length)
        refuse()
    if value == cython.NULL:
        begin(b"flag needs an argument: -")
        say_bytes(name, length)
        refuse()
    if named(b"proto", name, length):
        protocol = value
    elif named(b"mappings", name, length):
        mappings_path = value
    elif named(b"control", name, length):
        control_fd = port_in(name, length, value)
    elif named(b"user", name, length):
        if not read_user(value):
            begin(b"-user is UID:GID, two numbers")
            refuse()
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
    global use_listen_fd, keeps_net_admin, filters_calls
    yes: cython.int = truth(value)
    if yes < 0:
        begin(b'invalid boolean value "')
        say(value)
        say(b'" for -')
        say_bytes(name, length)
        refuse()
    if named(b"use-listen-fd", name, length):
        use_listen_fd = yes
    elif named(b"keep-net-admin", name, length):
        keeps_net_admin = yes
    elif named(b"no-seccomp", name, length):
        filters_calls = not yes
    elif yes and (named(b"h", name, length) or named(b"help", name, length)):
        print_help()
    elif yes:
        print_version()


def truth(text):
    """1 or 0 for what Go's flag package takes for true or false; -1 for anything else."""
    yes: cython.bint = strcmp(text, b"true") == 0 or strcmp(text, b"1") == 0
    yes = yes or strcmp(text, b"t") == 0 or strcmp(text, b"T") == 0
    yes = yes or strcmp(text, b"TRUE") == 0 or strcmp(text, b"True") == 0
    if yes:
        return 1
    no: cython.bint = strcmp(text, b"false") == 0 or strcmp(text, b"0") == 0
    no = no or strcmp(text, b"f") == 0 or strcmp(text, b"F") == 0
    no = no or strcmp(text, b"FALSE") == 0 or strcmp(text, b"False") == 0
    return 0 if no else -1


def named(wanted, name, length):
    """Whether the first ``length`` bytes of ``name`` are ``wanted``."""
    return strlen(wanted) == length and strncmp(wanted, name, length) == 0


def is_flag(name, length):
    """Whether the option takes no separate value."""
    found: cython.bint = named(b"use-listen-fd", name, length) or named(b"v", name, length)
    found = found or named(b"version", name, length) or named(b"h", name, length)
    found = found or named(b"keep-net-admin", name, length) or named(b"no-seccomp", name, length)
    return found or named(b"help", name, length)


def port_in(name, length, value):
    """The port number in ``value``."""
    at: cython.size_t = 0
    port: cython.long = whole_number(value, cython.address(at))
    if at == 0 or value[at] != 0 or port > LAST_PORT:
        begin(b'invalid value "')
        say(value)
        say(b'" for flag -')
        say_bytes(name, length)
        say(b": a port is a number from 0 to 65535")
        refuse()
    return cython.cast(cython.int, port)


def whole_number(text, at):
    """The digits of ``text`` from ``at`` on, which moves behind them; no more than fit."""
    number: cython.long = 0
    while b"0" <= text[at[0]] <= b"9" and number < 1000000000:
        number = number * 10 + (text[at[0]] - 48)
        at[0] += 1
    return number


def print_help():
    """Prints the options and ends."""
    text: cython.p_const_char = (
        b"Usage: portproxy-relay [OPTIONS]\n"
        b"Forwards a port; takes the place of docker-proxy.\n"
        b"  -proto NAME           tcp, udp or sctp (tcp)\n"
        b"  -host-ip IP           address to listen on (0.0.0.0)\n"
        b"  -host-port PORT       port to listen on\n"
        b"  -container-ip IP      address to forward to\n"
        b"  -container-port PORT  port to forward to\n"
        b"  -use-listen-fd        take the listening socket from fd 4\n"
        b"  -mappings FILE        forward every line: PROTO IP PORT[-PORT] IP PORT[-PORT] "
        b"[NAME=VALUE ...]\n"
        b"  -control FD           do what portproxy says on this socket\n"
        b"  -user UID:GID         ... as this user, once it has what it needs for that\n"
        b"  -keep-net-admin       ... with CAP_NET_ADMIN, for transparent=, mark= and drop\n"
        b"  -no-seccomp           ... without the filter of system calls\n"
        b"  -v, -version          print the version\n"
        b"fd 3, if it is a pipe, gets 0 and a newline once the port is open, or 1 and why not.\n"
        b"PORTPROXY_NAME=VALUE in the environment or /etc/portproxy/docker.toml set the rest.\n"
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


# --- Mappings and their settings ---------------------------------------------------------------


def add_docker_mapping():
    """The one mapping of the command line, with what the environment or the file says of it."""
    known: cython.bint = strcmp(protocol, b"udp") == 0 or strcmp(protocol, b"sctp") == 0
    if not known and strcmp(protocol, b"tcp") != 0:
        begin(b"unsupported protocol ")
        say(protocol)
        fail()
    mapping: cython.pointer(Mapping) = new_mapping(protocol)
    if mapping == cython.NULL:
        begin(b"no memory for a mapping")
        fail()
    mapping.host_text = host_text
    mapping.ports = 1
    mapping.within_host = True
    read_address(host_text, host_port, cython.address(mapping.host))
    read_address(container_text, container_port, cython.address(mapping.backends[0].address))
    mapping.backend_count = 1
    if use_listen_fd:
        mapping.given = True
        mapping.given_fds[0] = LISTENER_FD
    if not take_environment(mapping):
        take_settings_file(mapping)
    adopt_for_all(mapping)


def adopt_for_all(mapping):
    """Has the whole process follow what one mapping, which is read to its end, says of it."""
    global drain_ms, log_text, stats_path
    if mapping.drain_ms > 0:
        drain_ms = mapping.drain_ms
    if mapping.log_text != cython.NULL:
        log_text = mapping.log_text
    if mapping.stats_path != cython.NULL:
        stats_path = mapping.stats_path


def new_mapping(name):
    """One more mapping with the default settings, first in the list; NULL without memory."""
    global mappings, next_serial
    made: cython.pointer(Mapping) = cython.cast(
        cython.pointer(Mapping), calloc(1, cython.sizeof(Mapping))
    )
    if made == cython.NULL:
        return cython.NULL
    made[0] = plain
    made.serial = next_serial
    next_serial += 1
    if strcmp(name, b"udp") == 0:
        made.wire = IPPROTO_UDP
    elif strcmp(name, b"sctp") == 0:
        made.wire = IPPROTO_SCTP
    made.next = mappings
    mappings = made
    return made


def take_environment(mapping):
    """Applies PORTPROXY_…; False if there is none, so that the file counts."""
    found: cython.bint = False
    at: cython.size_t = 0
    name: cython.p_char
    length: cython.size_t
    wrong: cython.p_const_char
    while environ != cython.NULL and environ[at] != cython.NULL:
        name = environ[at]
        at += 1
        if strncmp(name, b"PORTPROXY_", 10) != 0:
            continue
        name += 10
        length = 0
        while name[length] != 0 and name[length] != b"=":
            length += 1
        if name[length] == 0 or named(b"CONFIG", name, length):
            continue
        found = True
        wrong = set_setting(mapping, name, length, name + length + 1)
        if wrong != cython.NULL:
            begin(b"PORTPROXY_")
            say_bytes(name, length)
            say(b" is ignored: ")
            say(wrong)
            log_line()
    return found


def read_whole(path):
    """The text of a file, with a NUL behind it.  NULL if there is none or it is too large."""
    fd: cython.int = open(path, O_RDONLY | O_CLOEXEC)
    if fd < 0:
        return cython.NULL
    text: cython.p_char = cython.NULL
    room: cython.size_t = 0
    have: cython.size_t = 0
    done: cython.ssize_t = 1
    larger: cython.p_char
    while done != 0:
        if room - have < 2:
            room = room * 2 if room > 0 else 8192
            larger = cython.cast(cython.p_char, realloc(text, room))
            if larger == cython.NULL or room > SETTINGS_BYTES:
                free(larger if larger != cython.NULL else text)
                close(fd)
                return cython.NULL
            text = larger
        done = read(fd, text + have, room - have - 1)
        if done < 0 and errno != EINTR:
            free(text)
            close(fd)
            return cython.NULL
        if done > 0:
            have += done
    close(fd)
    text[have] = 0
    return text


def take_settings_file(mapping):
    """Applies the file of settings; one that is wrong changes nothing but is complained about."""
    path: cython.p_const_char = getenv(b"PORTPROXY_CONFIG")
    if path == cython.NULL or path[0] == 0:
        path = b"/etc/portproxy/docker.toml"
    text: cython.p_char = read_whole(path)
    if text == cython.NULL:
        return
    draft: Mapping = mapping[0]
    number: cython.int = 0
    applies: cython.bint = True
    has_settings: cython.bint = False
    wrong: cython.p_const_char = cython.NULL
    here: cython.p_char = text
    following: cython.p_char
    while here != cython.NULL and wrong == cython.NULL:
        number += 1
        following = cut_at(here, b"\n")
        here = skip_blanks(here)
        if here[0] == b"[":
            applies = True
            has_settings = False
            if strncmp(here, b"[[mapping]]", 11) != 0 and strncmp(here, b"[defaults]", 10) != 0:
                wrong = b"the tables are [defaults] and [[mapping]]"
        elif here[0] != 0 and here[0] != b"#":
            wrong = take_toml_line(
                here, cython.address(draft), cython.address(applies), cython.address(has_settings)
            )
        here = following
    if wrong == cython.NULL:
        mapping[0] = draft
        return
    begin(path)
    say(b":")
    say_number(number)
    say(b": ")
    say(wrong)
    say(b"; the whole file is ignored")
    log_line()


def take_toml_line(text, draft, applies, has_settings):
    """``name = value``: a condition of this table, or a setting if all conditions hold."""
    value: cython.p_char = cut_at(text, b"=")
    if value == cython.NULL:
        return b"expected NAME = VALUE"
    length: cython.size_t = 0
    while text[length] != 0 and text[length] != b" " and text[length] != b"\t":
        length += 1
    squeeze(value)
    condition: cython.int = holds(text, length, value)
    if condition >= 0:
        if has_settings[0]:
            return b"proto, host_ip, host_port, container_ip and container_port come first"
        if condition == 0:
            applies[0] = False
        return cython.NULL
    has_settings[0] = True
    # What does not apply is read all the same, so that its mistakes are found.
    unused: Mapping = draft[0]
    if applies[0]:
        return set_setting(draft, text, length, value)
    return set_setting(cython.address(unused), text, length, value)


def holds(name, length, value):
    """1 or 0: whether a condition fits this proxy; -1 if the name is that of a setting."""
    number: cython.long
    at: cython.size_t = 0
    if is_setting(b"proto", name, length):
        return strcmp(value, protocol) == 0
    if is_setting(b"host_ip", name, length):
        return strcmp(value, host_text) == 0
    if is_setting(b"container_ip", name, length):
        return strcmp(value, container_text) == 0
    number = whole_number(value, cython.address(at))
    if is_setting(b"host_port", name, length):
        return number == host_port
    if is_setting(b"container_port", name, length):
        return number == container_port
    return -1


def cut_at(text, byte):
    """Ends ``text`` at the first ``byte`` and gives what follows; NULL if it is not there."""
    at: cython.p_char = cython.cast(cython.p_char, strchr(text, byte))
    if at == cython.NULL:
        return cython.NULL
    at[0] = 0
    return at + 1


def skip_blanks(text):
    """``text`` behind its leading blanks."""
    here: cython.p_char = text
    while here[0] == b" " or here[0] == b"\t" or here[0] == b"\r":
        here += 1
    return here


def squeeze(text):
    """Takes blanks, quotes, brackets and the comment out of a TOML value, in place."""
    source: cython.p_char = text
    target: cython.p_char = text
    quoted: cython.bint = False
    while source[0] != 0 and (quoted or source[0] != b"#"):
        if source[0] == b'"' or source[0] == b"'":
            quoted = not quoted
        elif not (
            source[0] == b" "
            or source[0] == b"\t"
            or source[0] == b"\r"
            or source[0] == b"["
            or source[0] == b"]"
        ):
            target[0] = source[0]
            target += 1
        source += 1
    target[0] = 0


def is_setting(wanted, name, length):
    """Whether ``name`` is ``wanted``, in any case and with - for _."""
    at: cython.size_t
    byte: cython.char
    if strlen(wanted) != length:
        return False
    for at in range(length):
        byte = name[at]
        if b"A" <= byte <= b"Z":
            byte = byte + 32
        if byte == b"-":
            byte = 95
        if byte != wanted[at]:
            return False
    return True


def set_setting(mapping, name, length, value):
    """Sets one of a mapping's settings.  NULL, or what is wrong."""
    target: cython.pointer(cython.long) = duration_named(mapping, name, length)
    number: cython.long
    if target != cython.NULL:
        number = duration(value)
        if number < 0:
            return b"expected a time such as 500ms, 10s, 5m or 1h"
        target[0] = number
        return cython.NULL
    target = count_named(mapping, name, length)
    if target != cython.NULL:
        number = amount(value)
        if number < 0:
            return b"expected a number, or one with k, M or G"
        target[0] = number
        return cython.NULL
    flag: cython.pointer(cython.bint) = flag_named(mapping, name, length)
    if flag != cython.NULL:
        if truth(value) < 0:
            return b"expected true or false"
        flag[0] = truth(value)
        return cython.NULL
    return set_word(mapping, name, length, value)


def duration_named(mapping, name, length):
    """Where the setting ``name`` is kept, if it is a time."""
    if is_setting(b"connect_timeout", name, length):
        return cython.address(mapping.connect_timeout_ms)
    if is_setting(b"connect_retry", name, length):
        return cython.address(mapping.connect_retry_ms)
    if is_setting(b"half_close_timeout", name, length):
        return cython.address(mapping.half_close_ms)
    if is_setting(b"idle_timeout", name, length):
        return cython.address(mapping.idle_ms)
    if is_setting(b"user_timeout", name, length):
        return cython.address(mapping.user_timeout_ms)
    if is_setting(b"udp_timeout", name, length):
        return cython.address(mapping.udp_timeout_ms)
    if is_setting(b"udp_oneshot_timeout", name, length):
        return cython.address(mapping.udp_oneshot_ms)
    if is_setting(b"drain", name, length):
        return cython.address(mapping.drain_ms)
    return cython.NULL


def count_named(mapping, name, length):
    """Where the setting ``name`` is kept, if it is a number."""
    if is_setting(b"keepalive", name, length):
        return cython.address(mapping.keepalive_s)
    if is_setting(b"mark", name, length):
        return cython.address(mapping.mark)
    if is_setting(b"tos", name, length):
        return cython.address(mapping.tos)
    if is_setting(b"max_connections", name, length):
        return cython.address(mapping.most_connections)
    if is_setting(b"max_per_client", name, length):
        return cython.address(mapping.most_per_client)
    if is_setting(b"client_prefix_v4", name, length):
        return cython.address(mapping.client_bits_v4)
    if is_setting(b"client_prefix_v6", name, length):
        return cython.address(mapping.client_bits_v6)
    if is_setting(b"connections_per_second", name, length):
        return cython.address(mapping.connections_per_s)
    if is_setting(b"bytes_per_second", name, length):
        return cython.address(mapping.bytes_per_s)
    if is_setting(b"bytes_per_second_each", name, length):
        return cython.address(mapping.bytes_per_s_each)
    if is_setting(b"rcvbuf", name, length):
        return cython.address(mapping.receive_bytes)
    if is_setting(b"udp_sessions", name, length):
        return cython.address(mapping.udp_sessions)
    return cython.NULL


def flag_named(mapping, name, length):
    """Where the setting ``name`` is kept, if it is true or false."""
    if is_setting(b"nodelay", name, length):
        return cython.address(mapping.nodelay)
    if is_setting(b"fast_open", name, length):
        return cython.address(mapping.fast_open)
    if is_setting(b"transparent", name, length):
        return cython.address(mapping.transparent)
    if is_setting(b"flush_conntrack", name, length):
        return cython.address(mapping.flushes_flows)
    return cython.NULL


def set_word(mapping, name, length, value):
    """Sets a setting that is a word or a list.  NULL, or what is wrong."""
    if is_setting(b"log", name, length):
        mapping.log_text = value
        return cython.NULL
    if is_setting(b"stats", name, length):
        mapping.stats_path = value
        return cython.NULL
    if is_setting(b"reset", name, length):
        return choose(cython.address(mapping.resets_become_fins), value, b"propagate", b"fin")
    if is_setting(b"refuse", name, length):
        return choose(cython.address(mapping.refusal_is_reset), value, b"fin", b"rst")
    if is_setting(b"deny_with", name, length):
        return choose(cython.address(mapping.denial_is_silent), value, b"rst", b"drop")
    if is_setting(b"proxy_out", name, length):
        if strcmp(value, b"off") == 0:
            mapping.header_out = 0
        elif strcmp(value, b"v1") == 0:
            mapping.header_out = 1
        elif strcmp(value, b"v2") == 0:
            mapping.header_out = 2
        else:
            return b"expected off, v1 or v2"
        return cython.NULL
    if is_setting(b"balance", name, length):
        if strcmp(value, b"first") == 0:
            mapping.balance = FIRST
        elif strcmp(value, b"round-robin") == 0:
            mapping.balance = ROUND_ROBIN
        elif strcmp(value, b"least") == 0:
            mapping.balance = LEAST
        elif strcmp(value, b"source") == 0:
            mapping.balance = SOURCE
        else:
            return b"expected first, round-robin, least or source"
        return cython.NULL
    if is_setting(b"interface", name, length):
        if strlen(value) >= cython.sizeof(mapping.interface):
            return b"no interface has so long a name"
        memcpy(mapping.interface, value, strlen(value) + 1)
        return cython.NULL
    if is_setting(b"congestion", name, length):
        if strlen(value) >= cython.sizeof(mapping.congestion):
            return b"no congestion control has so long a name"
        memcpy(mapping.congestion, value, strlen(value) + 1)
        return cython.NULL
    if is_setting(b"source", name, length):
        mapping.has_source = read_address(value, 0, cython.address(mapping.source))
        return unless(mapping.has_source, b"expected an IP address")
    if is_setting(b"access", name, length):
        mapping.access = read_rules(value)
        return unless(mapping.access != cython.NULL, b"expected [!]ADDRESS[/BITS],...")
    if is_setting(b"proxy_in", name, length):
        mapping.trusted = read_rules(value)
        return unless(mapping.trusted != cython.NULL, b"expected ADDRESS[/BITS],...")
    if is_setting(b"backends", name, length):
        return read_backends(mapping, value)
    return b"no setting has this name"


def unless(good, text):
    """NULL if all is well, else ``text``."""
    if good:
        return cython.NULL
    return text


def choose(flag, value, no, yes):
    """Sets a flag that is spelled with two words.  NULL, or what is wrong."""
    if strcmp(value, yes) == 0:
        flag[0] = True
        return cython.NULL
    if strcmp(value, no) == 0:
        flag[0] = False
        return cython.NULL
    return b"the value is not one of the two that there are"


def duration(text):
    """Milliseconds in ``text``, whose unit is seconds if it has none; -1 if it is no time."""
    at: cython.size_t = 0
    number: cython.long = whole_number(text, cython.address(at))
    if at == 0 or number > 1000000000:
        return -1
    if strcmp(text + at, b"ms") == 0:
        return number
    if text[at] == 0 or strcmp(text + at, b"s") == 0:
        return number * 1000
    if strcmp(text + at, b"m") == 0:
        return number * 60000
    return number * 3600000 if strcmp(text + at, b"h") == 0 else -1


def amount(text):
    """The number in ``text``, with a power of 1024 behind it if it has a letter; -1 if none."""
    at: cython.size_t = 0
    number: cython.long = whole_number(text, cython.address(at))
    if at == 0 or number > 1000000000:
        return -1
    if text[at] == 0:
        return number
    if text[at + 1] != 0:
        return -1
    if text[at] == b"k" or text[at] == b"K":
        return number << 10
    if text[at] == b"M":
        return number << 20
    return number << 30 if text[at] == b"G" else -1


def next_word(text, at, word):
    """Copies the next word of a list with commas.  False at the end, or if the word is too long."""
    n: cython.size_t = 0
    while text[at[0]] == b",":
        at[0] += 1
    while text[at[0]] != 0 and text[at[0]] != b",":
        if n == WORD_BYTES - 1:
            return False
        word[n] = text[at[0]]
        n += 1
        at[0] += 1
    word[n] = 0
    return n > 0


def read_rules(text):
    """Reads ``[!]ADDRESS[/BITS],…``; ``all`` stands for every address.  NULL if it is wrong."""
    rules: cython.pointer(Rules) = cython.cast(
        cython.pointer(Rules), calloc(1, cython.sizeof(Rules))
    )
    word: cython.char[WORD_BYTES]
    at: cython.size_t = 0
    while rules != cython.NULL and next_word(text, cython.address(at), word):
        if rules.count == RULES or not read_rule(word, cython.address(rules.rules[rules.count])):
            free(rules)
            return cython.NULL
        rules.allows = rules.allows or not rules.rules[rules.count].denies
        rules.count += 1
    if rules != cython.NULL and (rules.count == 0 or text[at] != 0):
        free(rules)
        return cython.NULL
    return rules


def read_rule(word, rule):
    """Reads one rule.  False if it is wrong."""
    text: cython.p_char = word
    address: sockaddr_in6
    at: cython.size_t = 0
    width: cython.long
    bits: cython.long
    if text[0] == b"!":
        rule.denies = True
        text += 1
    if strcmp(text, b"all") == 0:
        rule.bits = 0
        return True
    tail: cython.p_char = cut_at(text, b"/")
    if not read_address(text, 0, cython.address(address)):
        return False
    width = 32 if address.sin6_family == AF_INET else 128
    bits = width
    if tail != cython.NULL:
        bits = whole_number(tail, cython.address(at))
        if at == 0 or tail[at] != 0 or bits > width:
            return False
    flatten(cython.address(address), rule.address)
    rule.bits = cython.cast(cython.uchar, bits + 128 - width)
    return True


def read_backends(mapping, text):
    """Adds ``IP:PORT,…`` to the places to forward to.  NULL, or what is wrong."""
    word: cython.char[WORD_BYTES]
    at: cython.size_t = 0
    digit: cython.size_t
    port: cython.long
    colon: cython.p_char
    host: cython.p_char
    while next_word(text, cython.address(at), word):
        host = word
        if (host[0] == b"/" or host[0] == b"@") and mapping.backend_count < BACKENDS:
            if mapping.wire != IPPROTO_TCP:
                return b"only tcp leads to a Unix socket"
            if not read_backend(host, 0, cython.address(mapping.backends[mapping.backend_count])):
                return b"the path of a Unix socket is too long"
            mapping.backend_count += 1
            continue
        colon = cython.cast(cython.p_char, strrchr(word, b":"))
        if colon == cython.NULL or mapping.backend_count == BACKENDS:
            return b"expected up to 8 of IP:PORT"
        colon[0] = 0
        if host[0] == b"[" and colon > host + 1 and (colon - 1)[0] == b"]":
            host += 1
            (colon - 1)[0] = 0
        digit = 0
        port = whole_number(colon + 1, cython.address(digit))
        if digit == 0 or colon[1 + digit] != 0 or port > LAST_PORT:
            return b"expected up to 8 of IP:PORT"
        if not read_address(
            host,
            cython.cast(cython.int, port),
            cython.address(mapping.backends[mapping.backend_count].address),
        ):
            return b"expected up to 8 of IP:PORT"
        mapping.backend_count += 1
    return cython.NULL


def read_backend(text, port, backend):
    """Reads an IP address, the path of a Unix socket or, behind @, its abstract name."""
    n: cython.size_t = strlen(text)
    if text[0] != b"/" and text[0] != b"@":
        return read_address(text, port, cython.address(backend.address))
    if n >= cython.sizeof(backend.path.sun_path):
        return False
    backend.path = cython.cast(cython.pointer(sockaddr_un), calloc(1, cython.sizeof(sockaddr_un)))
    if backend.path == cython.NULL:
        return False
    backend.address.sin6_family = AF_UNIX
    backend.path.sun_family = AF_UNIX
    memcpy(backend.path.sun_path, text, n)
    backend.path_size = 2 + n + 1
    if text[0] == b"@":  # an abstract name begins with NUL and has none at its end
        backend.path.sun_path[0] = 0
        backend.path_size -= 1
    return True


def read_mappings():
    """Reads -mappings: one mapping a line, all served by this process."""
    text: cython.p_char = read_whole(mappings_path)
    wrong: cython.p_const_char
    following: cython.p_char
    number: cython.int = 0
    take_environment(cython.address(plain))
    if text == cython.NULL:
        begin(b"cannot read ")
        say(mappings_path)
        fail()
    while text != cython.NULL:
        number += 1
        following = cut_at(text, b"\n")
        text = skip_blanks(text)
        if text[0] != 0 and text[0] != b"#":
            wrong = read_mapping(text)
            if wrong != cython.NULL:
                begin(mappings_path)
                say(b":")
                say_number(number)
                say(b": ")
                say(wrong)
                fail()
            adopt_for_all(mappings)
        text = following
    if mappings == cython.NULL:
        begin(mappings_path)
        say(b" has no mapping")
        fail()


def read_mapping(text):
    """Reads ``PROTO IP PORT[-PORT] IP PORT[-PORT] [NAME=VALUE …]``.  NULL, or what is wrong."""
    words: cython.p_char[5]
    rest: cython.p_char = text
    at: cython.int
    for at in range(5):
        if rest == cython.NULL or rest[0] == 0:
            return b"expected PROTO IP PORT[-PORT] IP PORT[-PORT] [NAME=VALUE ...]"
        words[at] = rest
        rest = cut_at(rest, b" ")
        if rest != cython.NULL:
            rest = skip_blanks(rest)
    if strcmp(words[0], b"tcp") != 0 and strcmp(words[0], b"udp") != 0:
        if strcmp(words[0], b"sctp") != 0:
            return b"the protocols are tcp, udp and sctp"
    mapping: cython.pointer(Mapping) = new_mapping(words[0])
    if mapping == cython.NULL:
        return b"no memory for a mapping"
    first: cython.int
    last: cython.int
    first = 0
    last = 0
    if not read_ports(words[2], cython.address(first), cython.address(last)):
        return b"a port is a number from 0 to 65535, or two of them with - between"
    mapping.ports = last - first + 1
    mapping.host_text = words[1]
    if not read_address(words[1], first, cython.address(mapping.host)):
        return b"the second word is the IP address to listen on"
    if not read_ports(words[4], cython.address(first), cython.address(last)):
        return b"a port is a number from 0 to 65535, or two of them with - between"
    if last != first and last - first + 1 != mapping.ports:
        return b"the ranges differ in size"
    mapping.spread = last != first
    if (words[3][0] == b"/" or words[3][0] == b"@") and mapping.wire != IPPROTO_TCP:
        return b"only tcp leads to a Unix socket"
    if not read_backend(words[3], first, cython.address(mapping.backends[0])):
        return b"the fourth word is the IP address, or the Unix socket, to forward to"
    mapping.backend_count = 1
    return take_words(mapping, rest)


def take_words(mapping, text):
    """Applies the settings at the end of a mapping's line.  NULL, or what is wrong."""
    word: cython.p_char = text
    rest: cython.p_char
    value: cython.p_char
    wrong: cython.p_const_char
    number: cython.long
    while word != cython.NULL and word[0] != 0 and word[0] != b"\r":
        rest = cut_at(word, b" ")
        value = cut_at(word, b"=")
        if value == cython.NULL:
            return b"expected NAME=VALUE"
        if strcmp(word, b"fd") == 0:
            number = amount(value)
            if number < 0 or mapping.ports != 1:
                return b"fd= names one inherited socket, for one port"
            if mapping.given:
                return b"fd= is there twice"
            mapping.given = True
            mapping.given_fds[0] = cython.cast(cython.int, number)
            if control_fd >= 0:
                mapping.given_fds[0] = take_passed(number)
        elif control_fd >= 0 and is_of_control(word):
            wrong = set_of_control(mapping, word, value)
            if wrong != cython.NULL:
                return wrong
        else:
            wrong = set_setting(mapping, word, strlen(word), value)
            if wrong != cython.NULL:
                return wrong
        word = skip_blanks(rest) if rest != cython.NULL else cython.NULL
    return cython.NULL


def read_ports(text, first, last):
    """Reads ``PORT`` or ``PORT-PORT``.  False if it is neither."""
    at: cython.size_t = 0
    begin_at: cython.size_t
    low: cython.long = whole_number(text, cython.address(at))
    high: cython.long = low
    if at == 0 or low > LAST_PORT:
        return False
    if text[at] == b"-":
        at += 1
        begin_at = at
        high = whole_number(text, cython.address(at))
        if at == begin_at:
            return False
    if text[at] != 0 or high > LAST_PORT or high < low:
        return False
    first[0] = cython.cast(cython.int, low)
    last[0] = cython.cast(cython.int, high)
    return True


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
    signal(SIGALRM, leave)
    sigemptyset(cython.address(wanted))
    sigaddset(cython.address(wanted), SIGINT)
    sigaddset(cython.address(wanted), SIGTERM)
    sigaddset(cython.address(wanted), SIGALRM)
    sigprocmask(SIG_UNBLOCK, cython.address(wanted), cython.NULL)


def leave(number):
    """Ends at once: the engine waits for us; the kernel closes what is open."""
    global told_to_end
    if told_to_end or (drain_ms <= 0 and not forgets_at_end):
        _exit(0)
    told_to_end = True


def raise_fd_limit():
    """Raises the soft limit of open files to the hard one."""
    limit: rlimit
    if getrlimit(RLIMIT_NOFILE, cython.address(limit)) == 0:
        limit.rlim_cur = limit.rlim_max
        setrlimit(RLIMIT_NOFILE, cython.address(limit))


# --- Addresses ---------------------------------------------------------------------------------


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
    unmap(address)
    return True


def unmap(address):
    """Turns a mapped IPv4 address into a plain one."""
    four: cython.pointer(sockaddr_in) = cython.cast(cython.pointer(sockaddr_in), address)
    number: cython.uchar[4]
    at: cython.int
    if address.sin6_family != AF_INET6:
        return
    for at in range(12):
        if address.sin6_addr.s6_addr[at] != (0 if at < 10 else 255):
            return
    memcpy(number, cython.address(address.sin6_addr.s6_addr[12]), 4)
    memset(cython.address(address.sin6_addr), 0, 16)
    four.sin_family = AF_INET
    memcpy(cython.address(four.sin_addr), number, 4)


def address_bytes(address):
    """The size of the address that ``address`` holds."""
    if address.sin6_family == AF_INET:
        return cython.sizeof(sockaddr_in)
    return cython.sizeof(sockaddr_in6)


def flatten(address, target):
    """The sixteen bytes that rules and counters compare: an IPv4 address becomes a mapped one."""
    four: cython.pointer(sockaddr_in) = cython.cast(cython.pointer(sockaddr_in), address)
    if address.sin6_family == AF_INET:
        memset(target, 0, 10)
        target[10] = 255
        target[11] = 255
        memcpy(target + 12, cython.address(four.sin_addr), 4)
    else:
        memcpy(target, cython.address(address.sin6_addr), 16)


def is_within(address, network, bits):
    """Whether the first ``bits`` of two addresses are the same."""
    whole: cython.int = bits // 8
    if memcmp(address, network, whole) != 0:
        return False
    rest: cython.int = bits - whole * 8
    return rest == 0 or (address[whole] >> (8 - rest)) == (network[whole] >> (8 - rest))


def admits(rules, peer):
    """Whether the first rule that fits ``peer`` allows it, or none fits and none allows any."""
    address: cython.uchar[16]
    at: cython.int
    flatten(peer, address)
    for at in range(rules.count):
        if is_within(address, rules.rules[at].address, rules.rules[at].bits):
            return not rules.rules[at].denies
    return not rules.allows


def is_any(address):
    """Whether it stands for all addresses of its family."""
    four: cython.pointer(sockaddr_in) = cython.cast(cython.pointer(sockaddr_in), address)
    at: cython.int
    if address.sin6_family == AF_INET:
        return four.sin_addr.s_addr == 0
    for at in range(16):
        if address.sin6_addr.s6_addr[at] != 0:
            return False
    return True


def is_loopback(address):
    """Whether it is one of the host's own that others cannot reach."""
    four: cython.pointer(sockaddr_in) = cython.cast(cython.pointer(sockaddr_in), address)
    at: cython.int
    if address.sin6_family == AF_INET:
        return cython.cast(cython.p_uchar, cython.address(four.sin_addr))[0] == 127
    for at in range(15):
        if address.sin6_addr.s6_addr[at] != 0:
            return False
    return address.sin6_addr.s6_addr[15] == 1


# --- Listeners ---------------------------------------------------------------------------------


def set_number(fd, level, name, value):
    """Sets a socket option; the relay works without each of them."""
    setsockopt(fd, level, name, cython.address(value), cython.sizeof(cython.int))


def tune(fd, mapping):
    """Delay and keepalive as docker-proxy has them.  Accepted sockets inherit a listener's."""
    seconds: cython.int = cython.cast(cython.int, mapping.keepalive_s)
    if mapping.wire == IPPROTO_SCTP:
        tune_sctp(fd)
        return
    if mapping.nodelay:
        set_number(fd, IPPROTO_TCP, TCP_NODELAY, 1)
    if seconds > 0:
        set_number(fd, SOL_SOCKET, SO_KEEPALIVE, 1)
        set_number(fd, IPPROTO_TCP, TCP_KEEPIDLE, seconds)
        set_number(fd, IPPROTO_TCP, TCP_KEEPINTVL, seconds)
        set_number(fd, IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_PROBES)
    if mapping.user_timeout_ms > 0:
        set_number(
            fd, IPPROTO_TCP, TCP_USER_TIMEOUT, cython.cast(cython.int, mapping.user_timeout_ms)
        )


def choose_congestion(fd, mapping):
    """Gives a socket the congestion control of its mapping; without one it has the kernel's."""
    if mapping.congestion[0] != 0:
        setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, mapping.congestion, strlen(mapping.congestion))


def avoid_pacing(listener):
    """Has what stays within the host sent without pacing, if that is the kernel's default.

    BBR sets a timer for every few segments, which costs more than all else of a bulk transfer, and
    there is no queue between host and container that it could spare.  A listener on a loopback
    address has such clients too; those of others may be far away.
    """
    mapping: cython.pointer(Mapping) = listener.mapping
    name: cython.char[CONGESTION_BYTES]
    size: cython.uint = CONGESTION_BYTES
    if mapping.congestion[0] != 0 or (
        getsockopt(listener.fd, IPPROTO_TCP, TCP_CONGESTION, name, cython.address(size)) < 0
    ):
        return
    if strncmp(name, b"bbr", 3) == 0:
        memcpy(mapping.congestion, b"reno", 5)  # every kernel has it
    if is_loopback(cython.address(mapping.host)):
        choose_congestion(listener.fd, mapping)


def tune_sctp(fd):
    """As many streams as there can be, and with each message what it was sent with."""
    streams: cython.ushort[4]
    wanted: cython.uchar[16]
    streams[0] = SCTP_STREAMS
    streams[1] = SCTP_STREAMS
    streams[2] = 0
    streams[3] = 0
    setsockopt(fd, IPPROTO_SCTP, SCTP_INITMSG, streams, 8)
    set_number(fd, IPPROTO_SCTP, SCTP_NODELAY, 1)
    memset(wanted, 0, 16)
    wanted[0] = 1
    # Kernels know different numbers of events; the first, which is meant, is in all of them.
    setsockopt(fd, IPPROTO_SCTP, SCTP_EVENTS, wanted, 8)


def kind_of(mapping):
    """The type of a mapping's sockets."""
    return SOCK_DGRAM if mapping.wire == IPPROTO_UDP else SOCK_STREAM


def new_socket(mapping, family):
    """A socket for a mapping, not connected yet; -1 with errno if there is none."""
    wire: cython.int = IPPROTO_SCTP if mapping.wire == IPPROTO_SCTP else 0
    if mapping.backend_netns >= 0:
        return ask_broker(family, mapping, mapping.backend_netns)
    return socket(family, kind_of(mapping) | SOCK_CLOEXEC | SOCK_NONBLOCK, wire)


def open_all():
    """Opens every port of every mapping, or reports which one cannot be opened and ends."""
    global poller
    mapping: cython.pointer(Mapping) = mappings
    at: cython.int
    poller = epoll_create1(EPOLL_CLOEXEC)
    if poller < 0:
        begin(b"cannot make an epoll: ")
        say(reason(errno))
        fail()
    while mapping != cython.NULL:
        if not prepare_listeners(mapping):
            begin(b"no memory for so many ports")
            fail()
        for at in range(mapping.ports):
            if not open_listener(cython.address(mapping.listeners[at])):
                fail()
            if not watch(
                mapping.listeners[at].fd,
                cython.address(mapping.listeners[at]),
                EPOLLIN,
                EPOLL_CTL_ADD,
            ):
                cannot_listen(mapping, at, b"epoll")
                fail()
        mapping = mapping.next


def prepare_listeners(mapping):
    """Makes what a mapping keeps of its ports and clients.  False without memory."""
    at: cython.int
    mapping.any_host = is_any(cython.address(mapping.host)) or mapping.given
    mapping.listeners = cython.cast(
        cython.pointer(Listener), calloc(mapping.ports, cython.sizeof(Listener))
    )
    if mapping.listeners == cython.NULL:
        return False
    prepare_clients(mapping)
    for at in range(mapping.ports):
        mapping.listeners[at].kind = OF_DATAGRAMS if mapping.wire == IPPROTO_UDP else OF_STREAMS
        mapping.listeners[at].fd = -1
        mapping.listeners[at].mapping = mapping
        mapping.listeners[at].offset = at
        mapping.listeners[at].batch = 1
    return True


def prepare_clients(mapping):
    """Makes the table in which clients are counted, if they are."""
    if mapping.most_per_client == 0 or mapping.clients != cython.NULL:
        return
    mapping.clients = cython.cast(
        cython.pointer(cython.pointer(Client)),
        calloc(CLIENT_BUCKETS, cython.sizeof(cython.pointer(Client))),
    )
    if mapping.clients == cython.NULL:
        mapping.most_per_client = 0


def open_listener(listener):
    """Opens one port, or takes it over.  False if that fails: then the line says why."""
    mapping: cython.pointer(Mapping) = listener.mapping
    if mapping.given:
        if not take_listener(listener):
            return False
    elif not bind_listener(listener):
        return False
    if mapping.wire == IPPROTO_UDP:
        tune_datagrams(listener)
        return True
    tune(listener.fd, mapping)
    if mapping.wire == IPPROTO_TCP and mapping.within_host:
        avoid_pacing(listener)
    if mapping.fast_open:
        set_number(listener.fd, IPPROTO_TCP, TCP_FASTOPEN, FAST_OPEN_QUEUE)
    if number_of(listener.fd, SO_ACCEPTCONN) == 0 and listen(listener.fd, BACKLOG) < 0:
        return cannot_listen(mapping, listener.offset, b"listen")
    return True


def bind_listener(listener):
    """Makes the socket and binds it.  False if that fails."""
    mapping: cython.pointer(Mapping) = listener.mapping
    address: sockaddr_in6 = mapping.host
    what: cython.p_const_char = cython.NULL
    port: cython.int = ntohs(mapping.host.sin6_port) + listener.offset
    address.sin6_port = htons(port)
    if listener.fd >= 0:
        return True  # the broker has bound it together with one before it
    if broker_fd >= 0:
        if not bind_by_broker(listener, cython.address(address)):
            return cannot_listen(mapping, listener.offset, b"bind")
        return True
    listener.fd = bound_socket(
        address.sin6_family,
        kind_of(mapping),
        mapping.wire,
        cython.address(address),
        cython.address(what),
    )
    if listener.fd < 0:
        return cannot_listen(mapping, listener.offset, what)
    return True


def bound_socket(family, kind, wire, address, what):
    """A socket bound to ``address``; -1 with errno, and the call that failed in ``what``."""
    fd: cython.int = socket(
        family, kind | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_SCTP if wire == IPPROTO_SCTP else 0
    )
    number: cython.int
    what[0] = b"socket"
    if fd < 0:
        return -1
    # Connections of a former run may still be in TIME_WAIT.  For datagrams the option would let
    # two sockets have one port.
    if wire != IPPROTO_UDP:
        set_number(fd, SOL_SOCKET, SO_REUSEADDR, 1)
    if family == AF_INET6:
        set_number(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1)
    what[0] = b"bind"
    if bind(fd, cython.cast(cython.pointer(sockaddr), address), address_bytes(address)) == 0:
        return fd
    number = errno
    close(fd)
    set_errno(number)
    return -1


def take_listener(listener):
    """Takes a socket that somebody else opened, if it is of the kind that is meant; else False."""
    mapping: cython.pointer(Mapping) = listener.mapping
    fd: cython.int = mapping.given_fds[listener.offset]
    domain: cython.int = number_of(fd, SO_DOMAIN)
    wire: cython.int = number_of(fd, SO_PROTOCOL)
    good: cython.bint = domain == AF_INET or domain == AF_INET6
    if control_fd >= 0 and domain == AF_UNIX and mapping.wire == IPPROTO_TCP:
        good = True
        wire = IPPROTO_TCP
    good = good and number_of(fd, SO_TYPE) == kind_of(mapping)
    good = good and (
        wire == mapping.wire or (mapping.wire == IPPROTO_TCP and wire == IPPROTO_MPTCP)
    )
    if not good:
        begin(b"unexpected socket type for listener fd: fd ")
        say_number(fd)
        say(b" is not a ")
        say(protocol_name(mapping.wire, True))
        say(b" socket")
        return False
    listener.fd = fd
    mapping.given_fds[listener.offset] = -1
    fcntl(fd, F_SETFD, FD_CLOEXEC)
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK)
    return True


def tune_datagrams(listener):
    """Has the kernel say which of our addresses a datagram was sent to."""
    mapping: cython.pointer(Mapping) = listener.mapping
    if number_of(listener.fd, SO_DOMAIN) == AF_INET6:
        set_number(listener.fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, 1)
    else:
        set_number(listener.fd, IPPROTO_IP, IP_PKTINFO, 1)
    if mapping.receive_bytes > 0:
        size: cython.int = cython.cast(cython.int, mapping.receive_bytes)
        set_number(listener.fd, SOL_SOCKET, SO_RCVBUF, size)
        set_number(listener.fd, SOL_SOCKET, SO_RCVBUFFORCE, size)
    set_number(listener.fd, SOL_SOCKET, SO_RXQ_OVFL, 1)


def number_of(fd, name):
    """A socket option's value; -1 when there is none."""
    value: cython.int = -1
    size: cython.uint = cython.sizeof(cython.int)
    getsockopt(fd, SOL_SOCKET, name, cython.address(value), cython.address(size))
    return value


def protocol_name(wire, large):
    """The name of a protocol, as a sentence or an address has it."""
    if wire == IPPROTO_UDP:
        return either(large, b"UDP", b"udp")
    if wire == IPPROTO_SCTP:
        return either(large, b"SCTP", b"sctp")
    return either(large, b"TCP", b"tcp")


def either(first, yes, no):
    """One of two texts."""
    if first:
        return yes
    return no


def cannot_listen(mapping, offset, what):
    """Puts errno of the call ``what`` into docker-proxy's words.  False."""
    global failed_errno
    number: cython.int = errno
    port: cython.int = ntohs(mapping.host.sin6_port) + offset
    failed_errno = number
    if mapping.wire == IPPROTO_SCTP and number == EPROTONOSUPPORT:
        begin(b"protocol not supported")
        return False
    begin(b"failed to listen on ")
    say_address(mapping.host_text, port)
    say(b": listen ")
    say(protocol_name(mapping.wire, False))
    say(b"4 " if mapping.host.sin6_family == AF_INET else b"6 ")
    say_address(mapping.host_text, port)
    say(b": ")
    say(what)
    say(b": ")
    say(reason(number))
    return False


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
    if number == ETIMEDOUT:
        return b"connection timed out"
    return strerror(number)


# --- The loop ----------------------------------------------------------------------------------


def serve():
    """Reports success and serves for ever."""
    global loop_ms, reserve_fd
    events: epoll_event[EVENTS]
    at: cython.int
    count: cython.int
    blocked: sigset_t
    usual: sigset_t
    open_log()
    open_stats()
    reserve_fd = fcntl(poller, F_DUPFD_CLOEXEC, 0)
    # A signal can then come only where it ends the wait: none is missed.
    sigemptyset(cython.address(blocked))
    sigaddset(cython.address(blocked), SIGINT)
    sigaddset(cython.address(blocked), SIGTERM)
    sigprocmask(SIG_BLOCK, cython.address(blocked), cython.address(usual))
    if has_status_pipe:
        write(STATUS_FD, b"0\n", 2)
        close(STATUS_FD)
    forget_flows()
    loop_ms = now_ms()
    while True:
        count = epoll_pwait(poller, events, EVENTS, patience(), cython.address(usual))
        loop_ms = now_ms()
        for at in range(count):
            take_any_event(cython.cast(cython.p_uchar, events[at].data.ptr), events[at].events)
        run_timers()
        run_busy()
        free_closed()
        if forgotten:
            free_mappings()
        if paused_first != cython.NULL and loop_ms >= resume_at_ms:
            resume()
        if told_to_end and not draining:
            forget_flows()
            begin_drain()
        if draining and links == 0:
            _exit(0)


def take_any_event(what, events):
    """Hands an event to whom it belongs to: the first byte of each struct says what it is."""
    if what[0] == OF_SIDE:
        take_event(cython.cast(cython.pointer(Side), what), events)
    elif what[0] == OF_STREAMS:
        accept_clients(cython.cast(cython.pointer(Listener), what))
        let_others_first(cython.cast(cython.pointer(Listener), what))
    elif what[0] == OF_DATAGRAMS:
        receive_requests(cython.cast(cython.pointer(Listener), what))
    elif what[0] == OF_CONTROL:
        take_commands()
    elif what[0] == OF_CONTROLLER:
        take_controller()
    else:
        receive_answers(cython.cast(cython.pointer(Session), what))


def patience():
    """How long epoll_wait may take, in milliseconds."""
    left: cython.long = -1
    if busy_first != cython.NULL or draining != told_to_end:
        return 0
    if timer_count > 0:
        left = timers[1].at_ms - loop_ms
        left = left if left > 0 else 0
    if paused_first != cython.NULL and (left < 0 or resume_at_ms - loop_ms < left):
        left = resume_at_ms - loop_ms
        left = left if left > 0 else 0
    return cython.cast(cython.int, left)


def now_ms():
    """The monotonic clock, in milliseconds."""
    now: timespec
    clock_gettime(CLOCK_MONOTONIC, cython.address(now))
    return now.tv_sec * 1000 + now.tv_nsec // 1000000


def watch(fd, what, events, operation):
    """Has epoll report ``events`` of ``fd`` as those of ``what``."""
    event: epoll_event
    event.events = events
    event.data.ptr = what
    return epoll_ctl(poller, operation, fd, cython.address(event)) == 0


def begin_drain():
    """Closes the ports; connections have until the alarm, whose handler ends the program."""
    global draining
    mapping: cython.pointer(Mapping) = mappings
    at: cython.int
    draining = True
    while mapping != cython.NULL:
        for at in range(mapping.ports):
            watch(
                mapping.listeners[at].fd,
                cython.address(mapping.listeners[at]),
                0,
                EPOLL_CTL_DEL,
            )
            close(mapping.listeners[at].fd)
            mapping.listeners[at].fd = -1
        mapping = mapping.next
    if drain_ms <= 0:
        _exit(0)
    alarm(cython.cast(cython.uint, ((least(drain_ms, LONGEST_DRAIN_MS) + 999) // 1000)))


def least(a, b):
    """The smaller of two numbers."""
    return a if a < b else b


# --- Timers ------------------------------------------------------------------------------------


def set_timer(timer, at_ms):
    """Has ``timer`` run out at ``at_ms``; 0 takes it out.  Without memory it never runs out."""
    global timers, timer_room, timer_count
    larger: cython.pointer(cython.pointer(Timer))
    room: cython.int
    if at_ms == 0:
        drop_timer(timer)
        return
    timer.at_ms = at_ms
    if timer.place == 0:
        if timer_count + 2 > timer_room:
            room = timer_room * 2 if timer_room > 0 else 32
            larger = cython.cast(
                cython.pointer(cython.pointer(Timer)),
                realloc(timers, room * cython.sizeof(cython.pointer(Timer))),
            )
            if larger == cython.NULL:
                return
            timers = larger
            timer_room = room
        timer_count += 1
        timer.place = timer_count
        timers[timer_count] = timer
    sift(timer)


def drop_timer(timer):
    """Takes a timer out of the heap, if it is in it."""
    global timer_count
    place: cython.int = timer.place
    if place == 0:
        return
    timer.place = 0
    timer_count -= 1
    if place <= timer_count:
        timers[place] = timers[timer_count + 1]
        timers[place].place = place
        sift(timers[place])


def sift(timer):
    """Moves a timer to where it belongs."""
    place: cython.int = timer.place
    child: cython.int
    while place > 1 and timers[place // 2].at_ms > timer.at_ms:
        timers[place] = timers[place // 2]
        timers[place].place = place
        place = place // 2
    while place * 2 <= timer_count:
        child = place * 2
        if child < timer_count and timers[child + 1].at_ms < timers[child].at_ms:
            child += 1
        if timers[child].at_ms >= timer.at_ms:
            break
        timers[place] = timers[child]
        timers[place].place = place
        place = child
    timers[place] = timer
    timer.place = place


def run_timers():
    """Does what is due."""
    timer: cython.pointer(Timer)
    while timer_count > 0 and timers[1].at_ms <= loop_ms:
        timer = timers[1]
        drop_timer(timer)
        if timer.kind == OF_LINK:
            link_due(cython.cast(cython.pointer(Link), timer))
        elif timer.kind == OF_SESSION:
            session_due(cython.cast(cython.pointer(Session), timer))
        elif timer.kind == OF_MAPPING:
            mapping_due(cython.cast(cython.pointer(Mapping), timer))
        else:
            send_totals()


# --- Clients -----------------------------------------------------------------------------------


def accept_clients(listener):
    """Accepts what waits.  Each client finds the socket for its container side ready."""
    global pause_ms
    client: cython.int
    peer: sockaddr_in6
    size: cython.uint
    for _ in range(ACCEPTS):
        if listener.paused or draining or listener.fd < 0:
            return
        if not prepare_socket(listener.mapping):
            pause(listener)
            return
        size = cython.sizeof(sockaddr_in6)
        memset(cython.address(peer), 0, size)
        client = accept4(
            listener.fd,
            cython.cast(cython.pointer(sockaddr), cython.address(peer)),
            cython.address(size),
            SOCK_CLOEXEC | SOCK_NONBLOCK,
        )
        if client >= 0:
            pause_ms = 0
            if size < cython.sizeof(sockaddr_in) or peer.sin6_family == AF_UNIX:
                memset(cython.address(peer), 0, cython.sizeof(sockaddr_in6))
                peer.sin6_family = AF_UNIX
            unmap(cython.address(peer))
            begin_link(listener, client, cython.address(peer))
        elif errno == EAGAIN:
            return
        elif errno != EINTR and errno != ECONNABORTED and not free_spare_pipes():
            pause(listener)


def await_clients(listener):
    """Has epoll report the clients of a port.  False with errno if it cannot.

    A client of a port that several workers have wakes one of them, and not all.
    """
    events: cython.uint = EPOLLIN
    if listener.mapping.shared:
        events |= EPOLLEXCLUSIVE
    return watch(listener.fd, listener, events, EPOLL_CTL_ADD)


def let_others_first(listener):
    """Has the next client of a shared port wake another worker, if one has nothing to do.

    The kernel wakes the first in the port's queue that waits.  Without this that is always the
    same one, and it would have nearly all connections of a time with few new ones.
    """
    if not listener.mapping.shared or listener.paused or listener.fd < 0:
        return
    watch(listener.fd, listener, 0, EPOLL_CTL_DEL)
    if not await_clients(listener):
        pause(listener)


def prepare_socket(mapping):
    """Makes the next connection's socket in advance.  False if there is no file descriptor."""
    family: cython.int = mapping.backends[0].address.sin6_family
    slot: cython.int = 0 if family == AF_INET else 1
    if not takes_prepared(mapping, family) or next_sockets[slot] >= 0:
        return True
    next_sockets[slot] = new_socket(mapping, family)
    if next_sockets[slot] < 0 and free_spare_pipes():
        next_sockets[slot] = new_socket(mapping, family)
    return next_sockets[slot] >= 0


def takes_prepared(mapping, family):
    """Whether sockets towards the container are plain ones, that can be made in advance."""
    return mapping.wire == IPPROTO_TCP and family != AF_UNIX and mapping.backend_netns < 0


def take_socket(mapping, family):
    """The prepared socket of a family, or a new one; -1 if there is none."""
    slot: cython.int = 0 if family == AF_INET else 1
    fd: cython.int
    if takes_prepared(mapping, family) and next_sockets[slot] >= 0:
        fd = next_sockets[slot]
        next_sockets[slot] = -1
        return fd
    fd = new_socket(mapping, family)
    if fd < 0 and free_spare_pipes():
        fd = new_socket(mapping, family)
    return fd


def pause(listener):
    """Leaves clients in the backlog for a while; doubled each time, shorter if an fd gets free."""
    global paused_first, pause_ms, resume_at_ms
    if listener.paused:
        return
    if paused_first == cython.NULL:
        pause_ms = FIRST_PAUSE_MS if pause_ms == 0 else pause_ms * 2
        if pause_ms > LONGEST_PAUSE_MS:
            pause_ms = LONGEST_PAUSE_MS
        resume_at_ms = loop_ms + pause_ms
    listener.paused = True
    listener.next_paused = paused_first
    paused_first = listener
    listener.mapping.pauses += 1
    # One that is watched exclusively cannot be modified.
    watch(listener.fd, listener, 0, EPOLL_CTL_DEL)
    if listener.mapping.shared and commander.fd >= 0:
        # Of the client that is left waiting the kernel has told nobody else.
        begin_stats(listener.mapping, b"pause")
        say_count(b"serial", listener.mapping.serial)
        say(b"}")
        send_stats()


def resume():
    """Accepts again.  Who has waited through the longest pause for nothing is let go."""
    global paused_first
    listener: cython.pointer(Listener) = paused_first
    following: cython.pointer(Listener)
    paused_first = cython.NULL
    while listener != cython.NULL:
        following = listener.next_paused
        listener.paused = False
        if not draining:
            if not await_clients(listener):
                pause(listener)
            elif pause_ms == LONGEST_PAUSE_MS:
                accept_clients(listener)
                if listener.paused:
                    shed(listener)
        listener = following


def shed(listener):
    """Resets the clients that wait, so that they fail at once, with the descriptor kept for it."""
    global reserve_fd
    client: cython.int
    if reserve_fd < 0:
        return
    close(reserve_fd)
    for _ in range(SHED):
        client = accept4(listener.fd, cython.NULL, cython.NULL, SOCK_CLOEXEC | SOCK_NONBLOCK)
        if client < 0:
            break
        listener.mapping.shed += 1
        reset_on_close(client)
        close(client)
    reserve_fd = fcntl(poller, F_DUPFD_CLOEXEC, 0)


def turn_away(mapping, client):
    """Closes a client that is not let in."""
    if mapping.denial_is_silent:
        # A socket under repair is closed without a word; without the capability it is a reset.
        set_number(client, IPPROTO_TCP, TCP_REPAIR, 1)
    reset_on_close(client)
    close(client)


def within_limits(mapping, peer, counter):
    """Whether one more connection of ``peer`` may be; if so its address is counted."""
    if mapping.most_connections > 0 and mapping.connections >= mapping.most_connections:
        return False
    if mapping.most_per_client > 0:
        counter[0] = client_of(mapping, peer)
        if counter[0] == cython.NULL or counter[0].connections >= mapping.most_per_client:
            return False
    if mapping.connections_per_s > 0:
        if refill(cython.address(mapping.accept_bucket), mapping.connections_per_s * 1000) < 1000:
            return False
        mapping.accept_bucket.tokens -= 1000
    return True


def client_of(mapping, peer):
    """The counter of the network that ``peer`` is in.  NULL without memory."""
    address: cython.uchar[16]
    bits: cython.long = 96 + mapping.client_bits_v4
    if peer.sin6_family == AF_INET6:
        bits = mapping.client_bits_v6
    at: cython.int
    slot: cython.uint = 40503
    flatten(peer, address)
    for at in range(16):
        if at * 8 >= bits:
            address[at] = 0
        elif at * 8 + 8 > bits:
            address[at] &= 255 << (at * 8 + 8 - bits)
        slot = (slot ^ address[at]) * 16777619
    slot %= CLIENT_BUCKETS
    found: cython.pointer(Client) = mapping.clients[slot]
    while found != cython.NULL:
        if memcmp(found.address, address, 16) == 0:
            return found
        found = found.next
    found = cython.cast(cython.pointer(Client), calloc(1, cython.sizeof(Client)))
    if found != cython.NULL:
        memcpy(found.address, address, 16)
        found.next = mapping.clients[slot]
        mapping.clients[slot] = found
    return found


def forget_client(mapping, client):
    """Frees a counter that has come to nothing."""
    slot: cython.uint = 40503
    at: cython.int
    place: cython.pointer(cython.pointer(Client))
    for at in range(16):
        slot = (slot ^ client.address[at]) * 16777619
    place = cython.address(mapping.clients[slot % CLIENT_BUCKETS])
    while place[0] != client:
        place = cython.address(place[0].next)
    place[0] = client.next
    free(client)


def refill(bucket, rate):
    """The tokens in a bucket, to which ``rate`` are added a second."""
    most: cython.long = rate if rate < 100000 else rate // 10
    gained: cython.long
    if bucket.at_ms == 0:
        bucket.tokens = most
        bucket.at_ms = loop_ms
    gained = rate * least(loop_ms - bucket.at_ms, 1000) // 1000
    if gained > 0:
        bucket.tokens = least(bucket.tokens + gained, most)
        bucket.at_ms = loop_ms
    return bucket.tokens


def begin_link(listener, client, peer):
    """Takes a new client, if it may come, and connects it to the container."""
    global links, newest_link, last_link_serial
    mapping: cython.pointer(Mapping) = listener.mapping
    link: cython.pointer(Link) = cython.cast(cython.pointer(Link), calloc(1, cython.sizeof(Link)))
    at: cython.int
    if link == cython.NULL:
        reset_on_close(client)
        close(client)
        return
    for at in range(2):
        link.sides[at].kind = OF_SIDE
        link.sides[at].link = link
        link.sides[at].other = cython.address(link.sides[1 - at])
        link.sides[at].pipe_in = -1
        link.sides[at].fd = -1
    link.timer.kind = OF_LINK
    link.mapping = mapping
    link.offset = listener.offset
    link.begun_ms = loop_ms
    link.active_ms = loop_ms
    link.backend = -1
    link.first_byte_ms = -1
    link.dial_ms = -1
    link.peer = peer[0]
    link.sender = peer[0]
    link.sides[0].fd = client
    link.sides[0].writable = True
    link.sides[0].in_parts = peer.sin6_family == AF_UNIX
    header: cython.bint = mapping.trusted != cython.NULL and admits(mapping.trusted, peer)
    if not header and not let_in(link):
        turn_away(mapping, client)
        free(link)
        return
    links += 1
    last_link_serial += 1
    link.serial = last_link_serial
    link.older = newest_link
    if newest_link != cython.NULL:
        newest_link.newer = link
    newest_link = link
    mapping.connections += 1
    mapping.accepted += 1
    if not watch(
        client,
        cython.address(link.sides[0]),
        EPOLLIN | EPOLLOUT | EPOLLPRI | EPOLLRDHUP | EPOLLET,
        EPOLL_CTL_ADD,
    ):
        close_link(link, True, b"no-memory")
    elif header:
        link.phase = AWAITS_HEADER
        link.until_ms = loop_ms + HEADER_WAIT_MS
        schedule(link)
    else:
        connect_first(link)


def let_in(link):
    """Whether the rules and limits admit the client; counts it if they do not."""
    mapping: cython.pointer(Mapping) = link.mapping
    if mapping.access != cython.NULL and not admits(mapping.access, cython.address(link.peer)):
        mapping.denied += 1
        return False
    if not within_limits(mapping, cython.address(link.peer), cython.address(link.client)):
        link.client = cython.NULL
        mapping.limited += 1
        return False
    if link.client != cython.NULL:
        link.client.connections += 1
    return True


# --- The PROXY protocol ------------------------------------------------------------------------


def read_header(link):
    """Reads what a trusted client says of the one behind it, and goes on once that is known."""
    mapping: cython.pointer(Mapping) = link.mapping
    side: cython.pointer(Side) = cython.address(link.sides[0])
    have: cython.ssize_t = recv(side.fd, buffer, HEADER_V2_BYTES, MSG_PEEK)
    size: cython.int = 0
    if have < 0 and (errno == EAGAIN or errno == EINTR):
        return
    if have > 0:
        size = parse_header(
            cython.cast(cython.p_uchar, buffer),
            have,
            cython.address(link.peer),
            cython.address(link.local),
        )
        if size == PARSE_MORE and not side.hung_up:
            return
    if size <= 0 or recv(side.fd, buffer, size, 0) != size:
        mapping.bad_headers += 1
        close_link(link, True, b"bad-header")
        return
    link.local_known = link.local.sin6_family != 0
    if not let_in(link):
        if mapping.denial_is_silent:
            set_number(side.fd, IPPROTO_TCP, TCP_REPAIR, 1)
        close_link(link, True, b"denied")
        return
    connect_first(link)


def parse_header(data, n, peer, local):
    """Reads a PROXY header, version 1 or 2 (haproxy's proxy-protocol.txt), from ``n`` bytes.

    Gives its length, PARSE_MORE if the end is missing, or PARSE_BAD.  The addresses stay as they
    are where the header has none.
    """
    signature: cython.p_const_char = b"\r\n\r\n\x00\r\nQUIT\n"
    common: cython.size_t = n if n < 12 else 12
    if memcmp(data, signature, common) == 0:
        return PARSE_MORE if n < 16 else parse_binary_header(data, n, peer, local)
    common = n if n < 6 else 6
    if memcmp(data, b"PROXY ", common) == 0:
        return parse_text_header(data, n, peer, local)
    return PARSE_BAD


def parse_binary_header(data, n, peer, local):
    """Version 2: sixteen bytes, the addresses, and extensions that are skipped."""
    size: cython.size_t = 16 + (data[14] << 8) + data[15]
    if data[12] != 0x20 and data[12] != 0x21:
        return PARSE_BAD
    if size > HEADER_V2_BYTES:
        return PARSE_BAD
    if n < size:
        return PARSE_MORE
    if data[12] == 0x20:  # LOCAL: the sender speaks for itself
        return cython.cast(cython.int, size)
    if data[13] == 0x11:
        if size < 28:
            return PARSE_BAD
        set_address(peer, AF_INET, data + 16, data + 24)
        set_address(local, AF_INET, data + 20, data + 26)
    elif data[13] == 0x21:
        if size < 52:
            return PARSE_BAD
        set_address(peer, AF_INET6, data + 16, data + 48)
        set_address(local, AF_INET6, data + 32, data + 50)
    elif data[13] & 0x0F > 2 or data[13] >> 4 > 3:
        return PARSE_BAD
    return cython.cast(cython.int, size)


def set_address(address, family, number, port):
    """Fills an address from bytes in network order."""
    four: cython.pointer(sockaddr_in) = cython.cast(cython.pointer(sockaddr_in), address)
    memset(address, 0, cython.sizeof(sockaddr_in6))
    address.sin6_family = family
    memcpy(cython.address(address.sin6_port), port, 2)
    if family == AF_INET:
        memcpy(cython.address(four.sin_addr), number, 4)
    else:
        memcpy(cython.address(address.sin6_addr), number, 16)
        unmap(address)


def parse_text_header(data, n, peer, local):
    """Version 1: one line of words."""
    text: cython.char[HEADER_V1_BYTES]
    words: cython.p_char[4]
    rest: cython.p_char
    end: cython.size_t = 0
    at: cython.int
    while end < n and end < HEADER_V1_BYTES and data[end] != 10:
        if data[end] == 0:
            return PARSE_BAD
        text[end] = data[end]
        end += 1
    if end == HEADER_V1_BYTES:
        return PARSE_BAD
    if end == n:
        return PARSE_MORE
    if end < 8 or text[end - 1] != b"\r":
        return PARSE_BAD
    text[end - 1] = 0
    rest = cython.cast(cython.p_char, text) + 6
    if strncmp(rest, b"UNKNOWN", 7) == 0 and (rest[7] == 0 or rest[7] == b" "):
        return cython.cast(cython.int, end + 1)
    family: cython.int = AF_INET6 if strncmp(rest, b"TCP6 ", 5) == 0 else AF_INET
    if family == AF_INET and strncmp(rest, b"TCP4 ", 5) != 0:
        return PARSE_BAD
    rest += 5
    for at in range(4):
        if rest == cython.NULL:
            return PARSE_BAD
        words[at] = rest
        rest = cut_at(rest, b" ")
    if rest != cython.NULL:
        return PARSE_BAD
    source: sockaddr_in6
    target: sockaddr_in6
    if not read_named(family, words[0], words[2], cython.address(source)):
        return PARSE_BAD
    if not read_named(family, words[1], words[3], cython.address(target)):
        return PARSE_BAD
    peer[0] = source
    local[0] = target
    return cython.cast(cython.int, end + 1)


def read_named(family, text, port, address):
    """Reads an address of a family and its port.  False if one is wrong."""
    number: cython.uchar[16]
    at: cython.size_t = 0
    value: cython.long = whole_number(port, cython.address(at))
    wire: cython.ushort
    if at == 0 or at > 5 or port[at] != 0 or value > LAST_PORT:
        return False
    if inet_pton(family, text, number) != 1:
        return False
    wire = htons(cython.cast(cython.ushort, value))
    set_address(address, family, number, cython.cast(cython.p_uchar, cython.address(wire)))
    return True


def owe_header(link):
    """Has the container get the header before the client's first byte.  False without memory."""
    global line_length
    side: cython.pointer(Side) = cython.address(link.sides[0])
    find_local(link)
    six: cython.bint = link.peer.sin6_family == AF_INET6
    six = six or link.local.sin6_family == AF_INET6
    line_length = 0
    if link.peer.sin6_family == AF_UNIX or link.local.sin6_family == AF_UNIX:
        # There is no address to tell; the words for that are haproxy's.
        if link.mapping.header_out == 1:
            say(b"PROXY UNKNOWN\r\n")
        else:
            say_bytes(b"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00", 16)
    elif link.mapping.header_out == 1:
        say(b"PROXY TCP6 " if six else b"PROXY TCP4 ")
        say_ip(cython.address(link.peer), six)
        say(b" ")
        say_ip(cython.address(link.local), six)
        say(b" ")
        say_number(ntohs(link.peer.sin6_port))
        say(b" ")
        say_number(ntohs(link.local.sin6_port))
        say(b"\r\n")
    else:
        say_bytes(b"\r\n\r\n\x00\r\nQUIT\n\x21", 13)
        say_bytes(b"\x21\x00\x24" if six else b"\x11\x00\x0c", 3)
        say_raw(cython.address(link.peer), six)
        say_raw(cython.address(link.local), six)
        say_bytes(cython.cast(cython.p_char, cython.address(link.peer.sin6_port)), 2)
        say_bytes(cython.cast(cython.p_char, cython.address(link.local.sin6_port)), 2)
    side.owes_header = True
    return keep(side, line, line_length)


def find_local(link):
    """Asks the kernel which address the client came to, unless that is known."""
    size: cython.uint = cython.sizeof(sockaddr_in6)
    if link.local_known:
        return
    memset(cython.address(link.local), 0, size)
    getsockname(
        link.sides[0].fd,
        cython.cast(cython.pointer(sockaddr), cython.address(link.local)),
        cython.address(size),
    )
    if link.local.sin6_family == AF_UNIX:
        memset(cython.address(link.local), 0, cython.sizeof(sockaddr_in6))
        link.local.sin6_family = AF_UNIX
    unmap(cython.address(link.local))
    link.local_known = True


def say_raw(address, six):
    """Adds the bytes of an address, as an IPv6 one if that is wanted."""
    flat: cython.uchar[16]
    flatten(address, flat)
    if six:
        say_bytes(cython.cast(cython.p_char, cython.address(flat[0])), 16)
    else:
        say_bytes(cython.cast(cython.p_char, cython.address(flat[12])), 4)


# --- The container's side ----------------------------------------------------------------------


def connect_first(link):
    """The first try to reach the container."""
    mapping: cython.pointer(Mapping) = link.mapping
    link.until_ms = 0
    if mapping.connect_timeout_ms > 0:
        link.until_ms = loop_ms + mapping.connect_timeout_ms
    if mapping.connect_retry_ms > 0:
        link.retry_until_ms = loop_ms + mapping.connect_retry_ms
    wants_header: cython.bint = mapping.header_out != 0 and mapping.wire == IPPROTO_TCP
    if wants_header and not owe_header(link):
        close_link(link, True, b"no-memory")
        return
    connect_backend(link)


def pick_backend(mapping, peer, tried):
    """The number of the backend that is next, of those that no bit of ``tried`` stands for."""
    best: cython.int = -1
    attempt: cython.int
    at: cython.int
    turn: cython.int
    start: cython.int = 0
    flat: cython.uchar[16]
    hashed: cython.uint = 40503
    if mapping.backend_count == 1:
        return -1 if tried else 0
    if mapping.balance == ROUND_ROBIN:
        start = mapping.next_backend
        mapping.next_backend = (start + 1) % mapping.backend_count
    elif mapping.balance == SOURCE:
        flatten(peer, flat)
        for at in range(16):
            hashed = (hashed ^ flat[at]) * 16777619
        start = hashed % mapping.backend_count
    # If all are out, one of them is tried all the same.
    for attempt in range(2):
        for turn in range(mapping.backend_count):
            at = (start + turn) % mapping.backend_count
            if tried & (1 << at):
                continue
            if attempt == 0 and (
                mapping.backends[at].down or mapping.backends[at].out_until_ms > loop_ms
            ):
                continue
            if mapping.balance != LEAST:
                return at
            if best < 0 or mapping.backends[at].connections < mapping.backends[best].connections:
                best = at
        if best >= 0:
            return best
    return -1


def connect_backend(link):
    """Tries to reach a backend."""
    mapping: cython.pointer(Mapping) = link.mapping
    side: cython.pointer(Side) = cython.address(link.sides[1])
    address: sockaddr_in6
    link.backend = pick_backend(mapping, cython.address(link.peer), link.tried)
    if link.backend < 0:
        close_link(link, mapping.refusal_is_reset, b"no-backend")
        return
    address = mapping.backends[link.backend].address
    if mapping.spread:
        address.sin6_port = htons(ntohs(address.sin6_port) + link.offset)
    side.fd = take_socket(mapping, address.sin6_family)
    side.in_parts = address.sin6_family == AF_UNIX
    if side.fd < 0:
        close_link(link, True, b"no-descriptor")
        return
    mapping.backends[link.backend].connections += 1
    tune(side.fd, mapping)
    if mapping.wire == IPPROTO_TCP:
        # The acknowledgement that ends the handshake waits for the client's first bytes, which
        # saves a segment and a wake-up of the container; see finish_connecting().
        set_number(side.fd, IPPROTO_TCP, TCP_QUICKACK, 0)
        choose_congestion(side.fd, mapping)
    place_socket(side.fd, mapping, cython.address(link.peer), address.sin6_family)
    link.phase = CONNECTS
    link.dialled_ms = loop_ms
    failed: cython.int = connect_to(
        side.fd, cython.address(mapping.backends[link.backend]), cython.address(address)
    )
    if failed < 0 and errno != EINPROGRESS:
        connect_failed(link, errno)
        return
    if not watch(
        side.fd,
        side,
        EPOLLIN | EPOLLOUT | EPOLLPRI | EPOLLRDHUP | EPOLLET,
        EPOLL_CTL_ADD,
    ):
        close_link(link, True, b"no-memory")
        return
    if link.until_ms > 0:
        schedule(link)


def connect_to(fd, backend, address):
    """Begins to connect to a backend, which has ``address`` unless it is a Unix socket."""
    if backend.path != cython.NULL:
        return connect(fd, cython.cast(cython.pointer(sockaddr), backend.path), backend.path_size)
    return connect(fd, cython.cast(cython.pointer(sockaddr), address), address_bytes(address))


def place_socket(fd, mapping, peer, family):
    """Gives a socket towards the container its source address, interface, mark and class."""
    source: sockaddr_in6
    if mapping.mark > 0:
        set_number(fd, SOL_SOCKET, SO_MARK, cython.cast(cython.int, mapping.mark))
    if mapping.tos > 0 and family == AF_INET:
        set_number(fd, IPPROTO_IP, IP_TOS, cython.cast(cython.int, mapping.tos))
    elif mapping.tos > 0:
        set_number(fd, IPPROTO_IPV6, IPV6_TCLASS, cython.cast(cython.int, mapping.tos))
    if mapping.interface[0] != 0:
        setsockopt(
            fd, SOL_SOCKET, SO_BINDTODEVICE, mapping.interface, strlen(mapping.interface) + 1
        )
    if mapping.fast_open and mapping.wire == IPPROTO_TCP:
        set_number(fd, IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
    if mapping.transparent and peer.sin6_family == family:
        if family == AF_INET:
            set_number(fd, IPPROTO_IP, IP_TRANSPARENT, 1)
        else:
            set_number(fd, IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
        set_number(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        source = peer[0]
        if bind_source(fd, cython.address(source)):
            return
        source.sin6_port = 0
        if bind_source(fd, cython.address(source)):
            mapping.other_ports += 1
            return
    if mapping.transparent:
        mapping.other_addresses += 1
    if mapping.has_source and mapping.source.sin6_family == family:
        # The port is chosen when it is known where to: else the host's ports run out early.
        set_number(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        bind_source(fd, cython.address(mapping.source))


def bind_source(fd, source):
    """Binds the container's side.  False if the address cannot be had."""
    address: cython.pointer(sockaddr) = cython.cast(cython.pointer(sockaddr), source)
    return bind(fd, address, address_bytes(source)) == 0


def connect_failed(link, number):
    """Tries again or elsewhere, as far as that is asked for; else lets the client go."""
    mapping: cython.pointer(Mapping) = link.mapping
    backend: cython.pointer(Backend)
    mapping.failed += 1
    if link.backend >= 0:
        backend = cython.address(mapping.backends[link.backend])
        complain(cython.address(backend.address), link.offset if mapping.spread else 0, number)
        count_failure(backend)
    leave_backend(link)
    if mapping.backend_count > 1 and link.backend >= 0:
        link.tried |= 1 << link.backend
        if link.tried != (1 << mapping.backend_count) - 1:
            connect_backend(link)
            return
    # A Unix socket whose queue is full says EAGAIN.
    if (number == ECONNREFUSED or number == EAGAIN) and loop_ms < link.retry_until_ms:
        link.tried = 0
        link.retry_ms = link.retry_ms * 2 if link.retry_ms > 0 else FIRST_RETRY_MS
        if link.retry_ms > LONGEST_RETRY_MS:
            link.retry_ms = LONGEST_RETRY_MS
        link.phase = WAITS
        link.wake_ms = least(loop_ms + link.retry_ms, link.retry_until_ms)
        schedule(link)
        return
    close_link(link, mapping.refusal_is_reset, b"backend-unreachable")


def leave_backend(link):
    """Closes the container's side of a connection that never was."""
    side: cython.pointer(Side) = cython.address(link.sides[1])
    if link.backend >= 0:
        link.mapping.backends[link.backend].connections -= 1
    close(side.fd)
    side.fd = -1
    side.readable = False
    side.writable = False
    side.hung_up = False
    side.has_fin = False
    side.broken = False


def count_failure(backend):
    """Takes a backend out for a while after several failures in a short time."""
    if backend.failures == 0 or loop_ms - backend.first_failure_ms > BACKEND_WINDOW_MS:
        backend.failures = 0
        backend.first_failure_ms = loop_ms
    backend.failures += 1
    if backend.failures >= BACKEND_FAILURES:
        backend.out_until_ms = loop_ms + BACKEND_OUT_MS
        backend.failures = 0


def take_event(side, events):
    """Remembers what an edge says and lets the connection run."""
    link: cython.pointer(Link) = side.link
    if link.closed or side.fd < 0:
        return
    if link.phase == CONNECTS and side == cython.address(link.sides[1]):
        if events & (EPOLLOUT | EPOLLERR | EPOLLHUP):
            finish_connecting(link, events)
        if link.closed or link.phase != OPEN:
            return
    if events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR):
        side.readable = True
    if events & (EPOLLOUT | EPOLLHUP | EPOLLERR):
        side.writable = True
    if events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR):
        side.hung_up = True
        side.has_fin = (events & (EPOLLRDHUP | EPOLLERR)) == EPOLLRDHUP
    if events & EPOLLPRI:
        side.urgent = True
    # The first call to see a socket's error takes it away; here nothing can miss it.
    if events & EPOLLERR and number_of(side.fd, SO_ERROR) > 0:
        side.broken = True
    if link.phase == OPEN:
        make_busy(link)
    elif side.broken:
        close_link(link, True, b"client-reset")
    elif link.phase == AWAITS_HEADER and side.readable:
        read_header(link)


def finish_connecting(link, events):
    """The container's side has answered: either it can be used or the client is let go."""
    number: cython.int = 0
    if events & (EPOLLERR | EPOLLHUP):
        number = number_of(link.sides[1].fd, SO_ERROR)
    if number != 0:
        connect_failed(link, number)
        return
    link.phase = OPEN
    link.until_ms = 0
    link.wake_ms = 0
    # Who says nothing first may wait for a greeting: then the container must learn of it now.
    # After a PROXY header ``readable`` says nothing about what follows.
    silent: cython.bint = not link.sides[0].readable or link.mapping.trusted != cython.NULL
    if silent and link.sides[0].owed == cython.NULL:
        set_number(link.sides[1].fd, IPPROTO_TCP, TCP_QUICKACK, 1)
    link.active_ms = loop_ms
    if link.backend >= 0:
        link.mapping.backends[link.backend].failures = 0
    count_dial(link)
    schedule(link)


def schedule(link):
    """Sets the timer of a connection to whatever is due first."""
    mapping: cython.pointer(Mapping) = link.mapping
    at_ms: cython.long = link.wake_ms
    if link.until_ms > 0:
        at_ms = sooner(at_ms, link.until_ms)
    if link.phase == OPEN:
        if mapping.idle_ms > 0:
            at_ms = sooner(at_ms, link.active_ms + mapping.idle_ms)
        if mapping.half_close_ms > 0 and link.sides[0].finished != link.sides[1].finished:
            at_ms = sooner(at_ms, link.active_ms + mapping.half_close_ms)
    if at_ms != link.timer.at_ms or link.timer.place == 0:
        set_timer(cython.address(link.timer), at_ms)


def sooner(a, b):
    """The earlier of two times, of which 0 is none."""
    return b if a == 0 or b < a else a


def link_due(link):
    """The timer of a connection has run out: one of the reasons for it may be true."""
    mapping: cython.pointer(Mapping) = link.mapping
    silent_ms: cython.long = loop_ms - link.active_ms
    half: cython.bint = link.sides[0].finished != link.sides[1].finished
    if link.until_ms > 0 and loop_ms >= link.until_ms:
        if link.phase == AWAITS_HEADER:
            mapping.bad_headers += 1
            close_link(link, True, b"bad-header")
            return
        link.retry_until_ms = 0
        if link.phase == CONNECTS:
            connect_failed(link, ETIMEDOUT)
        else:
            close_link(link, mapping.refusal_is_reset, b"backend-unreachable")
        return
    if link.wake_ms > 0 and loop_ms >= link.wake_ms:
        link.wake_ms = 0
        if link.phase == WAITS:
            connect_backend(link)
            return
        make_busy(link)
    if link.phase == OPEN and mapping.idle_ms > 0 and silent_ms >= mapping.idle_ms:
        close_link(link, False, b"idle")
        return
    if link.phase == OPEN and half and mapping.half_close_ms > 0:
        if silent_ms >= mapping.half_close_ms:
            close_link(link, False, b"half-close")
            return
    schedule(link)


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
    half: cython.bint = link.sides[0].finished or link.sides[1].finished
    client_more: cython.bint = move(cython.address(link.sides[0]))
    container_more: cython.bint = move(cython.address(link.sides[1]))
    settle(link)
    if link.closed:
        return False
    if link.wake_ms > 0 or half != (link.sides[0].finished or link.sides[1].finished):
        schedule(link)
    return client_more or container_more


def move(side):
    """Moves bytes from ``side`` to the other.  True if there may be more to move at once."""
    most: cython.size_t
    for _ in range(TURNS):
        if side.finished or side.other.broken:
            return False
        if not hand_over(side):
            return False
        if side.ended:
            # If the other direction is over as well, close() sends the FIN.
            if not side.broken and not side.other.finished:
                shutdown(side.other.fd, SHUT_WR)
            side.finished = True
            return False
        if not side.readable or not side.other.writable:
            return False
        most = allowance(side.link)
        if most == 0:
            side.link.wake_ms = loop_ms + THROTTLE_MS
            return False
        if not take_in(side, most):
            return False
    return True


def allowance(link):
    """How many bytes may be read now."""
    mapping: cython.pointer(Mapping) = link.mapping
    most: cython.long = SPLICE_BYTES
    if mapping.bytes_per_s_each > 0:
        most = least(most, refill(cython.address(link.bucket), mapping.bytes_per_s_each))
    if mapping.bytes_per_s > 0:
        most = least(most, refill(cython.address(mapping.byte_bucket), mapping.bytes_per_s))
    return most if most > 0 else 0


def count_bytes(side, n):
    """Notes that ``n`` bytes were read."""
    link: cython.pointer(Link) = side.link
    if link.first_byte_ms < 0 and side == cython.address(link.sides[1]):
        link.first_byte_ms = loop_ms - link.begun_ms
    side.bytes += n
    link.active_ms = loop_ms
    link.bucket.tokens -= n
    link.mapping.byte_bucket.tokens -= n


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
        elif side.link.mapping.wire == IPPROTO_SCTP:
            done = send_message(other.fd, side.owed, side.owed_to)
        else:
            # A header shares its segment with the first data, if these are there already.
            done = send(
                other.fd,
                side.owed + side.owed_from,
                side.owed_to - side.owed_from,
                MSG_NOSIGNAL | (MSG_MORE if side.owes_header and side.readable else 0),
            )
        if done < 0:
            if errno == EINTR:
                continue
            other.writable = False
            if errno != EAGAIN:
                other.broken = True
            return False
        side.link.active_ms = loop_ms
        if side.piped != 0:
            side.piped -= done
            if side.piped == 0:
                give_pipe_back(side)
        else:
            side.owed_from += done
            if side.owed_from == side.owed_to:
                free(side.owed)
                side.owed = cython.NULL
                side.owes_header = False
    return True


def take_in(side, most):
    """Reads from ``side`` while nothing is owed.  False if there is nothing to do now."""
    if side.link.mapping.wire == IPPROTO_SCTP:
        return copy_message(side)
    if side.splices and not side.cannot_splice and take_pipe(side):
        return fill_pipe(side, most)
    return copy(side, most if most < BUFFER_BYTES else BUFFER_BYTES)


def copy(side, most):
    """Reads into the shared buffer and writes from it; what does not fit out is kept."""
    other: cython.pointer(Side) = side.other
    size: cython.ssize_t = recv(side.fd, buffer, most, 0)
    if size <= 0:
        if size < 0 and errno == EINTR:
            return True
        if size < 0 and errno == EAGAIN:
            side.readable = False
            return False
        side.ended = True
        side.broken = side.broken or size < 0
        return True
    count_bytes(side, size)
    if size >= FULL_READ_BYTES:
        side.splices = True
        side.short_reads = 0
    # A short read has emptied the socket, and what comes later makes an edge; a FIN or an
    # out-of-band mark that is already there does not.
    if size < most and not side.urgent and not side.in_parts:
        if not side.hung_up:
            side.readable = False
        elif side.has_fin and not side.broken:
            # All that came before the FIN has been read: it leaves with our own.
            side.ended = True
    done: cython.ssize_t = send(
        other.fd, buffer, size, MSG_NOSIGNAL | (MSG_MORE if side.ended else 0)
    )
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


def fill_pipe(side, most):
    """Splices from ``side`` into its pipe, which is empty: so EAGAIN can only mean the socket."""
    size: cython.ssize_t = splice(
        side.fd, cython.NULL, side.pipe_out, cython.NULL, most, SPLICE_F_NONBLOCK
    )
    if size > 0:
        count_bytes(side, size)
        side.link.mapping.spliced += size
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

    What a side sent before its reset is handed on first.  Then the other side gets what the
    mapping asks for: docker-proxy's FIN, or a reset, with which no truncated answer looks complete.
    """
    at: cython.int
    side: cython.pointer(Side)
    for at in range(2):
        side = cython.address(link.sides[at])
        if side.broken and (side.finished or side.other.broken):
            close_link(
                link,
                not link.mapping.resets_become_fins,
                b"client-reset" if at == 0 else b"backend-reset",
            )
            return
    if link.sides[0].finished and link.sides[1].finished:
        close_link(link, False, b"fin")
    elif link.mapping.wire == IPPROTO_SCTP:
        # An association has no half-closed state.
        if link.sides[0].finished or link.sides[1].finished:
            close_link(link, False, b"fin")


def close_link(link, reset, why):
    """Closes both sides, with a reset if asked to, and frees what the connection held."""
    global closed_first, links, newest_link, forgotten
    at: cython.int
    side: cython.pointer(Side)
    mapping: cython.pointer(Mapping) = link.mapping
    link.closed = True
    mapping.sent_up += link.sides[0].bytes
    mapping.sent_down += link.sides[1].bytes
    if stats_fd >= 0 or reports_closes:
        send_close(link, why)
    for at in range(2):
        side = cython.address(link.sides[at])
        if side.fd >= 0:
            if reset:
                reset_on_close(side.fd)
            close(side.fd)
        if side.pipe_in >= 0:
            give_pipe_back(side)
        free(side.owed)
    if link.sides[1].fd >= 0 and link.backend >= 0:
        mapping.backends[link.backend].connections -= 1
    if link.client != cython.NULL:
        link.client.connections -= 1
        if link.client.connections == 0:
            forget_client(mapping, link.client)
    mapping.connections -= 1
    forgotten = forgotten or mapping.removed
    links -= 1
    if link.newer != cython.NULL:
        link.newer.older = link.older
    else:
        newest_link = link.older
    if link.older != cython.NULL:
        link.older.newer = link.newer
    drop_timer(cython.address(link.timer))
    # Events of this round may still name it; see free_closed().
    link.next_closed = closed_first
    closed_first = link


def free_closed():
    """Frees the closed connections, when no event and no queue can name them any more."""
    global closed_first, ended_first, resume_at_ms
    link: cython.pointer(Link) = closed_first
    following: cython.pointer(Link)
    session: cython.pointer(Session) = ended_first
    next_session: cython.pointer(Session)
    if link != cython.NULL or session != cython.NULL:
        resume_at_ms = 0
    while link != cython.NULL:
        following = link.next_closed
        free(link)
        link = following
    closed_first = cython.NULL
    while session != cython.NULL:
        next_session = session.next_ended
        free(session)
        session = next_session
    ended_first = cython.NULL


def reset_on_close(fd):
    """Makes close() send a reset."""
    at_once: linger
    at_once.l_onoff = 1
    at_once.l_linger = 0
    setsockopt(fd, SOL_SOCKET, SO_LINGER, cython.address(at_once), cython.sizeof(linger))


# --- Pipes -------------------------------------------------------------------------------------


def take_pipe(side):
    """Gives ``side`` an empty pipe.  False if there is none: then bytes are copied."""
    global spare_count, pipes_open
    ends: cython.int[2]
    if spare_count > 0:
        spare_count -= 1
        side.pipe_in = spare_pipes[spare_count][0]
        side.pipe_out = spare_pipes[spare_count][1]
        return True
    if pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0:
        return False
    pipes_open += 1
    fcntl(ends[0], F_SETPIPE_SZ, PIPE_BYTES)
    side.pipe_in = ends[0]
    side.pipe_out = ends[1]
    return True


def give_pipe_back(side):
    """Keeps an empty pipe for the next who needs one, if there are few; else closes it."""
    global spare_count, pipes_open
    if side.piped == 0 and spare_count < SPARE_PIPES and paused_first == cython.NULL:
        spare_pipes[spare_count][0] = side.pipe_in
        spare_pipes[spare_count][1] = side.pipe_out
        spare_count += 1
    else:
        close(side.pipe_in)
        close(side.pipe_out)
        pipes_open -= 1
    side.pipe_in = -1
    side.piped = 0


def free_spare_pipes():
    """Closes all pipes that nobody uses.  False if there is none."""
    global spare_count, pipes_open
    if spare_count == 0:
        return False
    while spare_count > 0:
        spare_count -= 1
        close(spare_pipes[spare_count][0])
        close(spare_pipes[spare_count][1])
        pipes_open -= 1
    return True


# --- SCTP --------------------------------------------------------------------------------------


def copy_message(side):
    """Hands on one message, or a part of a long one, with its stream and payload identifier."""
    info: SctpInfo
    data: cython.p_char = cython.cast(cython.p_char, buffer) + cython.sizeof(SctpInfo)
    message: msghdr
    part: iovec
    head: cython.pointer(cmsghdr)
    size: cython.ssize_t
    memset(cython.address(message), 0, cython.sizeof(msghdr))
    memset(cython.address(info), 0, cython.sizeof(SctpInfo))
    part.iov_base = data
    part.iov_len = BUFFER_BYTES - cython.sizeof(SctpInfo)
    message.msg_iov = cython.address(part)
    message.msg_iovlen = 1
    message.msg_control = controls[0]
    message.msg_controllen = CONTROL_BYTES
    size = recvmsg(side.fd, cython.address(message), 0)
    if size <= 0:
        if size < 0 and errno == EINTR:
            return True
        if size < 0 and errno == EAGAIN:
            side.readable = False
            return False
        side.ended = True
        side.broken = side.broken or size < 0
        return True
    count_bytes(side, size)
    head = CMSG_FIRSTHDR(cython.address(message))
    if head != cython.NULL and head.cmsg_level == IPPROTO_SCTP and head.cmsg_type == SCTP_SNDRCV:
        memcpy(cython.address(info), CMSG_DATA(head), cython.sizeof(SctpInfo))
    memcpy(buffer, cython.address(info), cython.sizeof(SctpInfo))
    size += cython.sizeof(SctpInfo)
    if not keep(side, buffer, size):
        side.broken = True
        side.other.broken = True
        return False
    return True


def send_message(fd, owed, n):
    """Sends what copy_message() kept, as a whole.  ``n``, or -1 with errno."""
    info: SctpInfo
    message: msghdr
    part: iovec
    head: cython.pointer(cmsghdr)
    memset(cython.address(message), 0, cython.sizeof(msghdr))
    memset(controls[0], 0, CONTROL_BYTES)
    memcpy(cython.address(info), owed, cython.sizeof(SctpInfo))
    # Only these two are the sender's to choose.
    info.ssn = 0
    info.flags &= 1  # unordered
    info.context = 0
    info.life = 0
    info.association = 0
    part.iov_base = owed + cython.sizeof(SctpInfo)
    part.iov_len = n - cython.sizeof(SctpInfo)
    message.msg_iov = cython.address(part)
    message.msg_iovlen = 1
    message.msg_control = controls[0]
    message.msg_controllen = CMSG_SPACE(cython.sizeof(SctpInfo))
    head = CMSG_FIRSTHDR(cython.address(message))
    head.cmsg_level = IPPROTO_SCTP
    head.cmsg_type = SCTP_SNDRCV
    head.cmsg_len = CMSG_LEN(cython.sizeof(SctpInfo))
    memcpy(CMSG_DATA(head), cython.address(info), cython.sizeof(SctpInfo))
    if sendmsg(fd, cython.address(message), MSG_NOSIGNAL) < 0:
        return -1
    return n


# --- Datagrams ---------------------------------------------------------------------------------


def receive_batch(fd, most, batch):
    """Receives up to ``most`` datagrams into the common arrays; how many, or -1 with errno.

    The next batch is as large as this one suggests: one datagram at a time while there is little
    to do.
    """
    at: cython.int
    got: cython.long
    for at in range(most):
        vectors[at].iov_base = datagrams[at]
        vectors[at].iov_len = DATAGRAM_BYTES
        messages[at].msg_hdr.msg_name = cython.address(names[at])
        messages[at].msg_hdr.msg_namelen = cython.sizeof(sockaddr_in6)
        messages[at].msg_hdr.msg_iov = cython.address(vectors[at])
        messages[at].msg_hdr.msg_iovlen = 1
        messages[at].msg_hdr.msg_control = controls[at]
        messages[at].msg_hdr.msg_controllen = CONTROL_BYTES
    # By number: musl's own functions send one message at a time.
    got = syscall(SYS_recvmmsg, fd, messages, most, MSG_DONTWAIT, cython.NULL)
    if got == most:
        batch[0] = cython.cast(cython.uchar, least(most * 2, BATCH))
    elif got > 0:
        batch[0] = cython.cast(cython.uchar, got)
    return cython.cast(cython.int, got)


def send_batch(fd, first, end, mapping, singly):
    """Sends the datagrams from ``first`` to before ``end``, all to one receiver.

    Those of one size go through the network as one, if it can (``singly`` remembers that it
    cannot), and are parted where they arrive.  An error that an earlier datagram left behind
    (somebody answered with ICMP) is taken away by the call that reports it, so the same datagram is
    tried again.
    """
    at: cython.int = first
    tries: cython.int = 0
    count: cython.int
    together: cython.bint
    done: cython.long
    while at < end:
        count = 1
        together = False
        if not singly[0]:
            count = equals(at, end)
            together = count > 1
            # Those before the next that are equal go out with one call too.
            while not together and at + count < end and equals(at + count, end) == 1:
                count += 1
        else:
            count = end - at
        if together:
            done = send_as_one(fd, at, count)
            if done < 0 and (errno == EINVAL or errno == EIO or errno == EMSGSIZE):
                singly[0] = True
                continue
        else:
            done = syscall(
                SYS_sendmmsg,
                fd,
                cython.address(messages[at]),
                count,
                MSG_NOSIGNAL | MSG_DONTWAIT,
            )
        if done > 0:
            at += cython.cast(cython.int, done)
            tries = 0
        elif errno == EAGAIN or errno == ENOBUFS:
            mapping.datagrams_lost += end - at
            return
        elif errno != EINTR:
            mapping.pending_errors += 1
            tries += 1
            if tries == SEND_TRIES:
                count = count if together else 1
                mapping.datagrams_lost += count
                at += count
                tries = 0


def equals(first, end):
    """How many datagrams from ``first`` on have one size; the last of them may be smaller."""
    at: cython.int = first + 1
    size: cython.size_t = vectors[first].iov_len
    if size == 0 or size > LARGEST_SEGMENT:
        return 1
    while at < end and vectors[at].iov_len == size:
        at += 1
    if at < end and 0 < vectors[at].iov_len < size:
        at += 1
    return at - first


def send_as_one(fd, first, count):
    """Sends datagrams of one size with one traversal of the network.  ``count``, or -1."""
    message: msghdr = messages[first].msg_hdr
    head: cython.pointer(cmsghdr)
    used: cython.size_t = message.msg_controllen
    message.msg_iovlen = count
    # Behind the address from which it goes out, if that is there.
    memset(cython.cast(cython.p_char, controls[first]) + used, 0, CMSG_SPACE(2))
    message.msg_control = cython.cast(cython.p_char, controls[first]) + used
    message.msg_controllen = CMSG_SPACE(2)
    head = CMSG_FIRSTHDR(cython.address(message))
    head.cmsg_level = IPPROTO_UDP
    head.cmsg_type = UDP_SEGMENT
    head.cmsg_len = CMSG_LEN(2)
    cython.cast(cython.p_ushort, CMSG_DATA(head))[0] = cython.cast(
        cython.ushort, vectors[first].iov_len
    )
    message.msg_control = controls[first]
    message.msg_controllen = used + CMSG_SPACE(2)
    if sendmsg(fd, cython.address(message), MSG_NOSIGNAL | MSG_DONTWAIT) < 0:
        return -1
    return count


def receive_requests(listener):
    """Hands datagrams of clients on, those that follow one another from one client in one call."""
    count: cython.int
    at: cython.int
    if listener.fd < 0:
        return
    count = receive_batch(listener.fd, listener.batch, cython.address(listener.batch))
    first: cython.int = 0
    session: cython.pointer(Session) = cython.NULL
    for at in range(count):
        read_control(listener, at)
    at = 0
    while at < count:
        first = at
        session = session_of(listener, at)
        while at < count and (at == first or is_same_client(first, at)):
            prepare_datagram(at, cython.NULL)
            at += 1
        if session == cython.NULL:
            listener.mapping.datagrams_lost += at - first
            continue
        listener.mapping.sent_up += bytes_of(first, at)
        touch(session)
        session.requests = 1 if session.requests == 0 and at - first == 1 else 2
        send_batch(session.fd, first, at, listener.mapping, cython.address(session.requests_singly))


def bytes_of(first, end):
    """How many bytes some datagrams have."""
    total: cython.long = 0
    at: cython.int
    for at in range(first, end):
        total += messages[at].msg_len
    return total


def prepare_datagram(at, session):
    """Turns a received datagram into one to be sent: to ``session``'s client, or as connected."""
    messages[at].msg_hdr.msg_name = cython.NULL
    messages[at].msg_hdr.msg_namelen = 0
    messages[at].msg_hdr.msg_controllen = 0
    vectors[at].iov_len = messages[at].msg_len
    if session != cython.NULL:
        messages[at].msg_hdr.msg_name = cython.address(session.client)
        messages[at].msg_hdr.msg_namelen = address_bytes(cython.address(session.client))


def read_control(listener, at):
    """Notes to which of our addresses a datagram was sent, and how many were lost before it."""
    head: cython.pointer(cmsghdr) = CMSG_FIRSTHDR(cython.address(messages[at].msg_hdr))
    four: cython.pointer(in_pktinfo)
    six: cython.pointer(in6_pktinfo)
    lost: cython.uint = 0
    memset(cython.address(locals_[at]), 0, cython.sizeof(Local))
    while head != cython.NULL:
        if head.cmsg_level == IPPROTO_IP and head.cmsg_type == IP_PKTINFO:
            four = cython.cast(cython.pointer(in_pktinfo), CMSG_DATA(head))
            memcpy(locals_[at].address, cython.address(four.ipi_spec_dst), 4)
        elif head.cmsg_level == IPPROTO_IPV6 and head.cmsg_type == IPV6_PKTINFO:
            six = cython.cast(cython.pointer(in6_pktinfo), CMSG_DATA(head))
            # A group cannot send; the kernel chooses an address then.
            if six.ipi6_addr.s6_addr[0] != 255:
                memcpy(locals_[at].address, cython.address(six.ipi6_addr), 16)
            # An address that many links have means nothing without its link.
            if six.ipi6_addr.s6_addr[0] == 254 or six.ipi6_addr.s6_addr[0] == 255:
                locals_[at].interface = six.ipi6_ifindex
        elif head.cmsg_level == SOL_SOCKET and head.cmsg_type == SO_RXQ_OVFL:
            memcpy(cython.address(lost), CMSG_DATA(head), 4)
            listener.mapping.datagrams_overflowed += lost - listener.overflow
            listener.overflow = lost
        head = CMSG_NXTHDR(cython.address(messages[at].msg_hdr), head)


def is_same_client(a, b):
    """Whether two received datagrams belong to one session."""
    n: cython.size_t = address_bytes(cython.address(names[a]))
    if memcmp(cython.address(names[a]), cython.address(names[b]), n) != 0:
        return False
    return memcmp(cython.address(locals_[a]), cython.address(locals_[b]), cython.sizeof(Local)) == 0


def hash_of(listener, client, local):
    """A number that spreads sessions."""
    n: cython.size_t = address_bytes(client)
    octets: cython.p_uchar = cython.cast(cython.p_uchar, client)
    hashed: cython.uint = 40503 ^ listener.fd
    at: cython.size_t
    # Of an IPv4 address only the first eight bytes mean anything.
    for at in range(2, 8 if n < 24 else n):
        hashed = (hashed ^ octets[at]) * 16777619
    for at in range(16):
        hashed = (hashed ^ local.address[at]) * 16777619
    return hashed ^ (hashed >> 15)


def session_of(listener, at):
    """The session of a received datagram, new if need be.  NULL if there cannot be one."""
    hashed: cython.uint = hash_of(listener, cython.address(names[at]), cython.address(locals_[at]))
    found: cython.pointer(Session) = cython.NULL
    n: cython.size_t = address_bytes(cython.address(names[at]))
    # The rest of an IPv4 address is padding.
    n = 8 if n < 24 else n
    if session_bucket_count > 0:
        found = session_buckets[hashed & (session_bucket_count - 1)]
    while found != cython.NULL:
        if (
            found.hash == hashed
            and found.listener == listener
            and memcmp(cython.address(found.client), cython.address(names[at]), n) == 0
            and memcmp(
                cython.address(found.local), cython.address(locals_[at]), cython.sizeof(Local)
            )
            == 0
        ):
            return found
        found = found.next_in_bucket
    return new_session(listener, at, hashed)


def new_session(listener, at, hashed):
    """Makes a session for a client that is let in.  NULL if it is not, or it cannot be made."""
    mapping: cython.pointer(Mapping) = listener.mapping
    peer: sockaddr_in6 = names[at]
    session: cython.pointer(Session)
    unmap(cython.address(peer))
    if mapping.access != cython.NULL and not admits(mapping.access, cython.address(peer)):
        mapping.denied += 1
        return cython.NULL
    if mapping.sessions >= mapping.udp_sessions and mapping.oldest != cython.NULL:
        mapping.evicted += 1
        end_session(mapping.oldest)
    if session_count >= session_bucket_count and not grow_buckets():
        return cython.NULL
    session = cython.cast(cython.pointer(Session), calloc(1, cython.sizeof(Session)))
    if session == cython.NULL:
        return cython.NULL
    session.fd = connect_session(mapping, cython.address(peer), listener.offset)
    if session.fd < 0:
        free(session)
        return cython.NULL
    session.timer.kind = OF_SESSION
    session.listener = listener
    session.client = names[at]
    if address_bytes(cython.address(session.client)) < 24:
        memset(cython.cast(cython.p_char, cython.address(session.client)) + 8, 0, 20)
    session.local = locals_[at]
    session.hash = hashed
    session.batch = 1
    if not watch(session.fd, session, EPOLLIN, EPOLL_CTL_ADD):
        close(session.fd)
        free(session)
        return cython.NULL
    link_session(session)
    return session


def connect_session(mapping, peer, offset):
    """A socket that is connected to the container; -1 if there is none."""
    address: sockaddr_in6
    number: cython.int = pick_backend(mapping, peer, 0)
    fd: cython.int
    address = mapping.backends[number].address
    if mapping.spread:
        address.sin6_port = htons(ntohs(address.sin6_port) + offset)
    fd = new_socket(mapping, address.sin6_family)
    # Whoever has been silent for longest makes room.
    if fd < 0 and mapping.oldest != cython.NULL:
        mapping.evicted += 1
        end_session(mapping.oldest)
        fd = new_socket(mapping, address.sin6_family)
    if fd < 0:
        return -1
    place_socket(fd, mapping, peer, address.sin6_family)
    if connect_to(fd, cython.address(mapping.backends[number]), cython.address(address)) < 0:
        complain(cython.address(address), 0, errno)
        close(fd)
        return -1
    return fd


def link_session(session):
    """Enters a session into the table and, as the youngest, into its mapping's list."""
    global session_count
    mapping: cython.pointer(Mapping) = session.listener.mapping
    slot: cython.uint = session.hash & (session_bucket_count - 1)
    session.next_in_bucket = session_buckets[slot]
    session_buckets[slot] = session
    session_count += 1
    mapping.sessions += 1
    session.older = mapping.newest
    if mapping.newest != cython.NULL:
        mapping.newest.newer = session
    else:
        mapping.oldest = session
    mapping.newest = session
    session.active_ms = loop_ms
    set_timer(cython.address(session.timer), loop_ms + mapping.udp_timeout_ms)


def grow_buckets():
    """Doubles the table of sessions.  False without memory."""
    global session_buckets, session_bucket_count
    count: cython.uint = session_bucket_count * 2
    at: cython.uint
    session: cython.pointer(Session)
    following: cython.pointer(Session)
    if count == 0:
        count = FIRST_SESSION_BUCKETS
    larger: cython.pointer(cython.pointer(Session)) = cython.cast(
        cython.pointer(cython.pointer(Session)),
        calloc(count, cython.sizeof(cython.pointer(Session))),
    )
    if larger == cython.NULL:
        return session_bucket_count > 0
    for at in range(session_bucket_count):
        session = session_buckets[at]
        while session != cython.NULL:
            following = session.next_in_bucket
            session.next_in_bucket = larger[session.hash & (count - 1)]
            larger[session.hash & (count - 1)] = session
            session = following
    free(session_buckets)
    session_buckets = larger
    session_bucket_count = count
    return True


def touch(session):
    """Notes that a session is in use, in either direction."""
    mapping: cython.pointer(Mapping) = session.listener.mapping
    session.active_ms = loop_ms
    if mapping.newest == session:
        return
    if session.older != cython.NULL:
        session.older.newer = session.newer
    else:
        mapping.oldest = session.newer
    session.newer.older = session.older
    session.older = mapping.newest
    session.newer = cython.NULL
    mapping.newest.newer = session
    mapping.newest = session


def receive_answers(session):
    """Hands datagrams of the container on to the client, from the address that it had asked."""
    mapping: cython.pointer(Mapping) = session.listener.mapping
    at: cython.int
    count: cython.int
    if session.ended:
        return
    # A failure is an ICMP answer to something that was sent; it has been taken away by now.
    count = receive_batch(session.fd, session.batch, cython.address(session.batch))
    if count < 0 and errno != EAGAIN and errno != EINTR:
        mapping.pending_errors += 1
    if count <= 0:
        return
    for at in range(count):
        prepare_datagram(at, session)
        if mapping.any_host:
            write_control(session, at)
    mapping.sent_down += bytes_of(0, count)
    touch(session)
    if not session.answered:
        session.answered = True
        if session.requests == 1 and mapping.udp_oneshot_ms > 0:
            set_timer(cython.address(session.timer), loop_ms + mapping.udp_oneshot_ms)
    send_batch(session.listener.fd, 0, count, mapping, cython.address(session.answers_singly))


def write_control(session, at):
    """Says from which of our addresses an answer goes out."""
    head: cython.pointer(cmsghdr)
    four: cython.pointer(in_pktinfo)
    six: cython.pointer(in6_pktinfo)
    is_four: cython.bint = session.client.sin6_family == AF_INET
    size: cython.size_t = cython.sizeof(in_pktinfo) if is_four else cython.sizeof(in6_pktinfo)
    memset(controls[at], 0, CMSG_SPACE(size))
    messages[at].msg_hdr.msg_controllen = CMSG_SPACE(size)
    head = CMSG_FIRSTHDR(cython.address(messages[at].msg_hdr))
    head.cmsg_len = CMSG_LEN(size)
    if is_four:
        head.cmsg_level = IPPROTO_IP
        head.cmsg_type = IP_PKTINFO
        four = cython.cast(cython.pointer(in_pktinfo), CMSG_DATA(head))
        memcpy(cython.address(four.ipi_spec_dst), session.local.address, 4)
    else:
        head.cmsg_level = IPPROTO_IPV6
        head.cmsg_type = IPV6_PKTINFO
        six = cython.cast(cython.pointer(in6_pktinfo), CMSG_DATA(head))
        memcpy(cython.address(six.ipi6_addr), session.local.address, 16)
        six.ipi6_ifindex = session.local.interface


def session_due(session):
    """Ends a session that has been silent for long enough."""
    mapping: cython.pointer(Mapping) = session.listener.mapping
    limit_ms: cython.long = mapping.udp_timeout_ms
    if mapping.udp_oneshot_ms > 0 and session.requests == 1 and session.answered:
        limit_ms = mapping.udp_oneshot_ms
    if loop_ms - session.active_ms >= limit_ms:
        end_session(session)
    else:
        set_timer(cython.address(session.timer), session.active_ms + limit_ms)


def end_session(session):
    """Takes a session out of everything; events of this round may still name it."""
    global session_count, ended_first
    mapping: cython.pointer(Mapping) = session.listener.mapping
    place: cython.pointer(cython.pointer(Session)) = cython.address(
        session_buckets[session.hash & (session_bucket_count - 1)]
    )
    while place[0] != session:
        place = cython.address(place[0].next_in_bucket)
    place[0] = session.next_in_bucket
    if session.older != cython.NULL:
        session.older.newer = session.newer
    else:
        mapping.oldest = session.newer
    if session.newer != cython.NULL:
        session.newer.older = session.older
    else:
        mapping.newest = session.older
    session_count -= 1
    mapping.sessions -= 1
    drop_timer(cython.address(session.timer))
    close(session.fd)
    session.ended = True
    session.next_ended = ended_first
    ended_first = session


# --- What is said about it ---------------------------------------------------------------------


def open_stats():
    """Opens the socket through which counters go, if somebody wants them."""
    global stats_fd
    if stats_path == cython.NULL or strlen(stats_path) >= cython.sizeof(stats_address.sun_path):
        return
    stats_address.sun_family = AF_UNIX
    memcpy(stats_address.sun_path, stats_path, strlen(stats_path) + 1)
    stats_fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)
    stats_timer.kind = OF_STATS
    if stats_fd >= 0:
        set_timer(cython.address(stats_timer), now_ms() + STATS_INTERVAL_MS)


def send_stats():
    """Sends the line, if somebody is there to take it at once."""
    global events_lost
    if commander.fd >= 0:
        if send(commander.fd, line, line_length, MSG_NOSIGNAL | MSG_DONTWAIT) < 0:
            events_lost += 1
        return
    sendto(
        stats_fd,
        line,
        line_length,
        MSG_NOSIGNAL | MSG_DONTWAIT,
        cython.cast(cython.pointer(sockaddr), cython.address(stats_address)),
        cython.sizeof(sockaddr_un),
    )


def send_close(link, why):
    """Reports a connection that has ended, if it is its turn."""
    global closes_seen
    if reports_closes > 1:
        closes_seen += 1
        if closes_seen % reports_closes != 0:
            return
    begin_stats(link.mapping, b"close")
    say(b',"client":"')
    say_ip(cython.address(link.peer), False)
    say(b'","client_port":')
    say_number(ntohs(link.peer.sin6_port))
    say_link(link)
    say(b',"reason":"')
    say(why)
    say(b'"}')
    send_stats()


def send_totals():
    """Reports the counters of every mapping."""
    mapping: cython.pointer(Mapping) = mappings
    while mapping != cython.NULL:
        begin_stats(mapping, b"totals")
        say_totals(mapping)
        say(b"}")
        send_stats()
        mapping = mapping.next
    set_timer(cython.address(stats_timer), loop_ms + STATS_INTERVAL_MS)


def say_totals(mapping):
    """Adds the counters of a mapping."""
    say_count(b"connections", mapping.connections)
    say_count(b"accepted", mapping.accepted)
    say_count(b"denied", mapping.denied)
    say_count(b"limited", mapping.limited)
    say_count(b"failed", mapping.failed)
    say_count(b"bad_headers", mapping.bad_headers)
    say_count(b"shed", mapping.shed)
    say_count(b"pauses", mapping.pauses)
    say_count(b"up", mapping.sent_up)
    say_count(b"down", mapping.sent_down)
    say_count(b"sessions", mapping.sessions)
    say_count(b"evicted", mapping.evicted)
    say_count(b"datagrams_lost", mapping.datagrams_lost)
    say_count(b"datagrams_overflowed", mapping.datagrams_overflowed)
    say_count(b"pending_errors", mapping.pending_errors)
    say_count(b"other_ports", mapping.other_ports)
    say_count(b"other_addresses", mapping.other_addresses)


def say_link(link):
    """Adds what is known of a connection."""
    find_local(link)
    say(b',"sender":"')
    say_ip(cython.address(link.sender), False)
    say(b'","local":"')
    say_ip(cython.address(link.local), False)
    say(b'"')
    say_count(b"local_port", ntohs(link.local.sin6_port))
    if link.backend >= 0:
        say(b',"backend":"')
        say_backend(link)
        say(b'"')
    if link.dial_ms >= 0:
        say_count(b"dial_ms", link.dial_ms)
    if link.first_byte_ms >= 0:
        say_count(b"first_byte_ms", link.first_byte_ms)
    say_count(b"up", link.sides[0].bytes)
    say_count(b"down", link.sides[1].bytes)
    say_count(b"ms", loop_ms - link.begun_ms)


def say_backend(link):
    """Adds where a connection leads to, without the characters that JSON would not take."""
    backend: cython.pointer(Backend) = cython.address(link.mapping.backends[link.backend])
    port: cython.int = ntohs(backend.address.sin6_port)
    six: cython.bint = backend.address.sin6_family == AF_INET6
    if backend.path != cython.NULL:
        say(b"@" if backend.path.sun_path[0] == 0 else b"")
        say(backend.path.sun_path + (1 if backend.path.sun_path[0] == 0 else 0))
        return
    say(b"[" if six else b"")
    say_ip(cython.address(backend.address), False)
    say(b"]:" if six else b":")
    say_number(port + (link.offset if link.mapping.spread else 0))


def begin_stats(mapping, event):
    """Begins a JSON object."""
    global line_length
    line_length = 0
    say(b'{"event":"')
    say(event)
    say(b'","pid":')
    say_number(getpid())
    say(b',"proto":"')
    say(protocol_name(mapping.wire, False))
    say(b'","host":"')
    say_ip(cython.address(mapping.host), False)
    say(b'","port":')
    say_number(ntohs(mapping.host.sin6_port))


def say_count(name, number):
    """Adds a number to the JSON object."""
    say(b',"')
    say(name)
    say(b'":')
    say_number(number)


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
    has_colon: cython.bint = strchr(text, b":") != cython.NULL
    say(b"[" if has_colon else b"")
    say(text)
    say(b"]:" if has_colon else b":")
    say_number(port if port > 0 else 0)


def say_ip(address, six):
    """Adds an address, as an IPv6 one if that is wanted."""
    text: cython.char[INET6_ADDRSTRLEN]
    flat: cython.uchar[16]
    if address.sin6_family == AF_UNIX:
        say(b"unix")
        return
    flatten(address, flat)
    if six or address.sin6_family == AF_INET6:
        inet_ntop(AF_INET6, flat, text, INET6_ADDRSTRLEN)
    else:
        inet_ntop(AF_INET, cython.address(flat[12]), text, INET6_ADDRSTRLEN)
    say(text)


def print_line(fd):
    """Writes the line with its newline, in one call."""
    line[line_length] = b"\n"
    write(fd, line, line_length + 1)


def open_log():
    """Opens what ``log`` names: a file, ``syslog`` or ``journald``; else it is stderr."""
    global log_fd
    if log_text == cython.NULL or strcmp(log_text, b"stderr") == 0:
        return
    if strncmp(log_text, b"file:", 5) == 0:
        log_fd = open(log_text + 5, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NONBLOCK, 0o640)
        return
    where: sockaddr_un
    memset(cython.address(where), 0, cython.sizeof(sockaddr_un))
    where.sun_family = AF_UNIX
    path: cython.p_const_char = b"/dev/log"
    if strcmp(log_text, b"journald") == 0:
        path = b"/run/systemd/journal/socket"
    elif strcmp(log_text, b"syslog") != 0:
        log_text_is_wrong()
        return
    memcpy(where.sun_path, path, strlen(path))
    log_fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)
    connected: cython.int = connect(
        log_fd,
        cython.cast(cython.pointer(sockaddr), cython.address(where)),
        cython.sizeof(sockaddr_un),
    )
    if connected < 0:
        close(log_fd)
        log_fd = -1


def log_text_is_wrong():
    """Says so, on stderr."""
    begin(b"PORTPROXY_LOG is ignored: expected stderr, syslog, journald or file:PATH")
    log_line()


def log_line():
    """Writes the line to the log, and never blocks."""
    where: pollfd
    text: cython.char[LINE_BYTES]
    n: cython.size_t = line_length
    if log_fd < 0:
        where.fd = 2
        where.events = POLLOUT
        where.revents = 0
        if poll(cython.address(where), 1, 0) == 1 and where.revents & POLLOUT:
            print_line(2)
        return
    if strncmp(log_text, b"file:", 5) == 0:
        print_line(log_fd)
        return
    # What the program's name is comes from elsewhere in both.
    memcpy(text, line + PREFIX_BYTES, n - PREFIX_BYTES)
    n -= PREFIX_BYTES
    begin_record()
    say_bytes(text, n)
    send(log_fd, line, line_length, MSG_NOSIGNAL | MSG_DONTWAIT)


def begin_record():
    """The beginning of a syslog or journal datagram, for a warning of a daemon."""
    global line_length
    line_length = 0
    if strcmp(log_text, b"journald") == 0:
        say(b"PRIORITY=4\nSYSLOG_IDENTIFIER=portproxy-relay\nMESSAGE=")
        return
    say(b"<28>portproxy-relay[")
    say_number(getpid())
    say(b"]: ")


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


def complain(address, offset, number):
    """Says in the log that the container is out of reach, not too often."""
    global complain_at_ms
    if loop_ms < complain_at_ms:
        return
    complain_at_ms = loop_ms + COMPLAINT_INTERVAL_MS
    begin(b"cannot connect to ")
    if address.sin6_family == AF_INET6:
        say(b"[")
    say_ip(address, False)
    say(b"]:" if address.sin6_family == AF_INET6 else b":")
    say_number(ntohs(address.sin6_port) + offset)
    say(b": ")
    say(reason(number))
    log_line()


# --- The control channel (docs/portproxy-control.md) -------------------------------------------


def begin_control():
    """Prepares for mappings that come later: the broker first, then the privileges go."""
    global poller
    begin_broker()
    drop_privileges()
    poller = epoll_create1(EPOLL_CLOEXEC)
    fcntl(control_fd, F_SETFD, FD_CLOEXEC)
    fcntl(control_fd, F_SETFL, fcntl(control_fd, F_GETFL) | O_NONBLOCK)
    commander.kind = OF_CONTROL
    controller.kind = OF_CONTROLLER
    if number_of(control_fd, SO_ACCEPTCONN) == 1:
        controller.fd = control_fd
        watch(control_fd, cython.address(controller), EPOLLIN, EPOLL_CTL_ADD)
    else:
        controller.fd = -1
        commander.fd = control_fd
        watch(control_fd, cython.address(commander), EPOLLIN, EPOLL_CTL_ADD)
    if filters_calls:
        filter_calls()


def take_controller():
    """A control plane has come; it takes the place of one that was there before."""
    fd: cython.int = accept4(controller.fd, cython.NULL, cython.NULL, SOCK_CLOEXEC | SOCK_NONBLOCK)
    if fd < 0:
        return
    if commander.fd >= 0:
        lose_commander()
    commander.fd = fd
    watch(fd, cython.address(commander), EPOLLIN, EPOLL_CTL_ADD)


def lose_commander():
    """The control plane has gone: without a way for another one to come, so does the relay."""
    global reports_closes
    if controller.fd < 0:
        _exit(0)
    close(commander.fd)
    commander.fd = -1
    reports_closes = 0


def take_commands():
    """Does what the control plane says: a datagram is a command, and gets one datagram back."""
    global passed_count, handed_count
    message: msghdr
    part: iovec
    head: cython.pointer(cmsghdr)
    room: cython.long[16]
    size: cython.ssize_t
    if commander.fd < 0:
        return
    memset(cython.address(message), 0, cython.sizeof(msghdr))
    part.iov_base = buffer
    part.iov_len = BUFFER_BYTES - 1
    message.msg_iov = cython.address(part)
    message.msg_iovlen = 1
    message.msg_control = room
    message.msg_controllen = CMSG_SPACE(PASSED * cython.sizeof(cython.int))
    size = recvmsg(commander.fd, cython.address(message), MSG_CMSG_CLOEXEC)
    if size <= 0:
        if size == 0 or (errno != EAGAIN and errno != EINTR):
            lose_commander()
        return
    buffer[size] = 0
    passed_count = 0
    handed_count = 0
    head = CMSG_FIRSTHDR(cython.address(message))
    if head != cython.NULL and head.cmsg_level == SOL_SOCKET and head.cmsg_type == SCM_RIGHTS:
        passed_count = cython.cast(
            cython.int, (head.cmsg_len - CMSG_LEN(0)) // cython.sizeof(cython.int)
        )
        memcpy(passed, CMSG_DATA(head), passed_count * cython.sizeof(cython.int))
    begin_reply()
    if message.msg_flags & MSG_TRUNC or strlen(buffer) != cython.cast(cython.size_t, size):
        reply_error(0, 0, b"the command is too long or has a NUL")
    else:
        command(buffer)
    while passed_count > 0:
        passed_count -= 1
        if passed[passed_count] >= 0:
            close(passed[passed_count])
    if commander.fd >= 0:
        send_with_fds(commander.fd, reply, reply_length, handed, handed_count)


def command(text):
    """One command: its word decides which."""
    rest: cython.p_char = cut_at(text, b" ")
    mapping: cython.pointer(Mapping)
    if rest == cython.NULL:
        rest = text + strlen(text)
    if strcmp(text, b"hello") == 0:
        say_hello()
    elif strcmp(text, b"add") == 0:
        add_mapping(rest)
    elif strcmp(text, b"start") == 0:
        start_mapping(mapping_named(cython.address(rest)))
    elif strcmp(text, b"share") == 0:
        share_mapping(mapping_named(cython.address(rest)))
    elif strcmp(text, b"update") == 0:
        mapping = mapping_named(cython.address(rest))
        update_mapping(mapping, rest)
    elif strcmp(text, b"remove") == 0:
        mapping = mapping_named(cython.address(rest))
        remove_command(mapping, rest)
    elif strcmp(text, b"backend") == 0:
        mapping = mapping_named(cython.address(rest))
        mark_backend(mapping, rest)
    elif strcmp(text, b"list") == 0:
        list_mappings(number_in(cython.address(rest)))
    elif strcmp(text, b"connections") == 0:
        list_links(number_in(cython.address(rest)))
    elif strcmp(text, b"kill") == 0:
        kill_link(number_in(cython.address(rest)))
    elif strcmp(text, b"closes") == 0:
        report_closes(number_in(cython.address(rest)))
    elif strcmp(text, b"drain") == 0:
        drain_all(number_in(cython.address(rest)))
    else:
        reply_error(0, 0, b"no command has this name")


def number_in(text):
    """The number at the beginning of ``text``, which moves behind it; -1 if there is none."""
    at: cython.size_t = 0
    here: cython.p_char = text[0]
    number: cython.long = whole_number(here, cython.address(at))
    if at == 0:
        return -1
    text[0] = skip_blanks(here + at)
    return number


def mapping_named(text):
    """The mapping with the serial number that ``text`` begins with.  NULL, with an error said."""
    serial: cython.long = number_in(text)
    mapping: cython.pointer(Mapping) = mappings
    while mapping != cython.NULL and (mapping.serial != serial or mapping.removed):
        mapping = mapping.next
    if mapping == cython.NULL:
        reply_error(0, 0, b"there is no such mapping")
    return mapping


def begin_reply():
    """Begins the answer to a command."""
    global reply_length
    reply_length = 0


def reply_line():
    """Adds the line to the answer.  False if there is no room for it and a last line."""
    global reply_length
    if reply_length + line_length + 64 > BUFFER_BYTES:
        return False
    memcpy(reply + reply_length, line, line_length)
    reply_length += line_length
    reply[reply_length] = b"\n"
    reply_length += 1
    return True


def list_line():
    """Adds the line to a list.  False if there would be no room for its last line then."""
    return reply_length + line_length + PROCESS_LINE_BYTES < BUFFER_BYTES and reply_line()


def reply_ok(number, other):
    """Says that it is done."""
    global line_length
    line_length = 0
    say(b"ok ")
    say_number(number)
    say(b" ")
    say_number(other)
    reply_line()


def reply_error(port, number, text):
    """Says that it cannot be done: the port and errno if they are to blame, and a text."""
    global line_length
    begin_reply()
    line_length = 0
    say(b"error ")
    say_number(port)
    say(b" ")
    say_number(number)
    say(b" ")
    say(text)
    reply_line()


def say_hello():
    """Says who is here."""
    global line_length
    line_length = 0
    say(b"ok ")
    say_number(CONTROL_VERSION)
    say(b" ")
    say_number(getpid())
    say(b" ")
    say(PYSHIM_VERSION)
    reply_line()


def copy_text(text):
    """A copy of a text; NULL without memory."""
    n: cython.size_t = strlen(text) + 1
    made: cython.p_char = cython.cast(cython.p_char, malloc(n))
    if made != cython.NULL:
        memcpy(made, text, n)
    return made


def take_passed(number):
    """The descriptor that came with the command at this place; -1 if there is none."""
    fd: cython.int
    if number < 0 or number >= passed_count:
        return -1
    fd = passed[number]
    passed[number] = -1
    return fd


def is_of_control(word):
    """Whether a word means something here that it does not mean in a file."""
    found: cython.bint = strcmp(word, b"label") == 0 or strcmp(word, b"partial") == 0
    found = found or strcmp(word, b"shared") == 0
    found = found or strcmp(word, b"listen_netns") == 0 or strcmp(word, b"backend_netns") == 0
    return found or is_for_all(word)


def is_for_all(word):
    """Whether a setting is one of the whole process."""
    found: cython.bint = strcmp(word, b"log") == 0 or strcmp(word, b"stats") == 0
    return found or strcmp(word, b"drain") == 0


def set_of_control(mapping, word, value):
    """Sets one of those.  NULL, or what is wrong."""
    at: cython.size_t = 0
    fd: cython.int
    listens: cython.bint
    if strcmp(word, b"label") == 0:
        return cython.NULL
    if strcmp(word, b"partial") == 0:
        return choose(cython.address(mapping.partial), value, b"false", b"true")
    if strcmp(word, b"shared") == 0:
        return take_shared(mapping, whole_number(value, cython.address(at)))
    if is_for_all(word):
        return b"the control plane decides about this"
    listens = strcmp(word, b"listen_netns") == 0
    if (mapping.listen_netns if listens else mapping.backend_netns) >= 0:
        return b"a side has one namespace"
    fd = take_passed(whole_number(value, cython.address(at)))
    if fd < 0:
        return b"the namespace has not come with the command"
    if listens:
        mapping.listen_netns = fd
    else:
        mapping.backend_netns = fd
    return cython.NULL


def take_shared(mapping, first):
    """Takes the ports that another worker has opened; they came from ``first`` on."""
    at: cython.int
    if mapping.given:
        return b"a mapping's listeners are named once"
    if mapping.ports > PASSED:
        return b"so many ports cannot be shared"
    mapping.given = True
    mapping.shared = True
    for at in range(mapping.ports):
        mapping.given_fds[at] = take_passed(first + at)
    return cython.NULL


def read_draft(text):
    """Makes a mapping of a line.  NULL, with an error said, if it is wrong."""
    before: cython.pointer(Mapping) = mappings
    owned: cython.p_char
    wrong: cython.p_const_char
    at: cython.size_t = 0
    while b" " <= text[at] <= b"~" and text[at] != b'"' and text[at] != b"\\":
        at += 1
    if text[at] != 0 or at > SHOWN_BYTES:
        reply_error(0, 0, b"the line is too long or has a character that has no place in it")
        return cython.NULL
    owned = copy_text(text)
    if owned == cython.NULL:
        reply_error(0, 0, b"no memory for a mapping")
        return cython.NULL
    wrong = read_mapping(owned)
    if mappings == before:
        free(owned)
    else:
        mappings.text = owned
        mappings.shown = copy_text(text)
    if wrong == cython.NULL and mappings.shown == cython.NULL:
        wrong = b"no memory for a mapping"
    if wrong == cython.NULL:
        return mappings
    if mappings != before:
        free_mapping(mappings)
    reply_error(0, 0, wrong)
    return cython.NULL


def add_mapping(text):
    """Opens the ports of a new mapping; nobody is let in before ``start``."""
    global line_length
    mapping: cython.pointer(Mapping) = read_draft(text)
    at: cython.int
    failed: cython.int = 0
    if mapping == cython.NULL:
        return
    if not prepare_listeners(mapping):
        free_mapping(mapping)
        reply_error(0, 0, b"no memory for so many ports")
        return
    for at in range(mapping.ports):
        failed_errno_reset()
        if open_listener(cython.address(mapping.listeners[at])):
            continue
        close_listener(cython.address(mapping.listeners[at]))
        failed += 1
        if not mapping.partial or failed == mapping.ports:
            refuse_mapping(mapping, at)
            return
        line_length = 0
        say_number(ntohs(mapping.host.sin6_port) + at)
        say(b" ")
        say_number(failed_errno)
        reply_line()
    if mapping.listen_netns >= 0:
        close(mapping.listen_netns)
        mapping.listen_netns = -1
    if mapping.ports == 1 and (mapping.shared or not mapping.given):
        learn_port(mapping)
    reply_ok(mapping.serial, ntohs(mapping.host.sin6_port))


def failed_errno_reset():
    """Forgets what the last failure was."""
    global failed_errno
    failed_errno = 0


def refuse_mapping(mapping, offset):
    """Answers that a port cannot be opened, and forgets the mapping."""
    text: cython.char[LINE_BYTES]
    line[line_length] = 0
    memcpy(text, line + PREFIX_BYTES, line_length - PREFIX_BYTES + 1)
    reply_error(ntohs(mapping.host.sin6_port) + offset, failed_errno, text)
    close_listeners(mapping)
    free_mapping(mapping)


def learn_port(mapping):
    """Notes which port the kernel has chosen."""
    address: sockaddr_in6
    size: cython.uint = cython.sizeof(sockaddr_in6)
    if mapping.host.sin6_port == 0 and (
        getsockname(
            mapping.listeners[0].fd,
            cython.cast(cython.pointer(sockaddr), cython.address(address)),
            cython.address(size),
        )
        == 0
        and address.sin6_family != AF_UNIX
    ):
        mapping.host.sin6_port = address.sin6_port


def start_mapping(mapping):
    """Lets clients in; of a shared mapping also those whom another relay has left waiting."""
    at: cython.int
    listener: cython.pointer(Listener)
    if mapping == cython.NULL:
        return
    for at in range(mapping.ports):
        listener = cython.address(mapping.listeners[at])
        if listener.fd < 0:
            continue
        if mapping.serving:
            let_others_first(listener)
        elif not await_clients(listener):
            reply_error(ntohs(mapping.host.sin6_port) + at, errno, b"epoll")
            return
    mapping.serving = True
    reply_ok(mapping.serial, 0)


def share_mapping(mapping):
    """Answers with the listeners of a mapping, for other workers to accept from as well."""
    global handed_count
    at: cython.int
    listener: cython.pointer(Listener)
    if mapping == cython.NULL:
        return
    if mapping.wire != IPPROTO_TCP or mapping.ports > PASSED:
        # Of datagrams every worker would get some, whoever has the session.
        reply_error(0, 0, b"such a mapping has one worker")
        return
    for at in range(mapping.ports):
        if mapping.listeners[at].fd < 0:
            reply_error(ntohs(mapping.host.sin6_port) + at, 0, b"the port is not open")
            return
    for at in range(mapping.ports):
        listener = cython.address(mapping.listeners[at])
        handed[at] = listener.fd
        if mapping.serving and not mapping.shared:
            watch(listener.fd, listener, 0, EPOLL_CTL_DEL)
    handed_count = mapping.ports
    if mapping.serving and not mapping.shared:
        mapping.shared = True
        for at in range(mapping.ports):
            # One that waits for descriptors is watched when it has waited enough.
            listener = cython.address(mapping.listeners[at])
            if not listener.paused and not await_clients(listener):
                pause(listener)
    mapping.shared = True
    reply_ok(mapping.serial, ntohs(mapping.host.sin6_port))


def update_mapping(mapping, text):
    """Gives a mapping other settings and places to forward to; its ports stay as they are.

    Connections keep their backend; the sessions of datagrams are parted from theirs.
    """
    draft: cython.pointer(Mapping)
    if mapping == cython.NULL:
        return
    draft = read_draft(text)
    if draft == cython.NULL:
        return
    if draft.wire != mapping.wire or draft.ports != mapping.ports:
        free_mapping(draft)
        reply_error(0, 0, b"an update changes neither the protocol nor the number of ports")
        return
    forget_backends(mapping)
    exchange_settings(mapping, draft)
    free_mapping(draft)
    prepare_clients(mapping)
    reply_ok(mapping.serial, ntohs(mapping.host.sin6_port))


def forget_backends(mapping):
    """Has nothing that goes on refer to the places to forward to any more."""
    link: cython.pointer(Link) = newest_link
    while link != cython.NULL:
        if link.mapping == mapping:
            link.backend = -1
            link.tried = 0
        link = link.older
    while mapping.oldest != cython.NULL:
        end_session(mapping.oldest)


def exchange_settings(mapping, draft):
    """Swaps what was asked for; what has become of it, which comes last, stays."""
    size: cython.size_t = cython.cast(
        cython.size_t,
        cython.cast(cython.p_char, cython.address(mapping.serial))
        - cython.cast(cython.p_char, mapping),
    )
    other: Mapping = mapping[0]
    host: sockaddr_in6 = mapping.host
    any_host: cython.bint = mapping.any_host
    given: cython.bint = mapping.given
    memcpy(mapping, draft, size)
    memcpy(draft, cython.address(other), size)
    mapping.host = host
    mapping.any_host = any_host
    mapping.given = given


def remove_command(mapping, text):
    """Removes a mapping; its connections may go on for so many milliseconds, or without end."""
    rest: cython.p_char = text
    ms: cython.long = number_in(cython.address(rest))
    if mapping == cython.NULL:
        return
    remove_mapping(mapping, ms)
    reply_ok(mapping.serial, mapping.connections)


def remove_mapping(mapping, ms):
    """Closes the ports; ``ms`` -1 lets connections end by themselves, 0 ends them at once."""
    global forgotten
    mapping.removed = True
    forgotten = True
    close_listeners(mapping)
    if ms == 0:
        close_links_of(mapping, b"admin")
    elif ms > 0:
        mapping.timer.kind = OF_MAPPING
        set_timer(cython.address(mapping.timer), loop_ms + ms)


def close_listeners(mapping):
    """Closes the ports of a mapping and ends what only lives while they are open."""
    at: cython.int
    while mapping.oldest != cython.NULL:
        end_session(mapping.oldest)
    if mapping.listeners == cython.NULL:
        return
    for at in range(mapping.ports):
        close_listener(cython.address(mapping.listeners[at]))


def close_listener(listener):
    """Closes one port; it may be one of those that wait for descriptors."""
    global paused_first
    place: cython.pointer(cython.pointer(Listener)) = cython.address(paused_first)
    while place[0] != cython.NULL and place[0] != listener:
        place = cython.address(place[0].next_paused)
    if place[0] == listener:
        place[0] = listener.next_paused
    listener.paused = False
    if listener.fd >= 0:
        # Others may have it, too: then epoll would go on to report what is closed here.
        watch(listener.fd, listener, 0, EPOLL_CTL_DEL)
        close(listener.fd)
    listener.fd = -1


def close_links_of(mapping, why):
    """Ends all connections of a mapping."""
    link: cython.pointer(Link) = newest_link
    older: cython.pointer(Link)
    while link != cython.NULL:
        older = link.older
        if link.mapping == mapping:
            close_link(link, False, why)
        link = older


def mapping_due(mapping):
    """The time that the connections of a removed mapping had is over."""
    close_links_of(mapping, b"drain")


def free_mappings():
    """Frees the removed mappings that nothing refers to any more."""
    global forgotten
    mapping: cython.pointer(Mapping) = mappings
    following: cython.pointer(Mapping)
    forgotten = False
    while mapping != cython.NULL:
        following = mapping.next
        if mapping.removed and mapping.connections == 0 and mapping.sessions == 0:
            free_mapping(mapping)
        mapping = following


def free_mapping(mapping):
    """Takes a mapping out of the list and frees what it has."""
    at: cython.int
    place: cython.pointer(cython.pointer(Mapping)) = cython.address(mappings)
    while place[0] != mapping:
        place = cython.address(place[0].next)
    place[0] = mapping.next
    drop_timer(cython.address(mapping.timer))
    for at in range(BACKENDS):
        free(mapping.backends[at].path)
    if mapping.listen_netns >= 0:
        close(mapping.listen_netns)
    if mapping.backend_netns >= 0:
        close(mapping.backend_netns)
    for at in range(PASSED):
        if mapping.given_fds[at] >= 0:
            close(mapping.given_fds[at])
    free(mapping.access)
    free(mapping.trusted)
    free(mapping.clients)
    free(mapping.listeners)
    free(mapping.text)
    free(mapping.shown)
    free(mapping)


def mark_backend(mapping, text):
    """Says that one of the places to forward to is up or down."""
    rest: cython.p_char = text
    at: cython.long = number_in(cython.address(rest))
    if mapping == cython.NULL:
        return
    if at < 0 or at >= mapping.backend_count:
        reply_error(0, 0, b"there is no such backend")
        return
    mapping.backends[at].down = strcmp(rest, b"down") == 0
    mapping.backends[at].out_until_ms = 0
    reply_ok(mapping.serial, at)


def list_mappings(cursor):
    """All mappings, newest first, from the one before the serial number ``cursor``."""
    mapping: cython.pointer(Mapping) = mappings
    last: cython.long = 0
    more: cython.bint = False
    reply_ok(0, 0)
    while mapping != cython.NULL and not more:
        if cursor <= 0 or mapping.serial < cursor:
            say_mapping(mapping)
            if list_line():
                last = mapping.serial
            else:
                more = True
        mapping = mapping.next
    say_process(last if more else 0)


def say_mapping(mapping):
    """Makes the line of one mapping."""
    at: cython.int
    opened: cython.long = 0
    begin_stats(mapping, b"mapping")
    say_count(b"serial", mapping.serial)
    for at in range(mapping.ports):
        opened += mapping.listeners[at].fd >= 0
    say_count(b"ports", mapping.ports)
    say_count(b"open", opened)
    say(b',"state":"')
    if mapping.removed:
        say(b'draining"')
    else:
        say(b'serving"' if mapping.serving else b'opened"')
    say_totals(mapping)
    say_count(b"spliced", mapping.spliced)
    say_count(b"dial_ms", mapping.dial_ms)
    say(b',"dials":[')
    for at in range(DIAL_CLASSES):
        say(b"," if at > 0 else b"")
        say_number(mapping.dials[at])
    say(b'],"backends":[')
    for at in range(mapping.backend_count):
        say(b"," if at > 0 else b"")
        say_number(mapping.backends[at].connections)
    say(b'],"up_backends":[')
    for at in range(mapping.backend_count):
        say(b"," if at > 0 else b"")
        say(
            b"false"
            if mapping.backends[at].down or mapping.backends[at].out_until_ms > loop_ms
            else b"true"
        )
    say(b'],"line":"')
    say(mapping.shown)
    say(b'"}')


def say_process(cursor):
    """The last line of a list: what concerns all, and where the next part of the list begins."""
    global line_length
    line_length = 0
    say(b'{"event":"process"')
    say_count(b"pid", getpid())
    say_count(b"links", links)
    say_count(b"sessions", session_count)
    say_count(b"pipes", pipes_open)
    say_count(b"spare_pipes", spare_count)
    say_count(b"events_lost", events_lost)
    say_count(b"next", cursor)
    say(b"}")
    memcpy(reply + reply_length, line, line_length)
    reply_length_add(line_length)


def reply_length_add(n):
    """The answer has become longer."""
    global reply_length
    reply_length += n


def list_links(cursor):
    """All connections, newest first, from the one before the serial number ``cursor``."""
    link: cython.pointer(Link) = newest_link
    last: cython.long = 0
    more: cython.bint = False
    reply_ok(0, 0)
    while link != cython.NULL and not more:
        if cursor <= 0 or link.serial < cursor:
            say_connection(link)
            if list_line():
                last = link.serial
            else:
                more = True
        link = link.older
    say_process(last if more else 0)


def say_connection(link):
    """Makes the line of one connection."""
    about: tcp_info
    size: cython.uint = cython.sizeof(tcp_info)
    memset(cython.address(about), 0, size)
    begin_stats(link.mapping, b"connection")
    say_count(b"serial", link.serial)
    say_count(b"mapping", link.mapping.serial)
    say(b',"client":"')
    say_ip(cython.address(link.peer), False)
    say(b'"')
    say_count(b"client_port", ntohs(link.peer.sin6_port))
    say_link(link)
    say_count(b"idle_ms", loop_ms - link.active_ms)
    say(b',"phase":"')
    if link.phase == OPEN:
        half: cython.bint = link.sides[0].finished or link.sides[1].finished
        say(b'half-closed"' if half else b'open"')
    else:
        say(b'header"' if link.phase == AWAITS_HEADER else b'connecting"')
    if (
        getsockopt(
            link.sides[0].fd,
            IPPROTO_TCP,
            TCP_INFO,
            cython.address(about),
            cython.address(size),
        )
        == 0
    ):
        say_count(b"rtt_us", about.tcpi_rtt)
        say_count(b"retransmits", about.tcpi_total_retrans)
    say(b"}")


def kill_link(serial):
    """Ends one connection, with a reset to both sides."""
    link: cython.pointer(Link) = newest_link
    while link != cython.NULL and link.serial != serial:
        link = link.older
    if link == cython.NULL:
        reply_error(0, 0, b"there is no such connection")
        return
    close_link(link, True, b"admin")
    reply_ok(serial, 0)


def report_closes(one_in):
    """Has every so many-th connection that ends be reported; 0 for none."""
    global reports_closes, closes_seen
    reports_closes = one_in if one_in > 0 else 0
    closes_seen = 0
    reply_ok(0, 0)


def drain_all(ms):
    """Closes all ports and ends when the connections have, or after so many milliseconds."""
    global draining, told_to_end
    mapping: cython.pointer(Mapping) = mappings
    while mapping != cython.NULL:
        if not mapping.removed or mapping.timer.place == 0:
            remove_mapping(mapping, ms)
        mapping = mapping.next
    draining = True
    told_to_end = True
    reply_ok(links, 0)


def count_dial(link):
    """Notes how long it took to reach the container, in classes that double."""
    mapping: cython.pointer(Mapping) = link.mapping
    at: cython.int = 0
    link.dial_ms = loop_ms - link.dialled_ms
    mapping.dial_ms += link.dial_ms
    while at < DIAL_CLASSES - 1 and link.dial_ms > (1 << at):
        at += 1
    mapping.dials[at] += 1


# --- Privileges --------------------------------------------------------------------------------


def read_user(text):
    """Reads UID:GID.  False if it is something else."""
    global run_as_uid, run_as_gid, changes_user
    at: cython.size_t = 0
    from_: cython.size_t
    uid: cython.long = whole_number(text, cython.address(at))
    gid: cython.long
    if at == 0 or text[at] != b":":
        return False
    at += 1
    from_ = at
    gid = whole_number(text, cython.address(at))
    if at == from_ or text[at] != 0:
        return False
    run_as_uid = uid
    run_as_gid = gid
    changes_user = True
    return True


def begin_broker():
    """Starts the one process that keeps its privileges: it makes sockets, and does nothing else."""
    global broker_fd
    ends: cython.int[2]
    home: cython.int
    pid: cython.int
    if socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0:
        begin(b"cannot make a pair of sockets: ")
        say(reason(errno))
        fail()
    home = open(b"/proc/self/ns/net", O_RDONLY | O_CLOEXEC)
    pid = fork()
    if pid < 0:
        begin(b"cannot fork: ")
        say(reason(errno))
        fail()
    if pid == 0:
        # Whoever waits for the end of our output must not wait for this process.
        dup2(ends[1], STATUS_FD)
        fcntl(STATUS_FD, F_SETFD, FD_CLOEXEC)
        if home >= 0:
            dup2(home, LISTENER_FD)
            fcntl(LISTENER_FD, F_SETFD, FD_CLOEXEC)
        syscall(
            SYS_close_range, LISTENER_FD + (1 if home >= 0 else 0), cython.cast(cython.uint, -1), 0
        )
        at: cython.int
        null: cython.int = open(b"/dev/null", O_RDWR)
        for at in range(STATUS_FD):
            dup2(null, at)
        close(null)
        signal(SIGINT, SIG_IGN)
        signal(SIGTERM, SIG_IGN)
        serve_orders(STATUS_FD, LISTENER_FD if home >= 0 else -1)
    close(ends[1])
    if home >= 0:
        close(home)
    broker_fd = ends[0]


def serve_orders(fd, home):
    """The broker: an order is for sockets; it ends with the relay."""
    order: Order
    done: Fulfilment
    netns: cython.int
    count: cython.int
    size: cython.int
    made: cython.int[ORDERED]
    while True:
        netns = -1
        count = 0
        size = receive_with_fds(
            fd,
            cython.address(order),
            cython.sizeof(Order),
            cython.address(netns),
            1,
            cython.address(count),
        )
        if size == 0 or (size < 0 and errno != EINTR):
            _exit(0)
        if size != cython.sizeof(Order) or order.count < 1 or order.count > ORDERED:
            continue
        done.made = 0
        done.number = 0
        if netns >= 0 and (home < 0 or setns(netns, CLONE_NEWNET) < 0):
            done.number = errno
        else:
            fulfil(cython.address(order), cython.address(done), made)
        if netns >= 0:
            setns(home, CLONE_NEWNET)
            close(netns)
        send_with_fds(fd, cython.address(done), cython.sizeof(Fulfilment), made, done.made)
        while done.made > 0:
            done.made -= 1
            close(made[done.made])


def fulfil(order, done, made):
    """Makes the sockets of an order, with successive ports, up to the first that cannot be made."""
    fd: cython.int
    what: cython.p_const_char = cython.NULL
    while done.made < order.count:
        if order.binds:
            fd = bound_socket(
                order.family,
                order.kind,
                order.wire,
                cython.address(order.address),
                cython.address(what),
            )
        else:
            fd = socket(order.family, order.kind | SOCK_CLOEXEC | SOCK_NONBLOCK, order.wire)
        if fd < 0:
            done.number = errno
            return
        if order.receive_bytes > 0:
            set_number(fd, SOL_SOCKET, SO_RCVBUFFORCE, order.receive_bytes)
        made[done.made] = fd
        done.made += 1
        order.address.sin6_port = htons(ntohs(order.address.sin6_port) + 1)


def ask_broker(family, mapping, netns):
    """A socket in another namespace, which only the broker can make.  -1 with errno."""
    order: Order
    made: cython.int[ORDERED]
    memset(cython.address(order), 0, cython.sizeof(Order))
    order.family = family
    order.kind = kind_of(mapping)
    order.wire = IPPROTO_SCTP if mapping.wire == IPPROTO_SCTP else 0
    order.count = 1
    return made[0] if place_order(cython.address(order), netns, made) > 0 else -1


def bind_by_broker(listener, address):
    """Has the broker bind a port, and those that follow it in its range.  False with errno."""
    mapping: cython.pointer(Mapping) = listener.mapping
    order: Order
    made: cython.int[ORDERED]
    at: cython.int
    count: cython.int
    memset(cython.address(order), 0, cython.sizeof(Order))
    order.family = address.sin6_family
    order.kind = kind_of(mapping)
    order.wire = mapping.wire
    order.binds = 1
    order.receive_bytes = cython.cast(cython.int, mapping.receive_bytes)
    order.address = address[0]
    order.count = cython.cast(cython.int, least(mapping.ports - listener.offset, ORDERED))
    count = place_order(cython.address(order), mapping.listen_netns, made)
    for at in range(count):
        mapping.listeners[listener.offset + at].fd = made[at]
    return count > 0


def place_order(order, netns, made):
    """Sends the broker an order; how many sockets came, or -1 with errno if there is none."""
    done: Fulfilment
    count: cython.int = 0
    sent: cython.int
    place: cython.int = netns
    sent = send_with_fds(
        broker_fd, order, cython.sizeof(Order), cython.address(place), 1 if netns >= 0 else 0
    )
    if sent < 0:
        return -1
    if receive_with_fds(
        broker_fd,
        cython.address(done),
        cython.sizeof(Fulfilment),
        made,
        ORDERED,
        cython.address(count),
    ) != cython.sizeof(Fulfilment):
        set_errno(EIO)
        return -1
    if count == 0:
        # Sockets are lost on their way when there are no descriptors for them.
        set_errno(done.number if done.number != 0 else EMFILE)
        return -1
    return count


def send_with_fds(fd, data, n, fds, count):
    """Sends a datagram and some descriptors with it.  -1 with errno if that fails."""
    message: msghdr
    part: iovec
    room: cython.long[ORDERED]
    head: cython.pointer(cmsghdr)
    memset(cython.address(message), 0, cython.sizeof(msghdr))
    part.iov_base = data
    part.iov_len = n
    message.msg_iov = cython.address(part)
    message.msg_iovlen = 1
    if count > 0:
        memset(room, 0, cython.sizeof(room))
        message.msg_control = room
        message.msg_controllen = CMSG_SPACE(count * cython.sizeof(cython.int))
        head = CMSG_FIRSTHDR(cython.address(message))
        head.cmsg_level = SOL_SOCKET
        head.cmsg_type = SCM_RIGHTS
        head.cmsg_len = CMSG_LEN(count * cython.sizeof(cython.int))
        memcpy(CMSG_DATA(head), fds, count * cython.sizeof(cython.int))
    return cython.cast(cython.int, sendmsg(fd, cython.address(message), MSG_NOSIGNAL))


def receive_with_fds(fd, data, n, fds, most, count):
    """Receives a datagram and its descriptors.  Its size, or -1 with errno."""
    message: msghdr
    part: iovec
    room: cython.long[ORDERED]
    head: cython.pointer(cmsghdr)
    size: cython.int
    memset(cython.address(message), 0, cython.sizeof(msghdr))
    part.iov_base = data
    part.iov_len = n
    message.msg_iov = cython.address(part)
    message.msg_iovlen = 1
    message.msg_control = room
    message.msg_controllen = CMSG_SPACE(most * cython.sizeof(cython.int))
    size = cython.cast(cython.int, recvmsg(fd, cython.address(message), MSG_CMSG_CLOEXEC))
    if size > 0:
        head = CMSG_FIRSTHDR(cython.address(message))
        if head != cython.NULL and head.cmsg_level == SOL_SOCKET and head.cmsg_type == SCM_RIGHTS:
            count[0] = cython.cast(
                cython.int, (head.cmsg_len - CMSG_LEN(0)) // cython.sizeof(cython.int)
            )
            memcpy(fds, CMSG_DATA(head), count[0] * cython.sizeof(cython.int))
    return size


def drop_privileges():
    """Becomes the user that -user names; of the capabilities only what was asked for stays."""
    head: cython.uint[2]
    sets: cython.uint[6]
    failed: cython.bint = False
    if changes_user:
        if keeps_net_admin:
            prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)
        failed = syscall(SYS_setgroups, 0, cython.NULL) < 0
        failed = failed or syscall(SYS_setresgid, run_as_gid, run_as_gid, run_as_gid) < 0
        failed = failed or syscall(SYS_setresuid, run_as_uid, run_as_uid, run_as_uid) < 0
        if failed:
            begin(b"cannot become user ")
            say_number(run_as_uid)
            say(b": ")
            say(reason(errno))
            fail()
        if keeps_net_admin:
            memset(sets, 0, cython.sizeof(sets))
            head[0] = CAPABILITY_VERSION
            head[1] = 0
            sets[0] = 1 << CAP_NET_ADMIN
            sets[1] = 1 << CAP_NET_ADMIN
            syscall(SYS_capset, head, sets)
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def filter_calls():
    """Lets the kernel refuse (EPERM) every system call that moving bytes does not need."""
    rules: sock_filter[160]
    program: sock_fprog
    n: cython.int = 0
    at: cython.int
    allowed: cython.int[64]
    count: cython.int = allowed_calls(allowed)
    n = add_filter(rules, n, BPF_LD | BPF_W | BPF_ABS, 0, 0, 4)  # the architecture
    n = add_filter(rules, n, BPF_JMP | BPF_JEQ | BPF_K, 1, 0, THIS_AUDIT)
    n = add_filter(rules, n, BPF_RET | BPF_K, 0, 0, SECCOMP_RET_KILL_PROCESS)
    n = add_filter(rules, n, BPF_LD | BPF_W | BPF_ABS, 0, 0, 0)  # the number of the call
    for at in range(count):
        n = add_filter(rules, n, BPF_JMP | BPF_JEQ | BPF_K, 0, 1, allowed[at])
        n = add_filter(rules, n, BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW)
    n = add_filter(rules, n, BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ERRNO | EPERM)
    program.len = cython.cast(cython.ushort, n)
    program.filter = rules
    if prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, cython.address(program), 0, 0) < 0:
        begin(b"cannot filter system calls: ")
        say(reason(errno))
        log_line()


def add_filter(rules, n, code, yes, no, value):
    """Appends one instruction; how many there are then."""
    rules[n].code = code
    rules[n].jt = yes
    rules[n].jf = no
    rules[n].k = value
    return n + 1


def allowed_calls(calls):
    """What a relay does once it has started; how many calls that are."""
    n: cython.int = 0
    n = allow(calls, n, SYS_read, SYS_write, SYS_close, SYS_fcntl)
    n = allow(calls, n, SYS_epoll_ctl, SYS_epoll_pwait, CALL_POLL, SYS_clock_gettime)
    n = allow(calls, n, SYS_socket, SYS_bind, SYS_listen, SYS_accept4)
    n = allow(calls, n, SYS_connect, SYS_shutdown, SYS_getsockname, SYS_getsockopt)
    n = allow(calls, n, SYS_setsockopt, SYS_sendto, SYS_recvfrom, SYS_sendmsg)
    n = allow(calls, n, SYS_recvmsg, SYS_sendmmsg, SYS_recvmmsg, SYS_splice)
    n = allow(calls, n, SYS_pipe2, SYS_mmap, SYS_munmap, SYS_mremap)
    n = allow(calls, n, SYS_brk, SYS_madvise, SYS_mprotect, SYS_getpid)
    n = allow(calls, n, SYS_rt_sigreturn, SYS_rt_sigprocmask, SYS_restart_syscall, SYS_setitimer)
    return allow(calls, n, SYS_exit, SYS_exit_group, SYS_exit, SYS_exit_group)


def allow(calls, n, a, b, c, d):
    """Appends four calls; how many there are then."""
    calls[n] = a
    calls[n + 1] = b
    calls[n + 2] = c
    calls[n + 3] = d
    return n + 4


# --- Flows that the kernel tracks ----------------------------------------------------------------


def forget_flows():
    """Has the kernel forget the flows of datagrams to our ports, if that was asked for.

    A flow keeps the way that its first packet took, to us or past us, whatever has become of the
    rules (moby#8795, #44688).  Without CAP_NET_ADMIN nothing happens.
    """
    global forgets_at_end
    mapping: cython.pointer(Mapping) = mappings
    fds: cython.int[2]
    size: cython.int = 0
    forgets_at_end = False
    while mapping != cython.NULL:
        if mapping.flushes_flows and mapping.wire == IPPROTO_UDP:
            forgets_at_end = True
        mapping = mapping.next
    if not forgets_at_end or not begin_flows(fds):
        return
    while size >= 0 or errno == EINTR:
        size = cython.cast(cython.int, recv(fds[0], buffer, BUFFER_BYTES, 0))
        if size == 0 or (size > 0 and not take_flows(size, fds[1])):
            break
    close(fds[0])
    close(fds[1])


def begin_flows(fds):
    """Asks the kernel for its flows; one socket to read them from, one to delete them with."""
    request: cython.uint[5]
    head: cython.pointer(nlmsghdr) = cython.cast(cython.pointer(nlmsghdr), request)
    patience_s: timeval
    at: cython.int
    for at in range(2):
        fds[at] = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_NETFILTER)
    memset(request, 0, cython.sizeof(request))
    head.nlmsg_len = cython.sizeof(request)
    head.nlmsg_type = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET
    head.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP
    memset(cython.address(patience_s), 0, cython.sizeof(timeval))
    patience_s.tv_sec = FLOWS_S
    setsockopt(fds[0], SOL_SOCKET, SO_RCVTIMEO, cython.address(patience_s), cython.sizeof(timeval))
    if fds[1] >= 0 and send(fds[0], request, cython.sizeof(request), 0) > 0:
        return True
    for at in range(2):
        if fds[at] >= 0:
            close(fds[at])
    return False


def take_flows(size, fd):
    """Looks at the flows of one datagram from the kernel; false when there are no more."""
    at: cython.size_t = 0
    n: cython.size_t = cython.cast(cython.size_t, size)
    head: cython.pointer(nlmsghdr)
    while at + cython.sizeof(nlmsghdr) <= n:
        head = cython.cast(cython.pointer(nlmsghdr), buffer + at)
        if head.nlmsg_len < cython.sizeof(nlmsghdr) or head.nlmsg_len > n - at:
            return False
        if head.nlmsg_type == NLMSG_DONE or head.nlmsg_type == NLMSG_ERROR:
            return False
        if head.nlmsg_type == (NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW):
            forget_flow(fd, head)
        at += aligned(head.nlmsg_len)
    return True


def forget_flow(fd, message):
    """Deletes a flow if it leads to a port of ours."""
    request: cython.uint[64]
    head: cython.pointer(nlmsghdr) = cython.cast(cython.pointer(nlmsghdr), request)
    wanted: cython.pointer(nlattr)
    start: cython.size_t = cython.sizeof(nlmsghdr) + cython.sizeof(nfgenmsg)
    n: cython.size_t = start
    at: cython.int
    first: cython.pointer(nlattr)
    if message.nlmsg_len < start:
        return
    first = cython.cast(cython.pointer(nlattr), cython.cast(cython.p_char, message) + start)
    memcpy(request, message, start)
    for at in range(2):
        wanted = find_attribute(
            first, message.nlmsg_len - start, CTA_TUPLE_ORIG if at == 0 else CTA_ZONE
        )
        if at == 0 and not is_own_flow(wanted):
            return
        if wanted == cython.NULL:
            continue
        if n + aligned(wanted.nla_len) > cython.sizeof(request):
            return
        memcpy(cython.cast(cython.p_char, request) + n, wanted, wanted.nla_len)
        n += aligned(wanted.nla_len)
    head.nlmsg_len = cython.cast(cython.uint, n)
    head.nlmsg_type = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE
    head.nlmsg_flags = NLM_F_REQUEST
    send(fd, request, n, 0)


def is_own_flow(flow):
    """Whether datagrams of a flow come to a port of a mapping that wants none to be remembered."""
    head: cython.size_t = cython.sizeof(nlattr)
    place: cython.pointer(nlattr) = within(flow, CTA_TUPLE_IP)
    wire: cython.pointer(nlattr) = within(flow, CTA_TUPLE_PROTO)
    number: cython.pointer(nlattr) = within(wire, CTA_PROTO_NUM)
    port: cython.pointer(nlattr) = within(wire, CTA_PROTO_DST_PORT)
    four: cython.pointer(nlattr) = within(place, CTA_IP_V4_DST)
    six: cython.pointer(nlattr) = within(place, CTA_IP_V6_DST)
    to: cython.uchar[16]
    own: cython.uchar[16]
    to_port: cython.ushort = 0
    first: cython.int
    mapping: cython.pointer(Mapping) = mappings
    if number == cython.NULL or port == cython.NULL or port.nla_len < head + 2:
        return False
    if (cython.cast(cython.p_uchar, number) + head)[0] != IPPROTO_UDP:
        return False
    memcpy(cython.address(to_port), cython.cast(cython.p_uchar, port) + head, 2)
    memset(to, 0, 10)
    memset(to + 10, 255, 2)
    if four != cython.NULL and four.nla_len >= head + 4:
        memcpy(to + 12, cython.cast(cython.p_uchar, four) + head, 4)
    elif six != cython.NULL and six.nla_len >= head + 16:
        memcpy(to, cython.cast(cython.p_uchar, six) + head, 16)
    else:
        return False
    while mapping != cython.NULL:
        if mapping.flushes_flows and mapping.wire == IPPROTO_UDP:
            first = ntohs(mapping.host.sin6_port)
            flatten(cython.address(mapping.host), own)
            if first <= ntohs(to_port) < first + mapping.ports and (
                is_any(cython.address(mapping.host)) or memcmp(own, to, 16) == 0
            ):
                return True
        mapping = mapping.next
    return False


def within(outer, kind):
    """An attribute inside another, which may be NULL; NULL if it is not there."""
    if outer == cython.NULL:
        return cython.NULL
    return find_attribute(outer + 1, outer.nla_len - cython.sizeof(nlattr), kind)


def find_attribute(first, n, kind):
    """The attribute ``kind`` among ``n`` bytes of them; NULL if it is not there."""
    at: cython.size_t = 0
    here: cython.pointer(nlattr)
    while at + cython.sizeof(nlattr) <= n:
        here = cython.cast(cython.pointer(nlattr), cython.cast(cython.p_char, first) + at)
        if here.nla_len < cython.sizeof(nlattr) or here.nla_len > n - at:
            return cython.NULL
        if (here.nla_type & NLA_TYPE_MASK) == kind:
            return here
        at += aligned(here.nla_len)
    return cython.NULL


def aligned(n):
    """A size as netlink pads it."""
    return (n + 3) & ~cython.cast(cython.size_t, 3)
