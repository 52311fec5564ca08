/* System calls with odd arguments: which error comes first, how wide an argument is, what a partial
 * result looks like, and signals that find no easy way in. */
#define _GNU_SOURCE
#include "check.h"
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>

/* <linux/futex.h>, which musl-gcc does not find. */
#define FUTEX_WAIT 0
#define FUTEX_WAKE 1
#define FUTEX_REQUEUE 3
#define FUTEX_WAIT_BITSET 9
#define FUTEX_PRIVATE 128
#define FUTEX_CLOCK_REALTIME 256

#define UPPER 0x100000000L
#define NOWHERE ((void *)16)

static volatile sig_atomic_t count, last_signal, last_code;
static volatile int last_overrun;

static pid_t tid(void)
{
    return (pid_t)syscall(SYS_gettid);
}

static void record(int signal, siginfo_t *info, void *context)
{
    (void)context;
    count++;
    last_signal = signal;
    last_code = info->si_code;
    last_overrun = info->si_overrun;
}

static void handle(int signal, void (*handler)(int, siginfo_t *, void *), int flags)
{
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | flags};
    sigemptyset(&action.sa_mask);
    NEED(sigaction(signal, &action, NULL) == 0);
}

static void mask(int how, int signal)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, signal);
    NEED(pthread_sigmask(how, &set, NULL) == 0);
}

static sigjmp_buf after_fault;

static void leave_fault(int signal, siginfo_t *info, void *context)
{
    record(signal, info, context);
    siglongjmp(after_fault, 1);
}

/* getpid with the stack pointer elsewhere, at the end of which a signal is delivered. */
static void call_on_bad_stack(pid_t target)
{
    long result;
    __asm__ volatile("mov %%rsp, %%r12\n\tmov $0x10000, %%rsp\n\tsyscall\n\tmov %%r12, %%rsp"
                     : "=a"(result)
                     : "a"(SYS_tgkill), "D"((long)getpid()), "S"((long)target), "d"((long)SIGUSR1)
                     : "rcx", "r11", "r12", "memory");
}

static void change_stack(int signal, siginfo_t *info, void *context)
{
    record(signal, info, context);
    ((ucontext_t *)context)->uc_stack.ss_size = 32768;
}

static void frames(void)
{
    char *alternate = malloc(65536);
    stack_t stack = {.ss_sp = alternate, .ss_size = 65536}, old;
    NEED(sigaltstack(&stack, NULL) == 0);
    handle(SIGUSR1, record, 0);
    handle(SIGSEGV, leave_fault, SA_ONSTACK);
    count = 0;
    if (sigsetjmp(after_fault, 1) == 0)
        call_on_bad_stack(tid());
    CHECK("a frame without a place is SIGSEGV", count == 1 && last_signal == SIGSEGV && last_code == SI_KERNEL);
    signal(SIGSEGV, SIG_DFL);
    handle(SIGUSR1, change_stack, SA_ONSTACK);
    NEED(raise(SIGUSR1) == 0);
    CHECK("a handler on the alternate stack does not change that", sigaltstack(NULL, &old) == 0 && old.ss_size == 65536);
    stack.ss_flags = 12;
    CHECK_FAILS("an alternate stack with odd flags", sigaltstack(&stack, NULL), EINVAL);
    stack = (stack_t){.ss_sp = (void *)-4096L, .ss_size = 8192};
    CHECK("one that wraps round is taken", sigaltstack(&stack, NULL) == 0);
    stack.ss_flags = SS_DISABLE;
    CHECK("and left", sigaltstack(&stack, &old) == 0 && old.ss_sp == (void *)-4096L);
    struct {
        void *handler;
        unsigned long flags;
        void *restorer;
        unsigned long mask;
    } action = {(void *)1, 0xffffffff00000400, NULL, ~0UL}, shown;
    CHECK("unknown flags of an action are cleared", syscall(SYS_rt_sigaction, SIGUSR2, &action, NULL, 8) == 0
        && syscall(SYS_rt_sigaction, SIGUSR2, NULL, &shown, 8) == 0 && shown.flags == 0);
    CHECK_EQUAL("SIGKILL and SIGSTOP are never masked", shown.mask, ~(1UL << (SIGKILL - 1) | 1UL << (SIGSTOP - 1)));
    CHECK_FAILS("the address comes before the number", syscall(SYS_rt_sigaction, 65, NOWHERE, NULL, 8), EFAULT);
    CHECK_FAILS("and the set's size before both", syscall(SYS_rt_sigaction, 65, NOWHERE, NULL, 4), EINVAL);
}

