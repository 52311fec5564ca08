/* What HotSpot asks of a kernel, pattern by pattern, without HotSpot: a failure here is easier to
 * find than one inside a Java virtual machine.
 */
#define _GNU_SOURCE
#include "check.h"
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <ucontext.h>

#define PAGE 4096UL

static char *map_at(void *at, size_t len, int prot, int flags)
{
    char *got = mmap(at, len, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | flags, -1, 0);
    NEED(got != MAP_FAILED);
    return got;
}

static void handle(int signal, void (*handler)(int, siginfo_t *, void *))
{
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigfillset(&action.sa_mask);
    sigdelset(&action.sa_mask, SIGSEGV);
    NEED(sigaction(signal, &action, NULL) == 0);
}

/* --- the heap: a large reservation, committed and given back in pieces --- */

static void heap(void)
{
    enum { REGION = 1 << 20, REGIONS = 64 };
    size_t reserved = 4UL << 30;
    char *base = map_at((void *)0x700000000UL, reserved, PROT_NONE, 0);
    CHECK("a reservation below 32 GiB is had where it was asked for", (uintptr_t)base == 0x700000000UL);
    int good = 1;
    for (int i = 0; i < REGIONS; i++) {
        char *region = map_at(base + (size_t)i * 3 * REGION, REGION, PROT_READ | PROT_WRITE, MAP_FIXED);
        for (size_t at = 0; at < REGION; at += PAGE)
            good &= region[at] == 0;
        for (size_t at = 0; at < REGION; at += PAGE)
            region[at] = (char)i;
    }
    CHECK("committed regions start as zero", good);
    for (int i = 1; i < REGIONS; i += 2)
        map_at(base + (size_t)i * 3 * REGION, REGION, PROT_NONE, MAP_FIXED);
    for (int i = 0; i < REGIONS; i += 2)
        for (size_t at = 0; at < REGION; at += PAGE)
            good &= base[(size_t)i * 3 * REGION + at] == (char)i;
    CHECK("giving every other one back leaves the rest", good);
    for (int i = 1; i < REGIONS; i += 2) {
        char *region = map_at(base + (size_t)i * 3 * REGION, REGION, PROT_READ | PROT_WRITE, MAP_FIXED);
        for (size_t at = 0; at < REGION; at += PAGE)
            good &= region[at] == 0;
    }
    CHECK("committed again they are zero", good);
    CHECK("MADV_HUGEPAGE is advice", madvise(base, REGION, MADV_HUGEPAGE) == 0 || errno == EINVAL);
    CHECK("releasing all of it", munmap(base, reserved) == 0);

    char *page = map_at(NULL, 1 << 21, PROT_READ | PROT_WRITE, 0);
    for (int i = 0; i < 2000; i++) { /* many small changes of protection in one mapping */
        size_t at = (size_t)(i * 37 % 512) * PAGE;
        good &= mprotect(page + at, PAGE, PROT_READ) == 0 && mprotect(page + at, PAGE, PROT_READ | PROT_WRITE) == 0;
        page[at] = 1;
    }
    CHECK("four thousand changes of protection", good);
}

/* --- the code cache: written by one thread, run by others --- */

typedef int (*code)(void);

static code published;

static void *run_code(void *unused)
{
    long sum = 0;
    for (int i = 0; i < 200; i++) {
        code now = __atomic_load_n(&published, __ATOMIC_ACQUIRE);
        sum += now();
        sched_yield();
    }
    (void)unused;
    return (void *)(intptr_t)(sum > 0);
}

static void code_cache(void)
{
    /* mov eax, N; ret */
    unsigned char body[] = {0xb8, 0, 0, 0, 0, 0xc3};
    char *cache = map_at(NULL, 240 << 20, PROT_NONE, 0);
    char *at = map_at(cache, 1 << 20, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_FIXED);
    pthread_t threads[3];
    int good = 1;
    body[1] = 1;
    memcpy(at, body, sizeof body);
    __atomic_store_n(&published, (code)(uintptr_t)at, __ATOMIC_RELEASE);
    for (int i = 0; i < 3; i++)
        NEED(pthread_create(&threads[i], NULL, run_code, NULL) == 0);
    for (int i = 2; i < 100; i++) {
        at += 64;
        body[1] = (unsigned char)i;
        memcpy(at, body, sizeof body);
        __atomic_store_n(&published, (code)(uintptr_t)at, __ATOMIC_RELEASE);
        good &= published() == i;
        sched_yield();
    }
    for (int i = 0; i < 3; i++) {
        void *result;
        pthread_join(threads[i], &result);
        good &= result != NULL;
    }
    CHECK("code runs where it was written, on all threads", good);
    munmap(cache, 240 << 20);
}

/* --- implicit null checks: the handler moves rip --- */

