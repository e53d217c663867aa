/* portproxy-relay: command line, environment, file of settings and file of mappings. */
#include "common.h"
#define _exit fuzz_exit
#define write fuzz_write
#define poll fuzz_poll
#define malloc fuzz_malloc
#define calloc fuzz_calloc
#define realloc fuzz_realloc
#define free fuzz_free
#include PROGRAM_C
#undef _exit
#undef write
#undef poll
#undef malloc
#undef calloc
#undef realloc
#undef free
#include "reset.h"
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

ssize_t write(int, const void *, size_t);
enum { WORDS = 16 };
ssize_t fuzz_write(int fd, const void *data, size_t size) {
  (void)fd;
  volatile uint8_t sum = 0;
  for (size_t at = 0; at < size; at++) {
    sum += ((const uint8_t *)data)[at];
  }
  return size;
}
int fuzz_poll(struct pollfd *fds, nfds_t count, int timeout) {
  (void)count, (void)timeout;
  fds->revents = POLLOUT;
  return 1;
}

/* Cuts the input at its zeros: a NULL-terminated array of strings of their own. */
static char **words(const uint8_t *data, size_t size, char *first, int *count) {
  char **made = fuzz_calloc(WORDS + 2, sizeof *made);
  size_t at = 0;
  *count = 0;
  if (first) {
    made[(*count)++] = first;
  }
  while (at < size && *count < WORDS) {
    size_t length = strnlen((const char *)data + at, size - at);
    made[*count] = fuzz_calloc(1, length + 1);
    memcpy(made[(*count)++], data + at, length);
    at += length + 1;
  }
  return made;
}

static void read_one(unsigned kind, const uint8_t *data, size_t size) {
  char path[32], name[] = "portproxy-relay";
  int count, fd = kind < 2 ? -1 : memfd_create("fuzz", MFD_CLOEXEC);
  char **usual = environ, *nothing[] = {NULL};
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  if (fd >= 0 && write(fd, data, size) != (ssize_t)size) {
    abort();
  }
  environ = nothing;
  if (!setjmp(fuzz_end)) {
    F(set_defaults)();
    if (kind == 0) {
      char **argv = words(data, size, name, &count);
      F(read_options)(count, argv);
      if (!V(mappings_path) && V(control_fd) < 0) {
        F(add_docker_mapping)();
      }
    } else if (kind == 1) {
      environ = words(data, size, NULL, &count);
      F(take_environment)(&V(plain));
    } else if (kind == 2) {
      setenv("PORTPROXY_CONFIG", path, 1);
      F(take_settings_file)(&V(plain));
    } else {
      V(mappings_path) = path;
      F(read_mappings)();
    }
  }
  environ = usual;
  if (fd >= 0) {
    close(fd);
  }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (size) {
    fuzz_note_descriptors();
    read_one(data[0] % 4, data + 1, size - 1);
    fuzz_free_all();
    fuzz_reset();
    fuzz_check_descriptors();
  }
  return 0;
}
