"""containerd-shim-pyshim-v2: what containerd executes for `start`, `delete` and `-info`.

It hands its arguments, environment, folder and stdin to the zygote, where Python is already
running, and ends with the answer.  When there is no zygote it starts one; when that fails it
becomes a Python interpreter itself.  The monitor is started here and not by the zygote, so that it
has containerd's cgroup, namespaces, limits and environment.

The plain `start`, of a container in no group, it does itself ("Without Python" below), as
``pyshim.bootstrap.start`` does: change both.  What it finds in any way unusual it leaves to Python,
before it has done anything or after it has undone it; so Python alone says what is wrong.

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
    EAGAIN,
    ECONNREFUSED,
    EINTR,
    EINVAL,
    ENODEV,
    ENOENT,
    F_DUPFD_CLOEXEC,
    F_OK,
    F_SETFD,
    FD_CLOEXEC,
    FIONREAD,
    LOCK_EX,
    LOCK_NB,
    LOCK_SH,
    MAP_FAILED,
    MAP_PRIVATE,
    MFD_CLOEXEC,
    MSG_CMSG_CLOEXEC,
    MSG_NOSIGNAL,
    O_CLOEXEC,
    O_CREAT,
    O_DIRECTORY,
    O_NOFOLLOW,
    O_NONBLOCK,
    O_PATH,
    O_RDONLY,
    O_RDWR,
    O_TRUNC,
    O_WRONLY,
    POLLHUP,
    POLLIN,
    PROT_READ,
    PROT_WRITE,
    RLIMIT_NOFILE,
    S_IFCHR,
    S_IFMT,
    S_IFREG,
    S_ISFIFO,
    SCM_RIGHTS,
    SIG_DFL,
    SIG_SETMASK,
    SIGCHLD,
    SIGKILL,
    SO_PEERCRED,
    SO_SNDTIMEO,
    SOCK_CLOEXEC,
    SOCK_NONBLOCK,
    SOCK_SEQPACKET,
    SOCK_STREAM,
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
    bind,
    calloc,
    chdir,
    chmod,
    clock_gettime,
    close,
    cmsghdr,
    connect,
    dup2,
    environ,
    errno,
    execve,
    fcntl,
    flock,
    fork,
    fstat,
    fstat_mode,
    getcwd,
    getenv,
    geteuid,
    getppid,
    getrlimit,
    getsockopt,
    ioctl,
    iovec,
    listen,
    memcmp,
    memcpy,
    memfd_create,
    memmem,
    memset,
    mkdir,
    mmap,
    msghdr,
    open,
    pid_t,
    pipe2,
    poll,
    pollfd,
    prctl,
    pread,
    read,
    readlink,
    recvmsg,
    rename,
    rlimit,
    sendmsg,
    setsid,
    setsockopt,
    signal,
    snprintf,
    sockaddr,
    sockaddr_un,
    socket,
    stat_inode,
    stat_inode_t,
    stat_mode_t,
    stat_t,
    strchr,
    strcmp,
    strerror,
    strlen,
    strrchr,
    strtol,
    syscall,
    tee,
    timespec,
    timeval,
    ucred,
    uint32_t,
    uint64_t,
    umask,
    unlink,
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
        code = start_plainly(argc, argv)
        if code >= 0:
            return code
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


# --- Without Python ------------------------------------------------------------------------------


def start_plainly(argc, argv):
    """`start` for a container in no group; its exit code, or NO_ANSWER when it is for Python.

    As ``pyshim.bootstrap.start`` does it.  What this leaves when it is for Python, that makes too:
    the sockets' folder, the score for the kernel's OOM killer, the file `address`.
    """
    listener: cython.int
    if (
        not parse_flags(argc, argv)
        or not find_bundle()
        or not is_plain_environment()
        or not find_shim_path()
        or not is_zygote_there()
        or not is_plain_config()
        or not is_plain_stdin()
        or not write_address()
    ):
        return NO_ANSWER
    listener = claim()
    if listener < 0:
        return NO_ANSWER
    if not start_plain_monitor(listener):
        unlink(shim_url + SCHEME_BYTES)
        close(listener)
        return NO_ANSWER
    close(listener)
    # Who comes after this may die on the way; a service sees to it that we then end.
    is_served()
    answer.value = 0
    return end_with(shim_url, strlen(shim_url))


def parse_flags(argc, argv):
    """Takes in the command line; false for any but that of a plain `start`."""
    global flag_debug
    at: cython.int = 1
    name: cython.p_char
    while at < argc and argv[at][0] == b"-":
        name = argv[at] + (2 if argv[at][1] == b"-" else 1)
        at += 1
        if strcmp(name, b"debug") == 0:
            flag_debug = True
            continue
        if at == argc or not take_flag(name, argv[at]):
            return False
        at += 1
    return (
        at == argc - 1
        and strcmp(argv[at], b"start") == 0
        and is_plain_name(flag_namespace)
        and is_plain_name(flag_id)
        and (flag_address == cython.NULL or flag_address[0] == 0 or is_plain_path(flag_address))
    )


def take_flag(name, value):
    """Notes what a flag says; false for one that is not among a plain `start`'s."""
    global flag_namespace, flag_id, flag_address, flag_publish_binary, flag_bundle
    if not is_ascii(value, strlen(value)) or strlen(value) >= FLAG_BYTES:
        return False
    if strcmp(name, b"namespace") == 0:
        flag_namespace = value
    elif strcmp(name, b"id") == 0:
        flag_id = value
    elif strcmp(name, b"address") == 0:
        flag_address = value
    elif strcmp(name, b"publish-binary") == 0:
        flag_publish_binary = value
    elif strcmp(name, b"bundle") == 0:
        flag_bundle = value
    else:
        return False
    return True


