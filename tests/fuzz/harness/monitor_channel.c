/*
 * The monitor: datagrams of a service on its channel, with descriptors of all kinds, while
 * processes exit, clients come and go, time passes and services die.
 */
#include "common.h"
#define _exit fuzz_exit
#define vfork fuzz_vfork
#define kill fuzz_kill
#define waitpid fuzz_waitpid
#define waitid fuzz_waitid
#define connect fuzz_connect
#define clock_gettime fuzz_clock
#define setrlimit fuzz_setrlimit
#define signal fuzz_signal
#include PROGRAM_C
#undef _exit
#undef vfork
#undef kill
#undef waitpid
#undef waitid
#undef connect
#undef clock_gettime
#undef setrlimit
#undef signal
#include "reset.h"
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

int connect(int, const struct sockaddr *, socklen_t);
__sighandler_t signal(int, __sighandler_t);
enum { FIRST_PID = 5000000, PIDS = 6, PEERS = 12, MOST_FDS = 6, STEPS = 24, OPS = 48 };
static long long now_s;
static long long now_ns;
static int service = -1;  // the service's end of the channel
static int peers[PEERS];
static int peer_count;
static unsigned spawned;
static char folder[] = "monitor-XXXXXX", fifo[64];  // where run.py puts us
static struct sockaddr_un address;
static socklen_t address_size;
static char *lasting;  // the scratch buffer
static int epoll_fd, nowhere;

int fuzz_clock(clockid_t id, struct timespec *now) {
  (void)id;
  now->tv_sec = now_s;
  now->tv_nsec = now_ns;
  return 0;
}
int fuzz_kill(pid_t pid, int number) {
  if (pid >= FIRST_PID && pid < FIRST_PID + PIDS && number >= 0 && number <= 64) {
    return 0;
  }
  errno = number < 0 || number > 64 ? EINVAL : ESRCH;
  return -1;
}
pid_t fuzz_waitpid(pid_t pid, int *status, int flags) {
  (void)pid, (void)status, (void)flags;
  errno = ECHILD;
  return -1;
}
int fuzz_waitid(idtype_t kind, id_t id, siginfo_t *about, int flags) {
  (void)kind, (void)id, (void)about, (void)flags;
  return id % 2 ? 0 : -1;
}
int fuzz_connect(int fd, const struct sockaddr *where, socklen_t size) {
  (void)fd, (void)where, (void)size;
  errno = ECONNREFUSED;
  return -1;
}
int fuzz_setrlimit(__rlimit_resource_t what, const struct rlimit *limit) {
  (void)what, (void)limit;
  return 0;
}
__sighandler_t fuzz_signal(int number, __sighandler_t action) {
  (void)number;
  return action;
}

/* Not a process, but what the next one would have been given is looked at. */
pid_t fuzz_vfork(void) {
  volatile size_t seen = 0;
  for (char **text = V(child_argv); *text; text++) {
    seen += strlen(*text);
  }
  for (char **text = V(child_env); *text; text++) {
    seen += strlen(*text);
  }
  for (int at = 0; at < V(child_fd_count); at++) {
    if (fcntl(V(child_fds)[at], F_GETFD) < 0) {
      abort();
    }
  }
  if (V(child_is_service)) {
    if (service >= 0) {
      close(service);
    }
    service = fcntl(V(child_fds)[0], F_DUPFD_CLOEXEC, 10);
    return FIRST_PID + PIDS;
  }
  if (++spawned % 5 == 0) {
    errno = EAGAIN;
    return -1;
  }
  return FIRST_PID + spawned % PIDS;
}

static int keep(int fd) {
  if (peer_count == PEERS) {
    close(peers[0]);
    memmove(peers, peers + 1, (PEERS - 1) * sizeof *peers);
    peer_count--;
  }
  fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
  return peers[peer_count++] = fd;
}