static volatile long null_checks;
static volatile uintptr_t continuation;

static void on_null(int signal, siginfo_t *info, void *context)
{
    (void)signal;
    ucontext_t *c = context;
    if ((uintptr_t)info->si_addr >= PAGE || info->si_code != SEGV_MAPERR)
        _exit(4);
    null_checks++;
    c->uc_mcontext.gregs[REG_RIP] = (greg_t)continuation;
}

static long __attribute__((noinline)) load_or(long *at, long otherwise)
{
    long value;
    __asm__ volatile(
        "lea 1f(%%rip), %%rdx\n mov %%rdx, %[continuation]\n"
        "mov %[otherwise], %[value]\n"
        "mov 8(%[at]), %[value]\n"
        "1:\n"
        : [value] "=&r"(value), [continuation] "=m"(continuation)
        : [at] "r"(at), [otherwise] "r"(otherwise)
        : "rdx", "memory");
    return value;
}

static void implicit_null_checks(void)
{
    handle(SIGSEGV, on_null);
    long pair[2] = {0, 5}, sum = 0;
    for (int i = 0; i < 20000; i++)
        sum += load_or(i % 4 == 3 ? NULL : pair, 100);
    CHECK_EQUAL("five thousand loads from null", null_checks, 5000);
    CHECK_EQUAL("each went on where the handler said", sum, 15000 * 5 + 5000 * 100);
}

/* --- safepoints by a polling page: armed by mprotect, in other threads' way --- */

static char *polling_page;
static uint32_t armed, stopped;
static volatile int finished;

static void on_poll(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)context;
    if ((char *)info->si_addr != polling_page || info->si_code != SEGV_ACCERR)
        _exit(5);
    __atomic_add_fetch(&stopped, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&armed, __ATOMIC_SEQ_CST) == 1)
        syscall(SYS_futex, &armed, 128, 1, NULL, NULL, 0);
    __atomic_sub_fetch(&stopped, 1, __ATOMIC_SEQ_CST);
}

static void *poll_page(void *unused)
{
    long polls = 0;
    while (!finished) {
        __asm__ volatile("test %%eax, (%0)" ::"r"(polling_page) : "cc");
        polls++;
    }
    (void)unused;
    return (void *)polls;
}

static void safepoints(void)
{
    enum { MUTATORS = 3 };
    handle(SIGSEGV, on_poll);
    polling_page = map_at(NULL, PAGE, PROT_READ, 0);
    pthread_t threads[MUTATORS];
    for (int i = 0; i < MUTATORS; i++)
        NEED(pthread_create(&threads[i], NULL, poll_page, NULL) == 0);
    int good = 1;
    int64_t end = now_ns() + 60000000000LL;
    for (int round = 0; round < 100 && good; round++) {
        __atomic_store_n(&armed, 1, __ATOMIC_SEQ_CST);
        NEED(mprotect(polling_page, PAGE, PROT_NONE) == 0);
        while (__atomic_load_n(&stopped, __ATOMIC_SEQ_CST) < MUTATORS && good) {
            sched_yield();
            good &= now_ns() < end;
        }
        NEED(mprotect(polling_page, PAGE, PROT_READ) == 0);
        __atomic_store_n(&armed, 0, __ATOMIC_SEQ_CST);
        syscall(SYS_futex, &armed, 129, 1000, NULL, NULL, 0);
        while (__atomic_load_n(&stopped, __ATOMIC_SEQ_CST) > 0 && good) {
            sched_yield();
            good &= now_ns() < end;
        }
    }
    CHECK("a hundred times all threads stop at the page and go on", good);
    finished = 1;
    for (int i = 0; i < MUTATORS; i++)
        pthread_join(threads[i], NULL);
}

/* --- stack guards: pages of the thread's own stack, and a handler on that same stack --- */

static char *yellow_zone;
static size_t yellow_len = 2 * PAGE;
static sigjmp_buf after_overflow;
static volatile int overflows;

static void on_yellow(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)context;
    char *at = info->si_addr;
    if (at < yellow_zone || at >= yellow_zone + yellow_len || info->si_code != SEGV_ACCERR)
        _exit(6);
    overflows++;
    NEED(mprotect(yellow_zone, yellow_len, PROT_READ | PROT_WRITE) == 0);
    siglongjmp(after_overflow, 1);
}

static volatile int forever = 1;

/* Bangs the stack ahead of itself as compiled Java code does: the fault comes while there is still
 * room for the handler's frame. */
static int __attribute__((noinline)) banging(int depth)
{
    volatile char frame[256];
    __asm__ volatile("testl %%eax, -0x14000(%%rsp)" ::: "cc");
    frame[0] = (char)depth;
    return forever ? banging(depth + 1) + frame[0] : 0;
}

