/* Futexes: wait and wake, values, timeouts, bitsets, requeue, interruption. */
#define _GNU_SOURCE
#include "check.h"
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>

/* <linux/futex.h>, which musl-gcc does not find. All operations are on private futexes. */
#define PRIVATE 128
#define FUTEX_CLOCK_REALTIME 256
#define FUTEX_WAIT 0
#define FUTEX_WAIT_PRIVATE (0 | PRIVATE)
#define FUTEX_WAKE_PRIVATE (1 | PRIVATE)
#define FUTEX_CMP_REQUEUE_PRIVATE (4 | PRIVATE)
#define FUTEX_WAKE_OP_PRIVATE (5 | PRIVATE)
#define FUTEX_WAIT_BITSET_PRIVATE (9 | PRIVATE)
#define FUTEX_WAKE_BITSET_PRIVATE (10 | PRIVATE)
#define FUTEX_BITSET_MATCH_ANY 0xffffffff
/* *word2 += 2, and wake there if its old value was above 100. */
#define ADD_2_IF_ABOVE_100 (1 << 28 | 4 << 24 | 2 << 12 | 100)

static long futex(uint32_t *word, int operation, uint32_t value, const struct timespec *timeout, uint32_t *word2, uint32_t value3)
{
    return syscall(SYS_futex, word, operation, value, timeout, word2, value3);
}

static uint32_t words[2], woken;
static volatile pid_t waiter_tid;

struct waiter {
    uint32_t *word;
    uint32_t bits;
    long result;
    int error;
    pthread_t thread;
};

static uint32_t waiting;

static void *wait_on(void *argument)
{
    struct waiter *waiter = argument;
    waiter_tid = (pid_t)syscall(SYS_gettid);
    __atomic_add_fetch(&waiting, 1, __ATOMIC_SEQ_CST);
    waiter->result = futex(waiter->word, FUTEX_WAIT_BITSET_PRIVATE, 0, NULL, NULL, waiter->bits);
    waiter->error = errno;
    __atomic_add_fetch(&woken, 1, __ATOMIC_SEQ_CST);
    return NULL;
}

/* Starts `count` waiters and waits until they are asleep, as far as a clock can tell. */
static void start(struct waiter *waiters, int count, uint32_t *word)
{
    waiting = woken = 0;
    for (int i = 0; i < count; i++) {
        waiters[i].word = word;
        NEED(pthread_create(&waiters[i].thread, NULL, wait_on, &waiters[i]) == 0);
    }
    while (__atomic_load_n(&waiting, __ATOMIC_SEQ_CST) < (uint32_t)count)
        sched_yield();
    sleep_ms(30);
}

static void join(struct waiter *waiters, int count)
{
    for (int i = 0; i < count; i++)
        pthread_join(waiters[i].thread, NULL);
}

/* Waits up to five seconds for `count` waiters to return, and a moment for more of them. */
static int woken_are(uint32_t count)
{
    int64_t end = now_ns() + 5000000000LL;
    while (__atomic_load_n(&woken, __ATOMIC_SEQ_CST) < count && now_ns() < end)
        sleep_ms(1);
    sleep_ms(20);
    return __atomic_load_n(&woken, __ATOMIC_SEQ_CST) == count;
}

static void immediate(void)
{
    uint32_t word = 1;
    CHECK_FAILS("another value: EAGAIN", futex(&word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0), EAGAIN);
    CHECK_EQUAL("waking nobody", futex(&word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0), 0);
    CHECK_FAILS("an unaligned word", futex((uint32_t *)((char *)&word + 1), FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0), EINVAL);
    void *gone = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(gone, 4096);
    CHECK_FAILS("a word that is not mapped", futex(gone, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0), EFAULT);
    CHECK_FAILS("an empty bitset", futex(&word, FUTEX_WAIT_BITSET_PRIVATE, 1, NULL, NULL, 0), EINVAL);
    CHECK_FAILS("an unknown operation", futex(&word, 99, 0, NULL, NULL, 0), ENOSYS);
    struct timespec bad = {0, 1000000000};
    CHECK_FAILS("a malformed timeout", futex(&word, FUTEX_WAIT_PRIVATE, 1, &bad, NULL, 0), EINVAL);
}

static void timeouts(void)
{
    uint32_t word = 0;
    struct timespec brief = {0, 30000000}, zero = {0, 0}, deadline;
    int64_t before = now_ns();
    CHECK_FAILS("a relative timeout", futex(&word, FUTEX_WAIT_PRIVATE, 0, &brief, NULL, 0), ETIMEDOUT);
    CHECK("took as long as asked", now_ns() - before >= 30000000);
    CHECK_FAILS("a timeout of zero", futex(&word, FUTEX_WAIT_PRIVATE, 0, &zero, NULL, 0), ETIMEDOUT);
    clock_gettime(CLOCK_MONOTONIC, &deadline);
    CHECK_FAILS("a deadline that has passed",
        futex(&word, FUTEX_WAIT_BITSET_PRIVATE, 0, &deadline, NULL, FUTEX_BITSET_MATCH_ANY), ETIMEDOUT);
    int64_t until = now_ns() + 30000000;
    deadline = (struct timespec){until / 1000000000, until % 1000000000};
    CHECK_FAILS("a deadline on the monotonic clock",
        futex(&word, FUTEX_WAIT_BITSET_PRIVATE, 0, &deadline, NULL, FUTEX_BITSET_MATCH_ANY), ETIMEDOUT);
    CHECK("is not early", now_ns() >= until);
    /* Before the other clock is read: a thread that is held up between the two waits that much less. */
    before = now_ns();
    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_nsec += 30000000;
    if (deadline.tv_nsec >= 1000000000) {
        deadline.tv_nsec -= 1000000000;
        deadline.tv_sec++;
    }
    CHECK_FAILS("a deadline on the real-time clock",
        futex(&word, FUTEX_WAIT_BITSET_PRIVATE | FUTEX_CLOCK_REALTIME, 0, &deadline, NULL, FUTEX_BITSET_MATCH_ANY), ETIMEDOUT);
    /* 29 of 30 ms: the real-time clock may be slewed against the monotonic one. */
    CHECK("is not early either", now_ns() - before >= 29000000);
}