/* A descriptor to send; its other end is kept. */
static int make_fd(struct input *in) {
  unsigned kind = fuzz_byte(in) % 12;
  int ends[2], fd;
  switch (kind) {
  case 0:
  case 1:
    if (pipe2(ends, O_CLOEXEC)) abort();
    keep(ends[kind]);
    return ends[!kind];
  case 2:
  case 3:
    if (socketpair(AF_UNIX, kind == 2 ? SOCK_STREAM : SOCK_SEQPACKET, 0, ends)) abort();
    keep(ends[0]);
    return ends[1];
  case 4:
    return open("/dev/null", O_RDWR | O_CLOEXEC);
  case 5:
    return open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  case 6:
    keep(open(fifo, O_RDWR | O_NONBLOCK | O_CLOEXEC));
    return open(fifo, O_PATH | O_CLOEXEC);
  case 7:
    return open(fifo, O_PATH | O_CLOEXEC);
  case 8:
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fuzz_byte(in) % 2) {
      struct sockaddr_un any = {AF_UNIX, ""};
      bind(fd, (struct sockaddr *)&any, sizeof(sa_family_t));
      listen(fd, 1);
    }
    return fd;
  case 9:
    return open("/dev/null", O_PATH | O_CLOEXEC);
  case 10:
    return dup(service >= 0 ? service : 0);  // its own channel
  default:
    return fuzz_memfd(in);
  }
}

/* How many descriptors, what they are, a u16 of length, the bytes. */
static void send_datagram(struct input *in, unsigned count) {
  static uint8_t data[1 << 16];
  int fds[MOST_FDS];
  count %= MOST_FDS + 1;
  for (unsigned at = 0; at < count; at++) {
    fds[at] = make_fd(in);
  }
  size_t size = fuzz_short(in);
  fuzz_bytes(in, data, size);
  fuzz_send(service, data, size, fds, count);
}

static void say_hello(void) {
  uint32_t hello[6] = {24, E(HELLO), 0, 0, 1, 7};
  if (service >= 0) {
    send(service, hello, sizeof hello, MSG_DONTWAIT | MSG_NOSIGNAL);
  }
}

