/* Clocks, sleeping and timers. */
#define _GNU_SOURCE
#include "check.h"
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/times.h>

static void clocks(void)
{
    struct timespec now, later, resolution;
    int good = 1;
    clock_gettime(CLOCK_MONOTONIC, &now);
    for (int i = 0; i < 10000; i++) {
        clock_gettime(CLOCK_MONOTONIC, &later);
        good &= later.tv_sec > now.tv_sec || (later.tv_sec == now.tv_sec && later.tv_nsec >= now.tv_nsec);
        good &= later.tv_nsec >= 0 && later.tv_nsec < 1000000000;
        now = later;
    }
    CHECK("the monotonic clock never goes back", good);
    CHECK("the year is 2024 or later", clock_gettime(CLOCK_REALTIME, &now) == 0 && now.tv_sec > 1704067200);
    CHECK("the clock is one of nanoseconds", clock_getres(CLOCK_MONOTONIC, &resolution) == 0 && resolution.tv_sec == 0 && resolution.tv_nsec == 1);
    struct timeval of_day;
    CHECK("gettimeofday agrees", gettimeofday(&of_day, NULL) == 0 && of_day.tv_sec - now.tv_sec >= 0 && of_day.tv_sec - now.tv_sec <= 2);
    CHECK("time agrees", time(NULL) - now.tv_sec >= 0 && time(NULL) - now.tv_sec <= 2);
    struct timespec by_call;
    CHECK("the system call agrees with the C library",
        syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &by_call) == 0 && clock_gettime(CLOCK_MONOTONIC, &later) == 0
            && (later.tv_sec - by_call.tv_sec) * 1000000000L + later.tv_nsec - by_call.tv_nsec < 1000000000L
            && (later.tv_sec - by_call.tv_sec) * 1000000000L + later.tv_nsec - by_call.tv_nsec >= 0);
    for (clockid_t id = CLOCK_MONOTONIC_RAW; id <= CLOCK_BOOTTIME; id++)
        good &= clock_gettime(id, &now) == 0 && (now.tv_sec != 0 || now.tv_nsec != 0);
    CHECK("raw, coarse and boot-time clocks", good);
    CHECK_FAILS("a clock that is not there", syscall(SYS_clock_gettime, 99, &now), EINVAL);
}

static int64_t cpu_ns(clockid_t id)
{
    struct timespec used;
    NEED(clock_gettime(id, &used) == 0);
    return used.tv_sec * 1000000000LL + used.tv_nsec;
}

static void cpu_time(void)
{
    int64_t thread = cpu_ns(CLOCK_THREAD_CPUTIME_ID), process = cpu_ns(CLOCK_PROCESS_CPUTIME_ID);
    sleep_ms(50);
    CHECK("sleeping uses little CPU time", cpu_ns(CLOCK_THREAD_CPUTIME_ID) - thread < 40000000);
    thread = cpu_ns(CLOCK_THREAD_CPUTIME_ID);
    int64_t end = now_ns() + 5000000000LL;
    while (cpu_ns(CLOCK_THREAD_CPUTIME_ID) - thread < 30000000 && now_ns() < end)
        ;
    CHECK("working uses it", cpu_ns(CLOCK_THREAD_CPUTIME_ID) - thread >= 30000000);
    CHECK("so does the process", cpu_ns(CLOCK_PROCESS_CPUTIME_ID) - process >= 30000000);
    struct rusage usage;
    CHECK("getrusage", getrusage(RUSAGE_SELF, &usage) == 0 && usage.ru_utime.tv_sec * 1000000L + usage.ru_utime.tv_usec
        + usage.ru_stime.tv_sec * 1000000L + usage.ru_stime.tv_usec >= 20000);
    CHECK("times", times(NULL) != (clock_t)-1);
}

static void sleeping(void)
{
    struct timespec brief = {0, 20000000}, bad = {0, 1000000000};
    int64_t before = now_ns();
    CHECK("nanosleep sleeps", nanosleep(&brief, NULL) == 0 && now_ns() - before >= 20000000);
    CHECK_FAILS("a malformed time", nanosleep(&bad, NULL), EINVAL);
    int64_t until = now_ns() + 20000000;
    struct timespec deadline = {until / 1000000000, until % 1000000000};
    CHECK("sleeping until a time", clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &deadline, NULL) == 0 && now_ns() >= until);
    CHECK("until a time that has passed", clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &deadline, NULL) == 0);
    struct timespec nothing = {0, 0};
    CHECK("for no time", nanosleep(&nothing, NULL) == 0);
    before = now_ns();
    for (int i = 0; i < 20; i++) {
        struct timespec fifty_us = {0, 50000};
        nanosleep(&fifty_us, NULL);
    }
    CHECK("twenty sleeps of 50 us are no ticks of 10 ms", now_ns() - before < 150000000);
}

int main(void)
{
    clocks();
    cpu_time();
    sleeping();
    return finish();
}