def is_plain_name(name):
    """Whether it is a name by anybody's rules: letters, digits, and dots, dashes or _ inside."""
    at: cython.size_t = 0
    if name == cython.NULL:
        return False
    while name[at] != 0 and (
        is_letter(name[at])
        or is_digit(name[at])
        or (at > 0 and (name[at] == b"." or name[at] == b"-" or name[at] == b"_"))
    ):
        at += 1
    return at > 0 and at <= PLAIN_NAME_BYTES and name[at] == 0


def is_plain_path(path):
    """Whether it is absolute and has the form that it would be brought into."""
    at: cython.size_t = 0
    if path[0] != b"/":
        return False
    while path[at] != 0:
        # No empty name, and none that begins with a dot: it may be "." or "..".
        if path[at] == b"/" and (path[at + 1] == b"/" or path[at + 1] == b"." or path[at + 1] == 0):
            return False
        at += 1
    return at < FLAG_BYTES


def find_bundle():
    """Fills ``bundle``; false when it is not named plainly."""
    if flag_bundle == cython.NULL or flag_bundle[0] == 0:
        if getcwd(bundle, PATH_BYTES) == cython.NULL or strlen(bundle) >= FLAG_BYTES:
            return False
        return bundle[0] == b"/" and is_ascii(bundle, strlen(bundle))
    if not is_plain_path(flag_bundle):
        return False
    memcpy(bundle, flag_bundle, strlen(flag_bundle) + 1)
    return True


def is_plain_environment():
    """Whether a state can hold the environment, and the interpreter can be named as it is."""
    at: cython.size_t = 0
    wanted: cython.p_char = getenv(b"PYSHIM_API")
    if wanted != cython.NULL and wanted[0] != 0:
        return False
    while environ[at] != cython.NULL:
        if (
            not is_ascii(environ[at], strlen(environ[at]))
            or strchr(environ[at], b"=") == cython.NULL
        ):
            return False
        at += 1
    return interpreter[0] == b"/" and is_ascii(interpreter, strlen(interpreter))


def is_zygote_there():
    """Whether somebody has its lock: one that we would have to start gets its request from us.

    A connection would take one of those that wait in it.
    """
    fd: cython.int
    is_locked: cython.bint
    if access(socket_path, F_OK) != 0:
        return False
    if (
        snprintf(scratch, PATH_BYTES, b"%s.lock", cython.cast(cython.p_char, socket_path))
        >= PATH_BYTES
    ):
        return False
    fd = open(scratch, O_RDONLY | O_NOFOLLOW | O_CLOEXEC)
    if fd < 0:
        return False
    is_locked = flock(fd, LOCK_SH | LOCK_NB) != 0 and errno == EAGAIN
    close(fd)
    return is_locked