static volatile pid_t waiter_tid;

static void *wait_for_signal(void *unused)
{
    mask(SIG_UNBLOCK, SIGUSR1);
    waiter_tid = tid();
    /* The signal may come before or in any of these. */
    struct timespec some = {0, 10000000};
    for (int i = 0; i < 1000 && count == 0; i++)
        nanosleep(&some, NULL);
    return unused;
}

static void *send_and_end(void *unused)
{
    mask(SIG_UNBLOCK, SIGUSR1);
    /* Both threads may take it; this one is gone at once. */
    kill(getpid(), SIGUSR1);
    syscall(SYS_exit, 0);
    return unused;
}

/* Process-directed signals must reach some thread that does not block them, whatever others do. */
static void shared_signals(void)
{
    pthread_t waiter, sender;
    handle(SIGUSR1, record, 0);
    mask(SIG_BLOCK, SIGUSR1);
    int got = 0;
    for (int i = 0; i < 20; i++) {
        waiter_tid = 0;
        count = 0;
        NEED(pthread_create(&waiter, NULL, wait_for_signal, NULL) == 0);
        while (waiter_tid == 0)
            sched_yield();
        NEED(kill(getpid(), SIGUSR1) == 0);
        pthread_join(waiter, NULL);
        got += count == 1;
    }
    CHECK_EQUAL("the thread that does not block a signal gets it", got, 20);
    NEED(pthread_create(&sender, NULL, send_and_end, NULL) == 0);
    sleep_ms(50);
    count = 0;
    mask(SIG_UNBLOCK, SIGUSR1);
    CHECK("it is delivered once", count == 0);
}

static void queues(void)
{
    int signal = SIGRTMIN + 2, sent = 0;
    handle(signal, record, 0);
    mask(SIG_BLOCK, signal);
    timer_t timer;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = signal};
    struct itimerspec often = {{0, 1000000}, {0, 1000000}}, off = {{0, 0}, {0, 0}};
    NEED(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0 && timer_settime(timer, 0, &often, NULL) == 0);
    sleep_ms(30);
    count = 0;
    mask(SIG_UNBLOCK, signal);
    NEED(timer_settime(timer, 0, &off, NULL) == 0);
    CHECK("a timer's signal waits once, and counts", count >= 1 && count < 10 && last_code == SI_TIMER);
    mask(SIG_BLOCK, signal);
    count = 0;
    NEED(timer_settime(timer, 0, &often, NULL) == 0);
    sleep_ms(30);
    siginfo_t info;
    sigset_t wanted;
    sigemptyset(&wanted);
    sigaddset(&wanted, signal);
    CHECK("with its overrun", sigwaitinfo(&wanted, &info) == signal && info.si_code == SI_TIMER && info.si_overrun >= 5);
    CHECK_FAILS("a null setting", syscall(SYS_timer_settime, 0x7fffffff, 0, NULL, NULL), EINVAL);
    timer_delete(timer);
    struct timespec none = {0, 0};
    sigtimedwait(&wanted, &info, &none);
    struct rlimit {
        unsigned long soft, hard;
    } limit = {0, 0};
    NEED(syscall(SYS_prlimit64, 0, 11, NULL, &limit) == 0);
    unsigned long most = limit.soft + 10 < 100000 ? limit.soft + 10 : 100000;
    for (unsigned long i = 0; i < most; i++)
        sent += sigqueue(getpid(), signal, (union sigval){0}) == 0;
    if (limit.soft + 10 < 100000)
        CHECK("queued signals are limited", (unsigned long)sent <= limit.soft && sent > 0);
    else
        CHECK("queued signals are limited", sent > 0);
    handle(SIGUSR2, record, 0);
    count = 0;
    CHECK("others are let through all the same", kill(getpid(), SIGUSR2) == 0 && count == 1);
    handle(signal, record, 0);
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    CHECK("ignoring drops them", sigaction(signal, &ignore, NULL) == 0 && sigpending(&wanted) == 0 && !sigismember(&wanted, signal));
    mask(SIG_UNBLOCK, signal);
}

