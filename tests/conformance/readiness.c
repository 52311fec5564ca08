/* Readiness and descriptors at their edges: poll, select and epoll beside other threads, nested epoll,
 * closing what is watched, descriptor numbers and limits. */
#define _GNU_SOURCE
#include "check.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>

static int add(int set, int fd, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.fd = fd};
    return epoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
}

static int write_to;

static void *write_later(void *unused)
{
    sleep_ms(20);
    NEED(write(write_to, "12345678", 8) == 8);
    return unused;
}

static void with_writer(int fd, pthread_t *thread)
{
    write_to = fd;
    NEED(pthread_create(thread, NULL, write_later, NULL) == 0);
}

static void nesting(void)
{
    int ends[2], inner = epoll_create1(0), outer = epoll_create1(0);
    struct epoll_event event;
    pthread_t thread;
    NEED(pipe(ends) == 0 && inner >= 0 && outer >= 0);
    CHECK("an epoll watches another", add(inner, ends[0], EPOLLIN) == 0 && add(outer, inner, EPOLLIN) == 0);
    CHECK_FAILS("but not in a circle", add(inner, outer, EPOLLIN), ELOOP);
    CHECK_FAILS("and not itself", add(inner, inner, EPOLLIN), EINVAL);
    CHECK("nothing is ready", epoll_wait(outer, &event, 1, 0) == 0);
    with_writer(ends[1], &thread);
    CHECK("the outer one wakes for the inner one's file", epoll_wait(outer, &event, 1, 5000) == 1 && event.data.fd == inner);
    pthread_join(thread, NULL);
    char bytes[8];
    NEED(read(ends[0], bytes, 8) == 8);
    struct pollfd entry = {.fd = inner, .events = POLLIN};
    CHECK("a polled epoll is not ready before", poll(&entry, 1, 0) == 0);
    with_writer(ends[1], &thread);
    CHECK("and wakes poll", poll(&entry, 1, 5000) == 1 && entry.revents == POLLIN);
    pthread_join(thread, NULL);
    int chain[8];
    chain[0] = ends[0];
    int depth = 1, last = 0;
    for (; depth < 8; depth++) {
        chain[depth] = epoll_create1(0);
        last = add(chain[depth], chain[depth - 1], EPOLLIN);
        if (last != 0) {
            last = errno;
            break;
        }
    }
    CHECK("a chain of them has an end", last == ELOOP);
    CHECK_EQUAL("which is here", depth, 6);
    int above[7];
    for (int i = 0; i < 7; i++)
        above[i] = epoll_create1(0);
    for (depth = 0; depth < 6 && add(above[depth], above[depth + 1], EPOLLIN) == 0; depth++)
        ;
    CHECK_EQUAL("it is the same from above", depth, 4);
    for (int i = 0; i < 7; i++)
        close(above[i]);
    for (int i = 1; i <= depth && i < 8; i++)
        close(chain[i]);
    close(inner), close(outer), close(ends[0]), close(ends[1]);
}

static int waited_set;

static void *wait_in_set(void *unused)
{
    struct epoll_event event;
    epoll_wait(waited_set, &event, 1, 10000);
    return unused;
}

static void closing(void)
{
    int ends[2], set = epoll_create1(0);
    struct epoll_event events[4];
    pthread_t thread;
    NEED(pipe(ends) == 0 && add(set, ends[1], EPOLLET) == 0);
    waited_set = set;
    NEED(pthread_create(&thread, NULL, wait_in_set, NULL) == 0);
    sleep_ms(50);
    int64_t before = now_ns();
    char byte;
    CHECK("a watched end is closed although somebody waits in the set", close(ends[1]) == 0 && read(ends[0], &byte, 1) == 0
        && now_ns() - before < 5000000000);
    int ready = eventfd(1, 0);
    NEED(add(set, ready, EPOLLIN) == 0);
    pthread_join(thread, NULL);
    close(ready);
    close(ends[0]);

    NEED(pipe(ends) == 0 && add(set, ends[0], EPOLLIN) == 0);
    int copy = dup(ends[0]), number = ends[0];
    close(ends[0]);
    NEED(write(ends[1], "x", 1) == 1);
    CHECK("a file stays watched while another descriptor has it", epoll_wait(set, events, 4, 0) == 1 && events[0].data.fd == number);
    CHECK_FAILS("but the closed number is unknown", epoll_ctl(set, EPOLL_CTL_DEL, number, events), EBADF);
    int other[2];
    NEED(pipe(other) == 0 && other[0] == number);
    CHECK_FAILS("used again, it is another file", epoll_ctl(set, EPOLL_CTL_DEL, number, events), ENOENT);
    CHECK("which can be watched beside the first", add(set, other[0], EPOLLIN) == 0 && write(other[1], "y", 1) == 1
        && epoll_wait(set, events, 4, 0) == 2);
    close(copy);
    CHECK("with its last descriptor a file leaves the set", epoll_wait(set, events, 4, 0) == 1 && events[0].data.fd == other[0]);
    close(other[0]), close(other[1]), close(ends[1]), close(set);
}