# --- What it reads -------------------------------------------------------------------------------


def is_plain_config():
    """Whether config.json is what it should be, and names no group.

    A name of a group's annotation is looked for in all of the text; in one with escaped characters
    it could not be seen.
    """
    about: stat_mode_t
    size: stat_t
    text: cython.p_char
    length: cython.ssize_t = -1
    fd: cython.int
    if not join(scratch, bundle, b"config.json"):
        return False
    fd = open(scratch, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
    if fd < 0:
        return False
    text = cython.NULL
    if (
        fstat_mode(fd, cython.address(about)) == 0
        and (about.st_mode & S_IFMT) == S_IFREG
        and fstat(fd, cython.address(size)) == 0
        and size.st_size <= MAX_CONFIG_BYTES
    ):
        text = cython.cast(cython.p_char, calloc(1, size.st_size + 1))
    if text != cython.NULL:
        length = read(fd, text, size.st_size)
    close(fd)
    return (
        length > 0
        and length == size.st_size
        and is_json(text, text + length)
        and memmem(text, length, b"\\u", 2) == cython.NULL
        and memmem(text, length, b"io.containerd.runc.v2.group", 27) == cython.NULL
        and memmem(text, length, b"io.kubernetes.cri.sandbox-id", 28) == cython.NULL
        and memmem(text, length, b"io.kubernetes.cri-o.SandboxID", 29) == cython.NULL
    )


def is_json(text, end):
    """Whether a text of ASCII characters is a JSON object (RFC 8259), and nothing deep."""
    text = skip_space(text, end)
    if text == end or text[0] != b"{":
        return False
    text = skip_value(text, end, MAX_CONFIG_DEPTH)
    return text != cython.NULL and skip_space(text, end) == end


def skip_value(text, end, depth):
    """Behind the value at ``text``; NULL when there is none."""
    if text == end or depth == 0:
        return cython.NULL
    if text[0] == b"{" or text[0] == b"[":
        return skip_members(text, end, depth)
    if text[0] == b'"':
        return skip_string(text, end)
    if text[0] == b"t":
        return skip_word(text, end, b"true")
    if text[0] == b"f":
        return skip_word(text, end, b"false")
    if text[0] == b"n":
        return skip_word(text, end, b"null")
    return skip_number(text, end)


def skip_members(text, end, depth):
    """Behind the object or the array at ``text``; NULL when it is none."""
    is_object: cython.bint = text[0] == b"{"
    closing: cython.char = b"}" if is_object else b"]"
    text = skip_space(text + 1, end)
    if text != end and text[0] == closing:
        return text + 1
    while True:
        if is_object:
            text = skip_string(text, end)
            if text == cython.NULL:
                return cython.NULL
            text = skip_space(text, end)
            if text == end or text[0] != b":":
                return cython.NULL
            text = skip_space(text + 1, end)
        text = skip_value(text, end, depth - 1)
        if text == cython.NULL:
            return cython.NULL
        text = skip_space(text, end)
        if text == end or (text[0] != b"," and text[0] != closing):
            return cython.NULL
        if text[0] == closing:
            return text + 1
        text = skip_space(text + 1, end)


def skip_string(text, end):
    """Behind the string at ``text``; NULL when it is none, or not of ASCII characters."""
    if text == end or text[0] != b'"':
        return cython.NULL
    text += 1
    while text != end and text[0] != b'"':
        if text[0] == b"\\":
            text += 1
            if text == end or strchr(b'"\\/bfnrt', text[0]) == cython.NULL:
                return cython.NULL
        if cython.cast(cython.uchar, text[0]) < FIRST_PRINTABLE or not is_ascii(text, 1):
            return cython.NULL
        text += 1
    return cython.NULL if text == end else text + 1


def skip_number(text, end):
    """Behind the number at ``text``; NULL when it is none, or longer than any in use."""
    begun: cython.p_char = text
    digits: cython.p_char
    if text[0] == b"-":
        text += 1
    digits = text
    text = skip_digits(text, end)
    if text == digits or (digits[0] == b"0" and text != digits + 1):
        return cython.NULL
    if text != end and text[0] == b".":
        digits = text + 1
        text = skip_digits(digits, end)
        if text == digits:
            return cython.NULL
    if text != end and (text[0] == b"e" or text[0] == b"E"):
        text += 1
        if text != end and (text[0] == b"+" or text[0] == b"-"):
            text += 1
        digits = text
        text = skip_digits(digits, end)
        if text == digits:
            return cython.NULL
    return cython.NULL if text - begun > MAX_NUMBER_BYTES else text


def skip_digits(text, end):
    """Behind the digits at ``text``."""
    while text != end and is_digit(text[0]):
        text += 1
    return text


def skip_space(text, end):
    """Behind the white space at ``text``."""
    while text != end and (
        text[0] == b" " or text[0] == b"\n" or text[0] == b"\t" or text[0] == b"\r"
    ):
        text += 1
    return text


def skip_word(text, end, word):
    """Behind ``word``; NULL when it is not at ``text``."""
    while word[0] != 0 and text != end and text[0] == word[0]:
        text += 1
        word += 1
    return text if word[0] == 0 else cython.NULL


def is_letter(character):
    """Whether it is an ASCII letter."""
    return (character >= b"a" and character <= b"z") or (character >= b"A" and character <= b"Z")


def is_digit(character):
    """Whether it is an ASCII digit."""
    return character >= b"0" and character <= b"9"


def is_ascii(text, size):
    """Whether all of it is."""
    at: cython.size_t
    for at in range(size):
        if cython.cast(cython.uchar, text[at]) > LAST_ASCII:
            return False
    return True


def is_plain_stdin():
    """Whether stdin holds nothing, or runc's options without the one that is for `start`.

    Whatever it holds stays there, for Python to read.
    """
    about: stat_mode_t
    waiting: pollfd
    size: cython.int = 0
    if fstat_mode(0, cython.address(about)) != 0:
        return False
    if (about.st_mode & S_IFMT) == S_IFCHR:
        return pread(0, answer.text, 1, 0) == 0  # /dev/null; a terminal has no offset
    if not S_ISFIFO(about.st_mode):
        return False
    waiting.fd = 0
    waiting.events = 0  # but what is always told of: that nobody can write any more
    if poll(cython.address(waiting), 1, STDIN_TIMEOUT_MS) != 1 or not waiting.revents & POLLHUP:
        return False
    if ioctl(0, FIONREAD, cython.address(size)) != 0:
        return False
    return size == 0 or (size < TEXT_BYTES and are_plain_options(size))


def are_plain_options(size):
    """Whether the ``size`` bytes in stdin, a pipe, are such options (as ``dialect.parse`` has it).

    An Any of two fields: the options' type and the options.
    """
    copy: cython.int[2]
    found: cython.ssize_t = -1
    if pipe2(copy, O_CLOEXEC) != 0:
        return False
    if tee(0, copy[1], size, 0) == size:
        found = read(copy[0], answer.text, size)
    close_all(copy, 2)
    return found == size and is_any_of_options(answer.text, answer.text + size)


def is_any_of_options(text, end):
    """Whether it is an Any that holds runc's options, in the order in which these are written."""
    kind: cython.p_const_char = b"containerd.runc.v1.Options"
    length: cython.size_t = strlen(kind)
    # 0x0a and 0x12 announce texts as the fields 1 and 2.
    if cython.cast(cython.size_t, end - text) < length + 2 or text[0] != 0x0A or text[1] != length:
        return False
    if memcmp(text + 2, kind, length) != 0 or strcmp(flag_id, kind) == 0:
        return False
    text += length + 2
    if text == end:
        return True
    if text[0] != 0x12:
        return False
    text = skip_number_field(text + 1, end)
    return text != cython.NULL and number == end - text and are_options(text, end)


def are_options(text, end):
    """Whether it is a message Options that names no cgroup for the shim."""
    field: uint64_t
    while text != end:
        text = skip_number_field(text, end)
        if text == cython.NULL:
            return False
        field = number
        text = skip_number_field(text, end)
        if text == cython.NULL or field >> 3 == 0 or field >> 3 == SHIM_CGROUP_FIELD:
            return False
        if field & 7 == 2:  # a text, behind its length
            if number > cython.cast(uint64_t, end - text) or not is_ascii(text, number):
                return False
            text += number
        elif field & 7 != 0:
            return False
    return True


def skip_number_field(text, end):
    """Behind the small varint at ``text``, which is then ``number``; NULL when it is none."""
    global number
    shift: cython.int
    number = 0
    for shift in range(0, 35, 7):
        if text == end:
            return cython.NULL
        number |= cython.cast(uint64_t, text[0] & 0x7F) << shift
        text += 1
        if not text[-1] & 0x80:
            return text
    return cython.NULL


# --- The address ---------------------------------------------------------------------------------


def find_shim_path():
    """Fills ``shim_url`` and ``sockets``, as ``pyshim.bootstrap.address`` computes them."""
    named: cython.p_char = getenv(b"PYSHIM_SOCKET_DIR")
    length: cython.size_t
    at: cython.int
    if named == cython.NULL or named[0] == 0:
        named = b"/run/containerd/s"
    length = strlen(named)
    if named[0] != b"/" or length >= SOCKETS_BYTES:
        return False
    while length > 0 and named[length - 1] == b"/":
        length -= 1
    if length == 0 or length + 1 + DIGEST_HEX_BYTES > MAX_SOCKET_BYTES:
        return False
    memcpy(sockets, named, length)
    sockets[length] = 0
    if flag_address != cython.NULL and flag_address[0] != 0:
        snprintf(scratch, PATH_BYTES, b"%s/%s/%s", flag_address, flag_namespace, flag_id)
    else:
        snprintf(scratch, PATH_BYTES, b"%s/%s", flag_namespace, flag_id)
    digest_of(scratch, strlen(scratch))
    snprintf(shim_url, URL_BYTES, b"unix://%s/", cython.cast(cython.p_char, sockets))
    length = strlen(shim_url)
    for at in range(DIGEST_WORDS):
        snprintf(shim_url + length + 8 * at, 9, b"%08x", digest[at])
    return True


def digest_of(text, size):
    """SHA-256 (FIPS 180-4) of ``text`` into ``digest``."""
    at: cython.size_t = 0
    rest: cython.size_t
    block: cython.uchar[64]
    bits: uint64_t = cython.cast(uint64_t, size) * 8
    byte: cython.int
    memcpy(digest, SHA256_FIRST, cython.sizeof(digest))
    while size - at >= BLOCK_BYTES:
        add_block(cython.cast(cython.p_const_uchar, text + at))
        at += BLOCK_BYTES
    rest = size - at
    memset(block, 0, BLOCK_BYTES)
    memcpy(block, text + at, rest)
    block[rest] = 0x80
    if rest >= BLOCK_BYTES - 8:
        add_block(block)
        memset(block, 0, BLOCK_BYTES)
    for byte in range(8):
        block[BLOCK_BYTES - 1 - byte] = (bits >> (8 * byte)) & 0xFF
    add_block(block)


def add_block(block):
    """One round of the hash over 64 bytes; names as in the standard."""
    w: uint32_t[64]
    v: uint32_t[8]
    t: cython.int
    s0: uint32_t
    s1: uint32_t
    t1: uint32_t
    t2: uint32_t
    for t in range(16):
        w[t] = (
            cython.cast(uint32_t, block[4 * t]) << 24
            | cython.cast(uint32_t, block[4 * t + 1]) << 16
            | cython.cast(uint32_t, block[4 * t + 2]) << 8
            | block[4 * t + 3]
        )
    for t in range(16, 64):
        s0 = rotated(w[t - 15], 7) ^ rotated(w[t - 15], 18) ^ (w[t - 15] >> 3)
        s1 = rotated(w[t - 2], 17) ^ rotated(w[t - 2], 19) ^ (w[t - 2] >> 10)
        w[t] = w[t - 16] + s0 + w[t - 7] + s1
    memcpy(v, digest, cython.sizeof(digest))
    for t in range(64):
        s1 = rotated(v[4], 6) ^ rotated(v[4], 11) ^ rotated(v[4], 25)
        t1 = v[7] + s1 + ((v[4] & v[5]) ^ (~v[4] & v[6])) + SHA256_ROUNDS[t] + w[t]
        s0 = rotated(v[0], 2) ^ rotated(v[0], 13) ^ rotated(v[0], 22)
        t2 = s0 + ((v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]))
        v[7], v[6], v[5] = v[6], v[5], v[4]
        v[4] = v[3] + t1
        v[3], v[2], v[1] = v[2], v[1], v[0]
        v[0] = t1 + t2
    for t in range(DIGEST_WORDS):
        digest[t] += v[t]


