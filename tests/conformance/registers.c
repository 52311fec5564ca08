/* The register contract: what a system call keeps, what a signal frame holds, the red zone.
 *
 * HotSpot reads and changes signal frames, and compiled code keeps values in registers across
 * calls that look free of side effects; both break silently when a register is lost.
 */
#define _GNU_SOURCE
#include "check.h"
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>

/* --- across a system call --- */

struct general {
    uint64_t rbx, rdx, rsi, rdi, rbp, r8, r9, r10, r12, r13, r14, r15, rcx, r11, rax;
};

/* Makes system call `number` with known values in all registers and stores what comes back. The
 * arguments are chosen so that sched_yield and getpid ignore them. */
static void __attribute__((noinline)) call_and_store(uint64_t number, struct general *after)
{
    static struct general saved; /* one thread only; and static, so that no operand needs rbp */
    static uint64_t own_rbp;
    __asm__ volatile(
        "mov %%rbp, %[own_rbp]\n"
        "mov $0x1111111111111111, %%rbx\n"
        "mov $0x2222222222222222, %%rdx\n"
        "mov $0x3333333333333333, %%rsi\n"
        "mov $0x4444444444444444, %%rdi\n"
        "mov $0x5555555555555555, %%rbp\n"
        "mov $0x6666666666666666, %%r8\n"
        "mov $0x7777777777777777, %%r9\n"
        "mov $0x1818181818181818, %%r10\n"
        "mov $0x1212121212121212, %%r12\n"
        "mov $0x1313131313131313, %%r13\n"
        "mov $0x1414141414141414, %%r14\n"
        "mov $0x1515151515151515, %%r15\n"
        "syscall\n"
        "1: mov %%rbp, 32+%[saved]\n"
        "mov %[own_rbp], %%rbp\n"
        "mov %%rbx, 0+%[saved]\n"
        "mov %%rdx, 8+%[saved]\n"
        "mov %%rsi, 16+%[saved]\n"
        "mov %%rdi, 24+%[saved]\n"
        "mov %%r8, 40+%[saved]\n"
        "mov %%r9, 48+%[saved]\n"
        "mov %%r10, 56+%[saved]\n"
        "mov %%r12, 64+%[saved]\n"
        "mov %%r13, 72+%[saved]\n"
        "mov %%r14, 80+%[saved]\n"
        "mov %%r15, 88+%[saved]\n"
        "lea 1b(%%rip), %%r12\n"
        "sub %%r12, %%rcx\n"
        "mov %%rcx, 96+%[saved]\n"
        "mov %%r11, 104+%[saved]\n"
        : [saved] "=m"(saved), [own_rbp] "=m"(own_rbp), "+a"(number)
        :
        : "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory", "cc");
    saved.rax = number;
    *after = saved;
}

static int kept(const struct general *r)
{
    return r->rbx == 0x1111111111111111 && r->rdx == 0x2222222222222222 && r->rsi == 0x3333333333333333
        && r->rdi == 0x4444444444444444 && r->rbp == 0x5555555555555555 && r->r8 == 0x6666666666666666
        && r->r9 == 0x7777777777777777 && r->r10 == 0x1818181818181818 && r->r12 == 0x1212121212121212
        && r->r13 == 0x1313131313131313 && r->r14 == 0x1414141414141414 && r->r15 == 0x1515151515151515;
}

