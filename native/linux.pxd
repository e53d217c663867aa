# Declarations of Linux and libc that the native programs share.  Facts only: one line per
# function, constant or struct, grouped by header.  Add what you need at the header's place.

# --- used by pyinit, which has no libc ---
cdef extern from "bare.h" nogil:
    long kernel_call(long number, ...)
    long spawn_sharing_memory(void (*child)() noexcept nogil, void* stack, unsigned long flags)
    void* CHILD_STACK
    enum: PIDFD_GET_INFO, PIDFD_INFO_COREDUMP, PIDFD_INFO_EXIT
    struct pidfd_information:
        unsigned long mask
        int exit_code
    struct kernel_action:
        void* handler
        unsigned long flags
        void* restorer
        unsigned long mask
    struct filter_program:
        unsigned short length
        void* filter
    unsigned int THIS_AUDIT_ARCH

cdef extern from "<errno.h>" nogil:
    enum: ECHILD

cdef extern from "<dirent.h>" nogil:
    ctypedef struct linux_dirent64 "struct dirent":  # the same layout
        unsigned short d_reclen
        char[256] d_name

cdef extern from "<sys/ioctl.h>" nogil:
    enum: TIOCGPGRP, TIOCNOTTY, TIOCSCTTY, TIOCSPGRP

cdef extern from "<sys/syscall.h>" nogil:
    enum: SYS_brk, SYS_chdir, SYS_clock_gettime, SYS_close, SYS_dup3, SYS_execve, SYS_exit_group
    enum: SYS_getdents64, SYS_getpgid, SYS_getpid, SYS_getppid, SYS_getsid, SYS_ioctl, SYS_kill
    enum: SYS_openat, SYS_prctl, SYS_read, SYS_restart_syscall, SYS_rt_sigaction, SYS_setgroups
    enum: SYS_setpgid, SYS_setresgid, SYS_setresuid, SYS_setsid, SYS_wait4, SYS_write

cdef extern from "<signal.h>" nogil:
    enum: SA_NOCLDWAIT
    enum: SI_KERNEL, SI_USER, SIGCONT, SIGQUIT, SIGSTOP, SIGTSTP, SIGWINCH

cdef extern from "<sched.h>" nogil:
    enum: CLONE_SIGHAND

cdef extern from "<sys/wait.h>" nogil:
    bint WCOREDUMP(int status)
    bint WIFSTOPPED(int status)
    int WSTOPSIG(int status)
    enum: WUNTRACED

cdef extern from "<sys/prctl.h>" nogil:
    enum: PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP

# --- used by all ---
cdef extern from "<sys/types.h>" nogil:
    ctypedef int pid_t

cdef extern from "<errno.h>" nogil:
    int errno
    enum: E2BIG, EACCES, ENOENT, ENOEXEC, ENOTDIR, ESRCH

cdef extern from "<stdlib.h>" nogil:
    char* getenv(const char* name)

cdef extern from "<string.h>" nogil:
    void* memcpy(void* to, const void* source, size_t n)
    char* strchr(const char* s, int c)
    int strcmp(const char* a, const char* b)
    char* strerror(int number)
    size_t strlen(const char* s)

cdef extern from *:
    """
    extern char **environ;  /* POSIX leaves this declaration to the program */
    """
    char** environ

cdef extern from "<unistd.h>" nogil:
    void _exit(int status)
    int execve(const char* path, char** argv, char** envp)
    pid_t getpid()
    pid_t getppid()
    long syscall(long number, ...)
    pid_t vfork()
    ssize_t write(int fd, const void* data, size_t n)

cdef extern from "<sys/syscall.h>" nogil:
    enum: SYS_rt_sigprocmask, SYS_rt_sigqueueinfo, SYS_rt_sigtimedwait

ctypedef void (*signal_handler)(int) noexcept nogil

cdef extern from "<signal.h>" nogil:
    ctypedef struct siginfo_t:
        int si_signo
        int si_code
        pid_t si_pid
        unsigned int si_uid
    signal_handler SIG_DFL, SIG_IGN
    int kill(pid_t pid, int number)
    signal_handler signal(int number, signal_handler handler)
    enum: SI_QUEUE, SIG_SETMASK
    enum: SIGABRT, SIGBUS, SIGCHLD, SIGFPE, SIGILL, SIGPIPE, SIGSEGV, SIGSYS, SIGTRAP
    enum: SIGTTIN, SIGTTOU