static void sets(void)
{
    int set = epoll_create1(0), a = eventfd(1, 0), b = eventfd(1, 0), c = eventfd(1, 0), file = open("/tmp", O_RDONLY);
    struct epoll_event event;
    /* Not on the stack, behind which there may be less than that many. */
    static struct epoll_event many[4];
    NEED(add(set, a, EPOLLIN) == 0 && add(set, b, EPOLLIN) == 0 && add(set, c, EPOLLIN) == 0);
    int seen[3] = {0};
    for (int i = 0; i < 9; i++) {
        NEED(epoll_wait(set, &event, 1, 0) == 1);
        seen[event.data.fd == a ? 0 : event.data.fd == b ? 1 : 2]++;
    }
    CHECK("what is always ready takes turns", seen[0] == 3 && seen[1] == 3 && seen[2] == 3);
    CHECK_FAILS("no room for events", epoll_wait(set, &event, 0, 0), EINVAL);
    CHECK("much room", syscall(SYS_epoll_wait, set, many, 100000000, 0) == 3);
    CHECK_FAILS("too much room", syscall(SYS_epoll_wait, set, many, INT32_MAX, 0), EINVAL);
    CHECK_FAILS("no epoll", epoll_wait(a, &event, 1, 0), EINVAL);
    CHECK_FAILS("a directory cannot be watched", add(set, file, EPOLLIN), EPERM);
    CHECK_FAILS("nor by what is no epoll", add(a, file, EPOLLIN), EPERM);
    CHECK_FAILS("an unknown operation", epoll_ctl(set, 9, a, &event), EINVAL);
    CHECK_FAILS("no event", epoll_ctl(set, EPOLL_CTL_ADD, -1, NULL), EFAULT);
    int d = eventfd(0, 0);
    CHECK("exclusive", add(set, d, EPOLLIN | EPOLLEXCLUSIVE) == 0);
    event.events = EPOLLIN;
    CHECK_FAILS("is not changed", epoll_ctl(set, EPOLL_CTL_MOD, d, &event), EINVAL);
    CHECK("but removed", epoll_ctl(set, EPOLL_CTL_DEL, d, NULL) == 0);
    CHECK_FAILS("it goes with few others", add(set, d, EPOLLPRI | EPOLLEXCLUSIVE), EINVAL);
    event.events = EPOLLIN | EPOLLEXCLUSIVE;
    CHECK_FAILS("and not with a change", epoll_ctl(set, EPOLL_CTL_MOD, a, &event), EINVAL);
    close(set), close(a), close(b), close(c), close(d), close(file);
}

static struct pollfd shared_entries[2];

static void *change_entry(void *unused)
{
    sleep_ms(20);
    shared_entries[0].fd = -77;
    shared_entries[0].events = 99;
    NEED(write(write_to, "12345678", 8) == 8);
    return unused;
}

