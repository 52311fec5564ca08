/* Memory mapping: mmap, munmap, mprotect, mremap, madvise, mincore, brk; faults and their codes. */
#define _GNU_SOURCE
#include "check.h"
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#define PAGE 4096UL

static sigjmp_buf fault_return;
static volatile int fault_signal, fault_code;
static void *volatile fault_address;

static void on_fault(int signal, siginfo_t *info, void *context)
{
    (void)context;
    fault_signal = signal;
    fault_code = info->si_code;
    fault_address = info->si_addr;
    siglongjmp(fault_return, 1);
}

static void catch_faults(void)
{
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    NEED(sigaction(SIGSEGV, &action, NULL) == 0);
    NEED(sigaction(SIGBUS, &action, NULL) == 0);
}

enum access { READ, WRITE, EXECUTE };

/* True if the access faults with this signal, code and the accessed address. */
static int faults(volatile char *at, enum access access, int signal, int code)
{
    fault_signal = 0;
    if (sigsetjmp(fault_return, 1) == 0) {
        if (access == READ)
            (void)*at;
        else if (access == WRITE)
            *at = 1;
        else
            ((void (*)(void))(uintptr_t)at)();
        return 0;
    }
    if (fault_signal == signal && fault_code == code && fault_address == at)
        return 1;
    say("signal %d code %d, address off by %ld", fault_signal, fault_code,
        (long)((char *)fault_address - (char *)at));
    return 0;
}

