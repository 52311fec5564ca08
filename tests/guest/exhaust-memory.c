/* Takes memory until there is none, more than any machine of the test has and without a reservation that
 * the kernel could refuse: by touching it, on one thread or several, or by having calls write into it. */
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static const size_t bytes = 4UL << 30;
static char *memory;

static void *touch(void *from) {
    for (size_t at = (size_t)from; at < bytes; at += 4 * 4096)
        memory[at] = 1;
    return 0;
}

int main(int count, char **arguments) {
    memory = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        perror("mmap");
        return 1;
    }
    const char *how = count > 1 ? arguments[1] : "touch";
    puts("touching");
    fflush(stdout);
    if (strcmp(how, "read") == 0) {
        /* The kernel's own copies fault. */
        int zero = open("/dev/zero", O_RDONLY);
        for (size_t at = 0; at < bytes; at += 1 << 20)
            if (read(zero, memory + at, 1 << 20) <= 0)
                perror("read");
    } else if (strcmp(how, "threads") == 0) {
        pthread_t threads[4];
        for (size_t n = 0; n < 4; n++)
            pthread_create(&threads[n], 0, touch, (void *)(n * 4096));
        for (size_t n = 0; n < 4; n++)
            pthread_join(threads[n], 0);
    } else {
        for (size_t at = 0; at < bytes; at += 4096)
            memory[at] = 1;
    }
    puts("it was never exhausted");
    return 2;
}