def rotated(word, count):
    """``word``, rotated to the right."""
    return (word >> count) | (word << (32 - count))


# --- What it makes -------------------------------------------------------------------------------


def claim():
    """A listener at the address; -1 when another may be there, or it cannot be made.

    The sockets' folder is locked meanwhile, as by ``pyshim.bootstrap.start``.
    """
    folder: cython.int
    listener: cython.int = -1
    previous: cython.uint = umask(UMASK_PRIVATE)
    mkdir(sockets, MODE_FOLDER)
    folder = open(sockets, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    if folder >= 0:
        # Who has to wait for it waits in Python.
        if flock(folder, LOCK_EX | LOCK_NB) == 0 and not is_served():
            unlink(shim_url + SCHEME_BYTES)
            listener = listen_there()
        close(folder)
    umask(previous)
    return listener


def is_served():
    """Whether somebody accepts connections at the address, or may do so."""
    served: cython.bint
    fd: cython.int = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)
    if fd < 0:
        return True
    served = at_address(fd, True) == 0 or (errno != ENOENT and errno != ECONNREFUSED)
    close(fd)
    return served


def listen_there():
    """A listener at the address, which is for us alone; or -1, with nothing left."""
    fd: cython.int = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)
    if fd < 0:
        return -1
    if at_address(fd, False) == 0:
        if chmod(shim_url + SCHEME_BYTES, MODE_PRIVATE) == 0 and listen(fd, BACKLOG) == 0:
            return fd
        unlink(shim_url + SCHEME_BYTES)
    close(fd)
    return -1