static void widths(void)
{
    int fd = open("/dev/zero", O_RDWR);
    char bytes[64];
    CHECK_FAILS("a length beyond all memory", syscall(SYS_read, fd, bytes, -1L), EFAULT);
    CHECK_FAILS("of a vector's part", syscall(SYS_readv, fd, &(struct iovec){bytes, (size_t)-1}, 1L), EINVAL);
    CHECK_FAILS("kernel addresses", syscall(SYS_read, fd, (void *)-4096L, 1L), EFAULT);
    CHECK_FAILS("even for nothing", syscall(SYS_write, fd, (void *)-4096L, 0L), EFAULT);
    CHECK_FAILS("a vector of too many", syscall(SYS_readv, fd, NULL, 1025L), EINVAL);
    CHECK("a vector of none", syscall(SYS_readv, fd, NULL, 0L) == 0);
    CHECK_FAILS("a negative offset comes before the descriptor", syscall(SYS_pread64, -1, bytes, 1L, -1L), EINVAL);
    long number = UPPER | SYS_getpid;
    __asm__ volatile("syscall" : "+a"(number) : : "rcx", "r11", "memory");
    CHECK("the upper half of the call's number does not count", number == getpid());
    CHECK("the upper half of a descriptor does not count", syscall(SYS_read, fd | UPPER, bytes, 1L) == 1);
    CHECK("nor that of a size that is an int", syscall(SYS_sched_getaffinity, 0, UPPER | 8192, malloc(8192)) > 0);
    CHECK_FAILS("readlink's size is one", syscall(SYS_readlink, "/proc/self/exe", bytes, UPPER), EINVAL);
    CHECK_FAILS("an unknown futex operation", syscall(SYS_futex, bytes, 77, 0, NULL, NULL, 0), ENOSYS);
    CHECK_FAILS("an unknown call", syscall(9999), ENOSYS);
    close(fd);
    int ends[2];
    char *page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    NEED(pipe2(ends, O_NONBLOCK) == 0 && munmap(page + 4096, 4096) == 0);
    CHECK_FAILS("a pipe takes nothing from a bad address", write(ends[1], page + 4096, 10), EFAULT);
    CHECK_FAILS("and nothing is in it", read(ends[0], bytes, 1), EAGAIN);
    CHECK("getrandom up to the end of memory", syscall(SYS_getrandom, page, 8192L, 0) == 4096);
    CHECK_FAILS("and beyond", syscall(SYS_getrandom, page + 4096, 1L, 0), EFAULT);
    close(ends[0]), close(ends[1]);
    munmap(page, 4096);
}

