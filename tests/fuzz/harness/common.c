#define _GNU_SOURCE
#include "common.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

jmp_buf fuzz_end;
void fuzz_exit(int code) {
  (void)code;
  longjmp(fuzz_end, 1);
}

size_t fuzz_left(const struct input *in) { return in->size - in->at; }

unsigned fuzz_byte(struct input *in) { return in->at < in->size ? in->data[in->at++] : 0; }

void fuzz_bytes(struct input *in, void *to, size_t size) {
  size_t there = fuzz_left(in) < size ? fuzz_left(in) : size;
  memcpy(to, in->data + in->at, there);
  memset((char *)to + there, 0, size - there);
  in->at += there;
}

struct block {
  struct block *next, **link;
  size_t size;
};
static struct block *blocks;

void *fuzz_malloc(size_t size) {
  struct block *made = malloc(sizeof *made + size);
  if (!made) {
    return NULL;
  }
  made->next = blocks;
  made->link = &blocks;
  made->size = size;
  if (blocks) {
    blocks->link = &made->next;
  }
  blocks = made;
  return made + 1;
}

void *fuzz_calloc(size_t count, size_t size) {
  void *made = fuzz_malloc(count * size);
  return made ? memset(made, 0, count * size) : NULL;
}

void fuzz_free(void *memory) {
  if (!memory) {
    return;
  }
  struct block *old = (struct block *)memory - 1;
  *old->link = old->next;
  if (old->next) {
    old->next->link = old->link;
  }
  free(old);
}

void *fuzz_realloc(void *old, size_t size) {
  void *made = fuzz_malloc(size);
  if (old && made) {
    size_t had = ((struct block *)old - 1)->size;
    memcpy(made, old, had < size ? had : size);
    fuzz_free(old);
  }
  return made;
}

void fuzz_free_all(void) {
  while (blocks) {
    fuzz_free(blocks + 1);
  }
}

unsigned fuzz_short(struct input *in) {
  unsigned low = fuzz_byte(in);
  return low | fuzz_byte(in) << 8;
}

enum { MOST_SENT = 8 };
void fuzz_send(int to, void *data, size_t size, int *fds, unsigned count) {
  char control[CMSG_SPACE(MOST_SENT * sizeof(int))] = {0};
  struct iovec part = {data, size};
  struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
  if (count > MOST_SENT) {
    abort();
  }
  if (count) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(count * sizeof(int));
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(count * sizeof(int));
    memcpy(CMSG_DATA(head), fds, count * sizeof(int));
  }
  if (to >= 0) {
    sendmsg(to, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
  }
  while (count--) {
    close(fds[count]);
  }
}

int fuzz_memfd(struct input *in) {
  static char content[1 << 16];
  size_t size = fuzz_short(in);
  int fd = memfd_create("fuzz", MFD_CLOEXEC);
  fuzz_bytes(in, content, size);
  if (fd < 0 || write(fd, content, size) != (ssize_t)size || lseek(fd, 0, SEEK_SET)) {
    abort();
  }
  return fd;
}

enum { LOOKED_AT = 128 };
static char expected[LOOKED_AT];
void fuzz_note_descriptors(void) {
  for (int fd = 0; fd < LOOKED_AT; fd++) {
    expected[fd] = fcntl(fd, F_GETFD) >= 0;
  }
}

void fuzz_check_descriptors(void) {
  for (int fd = 0; fd < LOOKED_AT; fd++) {
    char open = fcntl(fd, F_GETFD) >= 0;
    if (open != expected[fd]) {
      fprintf(stderr, "ERROR: descriptor %d was %s by the input\n", fd, open ? "left" : "closed");
      abort();
    }
  }
}