cdef extern from "<sys/wait.h>" nogil:
    pid_t waitpid(pid_t pid, int* status, int options)
    bint WIFEXITED(int status)
    int WEXITSTATUS(int status)
    int WTERMSIG(int status)
    enum: WNOHANG

cdef extern from "<sys/prctl.h>" nogil:
    int prctl(int option, ...)
    enum: PR_GET_CHILD_SUBREAPER, PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG

# --- used by the launcher ---
cdef extern from "<stdint.h>" nogil:
    ctypedef unsigned int uint32_t
    ctypedef unsigned long long uint64_t

cdef extern from "<errno.h>" nogil:
    enum: EINTR

cdef extern from "<stdlib.h>" nogil:
    void* calloc(size_t count, size_t size)

cdef extern from "<stdio.h>" nogil:
    int snprintf(char* target, size_t n, const char* form, ...)

cdef extern from "<string.h>" nogil:
    void* memset(void* to, int byte, size_t n)
    char* strrchr(const char* s, int c)

cdef extern from "<unistd.h>" nogil:
    int access(const char* path, int mode)
    int chdir(const char* path)
    int close(int fd)
    int dup2(int fd, int target)
    pid_t fork()
    char* getcwd(char* target, size_t n)
    unsigned int getegid()
    unsigned int geteuid()
    int pipe2(int* fds, int flags)
    ssize_t read(int fd, void* data, size_t n)
    ssize_t readlink(const char* path, char* target, size_t n)
    pid_t setsid()
    enum: X_OK

cdef extern from "<sys/syscall.h>" nogil:
    enum: SYS_close_range, SYS_execveat, SYS_pidfd_open, SYS_pidfd_send_signal

cdef extern from "<fcntl.h>" nogil:
    int fcntl(int fd, int command, ...)
    int open(const char* path, int flags, ...)
    enum: F_DUPFD_CLOEXEC, F_SETFD, FD_CLOEXEC
    enum: AT_EMPTY_PATH, O_CLOEXEC, O_DIRECTORY, O_PATH, O_RDONLY, O_RDWR

cdef extern from "<sys/mman.h>" nogil:
    int memfd_create(const char* name, unsigned int flags)
    void* mmap(void* at, size_t n, int protection, int flags, int fd, long offset)
    void* MAP_FAILED
    enum: MAP_PRIVATE, MFD_CLOEXEC, PROT_READ, PROT_WRITE

cdef extern from "<sys/stat.h>" nogil:
    ctypedef struct stat_t "struct stat":
        long st_size
    int fstat(int fd, stat_t* about)

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd* fds, unsigned long count, int milliseconds)
    enum: POLLIN

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec* now)
    enum: CLOCK_MONOTONIC

cdef extern from "<sys/time.h>" nogil:
    struct timeval:
        long tv_sec
        long tv_usec

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void* iov_base
        size_t iov_len

cdef extern from "<sys/socket.h>" nogil:
    struct sockaddr:
        pass
    struct ucred:
        pid_t pid
        unsigned int uid
        unsigned int gid
    struct cmsghdr:
        size_t cmsg_len
        int cmsg_level
        int cmsg_type
    struct msghdr:
        void* msg_name
        unsigned int msg_namelen
        iovec* msg_iov
        size_t msg_iovlen
        void* msg_control
        size_t msg_controllen
        int msg_flags
    int connect(int fd, const sockaddr* address, unsigned int n)
    int getsockopt(int fd, int level, int name, void* value, unsigned int* n)
    ssize_t recvmsg(int fd, msghdr* message, int flags)
    ssize_t sendmsg(int fd, const msghdr* message, int flags)
    int setsockopt(int fd, int level, int name, const void* value, unsigned int n)
    int socket(int family, int kind, int protocol)
    void* CMSG_DATA(cmsghdr* head)
    cmsghdr* CMSG_FIRSTHDR(msghdr* message)
    size_t CMSG_LEN(size_t n)
    cmsghdr* CMSG_NXTHDR(msghdr* message, cmsghdr* head)
    size_t CMSG_SPACE(size_t n)
    enum: AF_UNIX, SOL_SOCKET, SCM_RIGHTS, SO_PEERCRED, SO_SNDTIMEO, SOCK_CLOEXEC, SOCK_SEQPACKET
    enum: MSG_CMSG_CLOEXEC, MSG_NOSIGNAL

cdef extern from "<sys/un.h>" nogil:
    struct sockaddr_un:
        unsigned short sun_family
        char[108] sun_path