static void orders(void)
{
    CHECK_FAILS("a thread comes before its signal", syscall(SYS_tgkill, getpid(), 4194303, 99), ESRCH);
    CHECK_FAILS("an odd signal", syscall(SYS_tgkill, getpid(), tid(), 65), EINVAL);
    CHECK_FAILS("a negative thread", syscall(SYS_tgkill, getpid(), -1, 0), EINVAL);
    CHECK_FAILS("what is queued comes first", syscall(SYS_rt_sigqueueinfo, 4194303, SIGUSR1, NOWHERE), EFAULT);
    CHECK_FAILS("the affinity of a negative thread", syscall(SYS_sched_getaffinity, -1, 128, malloc(128)), ESRCH);
    CHECK_FAILS("its policy", syscall(SYS_sched_getscheduler, -1), EINVAL);
    CHECK_FAILS("no parameters", syscall(SYS_sched_getparam, 0, NULL), EINVAL);
    struct itimerval bad = {{0, 0}, {0, 1000000}};
    CHECK_FAILS("a million microseconds", setitimer(ITIMER_REAL, &bad, NULL), EINVAL);
    NEED(alarm(10) == 0);
    CHECK("alarm rounds", alarm(0) == 10);
    struct timespec now = {0, 0};
    CHECK_FAILS("a clock that nobody sleeps on", syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC_RAW, 0, &now, NULL), EOPNOTSUPP);
    CHECK_FAILS("no clock", syscall(SYS_clock_nanosleep, 99, 0, &now, NULL), EINVAL);
    CHECK_FAILS("no time", syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, NOWHERE, NULL), EFAULT);
    CHECK_FAILS("times of nothing", syscall(SYS_utimensat, AT_FDCWD, NULL, NULL, 0), EFAULT);
    int fd = open("/tmp/conformance-edges", O_CREAT | O_RDWR | O_TRUNC, 0600);
    struct timeval past[2] = {{-5, 10}, {-5, 10}}, odd[2] = {{0, 1000000}, {0, 0}};
    struct stat st;
    CHECK("times before 1970", utimes("/tmp/conformance-edges", past) == 0 && fstat(fd, &st) == 0 && st.st_mtim.tv_sec == -5
        && st.st_mtim.tv_nsec == 10000);
    CHECK_FAILS("times that are odd", utimes("/tmp/conformance-edges", odd), EINVAL);
    CHECK("a copy within a file", write(fd, "0123456789", 10) == 10
        && copy_file_range(fd, &(off_t){0}, fd, &(off_t){5}, 5, 0) == 5);
    CHECK_FAILS("not over itself", copy_file_range(fd, &(off_t){0}, fd, &(off_t){2}, 5, 0), EINVAL);
    struct {
        unsigned long flags, mode, resolve, more;
    } how = {O_RDONLY, 0, 0, 0};
    int again = (int)syscall(SYS_openat2, AT_FDCWD, "/tmp/conformance-edges", &how, sizeof how);
    CHECK("openat2 with a longer structure", again >= 0 && close(again) == 0);
    how.more = 1;
    CHECK_FAILS("that asks for more", syscall(SYS_openat2, AT_FDCWD, "/tmp/conformance-edges", &how, sizeof how), E2BIG);
    how = (typeof(how)){O_RDONLY, 0600, 0, 0};
    CHECK_FAILS("a mode for nothing", syscall(SYS_openat2, AT_FDCWD, "/tmp/conformance-edges", &how, 24L), EINVAL);
    CHECK_FAILS("a reserved bit of statx", syscall(SYS_statx, fd, "", AT_EMPTY_PATH, 0x80000000, &st), EINVAL);
    CHECK("splicing from a file", sendfile(open("/dev/null", O_WRONLY), fd, &(off_t){0}, 4) == 4);
    close(fd);
    unlink("/tmp/conformance-edges");
    CHECK("a lock that wraps round to nothing", syscall(SYS_mlock, 4097L, -1L) == 0);
    CHECK_FAILS("and to more", syscall(SYS_mlock, 4096L, -8192L), ENOMEM);
    CHECK_FAILS("clone3 of too little", syscall(SYS_clone3, NOWHERE, 63L), EINVAL);
    CHECK_FAILS("and too much", syscall(SYS_clone3, NOWHERE, 4097L), E2BIG);
}

static int words[4];

static void *wait_at(void *word)
{
    syscall(SYS_futex, word, FUTEX_WAIT | FUTEX_PRIVATE, 0, NULL, NULL, 0);
    return NULL;
}

static void futexes(void)
{
    pthread_t threads[3];
    for (int i = 0; i < 3; i++)
        NEED(pthread_create(&threads[i], NULL, wait_at, &words[0]) == 0);
    sleep_ms(100);
    CHECK_EQUAL("a requeue counts the woken and the moved", syscall(SYS_futex, &words[0], FUTEX_REQUEUE | FUTEX_PRIVATE, 1, INT_MAX, &words[1], 0), 3);
    CHECK_EQUAL("nobody is left", syscall(SYS_futex, &words[0], FUTEX_WAKE | FUTEX_PRIVATE, INT_MAX, NULL, NULL, 0), 0);
    CHECK_EQUAL("they wait at the other word", syscall(SYS_futex, &words[1], FUTEX_WAKE | FUTEX_PRIVATE, INT_MAX, NULL, NULL, 0), 2);
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    CHECK_FAILS("a wake-up by the wall clock", syscall(SYS_futex, &words[0], FUTEX_WAKE | FUTEX_CLOCK_REALTIME, 1, NULL, NULL, 0), ENOSYS);
    CHECK_FAILS("a word that is none", syscall(SYS_futex, (char *)words + 1, FUTEX_WAKE, 1, NULL, NULL, 0), EINVAL);
    CHECK_FAILS("negative numbers", syscall(SYS_futex, words, FUTEX_REQUEUE, -1, 1, words + 1, 0), EINVAL);
    struct timespec bad = {0, -1}, none = {0, 0};
    CHECK_FAILS("an odd time", syscall(SYS_futex, words, FUTEX_WAIT, 0, &bad, NULL, 0), EINVAL);
    CHECK_FAILS("no time", syscall(SYS_futex, words, FUTEX_WAIT, 0, &none, NULL, 0), ETIMEDOUT);
    CHECK_FAILS("an absolute time that is over", syscall(SYS_futex, words, FUTEX_WAIT_BITSET, 0, &none, NULL, -1), ETIMEDOUT);
    CHECK_FAILS("another value", syscall(SYS_futex, words, FUTEX_WAIT, 1, NULL, NULL, 0), EAGAIN);
    CHECK_FAILS("no bits", syscall(SYS_futex, words, FUTEX_WAIT_BITSET, 0, NULL, NULL, 0), EINVAL);
}

