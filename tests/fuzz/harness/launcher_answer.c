/* The launcher: what a zygote's child tells it, and the monitor that it is to start. */
#include "common.h"
#define _exit fuzz_exit
#define write fuzz_write
#define fork fuzz_fork
#define waitpid fuzz_waitpid
#define syscall fuzz_syscall
#define calloc fuzz_calloc
#define mmap fuzz_mmap
#include PROGRAM_C
#undef _exit
#undef write
#undef fork
#undef waitpid
#undef syscall
#undef calloc
#undef mmap
#include "reset.h"
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

void *mmap(void *, size_t, int, int, int, off_t);
ssize_t write(int, const void *, size_t);
enum { MOST = 4, MAPPINGS = 64, NOBODY = 5000000 };
static struct {
  void *at;
  size_t size;
} mappings[MAPPINGS];
static int mapping_count;

ssize_t fuzz_write(int fd, const void *data, size_t size) {
  return fd <= 2 ? (ssize_t)size : write(fd, data, size);
}
pid_t fuzz_fork(void) { return NOBODY; }
pid_t fuzz_waitpid(pid_t pid, int *status, int flags) {
  (void)pid, (void)status, (void)flags;
  return -1;
}
long fuzz_syscall(long number, ...) {
  (void)number;
  return -1;
}
void *fuzz_mmap(void *at, size_t size, int access, int flags, int fd, off_t offset) {
  void *made = mapping_count < MAPPINGS ? mmap(at, size, access, flags, fd, offset) : MAP_FAILED;
  if (made != MAP_FAILED) {
    mappings[mapping_count].at = made;
    mappings[mapping_count++].size = size;
  }
  return made;
}

/* Each datagram: how many descriptors, what they are, a u16 of length, its bytes. */
static void say(struct input *in, int zygote) {
  static uint8_t data[1 << 16];
  int fds[MOST], count = fuzz_byte(in) % (MOST + 1);
  for (int at = 0; at < count; at++) {
    fds[at] = fuzz_byte(in) % 4 ? fuzz_memfd(in) : dup(0);
  }
  size_t size = fuzz_short(in);
  fuzz_bytes(in, data, size);
  fuzz_send(zygote, data, size, fds, count);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  struct input in = {data, size, 0};
  fuzz_note_descriptors();
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends)) {
    abort();
  }
  while (fuzz_left(&in)) {
    say(&in, ends[1]);
  }
  shutdown(ends[1], SHUT_WR);
  V(begin_by) = INT64_MAX;
  if (!setjmp(fuzz_end)) {
    int code = F(await_exit)(ends[0]);
    if (code > 255 || code < -2) {
      abort();
    }
  }
  close(ends[0]);
  close(ends[1]);
  while (mapping_count) {
    mapping_count--;
    munmap(mappings[mapping_count].at, mappings[mapping_count].size);
  }
  fuzz_free_all();
  fuzz_reset();
  fuzz_check_descriptors();
  return 0;
}
