/* Prints "ready", works for a while, and prints "done": for tests that disturb a machine meanwhile. */
#include <stdio.h>
#include <time.h>

int main(void) {
    struct timespec from, now;
    puts("ready");
    fflush(stdout);
    clock_gettime(CLOCK_MONOTONIC, &from);
    do {
        for (volatile int i = 0; i < 100000; i++) {
        }
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while (now.tv_sec - from.tv_sec < 2);
    puts("done");
    return 0;
}