/* A lock that was given back by a thread that ended before it woke who waits. */
static void *end_while_unlocking(void *unused)
{
    static struct {
        void *list;
        long offset;
        void *pending;
    } head;
    head.list = &head;
    head.pending = &words[2];
    syscall(SYS_set_robust_list, &head, 24L);
    return unused;
}

static volatile int was_woken;

static void *wait_for_lock(void *unused)
{
    struct timespec most = {5, 0};
    was_woken = syscall(SYS_futex, &words[2], FUTEX_WAIT, 0, &most, NULL, 0) == 0;
    return unused;
}

static void robust_locks(void)
{
    pthread_t waiter, owner;
    NEED(pthread_create(&waiter, NULL, wait_for_lock, NULL) == 0);
    /* Some owner comes when the other one waits. */
    for (int i = 0; i < 50 && !was_woken; i++) {
        NEED(pthread_create(&owner, NULL, end_while_unlocking, NULL) == 0);
        pthread_join(owner, NULL);
        sleep_ms(10);
    }
    pthread_join(waiter, NULL);
    CHECK("a thread that ends while it unlocks wakes the next", was_woken == 1);
}

static void *read_settings(void *unused)
{
    CHECK("a thread has its creator's privileges and slack",
        prctl(PR_GET_NO_NEW_PRIVS, 0L, 0L, 0L, 0L) == 1 && prctl(PR_GET_TIMERSLACK) == 70000);
    return unused;
}

static void settings(void)
{
    int signal = -1;
    pthread_t thread;
    CHECK("dumpable is kept", prctl(PR_SET_DUMPABLE, 0L) == 0 && prctl(PR_GET_DUMPABLE) == 0
        && prctl(PR_SET_DUMPABLE, 1L) == 0 && prctl(PR_GET_DUMPABLE) == 1);
    CHECK("so is the parent's death signal", prctl(PR_SET_PDEATHSIG, (long)SIGUSR1) == 0
        && prctl(PR_GET_PDEATHSIG, &signal) == 0 && signal == SIGUSR1 && prctl(PR_SET_PDEATHSIG, 0L) == 0);
    long slack = prctl(PR_GET_TIMERSLACK);
    CHECK("a slack of nothing is the first one", prctl(PR_SET_TIMERSLACK, 60000L) == 0 && prctl(PR_GET_TIMERSLACK) == 60000
        && prctl(PR_SET_TIMERSLACK, 0L) == 0 && prctl(PR_GET_TIMERSLACK) == slack);
    CHECK("no privileges are gained at first", prctl(PR_GET_NO_NEW_PRIVS, 0L, 0L, 0L, 0L) == 0);
    CHECK("nor ever again", prctl(PR_SET_NO_NEW_PRIVS, 1L, 0L, 0L, 0L) == 0 && prctl(PR_GET_NO_NEW_PRIVS, 0L, 0L, 0L, 0L) == 1);
    CHECK_FAILS("which cannot be undone", prctl(PR_SET_NO_NEW_PRIVS, 0L, 0L, 0L, 0L), EINVAL);
    NEED(prctl(PR_SET_TIMERSLACK, 70000L) == 0 && pthread_create(&thread, NULL, read_settings, NULL) == 0);
    pthread_join(thread, NULL);
}

int main(void)
{
    frames();
    shared_signals();
    queues();
    widths();
    orders();
    futexes();
    robust_locks();
    settings();
    return finish();
}
