/* System calls with arguments that make little sense, from several threads: the kernel must live, and this
 * program end with exit code 0. A seed decides the arguments; `fuzz-calls SEED CALLS THREADS`.
 *
 * What would end the program, or stop what it needs, is left out; a thread that sends signals keeps the
 * others from waiting for long. libc-shim's unit test of the same kind finds more kinds of mistakes, and
 * this one those below it.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { PAGES = 16, MOST_THREADS = 8, MOST_CALL = 463 };

static char *scratch, *region;
static volatile int running;
static pid_t tids[MOST_THREADS];
static uint64_t seed;
static long calls, succeeded;
static pthread_barrier_t all_there;

static uint64_t next(uint64_t *state)
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 0x2545f4914f6cdd1d;
}

static uint64_t below(uint64_t *state, uint64_t bound)
{
    return next(state) % bound;
}

static uint64_t number(uint64_t *state)
{
    uint64_t value;
    switch (below(state, 8)) {
    case 0: value = below(state, 64); break;
    case 1: value = below(state, 5); break;
    case 2: value = 1ull << below(state, 64); break;
    case 3: value = (1ull << below(state, 64)) - 1; break;
    case 4: value = -below(state, 5); break;
    case 5: value = (uint64_t)INT32_MIN ^ below(state, 3); break;
    case 6: value = INT64_MAX - below(state, 3); break;
    default: value = next(state);
    }
    /* No structure asks for SIGKILL. */
    return (uint32_t)value == SIGKILL || value >> 32 == SIGKILL ? SIGUSR1 : value;
}

static const char *const paths[] = {"/tmp/a", "/tmp/a/b", "/proc/self/fd/5", "../..", "/", "/tmp/link", "/dev/zero", "/proc/self/maps"};

static void fill(uint64_t *state)
{
    for (int i = 0; i < 8; i++)
        strcpy(scratch + i * 32, paths[i]);
    for (int at = 256; at < 4096; at += 8)
        *(uint64_t *)(scratch + at) = number(state);
}

static uint64_t argument(uint64_t *state)
{
    static const uint64_t odd[] = {0, 8, 0x10000, 0x7ffffffff000, 0x7fffffffeffc, -4096, 0xffff800000001000, 0x800000000000};
    switch (below(state, 8)) {
    case 0: return below(state, 40);
    case 1: return (uint64_t)scratch + below(state, 8) * 32;
    case 2: case 3: return (uint64_t)scratch + below(state, 128) * 32;
    case 4: return (uint64_t)scratch + 4096 - below(state, 32);
    case 5: return odd[below(state, sizeof odd / sizeof *odd)];
    default: return number(state);
    }
}

static int left_out(long call)
{
    switch (call) {
    case SYS_rt_sigaction: case SYS_rt_sigreturn: case SYS_exit: case SYS_exit_group: case SYS_clone: case SYS_clone3:
    case SYS_fork: case SYS_vfork: case SYS_execve: case SYS_execveat: case SYS_arch_prctl: case SYS_set_tid_address:
    case SYS_set_robust_list: case SYS_mlockall: case SYS_brk: case SYS_pause: case SYS_reboot: case SYS_chroot:
    case SYS_sigaltstack: case SYS_timer_create: case SYS_rseq: case SYS_kill: case SYS_tkill: case SYS_tgkill:
    case SYS_rt_sigqueueinfo: case SYS_rt_tgsigqueueinfo: case SYS_rt_sigprocmask: case SYS_rt_sigsuspend:
    case SYS_ppoll: case SYS_pselect6: case SYS_epoll_pwait: case 441 /* epoll_pwait2 */:
        return 1;
    default:
        return 0;
    }
}

