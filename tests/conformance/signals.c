/* Signals: dispositions, masks, delivery to threads, alternate stacks, interrupted calls, timers. */
#define _GNU_SOURCE
#include "check.h"
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>

static volatile sig_atomic_t count, last_signal, last_code, last_value, on_stack;
static volatile pid_t handler_tid;
static char *stack_start;
static size_t stack_len;

static pid_t tid(void)
{
    return (pid_t)syscall(SYS_gettid);
}

static void record(int signal, siginfo_t *info, void *context)
{
    (void)context;
    char here;
    count++;
    last_signal = signal;
    last_code = info->si_code;
    last_value = info->si_value.sival_int;
    handler_tid = tid();
    on_stack = &here >= stack_start && &here < stack_start + stack_len;
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

static void dispositions(void)
{
    struct sigaction old;
    handle(SIGUSR1, record, 0);
    CHECK("sigaction tells what is set",
        sigaction(SIGUSR1, NULL, &old) == 0 && old.sa_sigaction == record && (old.sa_flags & SA_SIGINFO));
    CHECK("raise runs the handler before it returns", raise(SIGUSR1) == 0 && count == 1 && last_signal == SIGUSR1);
    CHECK("kill says SI_USER", kill(getpid(), SIGUSR1) == 0 && count == 2 && last_code == SI_USER);
    CHECK("tgkill says SI_TKILL",
        syscall(SYS_tgkill, getpid(), tid(), SIGUSR1) == 0 && count == 3 && last_code == SI_TKILL);
    union sigval value = {.sival_int = 42};
    CHECK("sigqueue carries a value", sigqueue(getpid(), SIGUSR1, value) == 0 && last_code == SI_QUEUE && last_value == 42);
    handle(SIGUSR2, record, SA_RESETHAND);
    count = 0;
    raise(SIGUSR2);
    CHECK("SA_RESETHAND resets", sigaction(SIGUSR2, NULL, &old) == 0 && count == 1 && old.sa_handler == SIG_DFL);
    CHECK("an ignored signal does nothing", signal(SIGUSR2, SIG_IGN) != SIG_ERR && raise(SIGUSR2) == 0);
    CHECK("a signal ignored by default does nothing", raise(SIGCHLD) == 0 && raise(SIGURG) == 0);
    struct sigaction action = {.sa_handler = SIG_IGN};
    CHECK_FAILS("SIGKILL cannot be handled", sigaction(SIGKILL, &action, NULL), EINVAL);
    CHECK_FAILS("signal 65 does not exist", kill(getpid(), 65), EINVAL);
    CHECK("signal 0 tests for existence", kill(getpid(), 0) == 0);
    CHECK_FAILS("a thread that does not exist", syscall(SYS_tgkill, getpid(), 4194303, 0), ESRCH);
    CHECK_FAILS("a process that does not exist", kill(4194303, 0), ESRCH);
}

static volatile int nested_depth, max_depth;

static void nest(int signal, siginfo_t *info, void *context)
{
    (void)info, (void)context;
    nested_depth++;
    if (nested_depth > max_depth)
        max_depth = nested_depth;
    if (count++ == 0)
        raise(signal);
    nested_depth--;
}

static void masks(void)
{
    sigset_t set, pending;
    handle(SIGUSR1, record, 0);
    count = 0;
    mask(SIG_BLOCK, SIGUSR1);
    raise(SIGUSR1);
    raise(SIGUSR1);
    CHECK("a blocked signal waits", count == 0 && sigpending(&pending) == 0 && sigismember(&pending, SIGUSR1));
    mask(SIG_UNBLOCK, SIGUSR1);
    CHECK("a standard signal is delivered once", count == 1 && sigpending(&pending) == 0 && !sigismember(&pending, SIGUSR1));

    handle(SIGRTMIN + 1, record, 0);
    count = 0;
    mask(SIG_BLOCK, SIGRTMIN + 1);
    for (int i = 1; i <= 3; i++)
        NEED(sigqueue(getpid(), SIGRTMIN + 1, (union sigval){.sival_int = i}) == 0);
    mask(SIG_UNBLOCK, SIGRTMIN + 1);
    CHECK("real-time signals queue", count == 3);

    handle(SIGUSR1, nest, 0);
    count = nested_depth = max_depth = 0;
    raise(SIGUSR1);
    CHECK("a signal is blocked in its own handler", count == 2 && max_depth == 1);
    handle(SIGUSR1, nest, SA_NODEFER);
    count = nested_depth = max_depth = 0;
    raise(SIGUSR1);
    CHECK("but not with SA_NODEFER", count == 2 && max_depth == 2);

    handle(SIGUSR1, record, 0);
    mask(SIG_BLOCK, SIGUSR1);
    count = 0;
    raise(SIGUSR1);
    pthread_sigmask(SIG_SETMASK, NULL, &set);
    sigdelset(&set, SIGUSR1);
    CHECK("sigsuspend delivers and returns EINTR", sigsuspend(&set) == -1 && errno == EINTR && count == 1);
    pthread_sigmask(SIG_SETMASK, NULL, &set);
    CHECK("and restores the mask", sigismember(&set, SIGUSR1) == 1);

    siginfo_t info;
    sigset_t wanted;
    sigemptyset(&wanted);
    sigaddset(&wanted, SIGUSR1);
    raise(SIGUSR1);
    CHECK("sigwaitinfo takes a pending signal", sigwaitinfo(&wanted, &info) == SIGUSR1 && info.si_signo == SIGUSR1 && count == 1);
    struct timespec brief = {0, 2000000};
    CHECK_FAILS("sigtimedwait times out", sigtimedwait(&wanted, &info, &brief), EAGAIN);
    mask(SIG_UNBLOCK, SIGUSR1);
    sigfillset(&set);
    CHECK("SIGKILL cannot be blocked",
        pthread_sigmask(SIG_SETMASK, &set, NULL) == 0 && pthread_sigmask(SIG_SETMASK, NULL, &set) == 0
            && !sigismember(&set, SIGKILL) && !sigismember(&set, SIGSTOP) && sigismember(&set, SIGTERM));
    sigemptyset(&set);
    pthread_sigmask(SIG_SETMASK, &set, NULL);
}

static sigjmp_buf overflow_return;

static void on_overflow(int signal, siginfo_t *info, void *context)
{
    record(signal, info, context);
    siglongjmp(overflow_return, 1);
}

static volatile int forever = 1;

static __attribute__((noinline)) int recurse(volatile char *above)
{
    volatile char frame[1024];
    frame[0] = above ? above[0] : 1;
    return forever ? recurse(frame) + frame[0] : 0;
}

static void *overflow(void *unused)
{
    (void)unused;
    stack_t stack = {.ss_sp = stack_start, .ss_size = stack_len};
    NEED(sigaltstack(&stack, NULL) == 0);
    if (sigsetjmp(overflow_return, 1) == 0)
        recurse(NULL);
    stack.ss_flags = SS_DISABLE;
    NEED(sigaltstack(&stack, NULL) == 0);
    return NULL;
}

static void alternate_stack(void)
{
    stack_t stack, old;
    stack_len = 64 << 10;
    stack_start = malloc(stack_len);
    stack = (stack_t){.ss_sp = stack_start, .ss_size = stack_len};
    CHECK("no alternate stack at first", sigaltstack(NULL, &old) == 0 && old.ss_flags == SS_DISABLE);
    CHECK("sigaltstack", sigaltstack(&stack, NULL) == 0);
    CHECK("and reading it back", sigaltstack(NULL, &old) == 0 && old.ss_sp == stack_start && old.ss_size == stack_len);
    handle(SIGUSR1, record, SA_ONSTACK);
    raise(SIGUSR1);
    CHECK("SA_ONSTACK runs on it", on_stack);
    handle(SIGUSR1, record, 0);
    raise(SIGUSR1);
    CHECK("other handlers do not", !on_stack);
    stack.ss_size = 100;
    CHECK_FAILS("too small a stack", sigaltstack(&stack, NULL), ENOMEM);
    stack = (stack_t){.ss_flags = SS_DISABLE};
    CHECK("disabling it", sigaltstack(&stack, NULL) == 0);

    handle(SIGSEGV, on_overflow, SA_ONSTACK);
    pthread_t thread;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 256 << 10);
    last_signal = 0;
    NEED(pthread_create(&thread, &attributes, overflow, NULL) == 0);
    pthread_join(thread, NULL);
    CHECK("a stack overflow is handled on the alternate stack", last_signal == SIGSEGV && on_stack);
    signal(SIGSEGV, SIG_DFL);
}

