# Application code for the kernel tests: copied to application pages and run there. Each snippet ends
# by exit(code), where code 0 is success. Position-independent; rsp is set by the test.

    .set SYS_VALUE, 39              # returns 4242
    .set SYS_EXIT, 60
    .set SYS_ARM, 201               # rdi: interrupt after this many timer ticks
    .set SYS_CHECK, 202             # 0: every interrupt so far led to its exit work
    .set SYS_WAIT, 203              # waits interruptibly


    # The time stamp counter; clobbers rax and rdx.
    .macro TICKS to
    rdtsc
    shl $32, %rdx
    or %rdx, %rax
    mov %rax, \to
    .endm

    .macro LOAD_PATTERNS
    mov $0x1001, %ebx
    mov $0x1002, %edx
    mov $0x1003, %esi
    mov $0x1005, %ebp
    mov $0x1008, %r8d
    mov $0x1009, %r9d
    mov $0x100a, %r10d
    mov $0x100c, %r12d
    mov $0x100d, %r13d
    mov $0x100e, %r14d
    mov $0x100f, %r15d
    mov $0x2000, %eax
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    inc %eax
    movd %eax, %xmm\n
    pshufd $0, %xmm\n, %xmm\n
    .endr
    .endm

    # Compares what LOAD_PATTERNS loaded; jumps to \bad on a difference. Clobbers rax, rcx and flags,
    # and the 16 bytes at rsp - 16.
    .macro CHECK_PATTERNS bad
    cmp $0x1001, %rbx
    jne \bad
    cmp $0x1002, %rdx
    jne \bad
    cmp $0x1003, %rsi
    jne \bad
    cmp $0x1005, %rbp
    jne \bad
    cmp $0x1008, %r8
    jne \bad
    cmp $0x1009, %r9
    jne \bad
    cmp $0x100a, %r10
    jne \bad
    cmp $0x100c, %r12
    jne \bad
    cmp $0x100d, %r13
    jne \bad
    cmp $0x100e, %r14
    jne \bad
    cmp $0x100f, %r15
    jne \bad
    mov $0x2000, %eax
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    inc %eax
    movups %xmm\n, -16(%rsp)
    cmp %eax, -16(%rsp)
    jne \bad
    cmp %eax, -4(%rsp)
    jne \bad
    .endr
    .endm

    .section .rodata
    .global snippet_null, snippet_registers, snippet_fault, snippet_windows, snippet_windows_fault, snippet_spin, snippet_vectors, snippet_wait
    .global snippet_swapgs, snippet_change_gs_base
    .global snippet_read_page, snippet_write_page, snippet_wait_and_read_page, snippets_end
# exit(value == 4242 ? 0 : 1)
snippet_null:
    mov $SYS_VALUE, %eax
    syscall
    xor %edi, %edi
    cmp $4242, %rax
    setne %dil
    mov $SYS_EXIT, %eax
    syscall

# Every register but rax, rcx and r11 survives a call, rsp and the red zone too; rcx is the return
# address, r11 the flags.
snippet_registers:
    mov %rsp, %rdi
    LOAD_PATTERNS
    movq $0x77, -128(%rsp)
    movq $0x78, -32(%rsp)
    stc
    mov $SYS_VALUE, %eax
    syscall
1:  jnc 8f                          # flags come back
    lea 1b(%rip), %rax
    cmp %rax, %rcx
    jne 8f
    bt $9, %r11                     # IF, as Linux shows it
    jnc 8f
    cmp %rdi, %rsp
    jne 8f
    cmpq $0x77, -128(%rsp)
    jne 8f
    cmpq $0x78, -32(%rsp)
    jne 8f
    CHECK_PATTERNS 8f
    xor %edi, %edi
    mov $SYS_EXIT, %eax
    syscall
8:  mov $2, %edi
    mov $SYS_EXIT, %eax
    syscall

# rdi: an untouched page. The page fault changes nothing else.
snippet_fault:
    LOAD_PATTERNS
    movq $0x79, -128(%rsp)
    stc
    movb $1, (%rdi)
    jnc 8b
    cmpq $0x79, -128(%rsp)
    jne 8b
    CHECK_PATTERNS 8b
    xor %edi, %edi
    mov $SYS_EXIT, %eax
    syscall

