/* The check vocabulary of the conformance programs.
 *
 * A program prints one line per check, `ok NAME` or `FAILED NAME ...`, and values that do not vary
 * from run to run; Linux's output is the oracle. Lines go out by one write each, so they keep their
 * order across threads and signal handlers and nothing is lost when a program dies. No program
 * forks: a single address space has no fork.
 */
#ifndef CHECK_H
#define CHECK_H

#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int check_failures;

__attribute__((format(printf, 1, 2), unused)) static void say(const char *format, ...)
{
    char line[512];
    va_list arguments;
    va_start(arguments, format);
    int len = vsnprintf(line, sizeof line - 1, format, arguments);
    va_end(arguments);
    if (len > (int)sizeof line - 2)
        len = sizeof line - 2;
    line[len] = '\n';
    if (write(1, line, len + 1) != len + 1)
        _exit(3);
}

/* One check. Evaluates `condition` once; errno at that time is shown when it fails. */
#define CHECK(name, condition)                                                          \
    do {                                                                                \
        errno = 0;                                                                      \
        if (condition) {                                                                \
            say("ok %s", name);                                                         \
        } else {                                                                        \
            int check_errno = errno;                                                    \
            check_failures++;                                                           \
            say("FAILED %s (%s:%d, errno %d)", name, __FILE__, __LINE__, check_errno);  \
        }                                                                               \
    } while (0)

/* `call` fails with `expected`, by the C library's convention. */
#define CHECK_FAILS(name, call, expected) CHECK(name, (long)(call) == -1 && errno == (expected))

/* Two integers are equal; both are shown when they are not. */
#define CHECK_EQUAL(name, actual, expected)                                             \
    do {                                                                                \
        errno = 0;                                                                      \
        long long check_actual = (long long)(actual);                                   \
        long long check_expected = (long long)(expected);                               \
        if (check_actual == check_expected) {                                           \
            say("ok %s", name);                                                         \
        } else {                                                                        \
            check_failures++;                                                           \
            say("FAILED %s: %lld, expected %lld (%s:%d)", name, check_actual,           \
                check_expected, __FILE__, __LINE__);                                    \
        }                                                                               \
    } while (0)

/* A step that later checks stand on: ends the program when it fails. */
#define NEED(condition)                                                                 \
    do {                                                                                \
        if (!(condition)) {                                                             \
            say("FAILED setup %s (%s:%d, errno %d)", #condition, __FILE__, __LINE__,    \
                errno);                                                                 \
            _exit(2);                                                                   \
        }                                                                               \
    } while (0)

__attribute__((unused)) static int64_t now_ns(void)
{
    struct timespec now;
    NEED(clock_gettime(CLOCK_MONOTONIC, &now) == 0);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

__attribute__((unused)) static void sleep_ms(int ms)
{
    struct timespec left = {ms / 1000, ms % 1000 * 1000000L};
    while (nanosleep(&left, &left) == -1 && errno == EINTR) {
    }
}

/* The program's exit code: 0 when every check held. */
__attribute__((unused)) static int finish(void)
{
    say("%s", check_failures == 0 ? "done" : "done, with failures");
    return check_failures == 0 ? 0 : 1;
}

#endif
