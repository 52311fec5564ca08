# Ways into the kernel and out of it: the system call, every vector, and the return to application
# code. Frames are rt::regs::TrapFrame; the per-CPU offsets are cpu::percpu::PerCpu's (asserted there);
# {task_interrupted} is an offset in tasks::Task.
#
# The mode word (PC_MODE) is odd while this CPU runs application code, even in the kernel; each
# crossing adds one, so it is mode and sequence number at once. Interrupts are off at each crossing:
# entries come with IF clear, the fast exit restores IF by `sti` right before the jump, and an
# interrupt cannot arrive in the shadow of `sti`. So there is no window in which a maskable
# interrupt sees an odd word with a kernel stack or an even word with application registers.
# (NMI and #MC can, and therefore never read it.)

    .set PC_THIS, 0
    .set PC_USER_RSP, 8
    .set PC_STACK_TOP, 16
    .set PC_STACK_LOW, 24
    .set PC_MODE, 32
    .set PC_CURRENT, 40
    .set PC_UNMOVED, 48
    .set PC_PANIC_STACK, 56
    .set PC_RESCHEDULE, 64
    .set FRAME_BYTES, 304
    # Kernel code keeps to xmm0-7 (scripts/check/disassembly); the others stay in the registers.
    .set XMM_BYTES, 128
    .set FRAME_R11, XMM_BYTES + 48
    .set FRAME_R10, XMM_BYTES + 56
    .set FRAME_R9, XMM_BYTES + 64
    .set FRAME_R8, XMM_BYTES + 72
    .set FRAME_RAX, XMM_BYTES + 80
    .set FRAME_RDX, XMM_BYTES + 96
    .set FRAME_RSI, XMM_BYTES + 104
    .set FRAME_RDI, XMM_BYTES + 112
    .set FRAME_VECTOR, XMM_BYTES + 120
    # Where an IST stack has its CPU's PerCpu, once all registers are pushed: cpu::tables.
    .set IST_PERCPU, 22 * 8
    .set FRAME_RIP, XMM_BYTES + 136
    .set FRAME_RFLAGS, XMM_BYTES + 152
    .set SYSCALL_VECTOR, 0x100          # TrapFrame::SYSCALL
    .set TRAP_FLAG, 0x100
    .set INTERRUPT_FLAG, 0x200

    .macro PUSH_REGISTERS
    push %rdi
    push %rsi
    push %rdx
    push %rcx
    push %rax
    push %r8
    push %r9
    push %r10
    push %r11
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    .endm

    .macro POP_REGISTERS
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    pop %r11
    pop %r10
    pop %r9
    pop %r8
    pop %rax
    pop %rcx
    pop %rdx
    pop %rsi
    pop %rdi
    .endm

    .macro SAVE_XMM base
    movaps %xmm0, 0x00(\base)
    movaps %xmm1, 0x10(\base)
    movaps %xmm2, 0x20(\base)
    movaps %xmm3, 0x30(\base)
    movaps %xmm4, 0x40(\base)
    movaps %xmm5, 0x50(\base)
    movaps %xmm6, 0x60(\base)
    movaps %xmm7, 0x70(\base)
    .endm

    .macro RESTORE_XMM
    movaps 0x00(%rsp), %xmm0
    movaps 0x10(%rsp), %xmm1
    movaps 0x20(%rsp), %xmm2
    movaps 0x30(%rsp), %xmm3
    movaps 0x40(%rsp), %xmm4
    movaps 0x50(%rsp), %xmm5
    movaps 0x60(%rsp), %xmm6
    movaps 0x70(%rsp), %xmm7
    .endm

    .text
# ---- system call: `syscall` executed at ring 0; FMASK has cleared IF, DF, TF, AC --------------------
    .global syscall_entry
    .balign 16
syscall_entry:
    mov %rsp, %gs:PC_USER_RSP
    mov %gs:PC_STACK_TOP, %rsp
    incq %gs:PC_MODE
    pushq $0x2b                     # what Linux would show as SS and CS; the way out ignores them
    pushq %gs:PC_USER_RSP
    push %r11                       # rflags
    pushq $0x33
    push %rcx                       # rip
    push %rax                       # error = number
    pushq $SYSCALL_VECTOR
    PUSH_REGISTERS
    sub $XMM_BYTES, %rsp
    SAVE_XMM %rsp
    mov %rsp, %rdi
    sti
    call syscall_from_application
    cli
    # Anything due, a frame that counts as a whole now (TrapFrame::REPLACED), or single-stepping, whose
    # trap must come after the application's instruction, leaves the slow way.
    mov %gs:PC_CURRENT, %rcx
    cmpb $0, %gs:PC_RESCHEDULE
    jne leave_slowly
    cmpb $0, {task_interrupted}(%rcx)
    jne leave_slowly
    cmpl $SYSCALL_VECTOR, FRAME_VECTOR(%rsp)
    jne leave_slowly
    testl $TRAP_FLAG, FRAME_RFLAGS(%rsp)
    jnz leave_slowly
    RESTORE_XMM
    # Rust code has preserved rbx, rbp and r12-15.
    mov FRAME_RDI(%rsp), %rdi
    mov FRAME_RSI(%rsp), %rsi
    mov FRAME_RDX(%rsp), %rdx
    mov FRAME_R10(%rsp), %r10
    mov FRAME_R9(%rsp), %r9
    mov FRAME_R8(%rsp), %r8
    mov FRAME_RAX(%rsp), %rax
    mov FRAME_R11(%rsp), %r11       # rflags, as `syscall` gave them
    mov FRAME_RIP(%rsp), %rcx
    incq %gs:PC_MODE
    andq $~INTERRUPT_FLAG, FRAME_RFLAGS(%rsp)
    add $FRAME_RFLAGS, %rsp
    popfq                           # IF stays off ...
    pop %rsp
    sti                             # ... until the jump has been made
    jmp *%rcx