# rdi: rounds. An interrupt after 1, 2, 3 ... ticks falls on each instruction of entry and exit.
snippet_windows:
    mov %rdi, -64(%rsp)
    movq $0, -72(%rsp)
2:  LOAD_PATTERNS
    movq $0x7a, -128(%rsp)
    mov -72(%rsp), %rdi
    mov $SYS_ARM, %eax
    syscall
    mov $SYS_VALUE, %eax
    syscall
    cmp $4242, %rax
    jne 7f
    CHECK_PATTERNS 7f
    cmpq $0x7a, -128(%rsp)
    jne 7f
    mov $SYS_CHECK, %eax
    syscall
    test %rax, %rax
    jnz 6f
    incq -72(%rsp)
    mov -72(%rsp), %rax
    cmp -64(%rsp), %rax
    jb 2b
    xor %edi, %edi
    mov $SYS_EXIT, %eax
    syscall
7:  mov $3, %edi
    mov $SYS_EXIT, %eax
    syscall
6:  mov $4, %edi
    mov $SYS_EXIT, %eax
    syscall

# rdi: rounds; rsi: as many untouched pages. As above, but over the page fault of a first write.
snippet_windows_fault:
    mov %rdi, -64(%rsp)
    movq $0, -72(%rsp)
    mov %rsi, -80(%rsp)
2:  LOAD_PATTERNS
    movq $0x7b, -128(%rsp)
    mov -72(%rsp), %rdi
    mov $SYS_ARM, %eax
    syscall
    mov -80(%rsp), %rdi
    movb $1, (%rdi)
    CHECK_PATTERNS 7b
    cmpq $0x7b, -128(%rsp)
    jne 7b
    mov $SYS_CHECK, %eax
    syscall
    test %rax, %rax
    jnz 6b
    addq $4096, -80(%rsp)
    incq -72(%rsp)
    mov -72(%rsp), %rax
    cmp -64(%rsp), %rax
    jb 2b
    xor %edi, %edi
    mov $SYS_EXIT, %eax
    syscall

# Never ends by itself and never calls. Long, so that the emulator is quick about it.
snippet_spin:
    .rept 64
    inc %rax
    .endr
    jmp snippet_spin

# rdi: the task's own pattern; rsi: address of a stop word, and after it a word that is 1 where there are
# ymm registers, 2 where there is AVX-512, else 0. Keeps the pattern, plus the register's number, in each
# xmm register (both halves), in the upper halves of the ymm and zmm registers, in zmm16 to zmm31, in the
# mask registers, in seven x87 registers and in MXCSR, without a call, while others run.
snippet_vectors:
    sub $256, %rsp
    .irp n, 0, 1, 2, 3, 4, 5, 6
    lea \n(%rdi), %rax
    mov %rax, (%rsp)
    fildq (%rsp)
    .endr
    mov %edi, %eax                  # MXCSR: all masked, and the rounding from the pattern
    and $0x6000, %eax
    or $0x1f80, %eax
    mov %eax, %ebx
    mov %eax, (%rsp)
    ldmxcsr (%rsp)
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    lea \n(%rdi), %rax
    movq %rax, %xmm\n
    punpcklqdq %xmm\n, %xmm\n
    .endr
    mov 8(%rsi), %r8
    test %r8, %r8
    jz 3f
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vinsertf128 $1, %xmm\n, %ymm\n, %ymm\n
    .endr
    cmp $2, %r8
    jb 3f
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vinserti64x4 $1, %ymm\n, %zmm\n, %zmm\n
    .endr
    .irp n, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    lea \n(%rdi), %rax
    vpbroadcastq %rax, %zmm\n
    .endr
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7
    lea \n(%rdi), %eax
    kmovw %eax, %k\n
    .endr
3:  .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    lea \n(%rdi), %rax
    movups %xmm\n, (%rsp)
    cmp %rax, (%rsp)
    jne 5f
    cmp %rax, 8(%rsp)
    jne 5f
    .endr
    test %r8, %r8
    jz 4f
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    lea \n(%rdi), %rax
    vextractf128 $1, %ymm\n, (%rsp)
    cmp %rax, (%rsp)
    jne 5f
    cmp %rax, 8(%rsp)
    jne 5f
    .endr
    cmp $2, %r8
    jb 4f
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    lea \n(%rdi), %rax
    vextracti64x4 $1, %zmm\n, (%rsp)
    cmp %rax, (%rsp)
    jne 5f
    cmp %rax, 24(%rsp)
    jne 5f
    .endr
    .irp n, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    lea \n(%rdi), %rax
    vmovdqu64 %zmm\n, (%rsp)
    cmp %rax, (%rsp)
    jne 5f
    cmp %rax, 56(%rsp)
    jne 5f
    .endr
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7
    lea \n(%rdi), %eax
    kmovw %k\n, %ecx
    cmp %ax, %cx
    jne 5f
    .endr