/* Fills xmm0-15 with `pattern`, makes the system call, and stores all of them. */
static void __attribute__((noinline)) call_with_xmm(long number, const uint8_t *pattern, uint8_t *out)
{
    __asm__ volatile(
        "movups 0(%[in]), %%xmm0\n movups 16(%[in]), %%xmm1\n movups 32(%[in]), %%xmm2\n movups 48(%[in]), %%xmm3\n"
        "movups 64(%[in]), %%xmm4\n movups 80(%[in]), %%xmm5\n movups 96(%[in]), %%xmm6\n movups 112(%[in]), %%xmm7\n"
        "movups 128(%[in]), %%xmm8\n movups 144(%[in]), %%xmm9\n movups 160(%[in]), %%xmm10\n movups 176(%[in]), %%xmm11\n"
        "movups 192(%[in]), %%xmm12\n movups 208(%[in]), %%xmm13\n movups 224(%[in]), %%xmm14\n movups 240(%[in]), %%xmm15\n"
        "syscall\n"
        "movups %%xmm0, 0(%[out])\n movups %%xmm1, 16(%[out])\n movups %%xmm2, 32(%[out])\n movups %%xmm3, 48(%[out])\n"
        "movups %%xmm4, 64(%[out])\n movups %%xmm5, 80(%[out])\n movups %%xmm6, 96(%[out])\n movups %%xmm7, 112(%[out])\n"
        "movups %%xmm8, 128(%[out])\n movups %%xmm9, 144(%[out])\n movups %%xmm10, 160(%[out])\n movups %%xmm11, 176(%[out])\n"
        "movups %%xmm12, 192(%[out])\n movups %%xmm13, 208(%[out])\n movups %%xmm14, 224(%[out])\n movups %%xmm15, 240(%[out])\n"
        : "+a"(number)
        : [in] "r"(pattern), [out] "r"(out)
        : "rcx", "r11", "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
        "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
}

static void __attribute__((noinline, target("avx"))) call_with_ymm(long number, const uint8_t *pattern, uint8_t *out)
{
    __asm__ volatile(
        "vmovups 0(%[in]), %%ymm0\n vmovups 32(%[in]), %%ymm7\n vmovups 64(%[in]), %%ymm15\n"
        "syscall\n"
        "vmovups %%ymm0, 0(%[out])\n vmovups %%ymm7, 32(%[out])\n vmovups %%ymm15, 64(%[out])\n"
        "vzeroupper\n"
        : "+a"(number)
        : [in] "r"(pattern), [out] "r"(out)
        : "rcx", "r11", "memory", "xmm0", "xmm7", "xmm15");
}

static void system_calls(void)
{
    struct general after;
    call_and_store(SYS_sched_yield, &after);
    CHECK("sched_yield keeps the general registers", kept(&after));
    CHECK_EQUAL("its result is in rax", after.rax, 0);
    CHECK_EQUAL("rcx holds the return address", after.rcx, 0);
    CHECK("r11 holds the flags", (after.r11 & 0x202) == 0x202 && (after.r11 & ~0xad7UL) == 0);
    call_and_store(SYS_getpid, &after);
    CHECK("getpid keeps the general registers", kept(&after) && (pid_t)after.rax == getpid());
    call_and_store(9999, &after);
    CHECK("an unknown call keeps them and fails", kept(&after) && (int64_t)after.rax == -ENOSYS);

    uint8_t pattern[256], out[256] = {0};
    for (int i = 0; i < 256; i++)
        pattern[i] = (uint8_t)(i * 7 + 1);
    call_with_xmm(SYS_sched_yield, pattern, out);
    CHECK("sched_yield keeps xmm0-15", memcmp(pattern, out, 256) == 0);
    call_with_xmm(SYS_getppid, pattern, out);
    CHECK("getppid keeps xmm0-15", memcmp(pattern, out, 256) == 0);
    if (__builtin_cpu_supports("avx")) {
        memset(out, 0, sizeof out);
        call_with_ymm(SYS_sched_yield, pattern, out);
        CHECK("sched_yield keeps ymm halves", memcmp(pattern, out, 96) == 0);
    } else {
        say("ok sched_yield keeps ymm halves"); /* none to keep: same output on any processor */
    }
    uint32_t mxcsr = 0x9fc0, kept_mxcsr; /* flush-to-zero, daz */
    uint16_t control = 0x027f, kept_control;
    __asm__ volatile("ldmxcsr %0\n fldcw %1" ::"m"(mxcsr), "m"(control));
    syscall(SYS_sched_yield);
    __asm__ volatile("stmxcsr %0\n fnstcw %1" : "=m"(kept_mxcsr), "=m"(kept_control));
    CHECK("mxcsr and the x87 control word are kept", mxcsr == kept_mxcsr && control == kept_control);
    mxcsr = 0x1f80;
    control = 0x037f;
    __asm__ volatile("ldmxcsr %0\n fldcw %1" ::"m"(mxcsr), "m"(control));
}

/* --- in a signal frame --- */

static greg_t frame[NGREG];
static uint8_t frame_xmm[16];
static volatile uintptr_t resume_at;

static void store_frame(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)info;
    ucontext_t *c = context;
    memcpy(frame, c->uc_mcontext.gregs, sizeof frame);
    memcpy(frame_xmm, (char *)c->uc_mcontext.fpregs + 160 + 16 * 5, 16); /* FXSAVE area, xmm5 */
    c->uc_mcontext.gregs[REG_RIP] = (greg_t)resume_at;
    c->uc_mcontext.gregs[REG_RBX] = 0xbbb;
    c->uc_mcontext.gregs[REG_R15] = 0xf15;
    memset((char *)c->uc_mcontext.fpregs + 160 + 16 * 5, 0x99, 16);
}