static int ends[2];
static volatile pid_t reader_tid;
static volatile ssize_t read_result;
static volatile int read_errno;

static void *reader(void *unused)
{
    (void)unused;
    char byte;
    reader_tid = tid();
    read_result = read(ends[0], &byte, 1);
    read_errno = errno;
    return NULL;
}

/* Interrupts a thread that blocks in read by a signal with these flags; then writes a byte. */
static void interrupt_read(int flags, int write_byte)
{
    pthread_t thread;
    handle(SIGUSR1, record, flags);
    count = 0;
    reader_tid = 0;
    NEED(pipe(ends) == 0 && pthread_create(&thread, NULL, reader, NULL) == 0);
    while (reader_tid == 0)
        sched_yield();
    sleep_ms(20);
    NEED(syscall(SYS_tgkill, getpid(), reader_tid, SIGUSR1) == 0);
    sleep_ms(20);
    if (write_byte)
        NEED(write(ends[1], "x", 1) == 1);
    pthread_join(thread, NULL);
}

static void *signal_later(void *target)
{
    sleep_ms(20);
    NEED(syscall(SYS_tgkill, getpid(), *(pid_t *)target, SIGUSR1) == 0);
    return NULL;
}

static void interrupted_calls(void)
{
    interrupt_read(0, 0);
    CHECK("tgkill interrupts a blocked read: EINTR", read_result == -1 && read_errno == EINTR);
    CHECK("the handler ran on that thread", count == 1 && handler_tid == reader_tid);
    interrupt_read(SA_RESTART, 1);
    CHECK("SA_RESTART restarts it", read_result == 1 && count == 1);

    handle(SIGUSR1, record, SA_RESTART);
    pthread_t thread;
    struct timespec second = {5, 0}, left = {0, 0};
    pid_t self = tid();
    NEED(pthread_create(&thread, NULL, signal_later, &self) == 0);
    CHECK_FAILS("nanosleep is not restarted", nanosleep(&second, &left), EINTR);
    CHECK("and tells what was left", left.tv_sec >= 1 && left.tv_sec < 5);
    pthread_join(thread, NULL);
    NEED(pipe(ends) == 0 && close(ends[0]) == 0);
    handle(SIGPIPE, record, 0);
    last_signal = 0;
    CHECK("a pipe without a reader: EPIPE", write(ends[1], "x", 1) == -1 && errno == EPIPE);
    CHECK("and SIGPIPE", last_signal == SIGPIPE);
}

