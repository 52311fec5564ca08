/* Makes kernel objects of one kind until a call says that there are no more, or very many are there: none
 * may end the machine. `exhaust-objects KIND`; prints the kind of refusal, exit code 0. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, MANY = 400000 };

static char *space;
static int set;

static int hole(long n)
{
    return munmap(space + n * 2 * PAGE, PAGE);
}

static int protection(long n)
{
    return mprotect(space + n * 2 * PAGE, PAGE, PROT_READ);
}

static int event_counter(long n)
{
    (void)n;
    return eventfd(0, 0) < 0 ? -1 : 0;
}

static int full_pipe(long n)
{
    static char bytes[65536];
    int ends[2];
    (void)n;
    if (pipe2(ends, O_NONBLOCK) != 0)
        return -1;
    return write(ends[1], bytes, sizeof bytes) < 0 ? -1 : 0;
}

static int timer_file(long n)
{
    struct itimerspec later = {{0, 0}, {1000 + n, 0}};
    int fd = timerfd_create(CLOCK_MONOTONIC, 0);
    return fd < 0 ? -1 : timerfd_settime(fd, 0, &later, NULL);
}

static int watch(long n)
{
    struct epoll_event event = {.events = EPOLLIN};
    (void)n;
    int fd = eventfd(0, 0);
    return fd < 0 ? -1 : epoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
}

static int directory(long n)
{
    char name[32];
    snprintf(name, sizeof name, "/tmp/%ld", n);
    return mkdir(name, 0700);
}

static int timer(long n)
{
    timer_t id;
    (void)n;
    return timer_create(CLOCK_MONOTONIC, NULL, &id);
}

static int queued(long n)
{
    (void)n;
    return sigqueue(getpid(), SIGRTMIN + 1, (union sigval){0});
}

static int child_stack[1024];

static int thread(long n)
{
    (void)n;
    /* Each waits for ever in futex; they share a stack that none returns on. */
    static int word;
    long flags = 0x100 | 0x200 | 0x400 | 0x800 | 0x10000 | 0x40000, result;
    register long r10 __asm__("r10") = 0;
    register long r8 __asm__("r8") = 0;
    __asm__ volatile("syscall\n\ttest %%rax, %%rax\n\tjnz 1f\n"
                     "2:\tmov $202, %%eax\n\tmov %[word], %%rdi\n\txor %%esi, %%esi\n\txor %%edx, %%edx\n\txor %%r10d, %%r10d\n\tsyscall\n\tjmp 2b\n1:"
                     : "=a"(result)
                     : "a"(56L), "D"(flags), "S"(child_stack + 1000), "d"(0L), "r"(r10), "r"(r8), [word] "b"(&word)
                     : "rcx", "r11", "memory");
    errno = result < 0 ? (int)-result : 0;
    return result < 0 ? -1 : 0;
}

static const struct {
    const char *kind;
    int (*make)(long);
} kinds[] = {
    {"holes", hole},         {"protections", protection}, {"event-counters", event_counter}, {"pipes", full_pipe},
    {"timer-files", timer_file}, {"watches", watch},      {"directories", directory},        {"timers", timer},
    {"signals", queued},     {"threads", thread},
};

int main(int count, char **arguments)
{
    struct rlimit limit = {1 << 20, 1 << 20};
    setrlimit(RLIMIT_NOFILE, &limit);
    space = mmap(0, 2L * PAGE * MANY, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    set = epoll_create1(0);
    sigset_t one;
    sigemptyset(&one);
    sigaddset(&one, SIGRTMIN + 1);
    sigprocmask(SIG_BLOCK, &one, NULL);
    for (size_t i = 0; count > 1 && i < sizeof kinds / sizeof *kinds; i++) {
        if (strcmp(arguments[1], kinds[i].kind) != 0)
            continue;
        long made = 0;
        while (made < MANY && kinds[i].make(made) == 0)
            made++;
        int error = errno;
        printf("%ld, then %s\n", made, made == MANY ? "no more were wanted" : strerror(error));
        fflush(stdout);
        _exit(made > 500 ? 0 : 1);
    }
    return 2;
}