static void handle(int signal, void (*handler)(int, siginfo_t *, void *), int flags)
{
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | flags};
    sigemptyset(&action.sa_mask);
    NEED(sigaction(signal, &action, NULL) == 0);
}

static void fault_frame(void)
{
    handle(SIGSEGV, store_frame, 0);
    uint64_t rbx, r15, fault_rip, rsp;
    uint8_t carry;
    uint8_t xmm[16] = {5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5}, xmm_after[16];
    __asm__ volatile(
        "lea 2f(%%rip), %%rax\n mov %%rax, %[resume]\n"
        "lea 1f(%%rip), %%rax\n mov %%rax, %[fault_rip]\n"
        "mov %%rsp, %[rsp]\n"
        "movups %[xmm], %%xmm5\n"
        "mov $0x80, %%edi\n mov $0x5151, %%esi\n mov $0xd0d0, %%edx\n mov $0x8888, %%r8d\n mov $0x1f, %%r15d\n"
        "mov $0xb0b, %%ebx\n mov $0xc0c, %%ecx\n mov $0x1011, %%r11d\n mov $0xa0a, %%eax\n stc\n"
        "1: mov %%rsi, (%%rdi)\n"
        "ud2\n"
        "2: setc %[carry]\n mov %%rbx, %[rbx]\n mov %%r15, %[r15]\n movups %%xmm5, %[xmm_after]\n"
        : [resume] "=m"(resume_at), [fault_rip] "=m"(fault_rip), [rsp] "=m"(rsp), [rbx] "=m"(rbx), [r15] "=m"(r15),
          [carry] "=m"(carry), [xmm_after] "=m"(xmm_after)
        : [xmm] "m"(xmm)
        : "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r11", "r15", "xmm5", "memory", "cc");
    CHECK_EQUAL("the frame's rip is the faulting instruction", frame[REG_RIP], fault_rip);
    CHECK_EQUAL("the frame's rsp", frame[REG_RSP], rsp);
    CHECK("the frame's general registers",
        frame[REG_RAX] == 0xa0a && frame[REG_RBX] == 0xb0b && frame[REG_RCX] == 0xc0c && frame[REG_RDX] == 0xd0d0
            && frame[REG_RSI] == 0x5151 && frame[REG_RDI] == 0x80 && frame[REG_R8] == 0x8888
            && frame[REG_R11] == 0x1011 && frame[REG_R15] == 0x1f);
    CHECK_EQUAL("trap number of a page fault", frame[REG_TRAPNO], 14);
    CHECK_EQUAL("error code of a write by an application", frame[REG_ERR], 6);
    CHECK_EQUAL("the fault's address is in cr2", frame[REG_CR2], 0x80);
    CHECK("the carry flag is in the frame", frame[REG_EFL] & 1);
    CHECK("the interrupt flag is in the frame", frame[REG_EFL] & 0x200);
    CHECK_EQUAL("the code segment is the application's", frame[REG_CSGSFS] & 0xffff, 0x33);
    CHECK("xmm5 is in the frame", memcmp(frame_xmm, xmm, 16) == 0);
    CHECK("changed registers are loaded on return", rbx == 0xbbb && r15 == 0xf15);
    CHECK("a changed xmm5 is loaded on return", xmm_after[0] == 0x99 && xmm_after[15] == 0x99);
    CHECK("flags come back from the frame", carry == 1);
}

