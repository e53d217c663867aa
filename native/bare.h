/*
 * Linux without a libc: what bare.c gives to a program that is linked with nothing else.
 */
#ifndef PYSHIM_BARE_H
#define PYSHIM_BARE_H

/* The wait that a system call can be asked for takes up to five arguments; no prototype, so each
 * call passes just those that it has.  Returns what the kernel returns: -errno for an error. */
long kernel_call();

/* A child that shares our memory and runs ``child`` on ``stack`` (on our own, below what is in use,
 * if that is 0), while we stand still until it has executed something or ended.  It shares what
 * ``flags`` of clone(2) say, too.  Returns its pid or -errno.  ``child`` must not return. */
long spawn_sharing_memory(void (*child)(void), void *stack, unsigned long flags);

/* rt_sigaction(2) as the kernel wants it; where there is no restorer its place is the mask's. */
struct kernel_action {
  void *handler;
  unsigned long flags;
  void *restorer;
  unsigned long mask;
};

/* linux/pidfd.h of Linux 6.16.  Older kernels take it, too, and fill in less. */
struct pidfd_information {
  unsigned long mask, group_id;
  unsigned int pids_and_users[11];
  int exit_code;
  unsigned int core_mask, spare;
};
#define PIDFD_GET_INFO 0xC048FF0BL
#define PIDFD_INFO_EXIT 8
#define PIDFD_INFO_COREDUMP 16

/* linux/filter.h and linux/seccomp.h. */
struct filter_program {
  unsigned short length;
  void *filter;
};
#if defined(__x86_64__)
#define THIS_AUDIT_ARCH 0xC000003Eu
#elif defined(__aarch64__)
#define THIS_AUDIT_ARCH 0xC00000B7u
#endif

/* AddressSanitizer marks the stack of functions that never return, so theirs must be another. */
#ifdef __SANITIZE_ADDRESS__
extern char sanitized_stack[];
#define CHILD_STACK ((void *)(sanitized_stack + 65536))
#else
#define CHILD_STACK ((void *)0)
#endif
#endif
