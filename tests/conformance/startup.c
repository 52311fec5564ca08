/* What a program finds at its start: stack, arguments, environment, auxiliary vector, identity. */
#define _GNU_SOURCE
#include "check.h"
#include <elf.h>
#include <fcntl.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>

extern char **environ;

static int constructed;

__attribute__((constructor)) static void construct(void)
{
    constructed = 1;
}

static void at_exit(void)
{
    say("ok atexit handlers run");
}

static void auxiliary_vector(void)
{
    CHECK_EQUAL("page size", getauxval(AT_PAGESZ), 4096);
    CHECK_EQUAL("clock ticks", getauxval(AT_CLKTCK), 100);
    CHECK_EQUAL("size of a program header", getauxval(AT_PHENT), sizeof(Elf64_Phdr));
    CHECK("number of program headers", getauxval(AT_PHNUM) > 2 && getauxval(AT_PHNUM) < 30);
    const Elf64_Phdr *headers = (const Elf64_Phdr *)getauxval(AT_PHDR);
    int loads = 0;
    for (unsigned long i = 0; i < getauxval(AT_PHNUM); i++)
        loads += headers[i].p_type == PT_LOAD;
    CHECK("program headers are mapped", loads >= 2);
    CHECK("the entry point", getauxval(AT_ENTRY) != 0);
    const unsigned char *random = (const unsigned char *)getauxval(AT_RANDOM);
    unsigned sum = 0;
    for (int i = 0; random && i < 16; i++)
        sum += random[i];
    CHECK("sixteen random bytes", random != NULL && sum != 0);
    const char *executable = (const char *)getauxval(AT_EXECFN);
    CHECK("the program's name", executable != NULL && strstr(executable, "startup") != NULL);
    CHECK("the platform", strcmp((const char *)getauxval(AT_PLATFORM), "x86_64") == 0);
    CHECK_EQUAL("not set-user-id", getauxval(AT_SECURE), 0);
    CHECK("user and group", getauxval(AT_UID) == getuid() && getauxval(AT_EUID) == geteuid() && getauxval(AT_GID) == getgid());
    CHECK("hardware capabilities", getauxval(AT_HWCAP) != 0);
}

static void identity(void)
{
    CHECK("a process id", getpid() > 0);
    CHECK("user ids agree", getuid() == geteuid() && getgid() == getegid());
    struct utsname name;
    CHECK("uname", uname(&name) == 0 && strcmp(name.sysname, "Linux") == 0 && strcmp(name.machine, "x86_64") == 0);
    CHECK("a release that glibc accepts", atoi(name.release) >= 4);
    struct sysinfo info;
    CHECK("sysinfo", sysinfo(&info) == 0 && info.totalram * info.mem_unit > 1 << 20 && info.procs > 0);
    CHECK("at least one CPU", sysconf(_SC_NPROCESSORS_ONLN) >= 1);
    unsigned char bytes[300];
    CHECK("getrandom", getrandom(bytes, sizeof bytes, 0) == sizeof bytes);
    CHECK_FAILS("with unknown flags", syscall(SYS_getrandom, bytes, 1, 0x100), EINVAL);
    struct rlimit limit;
    CHECK("a limit of open files", getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur >= 256);
    CHECK("limits may be lowered", (limit.rlim_cur = 128, setrlimit(RLIMIT_NOFILE, &limit)) == 0
        && getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur == 128);
    CHECK_FAILS("and are enforced", fcntl(1, F_DUPFD, 128), EINVAL);
    CHECK_FAILS("an unknown call", syscall(1000), ENOSYS);
    CHECK("a process group", getpgrp() >= 0 && getsid(0) >= 0);
}

static void proc(void)
{
    char text[4096], self[64];
    ssize_t len = readlink("/proc/self/exe", text, sizeof text - 1);
    text[len < 0 ? 0 : len] = 0;
    CHECK("/proc/self/exe", strstr(text, "startup") != NULL && text[0] == '/');
    len = readlink("/proc/self", self, sizeof self - 1);
    self[len < 0 ? 0 : len] = 0;
    CHECK("/proc/self names this process", atoi(self) == getpid());
    FILE *maps = fopen("/proc/self/maps", "r");
    int lines = 0, own_code = 0, own_stack = 0, ordered = 1;
    unsigned long last_end = 0;
    for (char line[512]; maps && fgets(line, sizeof line, maps); lines++) {
        unsigned long start, end;
        char prot[8];
        if (sscanf(line, "%lx-%lx %7s", &start, &end, prot) != 3 || start < last_end || end <= start)
            ordered = 0;
        last_end = end;
        if ((unsigned long)&proc >= start && (unsigned long)&proc < end)
            own_code = strcmp(prot, "r-xp") == 0 && strstr(line, "startup") != NULL;
        if ((unsigned long)&lines >= start && (unsigned long)&lines < end)
            own_stack = strcmp(prot, "rw-p") == 0 && strstr(line, "[stack]") != NULL;
    }
    CHECK("/proc/self/maps is well-formed and ordered", ordered && lines > 5);
    CHECK("it shows this code, with its file", own_code);
    CHECK("it shows the stack", own_stack);
    int fd = open("/proc/self/cmdline", O_RDONLY);
    len = read(fd, text, sizeof text);
    CHECK("/proc/self/cmdline", len > 0 && text[len - 1] == 0 && strstr(text, "startup") != NULL);
    close(fd);
    fd = open("/proc/self/stat", O_RDONLY);
    len = read(fd, text, sizeof text - 1);
    text[len < 0 ? 0 : len] = 0;
    CHECK("/proc/self/stat", atoi(text) == getpid() && strchr(text, '(') != NULL && strrchr(text, ')') != NULL);
    close(fd);
    long total = 0, available = 0;
    FILE *memory = fopen("/proc/meminfo", "r");
    for (char line[256]; memory && fgets(line, sizeof line, memory);) {
        sscanf(line, "MemTotal: %ld kB", &total);
        sscanf(line, "MemAvailable: %ld kB", &available);
    }
    CHECK("/proc/meminfo", total > 1024 && available > 0 && available <= total);
    FILE *cpus = fopen("/proc/cpuinfo", "r");
    int count = 0;
    for (char line[4096]; cpus && fgets(line, sizeof line, cpus);)
        count += strncmp(line, "processor", 9) == 0;
    CHECK("/proc/cpuinfo lists each CPU", count >= 1 && count == get_nprocs());
    CHECK_FAILS("what is not there", open("/proc/self/nonsense", O_RDONLY), ENOENT);
}

int main(int count, char **arguments, char **environment)
{
    NEED(atexit(at_exit) == 0);
    CHECK("constructors run first", constructed == 1);
    CHECK("argc and argv agree", count == 1 && arguments[0] != NULL && arguments[1] == NULL);
    CHECK("the environment follows the arguments", environment == environ && environment == arguments + count + 1);
    CHECK("the stack is aligned", (uintptr_t)__builtin_frame_address(0) % 16 == 0);
    CHECK("standard descriptors are open", fcntl(0, F_GETFD) != -1 && fcntl(1, F_GETFD) != -1 && fcntl(2, F_GETFD) != -1);
    auxiliary_vector();
    identity();
    proc();
    return finish();
}