static volatile int signal_code;

static void skip_ud2(int signal, siginfo_t *info, void *context)
{
    (void)signal;
    ucontext_t *c = context;
    signal_code = info->si_code;
    memcpy(frame, c->uc_mcontext.gregs, sizeof frame);
    CHECK("si_addr is the instruction", (greg_t)info->si_addr == frame[REG_RIP]);
    c->uc_mcontext.gregs[REG_RIP] += 2;
}

static void skip_division(int signal, siginfo_t *info, void *context)
{
    (void)signal;
    ucontext_t *c = context;
    signal_code = info->si_code;
    memcpy(frame, c->uc_mcontext.gregs, sizeof frame);
    c->uc_mcontext.gregs[REG_RIP] += 2;
}

static void skip_nothing(int signal, siginfo_t *info, void *context)
{
    (void)signal;
    signal_code = info->si_code;
    memcpy(frame, ((ucontext_t *)context)->uc_mcontext.gregs, sizeof frame);
}

static void noncanonical(int signal, siginfo_t *info, void *context)
{
    (void)signal;
    signal_code = info->si_code;
    CHECK("its address is unknown", info->si_addr == NULL);
    ucontext_t *c = context;
    memcpy(frame, c->uc_mcontext.gregs, sizeof frame);
    c->uc_mcontext.gregs[REG_RIP] = (greg_t)resume_at;
}

static void other_exceptions(void)
{
    handle(SIGILL, skip_ud2, 0);
    __asm__ volatile("ud2");
    CHECK("ud2 is SIGILL with ILL_ILLOPN", signal_code == ILL_ILLOPN && frame[REG_TRAPNO] == 6);
    handle(SIGFPE, skip_division, 0);
    __asm__ volatile("xor %%eax, %%eax\n xor %%edx, %%edx\n xor %%ecx, %%ecx\n div %%ecx" ::: "eax", "ecx", "edx", "cc");
    CHECK("division by zero is SIGFPE with FPE_INTDIV", signal_code == FPE_INTDIV && frame[REG_TRAPNO] == 0);
    handle(SIGTRAP, skip_nothing, 0);
    __asm__ volatile("int3");
    CHECK("int3 is SIGTRAP", signal_code == SI_KERNEL && frame[REG_TRAPNO] == 3);
    handle(SIGSEGV, noncanonical, 0);
    __asm__ volatile("lea 1f(%%rip), %%rax\n mov %%rax, %0\n mov $0x8000000000000000, %%rax\n mov (%%rax), %%rax\n 1:"
                     : "=m"(resume_at)::"rax", "memory");
    CHECK("a non-canonical address is SIGSEGV with SI_KERNEL", signal_code == SI_KERNEL && frame[REG_TRAPNO] == 13);
}

/* --- vector state across handlers --- */

static void clobber_vectors(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)info, (void)context;
    uint8_t pattern[256], out[256];
    memset(pattern, 0xee, sizeof pattern);
    call_with_xmm(SYS_sched_yield, pattern, out);
    uint32_t mxcsr = 0x9fc0;
    __asm__ volatile("ldmxcsr %0\n fninit\n fld1" ::"m"(mxcsr));
}

