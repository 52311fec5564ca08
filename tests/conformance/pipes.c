/* Pipes, eventfd, socket pairs, poll, select and epoll. */
#define _GNU_SOURCE
#include "check.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <signal.h>

static int ends[2];

static void *write_later(void *argument)
{
    sleep_ms(20);
    NEED(write((int)(intptr_t)argument, "later", 5) == 5);
    return NULL;
}

static void *drain_later(void *unused)
{
    char bytes[4096];
    size_t total = 0;
    sleep_ms(20);
    while (total < 200000) {
        ssize_t len = read(ends[0], bytes, sizeof bytes);
        NEED(len > 0);
        total += len;
    }
    return unused;
}

static void pipes(void)
{
    char bytes[200000] = {0};
    pthread_t thread;
    NEED(pipe(ends) == 0);
    CHECK("through a pipe", write(ends[1], "abc", 3) == 3 && read(ends[0], bytes, 10) == 3 && memcmp(bytes, "abc", 3) == 0);
    int len = -1;
    NEED(write(ends[1], "abcd", 4) == 4);
    CHECK("FIONREAD", ioctl(ends[0], FIONREAD, &len) == 0 && len == 4);
    CHECK("a short read leaves the rest", read(ends[0], bytes, 2) == 2 && read(ends[0], bytes, 4) == 2);
    NEED(pthread_create(&thread, NULL, write_later, (void *)(intptr_t)ends[1]) == 0);
    CHECK("a read waits for data", read(ends[0], bytes, 10) == 5);
    pthread_join(thread, NULL);
    NEED(pthread_create(&thread, NULL, drain_later, NULL) == 0);
    CHECK("a large write waits for room", write(ends[1], bytes, 200000) == 200000);
    pthread_join(thread, NULL);
    NEED(fcntl(ends[0], F_SETFL, O_NONBLOCK) == 0 && fcntl(ends[1], F_SETFL, O_NONBLOCK) == 0);
    CHECK_FAILS("an empty pipe without waiting", read(ends[0], bytes, 1), EAGAIN);
    CHECK_EQUAL("a pipe holds 64 KiB", write(ends[1], bytes, 200000), 65536);
    CHECK_FAILS("a full pipe without waiting", write(ends[1], bytes, 1), EAGAIN);
    NEED(read(ends[0], bytes, 65536) == 65536);
    close(ends[1]);
    CHECK("the end of a pipe", read(ends[0], bytes, 1) == 0);
    close(ends[0]);
    NEED(pipe2(ends, O_CLOEXEC | O_NONBLOCK) == 0);
    CHECK("pipe2 sets flags", fcntl(ends[0], F_GETFD) == FD_CLOEXEC && (fcntl(ends[1], F_GETFL) & O_NONBLOCK));
    CHECK_FAILS("reading the writing end", read(ends[1], bytes, 1), EBADF);
    close(ends[0]), close(ends[1]);
}

static void eventfds(void)
{
    uint64_t value;
    int fd = eventfd(3, EFD_NONBLOCK);
    CHECK("eventfd starts with its value", read(fd, &value, 8) == 8 && value == 3);
    CHECK_FAILS("and is empty then", read(fd, &value, 8), EAGAIN);
    value = 5;
    NEED(write(fd, &value, 8) == 8 && write(fd, &value, 8) == 8);
    CHECK("values add up", read(fd, &value, 8) == 8 && value == 10);
    CHECK_FAILS("too short a buffer", read(fd, &value, 4), EINVAL);
    value = ~0ULL;
    CHECK_FAILS("too large a value", write(fd, &value, 8), EINVAL);
    int semaphore = eventfd(2, EFD_SEMAPHORE | EFD_NONBLOCK);
    CHECK("a semaphore gives one at a time", read(semaphore, &value, 8) == 8 && value == 1 && read(semaphore, &value, 8) == 8
        && read(semaphore, &value, 8) == -1);
    close(fd), close(semaphore);
}