# --- used by the relay ---
cdef extern from "<errno.h>" nogil:
    enum: EADDRINUSE, EADDRNOTAVAIL, EAGAIN, ECONNABORTED, ECONNREFUSED, EINPROGRESS, EINVAL, ENODEV

cdef extern from "<stdlib.h>" nogil:
    void* malloc(size_t n)
    void free(void* what)

cdef extern from "<string.h>" nogil:
    int strncmp(const char* a, const char* b, size_t n)

cdef extern from "<fcntl.h>" nogil:
    ssize_t splice(int source, void* at, int target, void* to, size_t n, unsigned int flags)
    enum: F_GETFL, F_GETPIPE_SZ, F_SETFL, F_SETPIPE_SZ, O_ACCMODE, O_NONBLOCK, O_WRONLY
    enum: SPLICE_F_NONBLOCK

cdef extern from "<sys/stat.h>" nogil:
    ctypedef struct stat_mode_t "struct stat":
        unsigned int st_mode
        unsigned int st_uid
    int fstat_mode "fstat"(int fd, stat_mode_t* about)
    bint S_ISFIFO(unsigned int mode)
    unsigned int umask(unsigned int mode)

cdef extern from "<poll.h>" nogil:
    enum: POLLOUT

cdef extern from "<signal.h>" nogil:
    ctypedef struct sigset_t:
        pass
    int sigemptyset(sigset_t* which)
    int sigaddset(sigset_t* which, int number)
    int sigprocmask(int how, const sigset_t* which, sigset_t* previous)
    enum: SIG_UNBLOCK, SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        void* ptr
        unsigned long long u64
    struct epoll_event:
        unsigned int events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int poller, int operation, int fd, epoll_event* event)
    int epoll_wait(int poller, epoll_event* events, int most, int milliseconds)
    enum: EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_MOD
    unsigned int EPOLLIN, EPOLLOUT, EPOLLPRI, EPOLLERR, EPOLLHUP, EPOLLRDHUP, EPOLLET
    unsigned int EPOLLEXCLUSIVE

cdef extern from "<sys/resource.h>" nogil:
    struct rlimit:
        unsigned long rlim_cur
        unsigned long rlim_max
    int getrlimit(int what, rlimit* limit)
    int setrlimit(int what, const rlimit* limit)
    enum: RLIMIT_NOFILE

cdef extern from "<sys/socket.h>" nogil:
    struct linger:
        int l_onoff
        int l_linger
    int accept4(int fd, sockaddr* address, unsigned int* n, int flags)
    int bind(int fd, const sockaddr* address, unsigned int n)
    int listen(int fd, int backlog)
    ssize_t recv(int fd, void* data, size_t n, int flags)
    ssize_t send(int fd, const void* data, size_t n, int flags)
    int shutdown(int fd, int how)
    enum: AF_INET, AF_INET6, SOCK_NONBLOCK, SOCK_STREAM, SHUT_WR
    enum: SO_ACCEPTCONN, SO_DOMAIN, SO_ERROR, SO_KEEPALIVE, SO_LINGER, SO_PROTOCOL, SO_REUSEADDR
    enum: SO_TYPE

cdef extern from "<netinet/in.h>" nogil:
    struct in_addr:
        unsigned int s_addr
    struct in6_addr:
        unsigned char[16] s6_addr
    struct sockaddr_in:
        unsigned short sin_family
        unsigned short sin_port
        in_addr sin_addr
    struct sockaddr_in6:
        unsigned short sin6_family
        unsigned short sin6_port
        in6_addr sin6_addr
    unsigned short htons(unsigned short number)
    enum: IPPROTO_IPV6, IPPROTO_TCP, IPV6_V6ONLY

cdef extern from "<netinet/tcp.h>" nogil:
    enum: TCP_KEEPCNT, TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_NODELAY

cdef extern from "<arpa/inet.h>" nogil:
    int inet_pton(int family, const char* text, void* address)

# --- used by the relay for datagrams, messages and mappings ---
cdef extern from "<errno.h>" nogil:
    enum: EHOSTUNREACH, EMSGSIZE, ENETUNREACH, EPROTONOSUPPORT, ETIMEDOUT

cdef extern from "<stdlib.h>" nogil:
    void* realloc(void* what, size_t n)

cdef extern from "<string.h>" nogil:
    int memcmp(const void* a, const void* b, size_t n)

cdef extern from "<unistd.h>" nogil:
    unsigned int alarm(unsigned int seconds)

cdef extern from "<fcntl.h>" nogil:
    enum: O_APPEND, O_CREAT