static void vectors_across_handlers(void)
{
    handle(SIGUSR1, clobber_vectors, 0);
    uint8_t pattern[256], out[256] = {0};
    for (int i = 0; i < 256; i++)
        pattern[i] = (uint8_t)(i * 5 + 3);
    /* kill(getpid(), SIGUSR1): the handler runs before the call returns. */
    long number = SYS_kill;
    double st0 = 0;
    uint32_t mxcsr;
    __asm__ volatile(
        "fldpi\n"
        "movups 0(%[in]), %%xmm0\n movups 16(%[in]), %%xmm1\n movups 240(%[in]), %%xmm15\n"
        "syscall\n"
        "movups %%xmm0, 0(%[out])\n movups %%xmm1, 16(%[out])\n movups %%xmm15, 240(%[out])\n"
        "fstpl %[st0]\n stmxcsr %[mxcsr]"
        : "+a"(number), [st0] "=m"(st0), [mxcsr] "=m"(mxcsr)
        : [in] "r"(pattern), [out] "r"(out), "D"((long)getpid()), "S"((long)SIGUSR1)
        : "rcx", "r11", "memory", "xmm0", "xmm1", "xmm15", "st", "st(1)", "st(2)", "st(3)", "st(4)", "st(5)", "st(6)", "st(7)");
    CHECK("a handler does not change the xmm registers of what it interrupted",
        memcmp(pattern, out, 32) == 0 && memcmp(pattern + 240, out + 240, 16) == 0);
    CHECK("nor the x87 stack", st0 > 3.14159 && st0 < 3.1416);
    CHECK_EQUAL("nor mxcsr", mxcsr, 0x1f80);
}

/* --- under a storm of signals from another thread --- */

static volatile long ticks;

static void tick(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)info, (void)context;
    volatile char scratch[2048]; /* would overwrite a red zone that was not spared */
    memset((char *)scratch, 0xdd, sizeof scratch);
    ticks++;
}

/* Writes below the stack pointer and reads it back after a while, without a call in between. */
static int __attribute__((noinline)) red_zone_kept(void)
{
    uint64_t bad;
    __asm__ volatile(
        "mov %%rsp, %%rdx\n"
        "movq $0x1234567, -8(%%rdx)\n movq $0x7654321, -128(%%rdx)\n"
        "mov $20000, %%ecx\n 1: dec %%ecx\n jnz 1b\n"
        "xor %%eax, %%eax\n"
        "cmpq $0x1234567, -8(%%rdx)\n setne %%al\n"
        "cmpq $0x7654321, -128(%%rdx)\n setne %%cl\n or %%cl, %%al\n movzbl %%al, %%eax\n"
        : "=a"(bad)
        :
        : "rcx", "rdx", "memory", "cc");
    return bad == 0;
}

static pid_t storm_target;
static volatile int storming = 1;

static void *storm(void *unused)
{
    while (storming) {
        struct timespec millisecond = {0, 1000000};
        nanosleep(&millisecond, NULL);
        NEED(syscall(SYS_tgkill, getpid(), storm_target, SIGALRM) == 0);
    }
    return unused;
}

static void signal_storm(void)
{
    handle(SIGALRM, tick, SA_RESTART);
    storm_target = (pid_t)syscall(SYS_gettid);
    pthread_t thread;
    NEED(pthread_create(&thread, NULL, storm, NULL) == 0);
    int red_zone = 1, registers = 1, vectors = 1;
    int64_t end = now_ns() + 30000000000LL;
    uint8_t pattern[256], out[256];
    for (int i = 0; i < 256; i++)
        pattern[i] = (uint8_t)(i * 11 + 2);
    while (ticks < 100 && now_ns() < end) {
        struct general after;
        red_zone &= red_zone_kept();
        call_and_store(SYS_sched_yield, &after);
        registers &= kept(&after);
        call_with_xmm(SYS_getppid, pattern, out);
        vectors &= memcmp(pattern, out, 256) == 0;
    }
    storming = 0;
    pthread_join(thread, NULL);
    CHECK("a hundred signals within thirty seconds", ticks >= 100);
    CHECK("the red zone is spared", red_zone);
    CHECK("registers are kept under the storm", registers);
    CHECK("vectors are kept under the storm", vectors);
}

int main(void)
{
    system_calls();
    fault_frame();
    other_exceptions();
    vectors_across_handlers();
    signal_storm();
    return finish();
}