static void socket_pairs(void)
{
    int pair[2];
    char bytes[16];
    NEED(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
    CHECK("carries data one way", write(pair[0], "abc", 3) == 3 && read(pair[1], bytes, 16) == 3);
    CHECK("and the other", write(pair[1], "de", 2) == 2 && read(pair[0], bytes, 16) == 2);
    CHECK("one direction is shut down", shutdown(pair[0], SHUT_WR) == 0 && read(pair[1], bytes, 16) == 0);
    CHECK("the other is not", write(pair[1], "f", 1) == 1 && read(pair[0], bytes, 16) == 1);
    close(pair[1]);
    CHECK("the end of a pair", read(pair[0], bytes, 16) == 0);
    /* A JDK replaces a descriptor that it closes by half of a pair, so that readers wake up. */
    CHECK("a descriptor is replaced by it", pipe(ends) == 0 && dup2(pair[0], ends[0]) == ends[0] && read(ends[0], bytes, 1) == 0);
    close(pair[0]), close(ends[0]), close(ends[1]);
}

static void polling(void)
{
    NEED(pipe(ends) == 0);
    struct pollfd fds[2] = {{.fd = ends[0], .events = POLLIN}, {.fd = ends[1], .events = POLLOUT}};
    CHECK("poll finds the writable end", poll(fds, 2, 1000) == 1 && fds[0].revents == 0 && fds[1].revents == POLLOUT);
    int64_t before = now_ns();
    CHECK("poll times out", poll(fds, 1, 30) == 0 && now_ns() - before >= 30000000);
    CHECK("poll without waiting", poll(fds, 1, 0) == 0);
    pthread_t thread;
    NEED(pthread_create(&thread, NULL, write_later, (void *)(intptr_t)ends[1]) == 0);
    CHECK("poll wakes for data", poll(fds, 1, 5000) == 1 && fds[0].revents == POLLIN);
    pthread_join(thread, NULL);
    fd_set set;
    FD_ZERO(&set);
    FD_SET(ends[0], &set);
    struct timeval second = {1, 0};
    CHECK("select agrees", select(ends[0] + 1, &set, NULL, NULL, &second) == 1 && FD_ISSET(ends[0], &set));
    char bytes[16];
    NEED(read(ends[0], bytes, 16) == 5);
    close(ends[1]);
    CHECK("a closed writer is POLLHUP", poll(fds, 1, 1000) == 1 && fds[0].revents == POLLHUP);
    fds[0].fd = 900;
    CHECK("a descriptor that is not open is POLLNVAL", poll(fds, 1, 1000) == 1 && fds[0].revents == POLLNVAL);
    fds[0].fd = -1;
    CHECK("a negative one is passed over", poll(fds, 1, 0) == 0 && fds[0].revents == 0);
    close(ends[0]);
}

static void *bump_later(void *argument)
{
    uint64_t one = 1;
    sleep_ms(20);
    NEED(write((int)(intptr_t)argument, &one, 8) == 8);
    return NULL;
}

static void epolls(void)
{
    int epoll = epoll_create1(EPOLL_CLOEXEC), event = eventfd(0, EFD_NONBLOCK);
    struct epoll_event wanted = {.events = EPOLLIN, .data.u64 = 0x1122334455667788}, got[4];
    CHECK("epoll_ctl adds", epoll_ctl(epoll, EPOLL_CTL_ADD, event, &wanted) == 0);
    CHECK_FAILS("but not twice", epoll_ctl(epoll, EPOLL_CTL_ADD, event, &wanted), EEXIST);
    CHECK("nothing is ready", epoll_wait(epoll, got, 4, 0) == 0);
    int64_t before = now_ns();
    CHECK("epoll_wait times out", epoll_wait(epoll, got, 4, 30) == 0 && now_ns() - before >= 30000000);
    pthread_t thread;
    NEED(pthread_create(&thread, NULL, bump_later, (void *)(intptr_t)event) == 0);
    CHECK("epoll_wait wakes", epoll_wait(epoll, got, 4, 5000) == 1 && got[0].events == EPOLLIN && got[0].data.u64 == 0x1122334455667788);
    pthread_join(thread, NULL);
    CHECK("level-triggered tells again", epoll_wait(epoll, got, 4, 0) == 1);
    wanted.events = EPOLLIN | EPOLLET;
    NEED(epoll_ctl(epoll, EPOLL_CTL_MOD, event, &wanted) == 0);
    CHECK("edge-triggered tells once", epoll_wait(epoll, got, 4, 0) == 1 && epoll_wait(epoll, got, 4, 0) == 0);
    uint64_t value = 1;
    NEED(write(event, &value, 8) == 8);
    CHECK("and again after the next edge", epoll_wait(epoll, got, 4, 0) == 1);
    wanted.events = EPOLLIN | EPOLLONESHOT;
    NEED(epoll_ctl(epoll, EPOLL_CTL_MOD, event, &wanted) == 0);
    CHECK("one-shot tells once", epoll_wait(epoll, got, 4, 0) == 1 && epoll_wait(epoll, got, 4, 0) == 0);
    NEED(epoll_ctl(epoll, EPOLL_CTL_MOD, event, &wanted) == 0);
    CHECK("until it is armed again", epoll_wait(epoll, got, 4, 0) == 1);
    CHECK("epoll_ctl removes", epoll_ctl(epoll, EPOLL_CTL_DEL, event, NULL) == 0 && epoll_wait(epoll, got, 4, 0) == 0);
    CHECK_FAILS("removing what is not there", epoll_ctl(epoll, EPOLL_CTL_DEL, event, NULL), ENOENT);
    wanted.events = EPOLLIN;
    NEED(pipe(ends) == 0 && epoll_ctl(epoll, EPOLL_CTL_ADD, ends[0], &wanted) == 0);
    close(ends[1]);
    CHECK("a hang-up is told unasked", epoll_wait(epoll, got, 4, 1000) == 1 && (got[0].events & EPOLLHUP));
    close(ends[0]);
    CHECK("a closed descriptor leaves the set", epoll_wait(epoll, got, 4, 0) == 0);
    int file = open("/proc/self/exe", O_RDONLY);
    CHECK_FAILS("regular files cannot be watched", epoll_ctl(epoll, EPOLL_CTL_ADD, file, &wanted), EPERM);
    CHECK_FAILS("room for no event", epoll_wait(epoll, got, 0, 0), EINVAL);
    close(file), close(event), close(epoll);
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    pipes();
    eventfds();
    socket_pairs();
    polling();
    epolls();
    return finish();
}