4:  .irp n, 0, 1, 2, 3, 4, 5, 6
    lea 6-\n(%rdi), %rax
    fld %st(\n)
    fistpq (%rsp)
    cmp %rax, (%rsp)
    jne 5f
    .endr
    stmxcsr (%rsp)
    cmp %ebx, (%rsp)
    jne 5f
    cmpl $0, (%rsi)
    je 3b
    xor %edi, %edi
    mov $SYS_EXIT, %eax
    syscall
5:  mov $5, %edi
    mov $SYS_EXIT, %eax
    syscall

# rdi: a page; rsi: a progress word and, after it, one that is not 0 once the page is gone. Reads the
# page (the next snippet writes it) without a call. Touching it after it was gone is exit code 6.
snippet_read_page:
    mov 8(%rsi), %rcx
    mov (%rdi), %rax
    test %rcx, %rcx
    jnz 6f
    incq (%rsi)
    jmp snippet_read_page

snippet_write_page:
    mov 8(%rsi), %rcx
    mov %rcx, (%rdi)
    test %rcx, %rcx
    jnz 6f
    incq (%rsi)
    jmp snippet_write_page

# rdi, rsi: as above. Touches the page, waits in a call until it is gone, and touches it again.
snippet_wait_and_read_page:
    mov (%rdi), %rax
    incq (%rsi)
    mov $SYS_WAIT, %eax
    syscall
    mov (%rdi), %rax
6:  mov $6, %edi
    mov $SYS_EXIT, %eax
    syscall

# The kernel's GS base survives the instruction that exchanges it, across calls and a fault. rdi: an
# untouched page.
snippet_swapgs:
    swapgs
    mov $SYS_VALUE, %eax
    syscall
    cmp $4242, %rax
    jne 5b
    movb $1, (%rdi)
    swapgs
    mov $SYS_VALUE, %eax
    syscall
    cmp $4242, %rax
    jne 5b
    xor %edi, %edi
    mov $SYS_EXIT, %eax
    syscall

# Changes the GS base to rdi, or where that is 0 to this code, calls if rsi is not 0, and never ends.
snippet_change_gs_base:
    lea snippet_change_gs_base(%rip), %rax
    test %rdi, %rdi
    cmovnz %rdi, %rax
    mov %rax, %rdx
    shr $32, %rdx
    mov $0xc0000101, %ecx           # IA32_GS_BASE; `wrgsbase`, where a CPU has that
    wrmsr
    test %rsi, %rsi
    jz 1f
    mov $SYS_VALUE, %eax
    syscall
1:  jmp 1b

# Waits interruptibly, then exits with what the wait said.
snippet_wait:
    mov $SYS_WAIT, %eax
    syscall
    mov %rax, %rdi
    mov $SYS_EXIT, %eax
    syscall

# rdi: rounds. Exits with the ticks that a round took, its own three instructions left out.
snippet_time_syscall:
    mov %rdi, %rbx
    mov %rdi, %rbp
    TICKS %r12
1:  mov $SYS_VALUE, %eax
    syscall
    dec %rbx
    jnz 1b
    TICKS %rdi
    sub %r12, %rdi
    jmp 9f

# rdi: the first of rsi untouched pages. Exits with the ticks that a first touch took.
snippet_time_fault:
    mov %rdi, %rbx
    mov %rsi, %rcx
    mov %rsi, %rbp
    TICKS %r12
1:  movb $1, (%rbx)
    add $4096, %rbx
    dec %rcx
    jnz 1b
    TICKS %rdi
    sub %r12, %rdi
9:  mov %rdi, %rax
    xor %edx, %edx
    div %rbp
    lea -3(%rax), %rdi
    mov $SYS_EXIT, %eax
    syscall
snippets_end:
    .text
