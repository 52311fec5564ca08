/* Writes to 300 MiB, gives them back, and then does nothing for a while: the host watches. */
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define BYTES ((size_t)300 << 20)

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    char *memory = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        perror("mmap");
        return 1;
    }
    memset(memory, 0xa5, BYTES);
    puts("touched");
    sleep(1);
    munmap(memory, BYTES);
    puts("freed");
    sleep(60);
    return 0;
}
