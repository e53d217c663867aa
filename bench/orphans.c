/* Leaves as many processes to its init as its argument says.  They wait for the end of a pipe: a
 * byte on stdin, and all die at once.  Another byte, and it ends. */
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int count, char **words) {
  int gate[2];
  char byte;
  pipe(gate);
  if (!fork()) {
    for (count = atoi(words[1]); count--;) {
      if (!fork()) {
        close(gate[1]);
        read(gate[0], &byte, 1);
        _exit(0);
      }
    }
    _exit(0);
  }
  wait(0);
  write(1, "ready\n", 6);
  read(0, &byte, 1);
  close(gate[1]);
  read(0, &byte, 1);
  return 9;
}
