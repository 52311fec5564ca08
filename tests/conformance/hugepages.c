/* Transparent huge pages: advice, what /proc shows of it, and changes to a part of a huge page.
 * Whether a huge page really came is the kernel's choice; what a program reads must not depend on it. */
#define _GNU_SOURCE
#include "check.h"
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/statfs.h>
#include <sys/syscall.h>

#define PAGE 4096UL
#define HUGE (2UL << 20)
#define PAGES (HUGE / PAGE)

/* `count` huge pages of anonymous memory, aligned, beside a page of each side that is not mapped. */
static char *reserve(unsigned long count)
{
    unsigned long len = count * HUGE;
    char *base = mmap(NULL, len + 2 * HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    NEED(base != MAP_FAILED);
    char *start = (char *)(((uintptr_t)base + HUGE) & ~(HUGE - 1));
    NEED(munmap(base, start - base) == 0);
    NEED(munmap(start + len, base + 2 * HUGE - start) == 0);
    return start;
}

static void number(char *at, unsigned long pages)
{
    for (unsigned long page = 0; page < pages; page++)
        *(unsigned long *)(at + page * PAGE) = page + 1;
}

/* True if the pages from `first` to before `end` hold their numbers. */
static int numbered(const char *at, unsigned long first, unsigned long end)
{
    for (unsigned long page = first; page < end; page++)
        if (*(unsigned long *)(at + page * PAGE) != page + 1)
            return 0;
    return 1;
}

static int zero(const char *at, unsigned long first, unsigned long end)
{
    for (unsigned long page = first; page < end; page++)
        if (*(unsigned long *)(at + page * PAGE) != 0)
            return 0;
    return 1;
}

/* The line of /proc/self/smaps that begins with `name`, for the mapping that holds `at`. */
static int smaps_line(const void *at, const char *name, char *line, int size)
{
    FILE *smaps = fopen("/proc/self/smaps", "r");
    NEED(smaps != NULL);
    int inside = 0, found = 0;
    while (!found && fgets(line, size, smaps)) {
        unsigned long start, end;
        char dash;
        if (sscanf(line, "%lx%c%lx ", &start, &dash, &end) == 3 && dash == '-')
            inside = start <= (unsigned long)at && (unsigned long)at < end;
        else
            found = inside && strncmp(line, name, strlen(name)) == 0;
    }
    fclose(smaps);
    return found;
}

static int has_flag(const void *at, const char *flag)
{
    char line[512];
    return smaps_line(at, "VmFlags:", line, sizeof line) && strstr(line, flag) != NULL;
}

/* -1: there is no such line. */
static long smaps_kb(const void *at, const char *name)
{
    char line[512];
    return smaps_line(at, name, line, sizeof line) ? strtol(line + strlen(name), NULL, 10) : -1;
}

static int resident(char *at)
{
    unsigned char state = 0;
    return mincore(at, PAGE, &state) == 0 ? state & 1 : -1;
}

/* The kernel refuses to write there, and kills nobody. */
static int is_read_only(char *at)
{
    int zeroes = open("/dev/zero", O_RDONLY);
    NEED(zeroes >= 0);
    long got = read(zeroes, at, 8);
    int refused = got == -1 && errno == EFAULT;
    close(zeroes);
    return refused;
}

static void advice(void)
{
    char *at = reserve(4);
    CHECK("no advice yet", !has_flag(at, " hg") && !has_flag(at, " nh"));
    CHECK("MADV_HUGEPAGE", madvise(at, 2 * HUGE, MADV_HUGEPAGE) == 0);
    CHECK("smaps shows it", has_flag(at, " hg"));
    CHECK("of no more than the range", !has_flag(at + 2 * HUGE, " hg"));
    CHECK("MADV_NOHUGEPAGE", madvise(at, HUGE, MADV_NOHUGEPAGE) == 0);
    CHECK("takes it back", has_flag(at, " nh") && !has_flag(at, " hg") && has_flag(at + HUGE, " hg"));
    CHECK("no length", madvise(at, 0, MADV_HUGEPAGE) == 0);
    CHECK_FAILS("an unaligned address", madvise(at + 1, PAGE, MADV_HUGEPAGE), EINVAL);
    NEED(munmap(at + HUGE, HUGE) == 0);
    CHECK_FAILS("a range with a hole", madvise(at, 4 * HUGE, MADV_HUGEPAGE), ENOMEM);
    CHECK("is advised on both sides of it", has_flag(at, " hg") && has_flag(at + 2 * HUGE, " hg"));
    CHECK_FAILS("other advice about a hole", madvise(at, 4 * HUGE, MADV_WILLNEED), ENOMEM);
    NEED(munmap(at, 4 * HUGE) == 0);

    at = reserve(2);
    NEED(madvise(at, 2 * HUGE, MADV_NOHUGEPAGE) == 0);
    at[5 * PAGE] = 1;
    CHECK_EQUAL("without huge pages one touch is one page", smaps_kb(at, "Rss:"), 4);
    CHECK_EQUAL("and no huge page", smaps_kb(at, "AnonHugePages:"), 0);
    CHECK_EQUAL("whose neighbour is not there", resident(at + 4 * PAGE), 0);
    NEED(munmap(at, 2 * HUGE) == 0);
    NEED(madvise(at = reserve(2), 2 * HUGE, MADV_HUGEPAGE) == 0);
    number(at, 2 * PAGES);
    CHECK_EQUAL("all of it is in memory", smaps_kb(at, "Rss:"), 4096);
    CHECK_EQUAL("in whole huge pages", smaps_kb(at, "AnonHugePages:") % 2048, 0);
    NEED(munmap(at, 2 * HUGE) == 0);
}

static void parts(void)
{
    char *at = reserve(6);
    NEED(madvise(at, 6 * HUGE, MADV_HUGEPAGE) == 0);
    number(at, 6 * PAGES);

    CHECK("unmapping a page inside", munmap(at + 7 * PAGE, PAGE) == 0);
    CHECK_EQUAL("it is gone", resident(at + 7 * PAGE), -1);
    CHECK("and nothing else", numbered(at, 0, 7) && numbered(at, 8, 6 * PAGES));

    char *second = at + HUGE;
    CHECK("protecting a part", mprotect(second + 9 * PAGE, 3 * PAGE, PROT_READ) == 0);
    CHECK("it cannot be written", is_read_only(second + 9 * PAGE) && is_read_only(second + 11 * PAGE));
    CHECK("its neighbours can", !is_read_only(second + 8 * PAGE) && !is_read_only(second + 12 * PAGE));
    *(unsigned long *)(second + 8 * PAGE) = PAGES + 9;
    *(unsigned long *)(second + 12 * PAGE) = PAGES + 13;
    CHECK("its bytes stay", numbered(at, PAGES, 2 * PAGES));
    CHECK("no access to a part", mprotect(second, 100 * PAGE, PROT_NONE) == 0);
    CHECK("access again", mprotect(second, HUGE, PROT_READ | PROT_WRITE) == 0);
    CHECK("keeps all bytes", numbered(at, PAGES, 2 * PAGES));

    char *third = at + 2 * HUGE;
    CHECK("dropping a part", madvise(third + PAGE, 3 * PAGE, MADV_DONTNEED) == 0);
    CHECK_EQUAL("it is not in memory", resident(third + 2 * PAGE), 0);
    CHECK("and reads as zero", zero(third, 1, 4));
    CHECK("alone", numbered(at, 2 * PAGES, 2 * PAGES + 1) && numbered(at, 2 * PAGES + 4, 6 * PAGES));
    CHECK("dropping all of a page", madvise(at + 3 * HUGE, HUGE, MADV_DONTNEED) == 0);
    CHECK("which reads as zero", zero(at, 3 * PAGES, 4 * PAGES));

    char *target = reserve(1);
    char *fifth = at + 4 * HUGE;
    CHECK("moving a part", mremap(fifth + 20 * PAGE, 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, target + 3 * PAGE) == target + 3 * PAGE);
    CHECK("it arrives", numbered(target - (4 * PAGES + 17) * PAGE, 4 * PAGES + 20, 4 * PAGES + 24));
    CHECK("between what was there", zero(target, 0, 3) && zero(target, 7, PAGES));
    CHECK_EQUAL("and is gone where it was", resident(fifth + 20 * PAGE), -1);
    CHECK("alone there too", numbered(at, 4 * PAGES, 4 * PAGES + 20) && numbered(at, 4 * PAGES + 24, 6 * PAGES));

    char *moved = mremap(at + 5 * HUGE, HUGE, 3 * HUGE, MREMAP_MAYMOVE);
    NEED(moved != MAP_FAILED);
    CHECK("a page that moves and grows", numbered(moved - 5 * HUGE, 5 * PAGES, 6 * PAGES) && zero(moved, PAGES, 3 * PAGES));
    CHECK("keeps the advice", has_flag(moved, " hg"));
    NEED(munmap(moved, 3 * HUGE) == 0 && munmap(target, HUGE) == 0 && munmap(at, 5 * HUGE) == 0);
}

/* Advice about a part of a huge page that is there leaves the page, and its bytes, alone. */
static void advice_later(void)
{
    char *at = reserve(2);
    NEED(madvise(at, 2 * HUGE, MADV_HUGEPAGE) == 0);
    number(at, 2 * PAGES);
    CHECK("advice against a part", madvise(at + PAGE, HUGE, MADV_NOHUGEPAGE) == 0);
    CHECK("keeps the bytes", numbered(at, 0, 2 * PAGES));
    CHECK("dropping over the boundary", madvise(at, 3 * PAGE, MADV_DONTNEED) == 0);
    CHECK("drops that", zero(at, 0, 3) && numbered(at, 3, 2 * PAGES));
    CHECK("unmapping the other side", munmap(at + PAGE + HUGE, HUGE - PAGE) == 0);
    CHECK("leaves this side", numbered(at, 3, PAGES + 1));
    NEED(munmap(at, 2 * HUGE) == 0);
}

/* ZGC refuses huge pages unless its memfd is on a tmpfs. */
static void memory_files(void)
{
    struct statfs status = {0};
    int file = syscall(SYS_memfd_create, "heap", 0);
    NEED(file >= 0);
    CHECK_EQUAL("a memfd is on a tmpfs", fstatfs(file, &status) == 0 ? status.f_type : 0, 0x01021994);
    CHECK_EQUAL("of no size", status.f_blocks, 0);
    close(file);
    CHECK("that has a policy of its own", access("/sys/kernel/mm/transparent_hugepage/shmem_enabled", R_OK) == 0);
}

/* Faulting in ahead leaves nothing to fault in, whatever the pages' size. */
static void populate(void)
{
    char *at = reserve(3);
    NEED(madvise(at + PAGE, 3 * HUGE - 2 * PAGE, MADV_HUGEPAGE) == 0);
    CHECK("MADV_POPULATE_WRITE", madvise(at, 3 * HUGE, 23) == 0);
    unsigned char state[3 * PAGES];
    NEED(mincore(at, 3 * HUGE, state) == 0);
    int missing = 0;
    for (unsigned long page = 0; page < 3 * PAGES; page++)
        missing += !(state[page] & 1);
    CHECK_EQUAL("all of it is there", missing, 0);
    CHECK("and zero", zero(at, 0, 3 * PAGES));
    NEED(munmap(at, 3 * HUGE) == 0);
}

static void policy(void)
{
    char text[64] = "";
    int file = open("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size", O_RDONLY);
    CHECK("the size is told", read(file, text, sizeof text - 1) > 0 && strtoul(text, NULL, 10) == HUGE);
    close(file);
    memset(text, 0, sizeof text);
    file = open("/sys/kernel/mm/transparent_hugepage/enabled", O_RDONLY);
    CHECK("and the policy", read(file, text, sizeof text - 1) > 0 && strchr(text, '[') && strstr(text, "madvise"));
    close(file);
}

int main(void)
{
    advice();
    parts();
    advice_later();
    populate();
    memory_files();
    policy();
    return finish();
}