static void *guarded_thread(void *unused)
{
    pthread_attr_t own;
    void *stack;
    size_t size, guard;
    NEED(pthread_getattr_np(pthread_self(), &own) == 0 && pthread_attr_getstack(&own, &stack, &size) == 0
        && pthread_attr_getguardsize(&own, &guard) == 0);
    yellow_zone = (char *)(((uintptr_t)stack + guard + PAGE - 1) & ~(PAGE - 1));
    for (int i = 0; i < 3; i++) {
        NEED(mprotect(yellow_zone, yellow_len, PROT_NONE) == 0);
        if (sigsetjmp(after_overflow, 1) == 0)
            banging(0);
    }
    return unused;
}

static void stack_guards(void)
{
    handle(SIGSEGV, on_yellow);
    pthread_t thread;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 1 << 20);
    NEED(pthread_create(&thread, &attributes, guarded_thread, NULL) == 0);
    pthread_join(thread, NULL);
    CHECK_EQUAL("three overflows into the yellow zone", overflows, 3);
}

/* --- suspending a thread by a signal --- */

static sem_t suspended;
static volatile int resume;

static void on_suspend(int signal, siginfo_t *info, void *context)
{
    (void)info, (void)context;
    int kept_errno = errno;
    sem_post(&suspended);
    sigset_t set;
    pthread_sigmask(SIG_BLOCK, NULL, &set);
    sigdelset(&set, signal);
    while (!resume)
        sigsuspend(&set);
    sem_post(&suspended);
    errno = kept_errno;
}

static volatile int working = 1;
static volatile pid_t worker_tid;
static volatile long work;

static void *worker(void *unused)
{
    worker_tid = (pid_t)syscall(SYS_gettid);
    while (working)
        work++;
    return unused;
}

static void suspension(void)
{
    struct sigaction action = {.sa_sigaction = on_suspend, .sa_flags = SA_SIGINFO | SA_RESTART};
    NEED(sigaction(SIGUSR2, &action, NULL) == 0 && sem_init(&suspended, 0, 0) == 0);
    pthread_t thread;
    NEED(pthread_create(&thread, NULL, worker, NULL) == 0);
    while (worker_tid == 0)
        sched_yield();
    int good = 1;
    for (int i = 0; i < 20; i++) {
        resume = 0;
        NEED(syscall(SYS_tgkill, getpid(), worker_tid, SIGUSR2) == 0);
        while (sem_wait(&suspended) != 0)
            ;
        long before = work;
        sched_yield();
        good &= work == before;
        resume = 1;
        NEED(syscall(SYS_tgkill, getpid(), worker_tid, SIGUSR2) == 0);
        /* Two: the signal above enters the handler once more, or ends the sigsuspend. */
        while (sem_wait(&suspended) != 0)
            ;
        while (sem_trywait(&suspended) == 0)
            ;
    }
    working = 0;
    pthread_join(thread, NULL);
    CHECK("a suspended thread stands still", good);
}

/* --- odds and ends of a start --- */

static void start(void)
{
    CHECK("membarrier's query", syscall(SYS_membarrier, 0, 0, 0) >= 0 || errno == ENOSYS);
    char dir[] = "/tmp/conformance-hotspot-XXXXXX", path[64];
    NEED(mkdtemp(dir) != NULL);
    int folder = open(dir, O_RDONLY | O_NOFOLLOW), here = open(".", O_RDONLY);
    CHECK("changing directory by descriptor and back", fchdir(folder) == 0);
    int fd = open("1", O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    NEED(fd >= 0 && fchdir(here) == 0);
    CHECK("a performance file: truncated twice", ftruncate(fd, 0) == 0 && ftruncate(fd, 32768) == 0);
    char *counters = mmap(NULL, 32768, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK("mapped shared", counters != MAP_FAILED && counters[32767] == 0);
    close(fd);
    memset(counters, 0x5a, 32768);
    char byte = 0;
    snprintf(path, sizeof path, "%s/1", dir);
    fd = open(path, O_RDONLY);
    CHECK("and seen by others", pread(fd, &byte, 1, 30000) == 1 && byte == 0x5a);
    close(fd);
    munmap(counters, 32768);
    CHECK("and removed", unlink(path) == 0 && rmdir(dir) == 0);
    CHECK("the core dump filter is there or is not", open("/proc/self/coredump_filter", O_RDWR) >= 0 || errno == ENOENT);
    struct stat st;
    CHECK("the root is a directory", stat("/", &st) == 0 && S_ISDIR(st.st_mode));
    close(folder), close(here);
}

int main(void)
{
    start();
    heap();
    code_cache();
    implicit_null_checks();
    safepoints();
    stack_guards();
    suspension();
    return finish();
}
