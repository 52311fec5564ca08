/* A block device as a file, on a machine with less memory than the device has bytes: `map` writes all of
 * it through a shared mapping and reads it back, then half of it by calls that nobody syncs; `fail` is
 * for a device whose writes fail; `read-only` for one that takes none. Every line says what held. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE 4096
#define WORDS (PAGE / 8)

static int failed;

static void check(const char *what, int holds) {
    printf("%s: %s\n", what, holds ? "yes" : "NO");
    failed |= !holds;
}

/* The host's side of the test writes the same formula. */
static uint64_t word(uint64_t page, uint64_t at, uint64_t round) {
    return (page * WORDS + at) * 0x9e3779b97f4a7c15u + round;
}

static void fill(uint64_t *to, uint64_t page, uint64_t round) {
    for (uint64_t at = 0; at < WORDS; at++)
        to[at] = word(page, at, round);
}

static int is_filled(const uint64_t *from, uint64_t page, uint64_t round) {
    for (uint64_t at = 0; at < WORDS; at++)
        if (from[at] != word(page, at, round))
            return 0;
    return 1;
}

static uint64_t buffer[WORDS];

static uint64_t pages_wrong(int fd, uint64_t from, uint64_t to, uint64_t round) {
    uint64_t wrong = 0;
    for (uint64_t page = from; page < to; page++)
        wrong += pread(fd, buffer, PAGE, page * PAGE) != PAGE || !is_filled(buffer, page, round);
    return wrong;
}

static int map(int fd) {
    uint64_t size = 0;
    check("the device says its size", ioctl(fd, BLKGETSIZE64, &size) == 0 && size >= 64 << 20);
    check("and its end", lseek(fd, 0, SEEK_END) == (off_t)size);
    int only = 1, sector = 0;
    check("it may be written", ioctl(fd, BLKROGET, &only) == 0 && only == 0);
    check("in sectors of 512 bytes", ioctl(fd, BLKSSZGET, &sector) == 0 && sector == 512);
    struct stat st;
    check("it is a block device", fstat(fd, &st) == 0 && S_ISBLK(st.st_mode) && st.st_size == 0);
    uint64_t pages = size / PAGE;
    uint64_t *all = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    check("it can be mapped shared", all != MAP_FAILED);
    for (uint64_t page = 0; page < pages; page++)
        fill(all + page * WORDS, page, 1);
    check("msync", msync(all, size, MS_SYNC) == 0);
    /* A write after the sync must not be missed. */
    fill(all + 5 * WORDS, 5, 2);
    check("a write shows in a read", pages_wrong(fd, 5, 6, 2) == 0);
    check("fsync", fsync(fd) == 0);
    fill(all + 5 * WORDS, 5, 1);
    check("fdatasync", fdatasync(fd) == 0);
    munmap(all, size);
    check("the cache can be dropped", ioctl(fd, BLKFLSBUF, 0) == 0);
    check("everything reads back", pages_wrong(fd, 0, pages, 1) == 0);
    int short_writes = 0;
    for (uint64_t page = 0; page < pages / 2; page++) {
        fill(buffer, page, 3);
        short_writes += pwrite(fd, buffer, PAGE, page * PAGE) != PAGE;
    }
    check("half of it is written again", short_writes == 0);
    /* Without reading what stands around it. */
    check("and part of a page", pwrite(fd, "part", 4, (pages - 1) * PAGE + 10) == 4);
    check("nothing beyond the end", pwrite(fd, "x", 1, size) == -1 && errno == ENOSPC);
    check("a read there is the end", pread(fd, buffer, 1, size) == 0);
    return failed;
}

static int fail(int fd) {
    fill(buffer, 0, 1);
    check("a write is taken", write(fd, buffer, PAGE) == PAGE);
    check("fsync says that it failed", fsync(fd) == -1 && errno == EIO);
    check("once", fsync(fd) == 0);
    uint64_t *page = mmap(0, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 4096);
    page[0] = 1;
    check("msync says it, too", msync(page, PAGE, MS_SYNC) == -1 && errno == EIO);
    /* Far more than may be dirty: it must end. */
    uint64_t size = 0;
    ioctl(fd, BLKGETSIZE64, &size);
    int refused = 0;
    for (uint64_t at = 0; at < size; at += PAGE)
        refused += pwrite(fd, buffer, PAGE, at) != PAGE;
    check("writers do not hang", refused == 0);
    check("and hear of it", fsync(fd) == -1 && errno == EIO);
    return failed;
}

static int read_only(int fd) {
    int only = 0;
    check("the device is read-only", ioctl(fd, BLKROGET, &only) == 0 && only == 1);
    check("a write is refused", write(fd, "x", 1) == -1 && errno == EPERM);
    check("a shared writable mapping, too",
          mmap(0, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED && errno == EINVAL);
    char *page = mmap(0, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    check("a private one is not", page != MAP_FAILED);
    page[0] ^= 1;
    check("and keeps its writes to itself", pread(fd, buffer, 1, 0) == 1 && *(char *)buffer == (page[0] ^ 1));
    check("fsync has nothing to say", fsync(fd) == 0);
    return failed;
}

int main(int count, char **arguments) {
    const char *path = count > 2 ? arguments[2] : "/dev/vdb";
    setvbuf(stdout, 0, _IOLBF, 0);
    int fd = open(path, O_RDWR);
    if (count < 2 || fd < 0) {
        perror(path);
        return 1;
    }
    if (strcmp(arguments[1], "map") == 0)
        return map(fd);
    return strcmp(arguments[1], "fail") == 0 ? fail(fd) : read_only(fd);
}
