/* The start of a program that is linked with no libc, and the few calls that it needs. */
#include "bare.h"

int program_main(int argc, char **argv);

#ifdef __SANITIZE_ADDRESS__
char sanitized_stack[65536] __attribute__((aligned(16)));
int main(int argc, char **argv) { return program_main(argc, argv); }
#else
typedef __SIZE_TYPE__ size;

/* The compiler makes calls to these out of loops and assignments. */
__attribute__((used)) void *memcpy(void *to, const void *from, size n) {
  for (size i = 0; i < n; i++) {
    ((volatile char *)to)[i] = ((const char *)from)[i];
  }
  return to;
}
__attribute__((used)) void *memset(void *to, int byte, size n) {
  for (size i = 0; i < n; i++) {
    ((volatile char *)to)[i] = byte;
  }
  return to;
}
size strlen(const char *text) {
  size n = 0;
  while (((const volatile char *)text)[n]) {
    n++;
  }
  return n;
}
int strncmp(const char *a, const char *b, size n) {
  for (; n; a++, b++, n--) {
    if (*a != *b || !*a) {
      return (unsigned char)*a - (unsigned char)*b;
    }
  }
  return 0;
}
int strcmp(const char *a, const char *b) { return strncmp(a, b, -1); }
char *strchr(const char *text, int wanted) {
  for (; *text != (char)wanted; text++) {
    if (!*text) {
      return 0;
    }
  }
  return (char *)text;
}

__attribute__((used, noreturn)) void bare_start(long *stack) {
  kernel_call(
#if defined(__x86_64__)
      231
#else
      94
#endif
      , program_main((int)stack[0], (char **)(stack + 1)));
  __builtin_unreachable();
}
#endif

#if defined(__x86_64__)
__asm__(".text\n"
#ifndef __SANITIZE_ADDRESS__
        ".globl _start\n"
        "_start: xor %ebp, %ebp\n mov %rsp, %rdi\n and $-16, %rsp\n call bare_start\n"
#endif
        ".globl kernel_call\n"
        "kernel_call: mov %edi, %eax\n mov %rsi, %rdi\n mov %rdx, %rsi\n mov %rcx, %rdx\n"
        " mov %r8, %r10\n mov %r9, %r8\n syscall\n ret\n"
        ".globl spawn_sharing_memory\n"
        "spawn_sharing_memory: mov %rdi, %r9\n test %rsi, %rsi\n jnz 1f\n"
        " lea -512(%rsp), %rsi\n"
        "1: and $-16, %rsi\n"
        " lea 0x4111(%rdx), %edi\n" /* CLONE_VM | CLONE_VFORK | SIGCHLD, and what is asked for */
        " xor %edx, %edx\n xor %r10d, %r10d\n xor %r8d, %r8d\n mov $56, %eax\n syscall\n"
        " test %rax, %rax\n jz 2f\n ret\n"
        "2: xor %ebp, %ebp\n call *%r9\n hlt\n");
#elif defined(__aarch64__)
__asm__(".text\n"
#ifndef __SANITIZE_ADDRESS__
        ".globl _start\n"
        "_start: mov x29, #0\n mov x30, #0\n mov x0, sp\n and sp, x0, #-16\n b bare_start\n"
#endif
        ".globl kernel_call\n"
        "kernel_call: mov w8, w0\n mov x0, x1\n mov x1, x2\n mov x2, x3\n mov x3, x4\n"
        " mov x4, x5\n svc #0\n ret\n"
        ".globl spawn_sharing_memory\n"
        "spawn_sharing_memory: mov x9, x0\n cbnz x1, 1f\n sub x1, sp, #512\n"
        "1: and x1, x1, #-16\n mov x0, #0x4111\n orr x0, x0, x2\n mov x2, #0\n mov x3, #0\n mov x4, #0\n"
        " mov x8, #220\n svc #0\n cbz x0, 2f\n ret\n"
        "2: mov x29, #0\n blr x9\n brk #1\n");
#else
#error "only x86-64 and aarch64 are supported"
#endif
#ifdef __SANITIZE_ADDRESS__
__asm__(".section .note.GNU-stack,\"\",@progbits");
#endif