static void waking(void)
{
    struct waiter waiters[4] = {{.bits = ~0U}, {.bits = ~0U}, {.bits = ~0U}, {.bits = ~0U}};
    words[0] = 0;
    start(waiters, 4, &words[0]);
    CHECK_EQUAL("waking one of four", futex(&words[0], FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0), 1);
    CHECK("one returned", woken_are(1));
    CHECK_EQUAL("waking the rest", futex(&words[0], FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0), 3);
    CHECK("all returned", woken_are(4));
    join(waiters, 4);
    CHECK("each with 0", waiters[0].result == 0 && waiters[1].result == 0 && waiters[2].result == 0 && waiters[3].result == 0);

    struct waiter sets[2] = {{.bits = 1}, {.bits = 2}};
    start(sets, 2, &words[0]);
    CHECK_EQUAL("a bitset that nobody has", futex(&words[0], FUTEX_WAKE_BITSET_PRIVATE, INT_MAX, NULL, NULL, 4), 0);
    CHECK_EQUAL("a bitset that one has", futex(&words[0], FUTEX_WAKE_BITSET_PRIVATE, INT_MAX, NULL, NULL, 2), 1);
    CHECK_EQUAL("a plain wake takes any", futex(&words[0], FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0), 1);
    join(sets, 2);
}

static void requeue(void)
{
    struct waiter waiters[4] = {{.bits = ~0U}, {.bits = ~0U}, {.bits = ~0U}, {.bits = ~0U}};
    words[0] = words[1] = 0;
    start(waiters, 4, &words[0]);
    CHECK_FAILS("CMP_REQUEUE with another value",
        futex(&words[0], FUTEX_CMP_REQUEUE_PRIVATE, 1, (void *)1L, &words[1], 7), EAGAIN);
    CHECK_EQUAL("CMP_REQUEUE wakes one and moves two",
        futex(&words[0], FUTEX_CMP_REQUEUE_PRIVATE, 1, (void *)2L, &words[1], 0), 3);
    CHECK("one returned", woken_are(1));
    CHECK_EQUAL("one is left at the first", futex(&words[0], FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0), 1);
    CHECK_EQUAL("two are at the second", futex(&words[1], FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0), 2);
    join(waiters, 4);

    struct waiter one[1] = {{.bits = ~0U}};
    words[1] = 5;
    start(one, 1, &words[0]);
    CHECK_EQUAL("WAKE_OP wakes at the first",
        futex(&words[0], FUTEX_WAKE_OP_PRIVATE, 1, (void *)1L, &words[1], ADD_2_IF_ABOVE_100), 1);
    CHECK_EQUAL("and changes the second", words[1], 7);
    join(one, 1);
}

static void on_signal(int signal)
{
    (void)signal;
}

static void interruption(void)
{
    struct sigaction action = {.sa_handler = on_signal};
    NEED(sigaction(SIGUSR1, &action, NULL) == 0);
    struct waiter waiter[1] = {{.bits = ~0U}};
    words[0] = 0;
    start(waiter, 1, &words[0]);
    NEED(syscall(SYS_tgkill, getpid(), waiter_tid, SIGUSR1) == 0);
    join(waiter, 1);
    CHECK("a handler ends a wait: EINTR", waiter[0].result == -1 && waiter[0].error == EINTR);
    action.sa_flags = SA_RESTART;
    NEED(sigaction(SIGUSR1, &action, NULL) == 0);
    start(waiter, 1, &words[0]);
    NEED(syscall(SYS_tgkill, getpid(), waiter_tid, SIGUSR1) == 0);
    CHECK("SA_RESTART goes on waiting", woken_are(0));
    CHECK_EQUAL("until it is woken", futex(&words[0], FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0), 1);
    join(waiter, 1);
}

static uint32_t turn;

static void *ping(void *argument)
{
    uint32_t mine = (uint32_t)(uintptr_t)argument;
    for (int i = 0; i < 2000; i++) {
        uint32_t seen;
        while ((seen = __atomic_load_n(&turn, __ATOMIC_ACQUIRE)) != mine)
            futex(&turn, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
        __atomic_store_n(&turn, 1 - mine, __ATOMIC_RELEASE);
        futex(&turn, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
    }
    return NULL;
}

static void no_lost_wake(void)
{
    pthread_t one, two;
    NEED(pthread_create(&one, NULL, ping, (void *)0) == 0 && pthread_create(&two, NULL, ping, (void *)1) == 0);
    pthread_join(one, NULL);
    pthread_join(two, NULL);
    say("ok four thousand turns without a lost wake-up");
    uint32_t *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct timespec brief = {0, 1000000};
    CHECK_FAILS("a shared futex times out as well", futex(shared, FUTEX_WAIT, 0, &brief, NULL, 0), ETIMEDOUT);
}

int main(void)
{
    immediate();
    timeouts();
    waking();
    requeue();
    interruption();
    no_lost_wake();
    return finish();
}