static void call_once(uint64_t *state)
{
    long call = below(state, MOST_CALL);
    uint64_t a[6];
    if (left_out(call))
        return;
    for (int i = 0; i < 6; i++)
        a[i] = argument(state);
    if (below(state, 2))
        a[0] = below(state, 40);
    switch (call) {
    case SYS_mmap:
        a[0] = (uint64_t)region + below(state, PAGES) * 4096;
        a[1] &= 0xffffffffff;
        a[3] &= ~(uint64_t)(MAP_POPULATE | MAP_LOCKED | MAP_FIXED | 0x100000);
        break;
    case SYS_mprotect: case SYS_munmap: case SYS_madvise: case SYS_msync: case SYS_mlock: case SYS_mlock2: case SYS_munlock:
        a[0] = (uint64_t)region + below(state, PAGES) * 4096;
        a[1] = below(state, PAGES * 4096 - (a[0] - (uint64_t)region) + 1);
        break;
    case SYS_mremap:
        a[0] = (uint64_t)region + below(state, PAGES) * 4096;
        a[1] = 4096, a[2] = below(state, 64 * 4096), a[3] &= 1;
        break;
    case SYS_fallocate:
        /* Not all memory. */
        a[2] &= 0xfffff, a[3] &= 0xfffff;
        break;
    case SYS_prlimit64: case SYS_setrlimit:
        a[2] = a[1] = 0;
        break;
    case SYS_write: case SYS_writev: case SYS_pwrite64:
        /* Not to the console. */
        if (a[0] < 3)
            a[0] = 7;
        break;
    case SYS_close: case SYS_dup2: case SYS_dup3: case SYS_close_range:
        if (a[0] < 3)
            a[0] = 9;
        if (a[1] < 3)
            a[1] = 9;
        break;
    case SYS_fcntl: case SYS_ioctl:
        /* Standard output stays as it is. */
        if (a[0] < 3)
            a[0] = 8;
        break;
    case SYS_sendfile: case SYS_copy_file_range:
        if (a[0] < 3)
            a[0] = 7;
        if (a[2] < 3)
            a[2] = 7;
        a[3] &= 0xfffff, a[4] &= 0xfffff;
        break;
    }
    if (syscall(call, a[0], a[1], a[2], a[3], a[4], a[5]) != -1)
        __atomic_add_fetch(&succeeded, 1, __ATOMIC_RELAXED);
}

static void open_some(void)
{
    int ends[2];
    syscall(SYS_close_range, 24u, ~0u, 0u);
    syscall(SYS_pipe2, ends, 0);
    syscall(SYS_eventfd2, 1, 0);
    syscall(SYS_epoll_create1, 0);
    syscall(SYS_timerfd_create, CLOCK_MONOTONIC, 0);
    syscall(SYS_memfd_create, "memory", 0);
    syscall(SYS_socketpair, 1, 1, 0, ends);
    open("/tmp/a", O_RDWR | O_CREAT, 0600);
    open("/proc/self/maps", O_RDONLY);
    open("/dev/zero", O_RDWR);
    open("/tmp", O_RDONLY);
}

static void *work(void *argument)
{
    int index = (int)(intptr_t)argument;
    uint64_t state = 0x9e3779b97f4a7c15 * (uint64_t)(index + 1) + seed;
    tids[index] = (pid_t)syscall(SYS_gettid);
    /* So that no stack comes to lie where mappings are changed. */
    pthread_barrier_wait(&all_there);
    for (long i = 0; i < calls; i++) {
        if (i % 64 == 0) {
            fill(&state);
            open_some();
            mprotect(region, PAGES * 4096, PROT_READ | PROT_WRITE);
        }
        call_once(&state);
    }
    __atomic_sub_fetch(&running, 1, __ATOMIC_SEQ_CST);
    return NULL;
}

static void interrupt(int signal)
{
    (void)signal;
}

int main(int count, char **arguments)
{
    if (count != 4 || atoi(arguments[3]) > MOST_THREADS)
        return 2;
    seed = strtoull(arguments[1], NULL, 0);
    calls = atol(arguments[2]);
    int threads = atoi(arguments[3]);
    scratch = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    /* Pages on both sides of what is worked on are never mapped by chance. */
    region = (char *)mmap(NULL, 64 << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) + (32 << 20);
    mmap(region, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    struct sigaction action = {.sa_handler = interrupt};
    for (int signal = 1; signal <= 64; signal++)
        if (signal != SIGSEGV && signal != SIGBUS && signal != SIGILL && signal != SIGABRT && signal != SIGFPE)
            sigaction(signal, &action, NULL);
    struct rlimit limit = {1024, 1024};
    setrlimit(RLIMIT_NOFILE, &limit);
    running = threads;
    pthread_t started;
    pthread_barrier_init(&all_there, NULL, (unsigned)threads + 1);
    for (int i = 0; i < threads; i++)
        if (pthread_create(&started, NULL, work, (void *)(intptr_t)i) != 0)
            return 3;
    pthread_barrier_wait(&all_there);
    while (running > 0) {
        struct timespec pause = {0, 1000000};
        nanosleep(&pause, NULL);
        for (int i = 0; i < threads; i++)
            if (tids[i] != 0)
                syscall(SYS_tgkill, getpid(), tids[i], SIGUSR2);
    }
    /* About one in twenty does. If far fewer did, the arguments were all wrong, and this was no test. */
    return succeeded > calls * threads / 100 ? 0 : 4;
}
