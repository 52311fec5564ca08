# The loader's way in: GRUB enters 32-bit protected mode, paging off, with a magic number in EAX and the
# address of its information in EBX (Multiboot Specification 0.6.96, 3.2).
    .section .multiboot, "a"
    .balign 4
    .long 0x1badb002, 3, -(0x1badb002 + 3)      # modules on page boundaries, and a memory map

    .text
    .global _start
_start:
    mov $stack_top, %esp
    push %ebx
    push %eax
    call load

    .bss
    .balign 16
    .skip 4096
stack_top:

    .section .note.GNU-stack, "", @progbits
