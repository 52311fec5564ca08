/* Files and directories on /tmp: names, offsets, holes, appending, links, metadata. */
#define _GNU_SOURCE
#include "check.h"
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>

static char dir[] = "/tmp/conformance-files-XXXXXX";

static void opening(void)
{
    int fd = open("a", O_RDWR | O_CREAT | O_EXCL, 0640);
    CHECK("creating a file", fd >= 0);
    CHECK_FAILS("O_EXCL refuses an existing one", open("a", O_RDWR | O_CREAT | O_EXCL, 0600), EEXIST);
    struct stat st;
    CHECK("its mode", fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && (st.st_mode & 0777) == 0640 && st.st_size == 0 && st.st_nlink == 1);
    CHECK("descriptors are the lowest free", dup(fd) == fd + 1 && close(fd + 1) == 0);
    CHECK("writing", write(fd, "hello world", 11) == 11);
    CHECK("the offset moved", lseek(fd, 0, SEEK_CUR) == 11);
    char text[32] = "";
    CHECK("reading at the end", read(fd, text, 10) == 0);
    CHECK("reading from the start", lseek(fd, 0, SEEK_SET) == 0 && read(fd, text, 5) == 5 && memcmp(text, "hello", 5) == 0);
    CHECK("pread leaves the offset", pread(fd, text, 5, 6) == 5 && memcmp(text, "world", 5) == 0 && lseek(fd, 0, SEEK_CUR) == 5);
    CHECK("pwrite as well", pwrite(fd, "W", 1, 6) == 1 && lseek(fd, 0, SEEK_CUR) == 5);
    CHECK("O_TRUNC", close(open("a", O_WRONLY | O_TRUNC)) == 0 && fstat(fd, &st) == 0 && st.st_size == 0);
    close(fd);
    CHECK_FAILS("a closed descriptor", read(fd, text, 1), EBADF);
    CHECK_FAILS("a file that is not there", open("none", O_RDONLY), ENOENT);
    CHECK_FAILS("a file as a directory", open("a/b", O_RDONLY), ENOTDIR);
    CHECK_FAILS("a directory for writing", open(".", O_WRONLY), EISDIR);
    CHECK_FAILS("O_DIRECTORY on a file", open("a", O_RDONLY | O_DIRECTORY), ENOTDIR);
    char name[300];
    memset(name, 'n', sizeof name - 1);
    name[sizeof name - 1] = 0;
    CHECK_FAILS("a name of 299 bytes", open(name, O_RDONLY | O_CREAT, 0600), ENAMETOOLONG);
    fd = open("a", O_RDONLY);
    CHECK_FAILS("writing to a read-only descriptor", write(fd, "x", 1), EBADF);
    CHECK("fcntl tells the mode", (fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDONLY);
    CHECK("close-on-exec", fcntl(fd, F_SETFD, FD_CLOEXEC) == 0 && fcntl(fd, F_GETFD) == FD_CLOEXEC);
    CHECK("F_DUPFD takes a minimum", fcntl(fd, F_DUPFD_CLOEXEC, 100) == 100 && close(100) == 0);
    CHECK("dup2", dup2(fd, 90) == 90 && close(90) == 0);
    close(fd);
}

static void offsets(void)
{
    int fd = open("sparse", O_RDWR | O_CREAT, 0600);
    struct stat st;
    char bytes[8192];
    CHECK("writing behind a hole", pwrite(fd, "x", 1, 1 << 20) == 1 && fstat(fd, &st) == 0 && st.st_size == (1 << 20) + 1);
    CHECK("a hole reads as zero", pread(fd, bytes, sizeof bytes, 4096) == sizeof bytes && bytes[0] == 0 && bytes[8191] == 0);
    CHECK("SEEK_END", lseek(fd, -1, SEEK_END) == 1 << 20);
    CHECK_FAILS("before the start", lseek(fd, -1, SEEK_SET), EINVAL);
    CHECK("beyond the end is allowed", lseek(fd, 1 << 21, SEEK_SET) == 1 << 21 && read(fd, bytes, 1) == 0);
    CHECK("ftruncate shortens", ftruncate(fd, 10) == 0 && fstat(fd, &st) == 0 && st.st_size == 10);
    CHECK("and lengthens with zeros", pwrite(fd, "y", 1, 9) == 1 && ftruncate(fd, 5) == 0 && ftruncate(fd, 10) == 0
        && pread(fd, bytes, 10, 0) == 10 && bytes[9] == 0);
    CHECK_FAILS("to a negative length", ftruncate(fd, -1), EINVAL);
    CHECK("fallocate", fallocate(fd, 0, 0, 100000) == 0 && fstat(fd, &st) == 0 && st.st_size == 100000);
    close(fd);
    int one = open("log", O_WRONLY | O_CREAT | O_APPEND, 0600), two = open("log", O_WRONLY | O_APPEND);
    NEED(write(one, "a", 1) == 1 && write(two, "b", 1) == 1 && write(one, "c", 1) == 1);
    int reading = open("log", O_RDONLY);
    CHECK("O_APPEND writes at the end", read(reading, bytes, 10) == 3 && memcmp(bytes, "abc", 3) == 0);
    struct iovec out[2] = {{"de", 2}, {"f", 1}};
    CHECK("writev", writev(one, out, 2) == 3);
    char first[2], second[4];
    struct iovec in[2] = {{first, 2}, {second, 4}};
    CHECK("readv", lseek(reading, 0, SEEK_SET) == 0 && readv(reading, in, 2) == 6 && memcmp(second, "cdef", 4) == 0);
    int copy = dup(reading);
    CHECK("duplicates share an offset", lseek(copy, 2, SEEK_SET) == 2 && lseek(reading, 0, SEEK_CUR) == 2);
    CHECK("fsync and fdatasync", fsync(one) == 0 && fdatasync(one) == 0);
    close(one), close(two), close(reading), close(copy);
}

static void names(void)
{
    struct stat st, before;
    NEED(close(open("old", O_WRONLY | O_CREAT, 0600)) == 0 && stat("old", &before) == 0);
    CHECK("rename", rename("old", "new") == 0 && stat("new", &st) == 0 && st.st_ino == before.st_ino);
    CHECK_FAILS("the old name is gone", stat("old", &st), ENOENT);
    NEED(close(open("target", O_WRONLY | O_CREAT, 0600)) == 0);
    CHECK("rename replaces", rename("new", "target") == 0 && stat("target", &st) == 0 && st.st_ino == before.st_ino);
    CHECK("mkdir", mkdir("d", 0755) == 0 && stat("d", &st) == 0 && S_ISDIR(st.st_mode));
    CHECK_FAILS("twice", mkdir("d", 0755), EEXIST);
    CHECK("rename into a directory", rename("target", "d/target") == 0);
    CHECK_FAILS("a directory that is not empty", rmdir("d"), ENOTEMPTY);
    CHECK_FAILS("a directory into itself", rename("d", "d/sub"), EINVAL);
    CHECK_FAILS("unlink of a directory", unlink("d"), EISDIR);
    CHECK("link", link("d/target", "again") == 0 && stat("again", &st) == 0 && st.st_nlink == 2);
    CHECK("symlink", symlink("d/target", "soft") == 0 && lstat("soft", &st) == 0 && S_ISLNK(st.st_mode) && st.st_size == 8);
    char text[64];
    ssize_t len = readlink("soft", text, sizeof text);
    CHECK("readlink", len == 8 && memcmp(text, "d/target", 8) == 0);
    CHECK("a link is followed", stat("soft", &st) == 0 && S_ISREG(st.st_mode));
    CHECK_FAILS("but not with O_NOFOLLOW", open("soft", O_RDONLY | O_NOFOLLOW), ELOOP);
    CHECK("a link to nowhere", symlink("nowhere", "dangling") == 0 && access("dangling", F_OK) == -1 && errno == ENOENT);
    CHECK("a loop of links", symlink("loop", "loop") == 0 && open("loop", O_RDONLY) == -1 && errno == ELOOP);
    int fd = open("again", O_RDWR);
    NEED(unlink("again") == 0 && unlink("d/target") == 0 && write(fd, "still", 5) == 5);
    CHECK("an unlinked file lives while it is open", pread(fd, text, 5, 0) == 5 && fstat(fd, &st) == 0 && st.st_nlink == 0);
    close(fd);
    CHECK("rmdir", rmdir("d") == 0);
    CHECK_FAILS("of what is gone", rmdir("d"), ENOENT);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(a, b);
}

static void directories(void)
{
    char listed[1100][16];
    int count = 0;
    NEED(mkdir("many", 0700) == 0 && chdir("many") == 0);
    for (int i = 0; i < 1000; i++) {
        char name[16];
        snprintf(name, sizeof name, "f%04d", i);
        NEED(close(open(name, O_WRONLY | O_CREAT, 0600)) == 0);
    }
    DIR *many = opendir(".");
    NEED(many != NULL);
    for (struct dirent *entry; count < 1100 && (entry = readdir(many)) != NULL; count++)
        snprintf(listed[count], 16, "%.15s", entry->d_name);
    qsort(listed, count, 16, by_name);
    CHECK_EQUAL("readdir lists each entry once, and . and ..", count, 1002);
    CHECK("by their names", strcmp(listed[0], ".") == 0 && strcmp(listed[1], "..") == 0
        && strcmp(listed[2], "f0000") == 0 && strcmp(listed[1001], "f0999") == 0);
    rewinddir(many);
    struct dirent *entry = readdir(many);
    CHECK("rewinddir starts again", entry != NULL);
    closedir(many);
    char cwd[PATH_MAX], wanted[PATH_MAX];
    snprintf(wanted, sizeof wanted, "%s/many", dir);
    CHECK("getcwd", getcwd(cwd, sizeof cwd) != NULL && strcmp(cwd, wanted) == 0);
    for (int i = 0; i < 1000; i++) {
        char name[16];
        snprintf(name, sizeof name, "f%04d", i);
        NEED(unlink(name) == 0);
    }
    NEED(chdir("..") == 0);
    CHECK("rmdir of what was emptied", rmdir("many") == 0);
    int at = open(".", O_RDONLY | O_DIRECTORY);
    CHECK("mkdirat", mkdirat(at, "sub", 0700) == 0);
    int sub = openat(at, "sub", O_RDONLY | O_DIRECTORY);
    CHECK("openat and fchdir", sub >= 0 && fchdir(sub) == 0 && close(open("inner", O_CREAT | O_WRONLY, 0600)) == 0);
    CHECK(".. leads back", stat("../sub/inner", &(struct stat){0}) == 0);
    CHECK("unlinkat", unlinkat(sub, "inner", 0) == 0 && fchdir(at) == 0 && unlinkat(at, "sub", AT_REMOVEDIR) == 0);
    CHECK("renameat2 without replacing", close(open("one", O_CREAT | O_WRONLY, 0600)) == 0
        && close(open("two", O_CREAT | O_WRONLY, 0600)) == 0
        && syscall(SYS_renameat2, at, "one", at, "two", 1) == -1 && errno == EEXIST);
    close(at), close(sub);
}

static void metadata(void)
{
    struct stat st;
    int fd = open("meta", O_RDWR | O_CREAT, 0600);
    NEED(write(fd, "12345", 5) == 5);
    struct timespec times[2] = {{1000000000, 5}, {1234567890, 123456789}};
    CHECK("futimens sets times", futimens(fd, times) == 0 && fstat(fd, &st) == 0 && st.st_mtim.tv_sec == 1234567890
        && st.st_mtim.tv_nsec == 123456789 && st.st_atim.tv_sec == 1000000000);
    NEED(write(fd, "6", 1) == 1);
    CHECK("writing renews the modification time", fstat(fd, &st) == 0 && st.st_mtim.tv_sec > 1700000000);
    CHECK("fchmod", fchmod(fd, 0444) == 0 && fstat(fd, &st) == 0 && (st.st_mode & 07777) == 0444);
    CHECK("block size and count", st.st_blksize >= 512 && st.st_size == 6);
    CHECK("access to one's own file", access("meta", R_OK) == 0 && access("meta", F_OK) == 0);
    CHECK("umask", umask(077) == 022 && umask(022) == 077);
    struct statvfs fs;
    CHECK("statvfs of /tmp", statvfs("/tmp", &fs) == 0 && fs.f_bsize >= 512 && fs.f_blocks > 0 && fs.f_namemax >= 255);
    CHECK("flock", flock(fd, LOCK_EX) == 0 && flock(fd, LOCK_UN) == 0);
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    CHECK("record locks", fcntl(fd, F_SETLK, &lock) == 0 && fcntl(fd, F_GETLK, &lock) == 0 && lock.l_type == F_UNLCK);
    close(fd);
    CHECK("the file's path behind its descriptor", (fd = open("meta", O_RDONLY)) >= 0);
    char link[32], path[PATH_MAX], wanted[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    snprintf(wanted, sizeof wanted, "%s/meta", dir);
    ssize_t len = readlink(link, path, sizeof path);
    CHECK("/proc/self/fd", len == (ssize_t)strlen(wanted) && memcmp(path, wanted, len) == 0);
    close(fd);
    CHECK_FAILS("seeking in a pipe", (pipe((int[2]){0}), lseek(fd, 0, SEEK_SET)), ESPIPE);
}

static void devices(void)
{
    char bytes[16];
    int null = open("/dev/null", O_RDWR), zero = open("/dev/zero", O_RDWR), random = open("/dev/urandom", O_RDONLY);
    memset(bytes, 1, 16);
    CHECK("/dev/null", write(null, "x", 1) == 1 && read(null, bytes, 1) == 0);
    CHECK("/dev/zero", read(zero, bytes, 8) == 8 && bytes[7] == 0 && bytes[8] == 1);
    CHECK("/dev/urandom", read(random, bytes, 16) == 16);
    CHECK_FAILS("/dev/full", (write(open("/dev/full", O_WRONLY), "x", 1)), ENOSPC);
    struct stat st;
    CHECK("/dev/null is a character device", stat("/dev/null", &st) == 0 && S_ISCHR(st.st_mode));
}

static void large(void)
{
    enum { CHUNK = 65536, CHUNKS = 64 };
    static unsigned char out[CHUNK], in[CHUNK];
    int fd = open("large", O_RDWR | O_CREAT, 0600), good = 1;
    for (int i = 0; i < CHUNKS; i++) {
        for (int j = 0; j < CHUNK; j++)
            out[j] = (unsigned char)(i * 31 + j * 7);
        good &= write(fd, out, CHUNK) == CHUNK;
    }
    NEED(lseek(fd, 0, SEEK_SET) == 0);
    for (int i = 0; i < CHUNKS; i++) {
        for (int j = 0; j < CHUNK; j++)
            out[j] = (unsigned char)(i * 31 + j * 7);
        good &= read(fd, in, CHUNK) == CHUNK && memcmp(in, out, CHUNK) == 0;
    }
    CHECK("4 MiB come back as written", good);
    close(fd);
}

int main(void)
{
    NEED(mkdtemp(dir) != NULL && chdir(dir) == 0);
    umask(022);
    opening();
    offsets();
    names();
    directories();
    metadata();
    devices();
    large();
    static const char *const left[] = {"a", "sparse", "log", "soft", "dangling", "loop", "one", "two", "meta", "large"};
    for (size_t i = 0; i < sizeof left / sizeof *left; i++)
        unlink(left[i]);
    CHECK("nothing else is left", chdir("/") == 0 && rmdir(dir) == 0);
    return finish();
}
