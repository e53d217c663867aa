/* portproxy-relay: datagrams of its control plane, with descriptors of all kinds. */
#include "common.h"
#define _exit fuzz_exit
#define bind fuzz_bind
#define listen fuzz_listen
#define socket fuzz_socket
#define alarm fuzz_alarm
#define malloc fuzz_malloc
#define calloc fuzz_calloc
#define realloc fuzz_realloc
#define free fuzz_free
#include PROGRAM_C
#undef _exit
#undef bind
#undef listen
#undef socket
#undef alarm
#undef malloc
#undef calloc
#undef realloc
#undef free
#include "reset.h"
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int socket(int, int, int);
enum { DATAGRAMS = 24, MOST_FDS = 4, MOST_SOCKETS = 40, LOOKED_AT = 128 };
static int sockets_left, plane;
static unsigned binds;
static char answer[1 << 17];

/* Every fifth port is busy, and none is really taken. */
int fuzz_bind(int fd, const struct sockaddr *address, socklen_t size) {
  (void)fd, (void)address, (void)size;
  errno = EADDRINUSE;
  return ++binds % 5 ? 0 : -1;
}
int fuzz_listen(int fd, int backlog) {
  (void)fd, (void)backlog;
  return 0;
}
int fuzz_socket(int family, int kind, int wire) {
  errno = EMFILE;
  return sockets_left-- > 0 ? socket(family, kind, wire) : -1;
}
unsigned fuzz_alarm(unsigned seconds) { return seconds * 0; }

static int made(unsigned kind) {
  static const int families[] = {AF_INET, AF_INET6, AF_INET, AF_UNIX, AF_UNIX};
  static const int kinds[] = {SOCK_STREAM, SOCK_STREAM, SOCK_DGRAM, SOCK_STREAM, SOCK_SEQPACKET};
  kind %= 6;
  return kind == 5 ? memfd_create("fuzz", MFD_CLOEXEC) : socket(families[kind], kinds[kind], 0);
}

/* One command as the input has it: how many descriptors, their kinds, the size and the text. */
static void send_one(struct input *in) {
  static char text[1 << 16];
  int fds[MOST_FDS], count = fuzz_byte(in) % (MOST_FDS + 1);
  for (int at = 0; at < count; at++) {
    if ((fds[at] = made(fuzz_byte(in))) < 0) {
      abort();
    }
  }
  size_t size = fuzz_short(in);
  size = size < fuzz_left(in) ? size : fuzz_left(in);
  fuzz_bytes(in, text, size);
  fuzz_send(plane, text, size, fds, count);
}

/* An answer is printable text of a bounded size. */
static void check_answers(void) {
  ssize_t size;
  while ((size = recv(plane, answer, sizeof answer, MSG_DONTWAIT)) > 0) {
    if (size > E(BUFFER_BYTES)) {
      abort();
    }
    for (ssize_t at = 0; at < size; at++) {
      if (answer[at] != '\n' && (answer[at] < ' ' || answer[at] > '~')) {
        abort();
      }
    }
  }
}

static void serve(struct input *in, int theirs) {
  V(control_fd) = theirs;
  V(commander).kind = E(OF_CONTROL);
  V(commander).fd = theirs;
  V(controller).fd = -1;
  V(poller) = epoll_create1(EPOLL_CLOEXEC);
  V(loop_ms) = 1000;
  for (int at = 0; at < DATAGRAMS && fuzz_left(in); at++) {
    send_one(in);
    F(take_commands)();
    F(free_closed)();
    F(free_mappings)();
    V(loop_ms) += 700;
    F(run_timers)();
    check_answers();
  }
  // Whatever has been opened is closed with its mapping.
  while (V(mappings)) {
    if (!V(mappings)->removed) {
      F(remove_mapping)(V(mappings), 0);
    }
    F(free_mappings)();
  }
  close(V(poller));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  struct input in = {data, size, 0};
  int ends[2];
  char open[LOOKED_AT];
  for (int fd = 0; fd < LOOKED_AT; fd++) {
    open[fd] = fcntl(fd, F_GETFD) >= 0;
  }
  fuzz_note_descriptors();
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends)) {
    abort();
  }
  plane = ends[0];
  sockets_left = MOST_SOCKETS;
  binds = 0;
  if (!setjmp(fuzz_end)) {
    F(set_defaults)();
    serve(&in, ends[1]);
    close(ends[0]);
    close(ends[1]);
    fuzz_check_descriptors();
  } else {  // it has ended, and with it all that it had
    for (int fd = 0; fd < LOOKED_AT; fd++) {
      if (!open[fd]) {
        close(fd);
      }
    }
  }
  fuzz_free_all();
  fuzz_reset();
  return 0;
}
