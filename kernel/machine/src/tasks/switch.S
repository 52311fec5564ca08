# switch_stacks(rdi: *mut u64 where the old rsp goes, rsi: new rsp): saves what the C calling
# convention makes the callee keep and continues on the other stack. Vector state and MXCSR are the
# caller's business (tasks::vectors).
    .text
    .global switch_stacks
    .balign 16
switch_stacks:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret

# The first thing a new task runs; tasks::task lays the stack out for it: r12 = function,
# r13 = its argument.
    .global task_start
task_start:
    mov %r13, %rdi
    xor %ebp, %ebp
    call *%r12
    ud2
