/* portproxy-relay: the PROXY protocol, as it comes from a client. */
#include "common.h"
#define _exit fuzz_exit
#include PROGRAM_C
#undef _exit
#include <stdlib.h>

static int parse(const uint8_t *data, size_t size) {
  struct sockaddr_in6 peer = {0}, local = {0};
  uint8_t *exact = malloc(size + !size);
  memcpy(exact, data, size);
  int result = F(parse_header)(exact, size, &peer, &local);
  free(exact);
  return result;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (!size || size > E(HEADER_V2_BYTES)) {
    return 0;  // more is never looked at
  }
  int result = parse(data, size);
  if (result > (int)size || (result <= 0 && result != E(PARSE_MORE) && result != E(PARSE_BAD))) {
    abort();
  }
  // A header that has arrived in two parts is the one that has arrived in one.
  size_t part = result > 0 ? (size_t)result - 1 : size / 2;
  int earlier = part ? parse(data, part) : E(PARSE_MORE);
  if (result > 0 && earlier != E(PARSE_MORE)) {
    abort();
  }
  if (result == E(PARSE_MORE) && earlier != E(PARSE_MORE)) {
    abort();
  }
  return 0;
}