static void timers(void)
{
    handle(SIGALRM, record, 0);
    timer_t timer;
    struct itimerspec soon = {.it_value = {0, 20000000}};
    CHECK("timer_create", timer_create(CLOCK_MONOTONIC, NULL, &timer) == 0);
    last_signal = 0;
    CHECK("a timer's signal says SI_TIMER", timer_settime(timer, 0, &soon, NULL) == 0
        && (sleep_ms(50), last_signal == SIGALRM && last_code == SI_TIMER));
    CHECK("timer_delete", timer_delete(timer) == 0);
}

static sigset_t seen_mask;

static void *see_mask(void *unused)
{
    pthread_sigmask(SIG_SETMASK, NULL, &seen_mask);
    return unused;
}

static void inheritance(void)
{
    pthread_t thread;
    mask(SIG_BLOCK, SIGUSR2);
    NEED(pthread_create(&thread, NULL, see_mask, NULL) == 0);
    pthread_join(thread, NULL);
    CHECK("a thread inherits the mask", sigismember(&seen_mask, SIGUSR2) && !sigismember(&seen_mask, SIGUSR1));
    mask(SIG_UNBLOCK, SIGUSR2);
}

int main(void)
{
    dispositions();
    masks();
    alternate_stack();
    interrupted_calls();
    timers();
    inheritance();
    return finish();
}