static void polling(void)
{
    int ready = eventfd(1, 0), idle = eventfd(0, 0);
    struct pollfd entries[3] = {{ready, POLLIN, 7}, {-5, POLLIN, 7}, {900, POLLIN, 7}};
    CHECK("poll tells of each entry", poll(entries, 3, -1) == 2 && entries[0].revents == POLLIN && entries[1].revents == 0
        && entries[2].revents == POLLNVAL);
    CHECK("nothing to wait for", poll(NULL, 0, 0) == 0);
    CHECK("the count is an int", syscall(SYS_poll, entries, 0x100000001L, 0) == 1);
    CHECK_FAILS("a bad table", syscall(SYS_poll, (void *)16, 1, 0), EFAULT);
    struct rlimit limit, low;
    NEED(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    low = (struct rlimit){256, limit.rlim_max};
    NEED(setrlimit(RLIMIT_NOFILE, &low) == 0);
    CHECK_FAILS("more entries than descriptors may be", syscall(SYS_poll, entries, 257, 0), EINVAL);
    NEED(setrlimit(RLIMIT_NOFILE, &limit) == 0);

    shared_entries[0] = (struct pollfd){idle, POLLIN, 0};
    shared_entries[1] = (struct pollfd){idle, POLLIN, 0};
    pthread_t thread;
    write_to = idle;
    NEED(pthread_create(&thread, NULL, change_entry, NULL) == 0);
    CHECK("poll writes its results only", poll(shared_entries, 2, 5000) == 2 && shared_entries[0].fd == -77
        && shared_entries[0].events == 99 && shared_entries[0].revents == POLLIN);
    pthread_join(thread, NULL);

    fd_set set;
    FD_ZERO(&set);
    FD_SET(ready, &set);
    FD_SET(1000, &set);
    struct timeval none = {0, 0};
    CHECK("select does not look beyond the table", select(1024, &set, NULL, NULL, &none) == 1 && FD_ISSET(ready, &set));
    FD_ZERO(&set);
    FD_SET(50, &set);
    CHECK_FAILS("a closed descriptor below", select(51, &set, NULL, NULL, &none), EBADF);
    CHECK_FAILS("a negative count", select(-1, NULL, NULL, NULL, &none), EINVAL);
    static const struct timeval constant = {0, 1000};
    CHECK("a time that cannot be written to", syscall(SYS_select, 0, NULL, NULL, NULL, &constant) == 0);
    struct timeval negative = {-1, 0};
    CHECK_FAILS("a negative time", select(0, NULL, NULL, NULL, &negative), EINVAL);
    close(ready), close(idle);
}

static void numbers(void)
{
    struct rlimit limit, low;
    NEED(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    unsigned high = limit.rlim_max > 1000000 ? 1000000 : limit.rlim_max;
    low = (struct rlimit){high, limit.rlim_max};
    NEED(setrlimit(RLIMIT_NOFILE, &low) == 0);
    CHECK("the highest descriptor", dup2(1, (int)high - 1) == (int)high - 1 && fcntl((int)high - 1, F_GETFD) == 0);
    CHECK_FAILS("and the one behind", dup2(1, (int)high), EBADF);
    CHECK_FAILS("F_DUPFD beyond the limit", fcntl(1, F_DUPFD, high), EINVAL);
    CHECK_FAILS("F_DUPFD at the end", fcntl(1, F_DUPFD, high - 1), EMFILE);
    CHECK("a range of all is closed", syscall(SYS_close_range, 600, ~0U, 0) == 0 && fcntl((int)high - 1, F_GETFD) == -1 && errno == EBADF);
    CHECK_FAILS("a range from behind", syscall(SYS_close_range, 7, 6, 0), EINVAL);

    unlink("/tmp/not-to-be-made");
    int lowest = dup(1);
    close(lowest);
    low = (struct rlimit){(rlim_t)lowest, limit.rlim_max};
    NEED(setrlimit(RLIMIT_NOFILE, &low) == 0);
    CHECK_FAILS("no descriptor is left", open("/tmp/not-to-be-made", O_CREAT | O_WRONLY, 0600), EMFILE);
    CHECK_FAILS("nor for a pipe", pipe((int[2]){0}), EMFILE);
    NEED(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    CHECK("and no file was made", access("/tmp/not-to-be-made", F_OK) == -1 && errno == ENOENT);
    CHECK_FAILS("dup3 of the same", dup3(1, 1, 0), EINVAL);
    CHECK("dup2 of the same", dup2(1, 1) == 1);
    CHECK_FAILS("dup2 of what is closed", dup2(550, 550), EBADF);
}

static void counters(void)
{
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    uint64_t count = 0;
    struct itimerspec often = {{0, 1000000}, {0, 1000000}}, off = {{0, 0}, {0, 0}}, old;
    NEED(fd >= 0 && timerfd_settime(fd, 0, &often, NULL) == 0);
    sleep_ms(20);
    CHECK("a timer counts", read(fd, &count, 8) == 8 && count >= 5);
    int stale = 0;
    for (int i = 0; i < 200; i++) {
        NEED(timerfd_settime(fd, 0, &often, NULL) == 0);
        while (read(fd, &count, 8) != 8)
            ;
        NEED(timerfd_settime(fd, 0, &off, &old) == 0);
        stale += read(fd, &count, 8) == 8;
    }
    CHECK("a timer that is off does not tick", stale == 0);
    CHECK("off is zero", timerfd_gettime(fd, &old) == 0 && old.it_value.tv_sec == 0 && old.it_value.tv_nsec == 0);
    struct itimerspec always = {{0, 1}, {0, 1}};
    uint64_t total = 0;
    NEED(timerfd_settime(fd, 0, &always, NULL) == 0);
    while (total < 1000000)
        total += read(fd, &count, 8) == 8 ? count : 0;
    CHECK("nanoseconds are counted, and others run", timerfd_settime(fd, 0, &off, NULL) == 0);
    CHECK_FAILS("too little room", read(fd, &count, 7), EINVAL);
    CHECK_FAILS("writing to it", write(fd, &count, 8), EINVAL);
    CHECK_FAILS("a clock that it does not know", timerfd_create(CLOCK_TAI, 0), EINVAL);
    struct itimerspec bad = {{0, 0}, {0, 1000000000}};
    CHECK_FAILS("a billion nanoseconds", timerfd_settime(fd, 0, &bad, NULL), EINVAL);
    CHECK_FAILS("an unknown flag", timerfd_settime(fd, 8, &often, NULL), EINVAL);
    close(fd);
    fd = eventfd(0, EFD_NONBLOCK);
    uint64_t most = UINT64_MAX - 1, too_many = UINT64_MAX;
    CHECK_FAILS("an event counter has a last value", write(fd, &too_many, 8), EINVAL);
    CHECK("its largest", write(fd, &most, 8) == 8);
    struct pollfd entry = {fd, POLLIN | POLLOUT, 0};
    CHECK("full, it is not writable", poll(&entry, 1, 0) == 1 && entry.revents == POLLIN);
    count = 1;
    CHECK_FAILS("and takes no more", write(fd, &count, 8), EAGAIN);
    CHECK("reading empties it", read(fd, &count, 8) == 8 && count == most && read(fd, &count, 8) == -1 && errno == EAGAIN);
    close(fd);
}

int main(void)
{
    nesting();
    closing();
    sets();
    polling();
    numbers();
    counters();
    return finish();
}
