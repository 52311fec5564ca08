/* Lists a folder, in the order of names: each name in hexadecimal, mode, links, length, content's hash or link's
 * target. Twice the same where the folder is the same. */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int by_name(const struct dirent **a, const struct dirent **b) {
    return strcmp((*a)->d_name, (*b)->d_name);
}

static unsigned hash_of(int fd) {
    static unsigned char bytes[1 << 16];
    unsigned hash = 2166136261;
    ssize_t count;
    while ((count = read(fd, bytes, sizeof bytes)) > 0)
        for (ssize_t at = 0; at < count; at++)
            hash = (hash ^ bytes[at]) * 16777619;
    return count < 0 ? 0 : hash;
}

static void list(int folder, int depth) {
    struct dirent **entries;
    int count = fchdir(folder) == 0 ? scandir(".", &entries, NULL, by_name) : -1;
    if (count < 0) {
        perror("scandir");
        exit(1);
    }
    for (int at = 0; at < count; at++) {
        const char *name = entries[at]->d_name;
        if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
            continue;
        struct stat status;
        if (fstatat(folder, name, &status, AT_SYMLINK_NOFOLLOW) != 0) {
            perror("fstatat");
            exit(1);
        }
        printf("%d ", depth);
        for (const char *letter = name; *letter; letter++)
            printf("%02x", (unsigned char)*letter);
        printf(" %o %ju type %d", (unsigned)status.st_mode, (uintmax_t)status.st_nlink, entries[at]->d_type);
        char target[4097];
        if (S_ISREG(status.st_mode)) {
            int fd = openat(folder, name, O_RDONLY);
            printf(" %ju %08x", (uintmax_t)status.st_size, hash_of(fd));
            close(fd);
        } else if (S_ISLNK(status.st_mode)) {
            ssize_t length = readlinkat(folder, name, target, sizeof target);
            printf(" %zd %.10s", length, target);
        }
        printf("\n");
        if (S_ISDIR(status.st_mode)) {
            int fd = openat(folder, name, O_RDONLY | O_DIRECTORY);
            list(fd, depth + 1);
            close(fd);
        }
        free(entries[at]);
    }
    free(entries);
}

int main(int argc, char **argv) {
    int folder = argc == 2 ? open(argv[1], O_RDONLY | O_DIRECTORY) : -1;
    if (folder < 0) {
        perror("open");
        return 1;
    }
    list(folder, 0);
    return 0;
}