static char *map(size_t len, int prot, int flags)
{
    char *at = mmap(NULL, len, prot, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
    NEED(at != MAP_FAILED);
    return at;
}

static int all_bytes(const char *at, size_t len, char value)
{
    for (size_t i = 0; i < len; i++)
        if (at[i] != value)
            return 0;
    return 1;
}

static void anonymous(void)
{
    char *at = map(4 * PAGE, PROT_READ | PROT_WRITE, 0);
    CHECK("anonymous memory reads as zero", all_bytes(at, 4 * PAGE, 0));
    memset(at, 7, 4 * PAGE);
    CHECK("written memory is kept", all_bytes(at, 4 * PAGE, 7));
    CHECK("addresses are page-aligned", (uintptr_t)at % PAGE == 0);
    CHECK("unmapping the middle", munmap(at + PAGE, 2 * PAGE) == 0);
    CHECK("a hole faults with MAPERR on read", faults(at + PAGE, READ, SIGSEGV, SEGV_MAPERR));
    CHECK("a hole faults with MAPERR on write", faults(at + 2 * PAGE + 5, WRITE, SIGSEGV, SEGV_MAPERR));
    CHECK("both ends are still there", at[0] == 7 && at[3 * PAGE] == 7);
    CHECK("unmapping a range with holes", munmap(at, 4 * PAGE) == 0);
    CHECK("unmapping nothing", munmap(at, 4 * PAGE) == 0);
    CHECK("the null page faults", faults((char *)0x10, READ, SIGSEGV, SEGV_MAPERR));

    char *low = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    CHECK("MAP_32BIT stays below 2 GiB", low != MAP_FAILED && (uintptr_t)low < 1UL << 31);
    size_t big = 8UL << 30;
    char *reserved = map(big, PROT_NONE, MAP_NORESERVE);
    CHECK("8 GiB of reserved address space", mprotect(reserved + big / 2, PAGE, PROT_READ | PROT_WRITE) == 0);
    reserved[big / 2] = 1;
    CHECK("a page of it is usable", reserved[big / 2] == 1);
    CHECK("the rest is not", faults(reserved + big / 2 + PAGE, READ, SIGSEGV, SEGV_ACCERR));
    munmap(reserved, big);
}

static void placement(void)
{
    char *at = map(4 * PAGE, PROT_READ | PROT_WRITE, 0);
    at[PAGE] = 1;
    char *fixed = mmap(at + PAGE, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    CHECK("MAP_FIXED replaces", fixed == at + PAGE && at[PAGE] == 0);
    CHECK_FAILS("MAP_FIXED_NOREPLACE does not",
        mmap(at, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0), EEXIST);
    munmap(at, 4 * PAGE);
    char *hint = mmap(at, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK("a free hint is taken", hint == at);
    char *other = mmap(at, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK("a taken hint is not", other != MAP_FAILED && other != at);
    CHECK_FAILS("length 0 is invalid", mmap(NULL, 0, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), EINVAL);
    CHECK_FAILS("an unaligned fixed address is invalid",
        mmap(at + 1, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), EINVAL);
    CHECK_FAILS("neither private nor shared is invalid", mmap(NULL, PAGE, PROT_READ, MAP_ANONYMOUS, -1, 0), EINVAL);
    CHECK_FAILS("a bad descriptor", mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, 999, 0), EBADF);
    CHECK_FAILS("unaligned munmap is invalid", munmap(at + 1, PAGE), EINVAL);
    CHECK_FAILS("too much memory", mmap(NULL, 1UL << 47, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), ENOMEM);
}

static void protection(void)
{
    char *at = map(3 * PAGE, PROT_READ | PROT_WRITE, 0);
    at[0] = at[PAGE] = at[2 * PAGE] = 5;
    CHECK("mprotect read-only", mprotect(at + PAGE, PAGE, PROT_READ) == 0);
    CHECK("a read-only page reads", at[PAGE] == 5);
    CHECK("a read-only page faults with ACCERR", faults(at + PAGE, WRITE, SIGSEGV, SEGV_ACCERR));
    CHECK("its neighbours do not", (at[0] = 6) && (at[2 * PAGE] = 6));
    CHECK("mprotect none", mprotect(at, PAGE, PROT_NONE) == 0);
    CHECK("a page without access faults with ACCERR", faults(at, READ, SIGSEGV, SEGV_ACCERR));
    CHECK("mprotect back", mprotect(at, 3 * PAGE, PROT_READ | PROT_WRITE) == 0);
    CHECK("content survived", at[0] == 6 && at[PAGE] == 5);
    at[PAGE] = 9;
    CHECK("executing data faults", faults(at, EXECUTE, SIGSEGV, SEGV_ACCERR));
    at[0] = (char)0xc3; /* ret */
    CHECK("mprotect executable", mprotect(at, PAGE, PROT_READ | PROT_EXEC) == 0);
    ((void (*)(void))(uintptr_t)at)();
    say("ok executing what was written");
    munmap(at + PAGE, PAGE);
    CHECK_FAILS("mprotect over a hole", mprotect(at, 3 * PAGE, PROT_READ), ENOMEM);
    CHECK_FAILS("unaligned mprotect", syscall(SYS_mprotect, at + 1, PAGE, PROT_READ), EINVAL);
    char *both = map(PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, 0);
    both[0] = (char)0xc3;
    ((void (*)(void))(uintptr_t)both)();
    say("ok memory both writable and executable");
}

static void moving(void)
{
    char *at = map(2 * PAGE, PROT_READ | PROT_WRITE, 0);
    at[0] = 1;
    at[PAGE] = 2;
    char *grown = mremap(at, 2 * PAGE, 64 * PAGE, MREMAP_MAYMOVE);
    CHECK("mremap grows", grown != MAP_FAILED && grown[0] == 1 && grown[PAGE] == 2 && grown[63 * PAGE] == 0);
    char *shrunk = mremap(grown, 64 * PAGE, PAGE, 0);
    CHECK("mremap shrinks in place", shrunk == grown && shrunk[0] == 1);
    CHECK("the rest is gone", faults(grown + PAGE, READ, SIGSEGV, SEGV_MAPERR));
    char *room = map(4 * PAGE, PROT_NONE, 0);
    char *moved = mremap(shrunk, PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, room);
    CHECK("mremap to a fixed place", moved == room && moved[0] == 1 && moved[PAGE] == 0);
    CHECK("the old place is gone", faults(shrunk, READ, SIGSEGV, SEGV_MAPERR));
    CHECK_FAILS("growing without MAYMOVE and room", mremap(room, PAGE, 3 * PAGE, 0), ENOMEM);
    CHECK_FAILS("mremap of nothing", mremap(shrunk, PAGE, 2 * PAGE, MREMAP_MAYMOVE), EFAULT);
}

static void advice(void)
{
    char *at = map(8 * PAGE, PROT_READ | PROT_WRITE, 0);
    memset(at, 3, 8 * PAGE);
    CHECK("MADV_DONTNEED", madvise(at + PAGE, 2 * PAGE, MADV_DONTNEED) == 0);
    CHECK("given back memory reads as zero", all_bytes(at + PAGE, 2 * PAGE, 0) && at[0] == 3 && at[3 * PAGE] == 3);
    CHECK_FAILS("unaligned madvise", madvise(at + 1, PAGE, MADV_DONTNEED), EINVAL);
    CHECK_FAILS("unknown advice", madvise(at, PAGE, 12345), EINVAL);
    unsigned char resident[8];
    char *fresh = map(8 * PAGE, PROT_READ | PROT_WRITE, 0);
    fresh[2 * PAGE] = 1;
    NEED(madvise(fresh, 8 * PAGE, MADV_NOHUGEPAGE) == 0 || errno == EINVAL);
    CHECK("mincore", mincore(at, 8 * PAGE, resident) == 0 && (resident[0] & 1) == 1);
    char *gone = map(PAGE, PROT_READ, 0);
    munmap(gone, PAGE);
    CHECK_FAILS("mincore of nothing", mincore(gone, PAGE, resident), ENOMEM);
    CHECK("mlock", mlock(at, PAGE) == 0 || errno == EPERM || errno == ENOMEM);
    CHECK("munlock", munlock(at, PAGE) == 0);
}

static void heap_end(void)
{
    char *end = (char *)syscall(SYS_brk, 0);
    char *grown = (char *)syscall(SYS_brk, end + 3 * PAGE);
    CHECK("brk grows", grown == end + 3 * PAGE);
    char *first_page = (char *)(((uintptr_t)end + PAGE - 1) & ~(PAGE - 1));
    first_page[0] = 1;
    CHECK("brk memory is usable", first_page[0] == 1 && first_page[PAGE] == 0);
    CHECK("brk shrinks", (char *)syscall(SYS_brk, end) == end);
    CHECK("brk refuses nonsense", (char *)syscall(SYS_brk, 1) == end);
}

static void files(void)
{
    char path[] = "/tmp/conformance-memory-XXXXXX";
    int fd = mkstemp(path);
    NEED(fd >= 0 && unlink(path) == 0);
    NEED(write(fd, "abcdef", 6) == 6);
    char *shared = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    char *private = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    CHECK("a mapped file shows its content", memcmp(shared, "abcdef", 7) == 0 && private[0] == 'a');
    shared[0] = 'A';
    char byte = 0;
    CHECK("a shared write reaches the file", pread(fd, &byte, 1, 0) == 1 && byte == 'A');
    private[1] = 'B';
    CHECK("a private write does not", pread(fd, &byte, 1, 1) == 1 && byte == 'b' && shared[1] == 'b');
    CHECK("write reaches shared mappings", pwrite(fd, "C", 1, 2) == 1 && shared[2] == 'C');
    CHECK("beyond the file's end is a bus error", faults(shared + PAGE, READ, SIGBUS, BUS_ADRERR));
    CHECK("msync", msync(shared, PAGE, MS_SYNC) == 0);
    NEED(ftruncate(fd, 2 * PAGE) == 0);
    CHECK("growing the file makes the page usable", shared[PAGE] == 0);
    shared[PAGE] = 'x';
    NEED(ftruncate(fd, PAGE) == 0);
    CHECK("truncation takes it away", faults(shared + PAGE, READ, SIGBUS, BUS_ADRERR));
    NEED(close(fd) == 0);
    CHECK("a mapping outlives the descriptor", shared[0] == 'A');
    CHECK_FAILS("an unaligned offset is invalid", mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, 0, 1), EINVAL);

    int read_only = open("/proc/self/exe", O_RDONLY);
    char *text = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, read_only, 0);
    CHECK("a program maps its own file", text != MAP_FAILED && memcmp(text, "\177ELF", 4) == 0);
    CHECK_FAILS("no shared writing through a read-only descriptor",
        mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, read_only, 0), EACCES);
    char *view = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, read_only, 0);
    CHECK_FAILS("nor by mprotect later", mprotect(view, PAGE, PROT_READ | PROT_WRITE), EACCES);
    CHECK("a private mapping may become writable", mprotect(text, PAGE, PROT_READ | PROT_WRITE) == 0);

    int memory = memfd_create("conformance", MFD_CLOEXEC);
    CHECK("memfd_create", memory >= 0 && ftruncate(memory, PAGE) == 0);
    char *one = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
    char *two = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
    CHECK("two views of one page", one != two && (one[9] = 4) && two[9] == 4);
}

