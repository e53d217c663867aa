/* The launcher: the file that names its interpreter, and the address that it makes of that. */
#include "common.h"
#define _exit fuzz_exit
#include PROGRAM_C
#undef _exit
#include "reset.h"
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  struct input in = {data, size, 0};
  fuzz_note_descriptors();
  char path[32];
  size_t folder = fuzz_byte(&in) * 17;
  fuzz_bytes(&in, V(run_folder), folder < E(PATH_BYTES) ? folder : E(PATH_BYTES) - 1);
  int fd = memfd_create("fuzz", MFD_CLOEXEC);
  if (fchmod(fd, 0600) || write(fd, data + in.at, fuzz_left(&in)) < 0) {
    abort();
  }
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  if (F(read_interpreter_file)(path)) {
    if (strchr(V(interpreter), '\n') || strlen(V(interpreter)) >= E(PATH_BYTES)) {
      abort();
    }
    if (F(find_socket_path)() && strlen(V(socket_path)) > 107) {
      abort();
    }
  }
  close(fd);
  fuzz_reset();
  fuzz_check_descriptors();
  return 0;
}
