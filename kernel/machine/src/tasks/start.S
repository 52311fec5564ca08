# The first thing a new task runs: what tasks::task laid out on its stack is the function and its
# argument, and below them the stack is empty.
    .text
    .global task_start
task_start:
    pop %rax
    pop %rdi
    xor %ebp, %ebp
    call *%rax
    ud2