leave_slowly:
    mov %rsp, %rdi
    call syscall_leaves_slowly      # returns with interrupts off

# ---- a new task's first entry, and the way out after changed frames; rsp = frame, IF off -------------
    .global leave_to_application
    .balign 16
leave_to_application:
    RESTORE_XMM
    add $XMM_BYTES, %rsp
    POP_REGISTERS
    add $16, %rsp                   # vector, error
    incq %gs:PC_MODE
    movq $0x08, 8(%rsp)
    movq $0x10, 32(%rsp)
    iretq

# ---- vectors ------------------------------------------------------------------------------------------
# Each stub makes the frame uniform: [vector][error][rip][cs][rflags][rsp][ss].
    .balign 16
    .global trap_stubs
trap_stubs:
    .set vector, 0
    .rept 256
    .balign 16
    .if (vector == 8) | ((vector >= 10) & (vector <= 14)) | (vector == 17) | (vector == 21) | (vector == 29) | (vector == 30)
    .else
    pushq $0
    .endif
    pushq $vector
    .if (vector == 2) | (vector == 8) | (vector == 18)
    jmp fatal_vector
    .else
    jmp trap_common
    .endif
    .set vector, vector + 1
    .endr

# On the vector's IST stack with interrupts off. The CPU reuses the IST stack at the next delivery,
# so the frame moves to the task's kernel stack before anything else may happen.
    .balign 16
trap_common:
    PUSH_REGISTERS
    cld
    mov IST_PERCPU(%rsp), %rdx
    cmpl $0, PC_UNMOVED(%rdx)       # a fault between here and the move would recurse for ever
    jne unmoved_fault
    movl $1, PC_UNMOVED(%rdx)
    cmp %gs:PC_THIS, %rdx           # a GS base that a program has changed: this differs, or faults
    jne wrong_gs_base
    xor %ebx, %ebx
    testb $1, %gs:PC_MODE
    jz 1f
    incq %gs:PC_MODE
    inc %ebx                        # from application code
    mov %gs:PC_STACK_TOP, %rdi
    jmp 2f
1:  mov 160(%rsp), %rdi             # the interrupted kernel rsp, less the red zone
    sub $128, %rdi
    and $-16, %rdi
2:  cmp %gs:PC_STACK_TOP, %rdi
    ja bad_kernel_stack
    sub $FRAME_BYTES, %rdi
    cmp %gs:PC_STACK_LOW, %rdi
    jb bad_kernel_stack
    SAVE_XMM %rdi
    .set at, 0
    .rept 11                        # 22 words
    movups at(%rsp), %xmm0
    movups %xmm0, XMM_BYTES + at(%rdi)
    .set at, at + 16
    .endr
    mov %rdi, %rsp
    movl $0, %gs:PC_UNMOVED
    mov %ebx, %esi
    call trap_from_anywhere         # (frame, from application); returns with interrupts off
    test %ebx, %ebx
    jnz leave_to_application
    RESTORE_XMM
    add $XMM_BYTES, %rsp
    POP_REGISTERS
    add $16, %rsp
    iretq

# A kernel stack overflow, or rsp out of any stack's bounds. The frame is still on the IST stack.
bad_kernel_stack:
    mov %rsp, %rdi
    mov $1, %esi
    jmp fatal_on_panic_stack
unmoved_fault:
    mov %rsp, %rdi
    mov $2, %esi
    jmp fatal_on_panic_stack
wrong_gs_base:
    mov %rsp, %rdi
    mov $3, %esi
    jmp fatal_on_panic_stack

# NMI, double fault, machine check: nothing is trusted, not even the mode word.
    .balign 16
fatal_vector:
    PUSH_REGISTERS
    cld
    mov %rsp, %rdi
    xor %esi, %esi
    cmpq $2, 120(%rsp)              # an NMI may return
    jne fatal_on_panic_stack
    mov %rsp, %rbx
    sub $XMM_BYTES, %rsp
    and $-16, %rsp
    SAVE_XMM %rsp
    call nmi_arrived
    RESTORE_XMM
    mov %rbx, %rsp
    POP_REGISTERS
    add $16, %rsp
    iretq

# rdi = general registers on (TrapFrame from r15), esi = reason; rsp is still where PUSH_REGISTERS left it.
# The GS base may be wrong. Another CPU's panic stack is its own.
fatal_on_panic_stack:
    mov IST_PERCPU(%rsp), %rdx
    mov PC_PANIC_STACK(%rdx), %rsp
    xor %ebp, %ebp
    call trap_fatal
    ud2
