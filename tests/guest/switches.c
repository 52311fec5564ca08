/* What a switch between two threads costs, one way, and a few calls: ticks of the time stamp counter,
 * which are instructions in the exact mode with one CPU. */
#define _GNU_SOURCE
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <x86intrin.h>

enum { ROUNDS = 2000 };

static atomic_int turn;
static atomic_int ended;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int to_partner[2], to_main[2];

/* Sleeps until the turn is `mine`, by the futex alone. */
static void futex_until(int mine) {
    int now;
    while ((now = atomic_load(&turn)) != mine)
        syscall(SYS_futex, &turn, FUTEX_WAIT_PRIVATE, now, 0);
}

static void futex_give(int next) {
    atomic_store(&turn, next);
    syscall(SYS_futex, &turn, FUTEX_WAKE_PRIVATE, 1);
}

static void *futex_partner(void *unused) {
    for (int round = 0; round < ROUNDS; round++) {
        futex_until(1);
        futex_give(0);
    }
    return unused;
}

static void futex_round(void) {
    futex_give(1);
    futex_until(0);
}

static void condition_pass(int mine, int next) {
    pthread_mutex_lock(&mutex);
    while (turn != mine)
        pthread_cond_wait(&changed, &mutex);
    turn = next;
    pthread_cond_signal(&changed);
    pthread_mutex_unlock(&mutex);
}

static void *condition_partner(void *unused) {
    for (int round = 0; round < ROUNDS; round++)
        condition_pass(1, 0);
    return unused;
}

static void condition_round(void) { condition_pass(0, 1); }

static void byte_through(int from, int to) {
    char byte;
    if (read(from, &byte, 1) != 1 || write(to, &byte, 1) != 1)
        _exit(3);
}

static void *pipe_partner(void *unused) {
    for (int round = 0; round < ROUNDS; round++)
        byte_through(to_partner[0], to_main[1]);
    return unused;
}

static void pipe_round(void) {
    char byte = 0;
    if (write(to_partner[1], &byte, 1) != 1 || read(to_main[0], &byte, 1) != 1)
        _exit(3);
}

static void *yield_partner(void *unused) {
    while (!atomic_load(&ended))
        sched_yield();
    return unused;
}

static void yield_round(void) { sched_yield(); }

static void null_round(void) { syscall(SYS_getppid); }

static void map_round(void) {
    void *at = mmap(0, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(at, 65536);
}

static char *fresh;

static void fault_round(void) {
    *fresh = 1;
    fresh += 4096;
}

static void measure(const char *name, void *(*partner)(void *), void (*round)(void), int parts) {
    pthread_t thread;
    atomic_store(&turn, 0);
    atomic_store(&ended, 0);
    if (partner)
        pthread_create(&thread, 0, partner, 0);
    unsigned long from = __rdtsc();
    for (int n = 0; n < ROUNDS; n++)
        round();
    unsigned long ticks = __rdtsc() - from;
    atomic_store(&ended, 1);
    if (partner)
        pthread_join(thread, 0);
    printf("%s %lu\n", name, ticks / ROUNDS / parts);
}

int main(void) {
    if (pipe(to_partner) || pipe(to_main))
        return 3;
    fresh = mmap(0, ROUNDS * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    measure("getppid", 0, null_round, 1);
    measure("futex", futex_partner, futex_round, 2);
    measure("condition-variable", condition_partner, condition_round, 2);
    measure("pipe", pipe_partner, pipe_round, 2);
    measure("yield", yield_partner, yield_round, 2);
    measure("map-unmap-64-kib", 0, map_round, 1);
    measure("page-fault-4-kib", 0, fault_round, 1);
    return 0;
}
