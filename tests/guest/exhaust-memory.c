/* Touches memory until there is none: more than any machine of the test has, without a reservation
 * that the kernel could refuse. */
#include <stdio.h>
#include <sys/mman.h>

int main(void) {
    const size_t bytes = 4UL << 30;
    char *memory =
        mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        perror("mmap");
        return 1;
    }
    puts("touching");
    fflush(stdout);
    for (size_t at = 0; at < bytes; at += 4096)
        memory[at] = 1;
    puts("it was never exhausted");
    return 2;
}