/* Takes what the monitor has said, which must be well formed. */
static void hear(void) {
  static uint8_t data[1 << 15];
  char control[CMSG_SPACE(E(DATAGRAM_FDS) * sizeof(int))];
  for (int round = 0; service >= 0 && round < 64; round++) {
    struct iovec part = {data, sizeof data};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    ssize_t size = recvmsg(service, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (size <= 0) {
      return;
    }
    size_t fds = 0, wanted = 0;
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    for (; head; head = CMSG_NXTHDR(&message, head)) {
      fds = (head->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      for (size_t at = 0; at < fds; at++) {
        close(((int *)CMSG_DATA(head))[at]);
      }
    }
    for (ssize_t at = 0; at < size;) {
      uint32_t length;
      uint16_t rights;
      memcpy(&length, data + at, 4);
      memcpy(&rights, data + at + 6, 2);
      if (length < 16 || length > size - at) abort();
      wanted += rights;
      at += (length + 7) / 8 * 8;
    }
    if (wanted != fds) abort();
  }
}

static void step(void) {
  struct epoll_event event;
  for (int round = 0; round < STEPS; round++) {
    int count = epoll_wait(epoll_fd, &event, 1, 0);
    if (count > 0) {
      F(dispatch)(event.data.u64, event.events);
    }
    if (V(always_ready_count)) {
      F(pump_always_ready)();
    }
    F(keep_deadlines)();
    F(settle)();
    F(time_to_wait)();
    if (count <= 0) {
      return;
    }
  }
}

static void act(struct input *in) {
  static char bytes[70000];
  unsigned op = fuzz_byte(in), more;
  switch (op % 16) {
  case 0:
    more = fuzz_byte(in);
    now_s += more * more / 16;
    now_ns = more * 3900000;
    break;
  case 1:
    more = fuzz_byte(in);
    F(remember_exit)(FIRST_PID + more % (PIDS + 1), more << 8);
    break;
  case 2:
    if (service >= 0) close(service);
    service = -1;
    break;
  case 3:
    say_hello();
    break;
  case 4:
    hear();
    break;
  case 5:
    more = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    connect(more, (struct sockaddr *)&address, address_size);
    keep(more);
    break;
  case 6:
    more = fuzz_byte(in);
    if (peer_count && write(peers[more % peer_count], bytes, more * 270) < 0) break;
    break;
  case 7:
    more = fuzz_byte(in);
    if (peer_count && read(peers[more % peer_count], bytes, sizeof bytes) < 0) break;
    break;
  case 8:
    more = fuzz_byte(in);
    if (peer_count) {
      more %= peer_count;
      close(peers[more]);
      peers[more] = peers[--peer_count];
    }
    break;
  default:
    send_datagram(in, op / 16);
  }
  step();
}

static void begin(void) {
  int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  struct sockaddr_un any = {AF_UNIX, ""};
  bind(listener, (struct sockaddr *)&any, sizeof(sa_family_t));
  listen(listener, 4);
  address_size = sizeof address;
  getsockname(listener, (struct sockaddr *)&address, &address_size);
  now_s = 1000;
  now_ns = 0;
  spawned = 0;
  epoll_fd = epoll_create1(EPOLL_CLOEXEC);
  V(poller) = epoll_fd;
  V(signals) = -1;
  V(null_fd) = nowhere;
  V(scratch) = lasting;
  V(own_pid) = getpid();
  V(channel) = -1;
  V(state_fd) = memfd_create("state", MFD_CLOEXEC);
  V(next_accepted_tag) = FIRST_ACCEPTED_TAG;
  V(zygote_path) = (char *)"/nowhere";
  V(python_path) = (char *)"/nowhere";
  getrlimit(RLIMIT_NOFILE, &V(limit_at_start));
  F(watch_held)(F(new_held)(E(LISTENER_TAG), listener, E(HOLD_ACCEPT)));
  F(want)(1);
}

/* Everything that the monitor owns is given back; its tables end as they began. */
static void finish(void) {
  for (int at = 0; at < E(RELAYS); at++) {
    if (V(relays)[at].state != E(RELAY_FREE)) {
      if (V(relays)[at].state != E(RELAY_OVER)) {
        F(end_relay)(V(relays) + at, 0);
      }
      F(free_relay)(V(relays) + at);
    } else if (at >= V(relay_top)) {
      break;
    }
  }
  for (int at = 0; at < E(HELDS) && at < V(held_top); at++) {
    if (V(helds)[at].tag) {
      F(drop)(V(helds) + at);
    }
  }
  F(close_channel)();
  if (V(piece_count) || V(draining_count) || V(unread_count) || V(always_ready_count)) {
    abort();
  }
  if (V(held_top) || V(relay_top)) {
    abort();
  }
  close(V(state_fd));
  close(epoll_fd);
  if (service >= 0) close(service);
  service = -1;
  while (peer_count) {
    close(peers[--peer_count]);
  }
  memset(V(processes), 0, sizeof V(processes[0]) * E(PROCESSES));
  fuzz_reset();
}

static void remove_folder(void) {
  unlink(fifo);
  rmdir(folder);
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
  (void)argc, (void)argv;
  if (!mkdtemp(folder)) abort();
  snprintf(fifo, sizeof fifo, "%s/fifo", folder);
  if (mkfifo(fifo, 0600)) abort();
  atexit(remove_folder);
  signal(SIGPIPE, SIG_IGN);
  nowhere = open("/dev/null", O_RDWR | O_CLOEXEC);
  lasting = mmap(NULL, E(SCRATCH_BYTES), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  struct input in = {data, size, 0};
  fuzz_note_descriptors();
  begin();
  if (!setjmp(fuzz_end)) {
    step();
    if (fuzz_byte(&in) % 4) {
      say_hello();
      step();
      hear();
    }
    for (int op = 0; op < OPS && fuzz_left(&in); op++) {
      act(&in);
    }
  }
  finish();
  fuzz_check_descriptors();
  return 0;
}