def at_address(fd, is_client):
    """Connects or binds ``fd``; 0 when that could be done, and else errno is set."""
    address: sockaddr_un
    where: cython.pointer(sockaddr)
    memset(cython.address(address), 0, cython.sizeof(sockaddr_un))
    address.sun_family = AF_UNIX
    memcpy(address.sun_path, shim_url + SCHEME_BYTES, strlen(shim_url + SCHEME_BYTES))
    where = cython.cast(cython.pointer(sockaddr), cython.address(address))
    if is_client:
        return connect(fd, where, cython.sizeof(sockaddr_un))
    return bind(fd, where, cython.sizeof(sockaddr_un))


def write_address():
    """Writes the bundle's file `address`, whole or not at all; whether that could be done.

    Before the socket is there, so that a cleanup after a crash finds it.
    """
    previous: cython.uint
    fd: cython.int
    size: cython.ssize_t = strlen(shim_url)
    done: cython.ssize_t
    if not join(draft, bundle, b".address") or not join(scratch, bundle, b"address"):
        return False
    previous = umask(UMASK_PRIVATE)
    fd = open(draft, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, MODE_PRIVATE)
    umask(previous)
    if fd < 0:
        return False
    done = write(fd, shim_url, size)
    close(fd)
    if done == size and rename(draft, scratch) == 0:
        return True
    unlink(draft)
    return False