cdef extern from "<signal.h>" nogil:
    enum: SIG_BLOCK, SIGALRM

cdef extern from "<sys/epoll.h>" nogil:
    int epoll_pwait(int poller, epoll_event* events, int most, int milliseconds, const sigset_t* m)

cdef extern from "<sys/syscall.h>" nogil:
    enum: SYS_recvmmsg, SYS_sendmmsg

cdef extern from "<sys/socket.h>" nogil:
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    int getsockname(int fd, sockaddr* address, unsigned int* n)
    ssize_t sendto(int fd, const void* data, size_t n, int flags, const sockaddr* to, unsigned int m)
    enum: MSG_MORE, MSG_PEEK, SO_BINDTODEVICE, SO_MARK, SO_RCVBUF, SO_RCVBUFFORCE, SO_RXQ_OVFL
    enum: SOCK_DGRAM

cdef extern from "<netinet/in.h>" nogil:
    struct in_pktinfo:
        int ipi_ifindex
        in_addr ipi_spec_dst
        in_addr ipi_addr
    struct in6_pktinfo:
        in6_addr ipi6_addr
        unsigned int ipi6_ifindex
    unsigned short ntohs(unsigned short number)
    enum: INET6_ADDRSTRLEN, IPPROTO_IP, IPPROTO_SCTP, IPPROTO_UDP, IP_PKTINFO, IP_TOS, IP_TRANSPARENT
    enum: IPV6_PKTINFO, IPV6_RECVPKTINFO, IPV6_TCLASS

cdef extern from "<netinet/tcp.h>" nogil:
    enum: TCP_CONGESTION, TCP_FASTOPEN, TCP_QUICKACK, TCP_REPAIR, TCP_USER_TIMEOUT

cdef extern from "<arpa/inet.h>" nogil:
    const char* inet_ntop(int family, const void* address, char* text, unsigned int n)

# --- used by the launcher for the plain start ---
cdef extern from "<stdlib.h>" nogil:
    long strtol(const char* text, char** end, int base)

cdef extern from "<stdio.h>" nogil:
    int rename(const char* path, const char* target)

cdef extern from "<string.h>" nogil:
    void* memmem(const void* text, size_t n, const void* part, size_t m)

cdef extern from "<unistd.h>" nogil:
    int unlink(const char* path)
    enum: F_OK

cdef extern from "<fcntl.h>" nogil:
    ssize_t tee(int source, int target, size_t n, unsigned int flags)
    enum: O_NOFOLLOW, O_TRUNC

cdef extern from "<sys/file.h>" nogil:
    int flock(int fd, int operation)
    enum: LOCK_EX, LOCK_NB, LOCK_SH

cdef extern from "<sys/stat.h>" nogil:
    ctypedef struct stat_inode_t "struct stat":
        unsigned long st_ino
    int stat_inode "stat"(const char* path, stat_inode_t* about)
    int chmod(const char* path, unsigned int mode)
    int mkdir(const char* path, unsigned int mode)

cdef extern from "<poll.h>" nogil:
    enum: POLLHUP

# --- used by the monitor ---
cdef extern from "<errno.h>" nogil:
    enum: EALREADY, ECANCELED

cdef extern from "<sys/prctl.h>" nogil:
    enum: PR_SET_NAME

cdef extern from "<sys/wait.h>" nogil:
    int waitid(int which, pid_t pid, siginfo_t* about, int options)
    enum: P_PID, WEXITED, WNOWAIT

cdef extern from "<poll.h>" nogil:
    enum: POLLRDHUP

cdef extern from "<errno.h>" nogil:
    enum: EBADMSG, ECONNRESET, EEXIST, EIO, EMFILE, ENFILE, ENOBUFS, ENOMEM, ENOSPC, ENOTSOCK, EPERM, EPIPE
    enum: EPROTO

cdef extern from "<unistd.h>" nogil:
    ssize_t pread(int fd, void* data, size_t n, long offset)

cdef extern from "<sys/epoll.h>" nogil:
    enum: EPOLL_CTL_DEL

cdef extern from "<signal.h>" nogil:
    enum: SIGKILL, SIGXFSZ

cdef extern from "<sys/signalfd.h>" nogil:
    struct signalfd_siginfo:
        unsigned int ssi_signo
    int signalfd(int fd, const sigset_t* wanted, int flags)
    enum: SFD_CLOEXEC, SFD_NONBLOCK

cdef extern from "<fcntl.h>" nogil:
    enum: O_NOCTTY, SPLICE_F_MOVE

cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int fd, unsigned long request, ...)
    enum: FIONREAD

cdef extern from "<sys/mman.h>" nogil:
    int madvise(void* at, size_t n, int advice)
    int munmap(void* at, size_t n)
    enum: MADV_DONTNEED, MAP_ANONYMOUS

cdef extern from "<sys/stat.h>" nogil:
    enum: S_IFCHR, S_IFIFO, S_IFMT, S_IFREG

cdef extern from "<time.h>" nogil:
    enum: CLOCK_REALTIME

cdef extern from "<sys/socket.h>" nogil:
    int socketpair(int family, int kind, int protocol, int* fds)
    enum: MSG_CTRUNC, MSG_DONTWAIT, MSG_TRUNC, SHUT_RDWR, SO_SNDBUF

# --- used by the relay for its control plane and its privileges ---
cdef extern from *:
    """
    #include <errno.h>
    static inline void set_errno(int number) { errno = number; }
    """
    void set_errno(int number) nogil

cdef extern from "<sched.h>" nogil:
    int setns(int fd, int kind)
    enum: CLONE_NEWNET

cdef extern from "<netinet/tcp.h>" nogil:
    struct tcp_info:
        unsigned int tcpi_rtt
        unsigned int tcpi_total_retrans
    enum: TCP_INFO

cdef extern from "<linux/filter.h>" nogil:
    struct sock_filter:
        unsigned short code
        unsigned char jt
        unsigned char jf
        unsigned int k
    struct sock_fprog:
        unsigned short len
        sock_filter* filter
    enum: BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W

cdef extern from "<linux/seccomp.h>" nogil:
    unsigned int SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, SECCOMP_RET_KILL_PROCESS
    enum: SECCOMP_MODE_FILTER

cdef extern from "<linux/capability.h>" nogil:
    enum: CAP_NET_ADMIN

cdef extern from *:
    """
    #include <linux/audit.h>
    #include <sys/syscall.h>
    #ifdef __x86_64__
    #define THIS_AUDIT AUDIT_ARCH_X86_64
    #else
    #define THIS_AUDIT AUDIT_ARCH_AARCH64
    #endif
    #ifdef SYS_poll
    #define CALL_POLL SYS_poll
    #else
    #define CALL_POLL SYS_ppoll
    #endif
    """
    unsigned int THIS_AUDIT
    int CALL_POLL

cdef extern from "<sys/prctl.h>" nogil:
    enum: PR_SET_KEEPCAPS

cdef extern from "<sys/syscall.h>" nogil:
    enum: SYS_accept4, SYS_bind, SYS_capset, SYS_connect, SYS_epoll_ctl, SYS_epoll_pwait, SYS_exit
    enum: SYS_fcntl, SYS_getsockname, SYS_getsockopt, SYS_listen, SYS_madvise, SYS_mmap
    enum: SYS_mprotect, SYS_mremap, SYS_munmap, SYS_pipe2, SYS_recvfrom, SYS_recvmsg
    enum: SYS_rt_sigreturn, SYS_sendmsg, SYS_sendto, SYS_setitimer, SYS_setsockopt, SYS_shutdown
    enum: SYS_socket, SYS_splice

# --- used by the relay for the flows that the kernel tracks ---
cdef extern from "<linux/netlink.h>" nogil:
    struct nlmsghdr:
        unsigned int nlmsg_len
        unsigned short nlmsg_type
        unsigned short nlmsg_flags
    struct nlattr:
        unsigned short nla_len
        unsigned short nla_type
    enum: NETLINK_NETFILTER, NLA_TYPE_MASK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR

cdef extern from "<linux/netfilter/nfnetlink.h>" nogil:
    struct nfgenmsg:
        unsigned char nfgen_family
    enum: NFNL_SUBSYS_CTNETLINK

cdef extern from "<linux/netfilter/nfnetlink_conntrack.h>" nogil:
    enum: IPCTNL_MSG_CT_DELETE, IPCTNL_MSG_CT_GET, IPCTNL_MSG_CT_NEW
    enum: CTA_IP_V4_DST, CTA_IP_V6_DST, CTA_PROTO_DST_PORT, CTA_PROTO_NUM, CTA_TUPLE_IP
    enum: CTA_TUPLE_ORIG, CTA_TUPLE_PROTO, CTA_ZONE

cdef extern from "<sys/socket.h>" nogil:
    enum: AF_NETLINK, SOCK_RAW, SO_RCVTIMEO
