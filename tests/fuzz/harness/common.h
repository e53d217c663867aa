/*
 * What the harnesses share.  Each includes the C of one program, so that it can call the decoders,
 * after it has renamed the calls that must not happen: those of the kernel that would touch another
 * process, wait, or end this one.  PROGRAM_C and NAMES come from the command line (build.py).
 */
#ifndef FUZZ_COMMON_H
#define FUZZ_COMMON_H
#define FUZZ_JOIN2(a, b, c) a##b##c
#define FUZZ_JOIN(a, b, c) FUZZ_JOIN2(a, b, c)
#define F(name) FUZZ_JOIN(__pyx_f_, NAMES, name)
#define V(name) FUZZ_JOIN(__pyx_v_, NAMES, name)
#define E(name) FUZZ_JOIN(__pyx_e_, NAMES, name)
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>

/* Where a run ends that the program would have ended with _exit. */
extern jmp_buf fuzz_end;
void fuzz_exit(int code) __attribute__((noreturn));

/* A cursor over the input: reads past the end give zeros. */
struct input {
  const uint8_t *data;
  size_t size;
  size_t at;
};
size_t fuzz_left(const struct input *in);
unsigned fuzz_byte(struct input *in);
unsigned fuzz_short(struct input *in);
/* Copies `size` bytes, zeros where the input has no more. */
void fuzz_bytes(struct input *in, void *to, size_t size);

/* Memory of the program, which lets go of it by ending; here all of it is freed after a run. */
void *fuzz_malloc(size_t size);
void *fuzz_calloc(size_t count, size_t size);
void *fuzz_realloc(void *old, size_t size);
void fuzz_free(void *memory);
void fuzz_free_all(void);

/* Sends `size` bytes with `count` descriptors over `to`, unless that is -1; closes these. */
void fuzz_send(int to, void *data, size_t size, int *fds, unsigned count);

/* A memfd with the next bytes of the input, as many as the u16 before them says. */
int fuzz_memfd(struct input *in);

/* Ends the process unless the descriptors that are open are those that were when it was noted. */
void fuzz_note_descriptors(void);
void fuzz_check_descriptors(void);
#endif