def start_plain_monitor(listener):
    """Starts a monitor with its first state; whether it runs."""
    arguments: cython.p_char[6]
    end: cython.p_char
    state: cython.int
    pid: cython.int
    memcpy(scratch, interpreter, strlen(interpreter) + 1)
    end = strrchr(scratch, b"/")
    end[0] = 0
    if not join(draft, scratch, b"pyshim-monitor") or access(draft, X_OK) != 0:
        return False
    raise_oom_score()
    state = write_state()
    if state < 0:
        return False
    arguments[0] = draft
    arguments[1] = cython.cast(cython.p_char, b"--zygote")
    arguments[2] = socket_path
    arguments[3] = cython.cast(cython.p_char, b"--python")
    arguments[4] = interpreter
    arguments[5] = cython.NULL
    pid = spawn(bundle, arguments, environ, listener, state)
    close(state)
    return pid > 0


def raise_oom_score():
    """Makes us, and by that the monitor, one point better to kill than containerd.

    Not permitted in user namespaces; then it stays as it is.
    """
    size: cython.ssize_t
    score: cython.long
    fd: cython.int
    snprintf(scratch, PATH_BYTES, b"/proc/%d/oom_score_adj", getppid())
    fd = open(scratch, O_RDONLY | O_CLOEXEC)
    if fd < 0:
        return
    size = read(fd, scratch, PATH_BYTES - 1)
    close(fd)
    if size <= 0:
        return
    scratch[size] = 0
    score = strtol(scratch, cython.NULL, 10) + 1
    if score > MAX_OOM_SCORE:
        score = MAX_OOM_SCORE
    fd = open(b"/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC)
    if fd >= 0:
        snprintf(scratch, PATH_BYTES, b"%ld", score)
        write(fd, scratch, strlen(scratch))
        close(fd)


def write_state():
    """A memfd with the first state (``api/state.proto``); or -1."""
    about: stat_inode_t
    equals: cython.p_char
    size: cython.size_t
    at: cython.size_t = 0
    fd: cython.int
    done: cython.bint
    if stat_inode(shim_url + SCHEME_BYTES, cython.address(about)) != 0:
        return -1
    fd = memfd_create(b"pyshim", MFD_CLOEXEC)
    if fd < 0:
        return -1
    done = put_integer(fd, 1, STATE_VERSION) and put_text(fd, 2, flag_namespace)
    done = done and put_text(fd, 3, flag_id) and put_text(fd, 4, bundle)
    done = done and put_text(fd, 5, flag_address) and put_events_address(fd)
    done = done and put_text(fd, 7, flag_publish_binary) and put_integer(fd, 8, flag_debug)
    done = done and put_text(fd, 9, shim_url + SCHEME_BYTES) and put_integer(fd, 19, about.st_ino)
    while done and environ[at] != cython.NULL:
        equals = strchr(environ[at], b"=")
        size = equals - environ[at]
        # An entry of the map: name and value are its fields 1 and 2.
        done = put_head(fd, 10, fields_size(size) + fields_size(strlen(equals + 1)))
        done = done and put_head(fd, 1, size) and put(fd, environ[at], size)
        size = strlen(equals + 1)
        done = done and put_head(fd, 2, size) and put(fd, equals + 1, size)
        at += 1
    if not done or not flush(fd):
        close(fd)
        return -1
    return fd


def put_events_address(fd):
    """Where events go: beside the daemon's socket, unless the environment says it."""
    named: cython.p_char = getenv(b"TTRPC_ADDRESS")
    if named != cython.NULL and named[0] != 0:
        return put_text(fd, 6, named)
    if flag_address == cython.NULL or flag_address[0] == 0:
        return True
    return (
        put_head(fd, 6, strlen(flag_address) + 6)
        and put(fd, flag_address, strlen(flag_address))
        and put(fd, b".ttrpc", 6)
    )


def put_text(fd, field, text):
    """A text, unless it is empty, as a field of a message of protobuf."""
    if text == cython.NULL or text[0] == 0:
        return True
    return put_head(fd, field, strlen(text)) and put(fd, text, strlen(text))


def put_integer(fd, field, value):
    """An integer, unless it is 0, likewise."""
    return value == 0 or (put_varint(fd, field << 3) and put_varint(fd, value))


def put_head(fd, field, size):
    """What precedes the ``size`` bytes of a text or of a message."""
    return put_varint(fd, field << 3 | 2) and put_varint(fd, size)


def put_varint(fd, value):
    """A number, seven bits to a byte."""
    byte: cython.char
    while value >= 0x80:
        byte = cython.cast(cython.char, value & 0x7F | 0x80)
        if not put(fd, cython.address(byte), 1):
            return False
        value >>= 7
    byte = cython.cast(cython.char, value)
    return put(fd, cython.address(byte), 1)


def fields_size(size):
    """How many bytes a text of ``size`` bytes takes as one of the first fields."""
    total: cython.size_t = 2 + size
    while size >= 0x80:
        size >>= 7
        total += 1
    return total


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