/* What a file loses, no mapping shows any more: not the shared ones, wherever they begin, and of private
 * copies only what is beyond the new end. */
static void lost_pages(void)
{
    int memory = memfd_create("lost", MFD_CLOEXEC);
    NEED(memory >= 0 && ftruncate(memory, 8 * PAGE) == 0);
    char *all = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
    char *behind = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 2 * PAGE);
    char *private = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, memory, 0);
    NEED(all != MAP_FAILED && behind != MAP_FAILED && private != MAP_FAILED);
    memset(all, 'a', 8 * PAGE);
    private[3 * PAGE] = 'p';
    private[6 * PAGE] = 'p';
    CHECK("two mappings show one page", behind[PAGE] == 'a');
    NEED(fallocate(memory, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 3 * PAGE, PAGE) == 0);
    CHECK("a hole shows in one", all[3 * PAGE] == 0 && all[2 * PAGE] == 'a' && all[4 * PAGE] == 'a');
    CHECK("and in the other", behind[PAGE] == 0);
    CHECK("a private copy stays", private[3 * PAGE] == 'p');
    all[3 * PAGE] = 'b';
    CHECK("a write into the hole shows, too", behind[PAGE] == 'b' && private[3 * PAGE] == 'p');
    NEED(ftruncate(memory, 5 * PAGE) == 0);
    CHECK("beyond the end is SIGBUS", faults(all + 6 * PAGE, READ, SIGBUS, BUS_ADRERR));
    CHECK("in every mapping", faults(behind + 3 * PAGE, READ, SIGBUS, BUS_ADRERR));
    CHECK("and for private copies", faults(private + 6 * PAGE, READ, SIGBUS, BUS_ADRERR));
    NEED(ftruncate(memory, 8 * PAGE) == 0);
    CHECK("grown again it reads as zero", all[6 * PAGE] == 0 && behind[3 * PAGE] == 0 && private[6 * PAGE] == 0);
    CHECK("what was before the end is there", all[4 * PAGE] == 'a' && private[3 * PAGE] == 'p');
    CHECK_FAILS("msync: both ways at once", msync(all, PAGE, MS_SYNC | MS_ASYNC), EINVAL);
    NEED(munmap(all + PAGE, PAGE) == 0);
    CHECK_FAILS("msync over a gap", msync(all, 3 * PAGE, MS_SYNC), ENOMEM);
    NEED(close(memory) == 0);
}

static void kernel_copies(void)
{
    int ends[2];
    NEED(pipe(ends) == 0);
    char *gone = map(PAGE, PROT_READ, 0);
    munmap(gone, PAGE);
    CHECK_FAILS("write from nowhere", write(ends[1], gone, 1), EFAULT);
    NEED(write(ends[1], "x", 1) == 1);
    CHECK_FAILS("read to nowhere", read(ends[0], gone, 1), EFAULT);
    CHECK_FAILS("a path from nowhere", open(gone, O_RDONLY), EFAULT);
    char *read_only = map(PAGE, PROT_READ, 0);
    NEED(write(ends[1], "x", 1) == 1);
    CHECK_FAILS("read to read-only memory", read(ends[0], read_only, 1), EFAULT);
    char *untouched = map(PAGE, PROT_READ | PROT_WRITE, 0);
    NEED(write(ends[1], "yz", 2) == 2);
    CHECK("read into memory never touched", read(ends[0], untouched + PAGE - 2, 2) == 2 && untouched[PAGE - 2] != 0);
}

int main(void)
{
    catch_faults();
    anonymous();
    placement();
    protection();
    moving();
    advice();
    heap_end();
    files();
    lost_pages();
    kernel_copies();
    return finish();
}
