/* pyinit: its command line and environment.  It has no libc: what it asks the kernel comes here. */
#include "common.h"
#include PROGRAM_C
#include "reset.h"
#include <stdlib.h>
#include <string.h>

enum { WORDS = 64, ARENA_BYTES = 1 << 16 };
static char arena[ARENA_BYTES] __attribute__((aligned(16)));
char sanitized_stack[16];

long spawn_sharing_memory(void (*child)(void), void *stack, unsigned long flags) {
  (void)child, (void)stack, (void)flags;
  return -EAGAIN;
}

long kernel_call(long number, long a, long b, long c) {
  volatile uint8_t sum = 0;
  switch (number) {
  case SYS_exit_group:
    fuzz_exit(a);
  case SYS_write:
    for (long at = 0; at < c; at++) {
      sum += ((const uint8_t *)b)[at];
    }
    return c;
  case SYS_brk:
    if (!a) {
      return (long)arena;
    }
    return a <= (long)(arena + ARENA_BYTES) ? a : (long)arena;
  default:
    return -ENOSYS;
  }
}

/* The first byte: how many of the words are arguments; each is a string of its own. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  char *all[WORDS + 3] = {NULL}, **used = all;
  int count = 0, argc = size ? data[0] % 16 : 0;
  size_t at = 1;
  if (!size) {
    return 0;
  }
  while (at < size && count < WORDS) {
    size_t length = strnlen((const char *)data + at, size - at);
    if (count == argc && used == all) {
      used++;  // the NULL between arguments and environment
    }
    used[count] = fuzz_calloc(1, length + 1);
    memcpy(used[count++], data + at, length);
    at += length + 1;
  }
  if (argc > count) {
    argc = count;
  }
  memset(arena, 0, sizeof arena);
  if (!setjmp(fuzz_end)) {
    F(find_environment)(argc, all);
    F(choose_persona)(argc, all);
    char **command = F(read_everything)(argc, all);
    if (command && (command < all || command >= all + argc || !*command)) {
      abort();
    }
    if (V(added_count)) {
      F(add_variables)();
    }
    for (char **variable = V(environment); *variable; variable++) {
      if (!strncmp(*variable, "PYINIT_", 7) && variable < all + WORDS + 3 && variable > all) {
        abort();  // the command would see it
      }
    }
  }
  fuzz_free_all();
  fuzz_reset();
  return 0;
}
