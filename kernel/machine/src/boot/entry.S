# Entry from PVH: 32-bit, paging off, EBX = physical address of hvm_start_info. Builds the smallest
# page tables that reach the kernel (identity and high alias of the first 1 GiB), enters long mode
# and calls boot_start(hvm_start_info). machine::memory::paging replaces these tables.
#
# The second half is the application processors' way in: 16-bit code that is copied to AP_TRAMPOLINE.

    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 8, 18                  # name size, descriptor size, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad pvh_start

    .section .boot32, "awx", @progbits
    .code32
    .global pvh_start
pvh_start:
    cli
    cld
    mov $boot_stack_top - 4, %esp
    mov %ebx, boot_info
    # RAM that ends within the image: what follows, even the code that reads the memory map, may not be
    # there. The image's last word (__kernel_end - KERNEL_BASE - 4) has to keep what it is given.
    mov $__kernel_end + 0x7ffffffc, %esi
    mov (%esi), %eax
    not %eax
    mov %eax, (%esi)
    cmp %eax, (%esi)
    jne no_ram
    not %eax
    mov %eax, (%esi)
    # The tables are not loaded from the file: clear them first.
    mov $boot_pml4, %edi
    xor %eax, %eax
    mov $(4 * 1024), %ecx
    rep stosl
    mov $boot_pd, %edi
    mov $0x83, %eax                 # present, writable, 2 MiB
    mov $512, %ecx
1:  mov %eax, (%edi)
    add $0x200000, %eax
    add $8, %edi
    dec %ecx
    jnz 1b
    movl $boot_pd + 3, boot_pdpt_low
    movl $boot_pd + 3, boot_pdpt_high + 510 * 8
    movl $boot_pdpt_low + 3, boot_pml4
    movl $boot_pdpt_high + 3, boot_pml4 + 511 * 8
    mov $boot_pml4, %eax
    mov %eax, %cr3
    call enable_long_mode
    lgdt boot_gdt_pointer
    ljmp $0x08, $boot_long

# One line on the serial port, the exit code for QEMU, else a reset.
no_ram:
    mov $no_ram_line, %esi
    mov $0x3f8, %edx
1:  lodsb
    test %al, %al
    jz 2f
    outb %al, %dx
    jmp 1b
2:  mov ${out_of_memory}, %eax
    mov ${exit_port}, %edx
    outl %eax, %dx
    mov $0xfe, %al
    outb %al, $0x64
3:  hlt
    jmp 3b
no_ram_line: .asciz "demitasse: error: too little memory: RAM ends within the kernel\n"

# PAE, OSFXSR, OSXMMEXCPT; EFER: SCE, LME, NXE; CR0: PG, WP, NE, MP with EM and TS clear.
enable_long_mode:
    mov %cr4, %eax
    or $0x620, %eax
    mov %eax, %cr4
    mov $0xC0000080, %ecx
    rdmsr
    or $0x901, %eax
    wrmsr
    mov %cr0, %eax
    and $0x9ffffff3, %eax           # caches on too
    or $0x80010022, %eax
    mov %eax, %cr0
    ret

    .code64
boot_long:
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    xor %eax, %eax
    mov %eax, %fs
    mov %eax, %gs
    mov $boot_stack_top, %esp
    movabs $0xffffffff80000000, %rax
    add %rax, %rsp                  # the stack by its high alias: the low one goes away
    xor %ebp, %ebp
    mov boot_info, %edi
    movabs $boot_start, %rax
    call *%rax
    ud2

# ---- application processors: copied to physical AP_TRAMPOLINE (0x8000) -----------------------------
    .global ap_trampoline, ap_trampoline_end, ap_parameters
    .balign 16
    .code16
ap_trampoline:
    cli
    xor %ax, %ax
    mov %ax, %ds
    lgdtl 0x8000 + (ap_gdt_pointer - ap_trampoline)
    mov $0x11, %eax
    mov %eax, %cr0
    ljmpl $0x18, $0x8000 + (ap_protected - ap_trampoline)
    .code32
ap_protected:
    mov $0x10, %ax
    mov %ax, %ds
    mov %ax, %ss
    mov %cr4, %eax
    or $0x620, %eax
    mov %eax, %cr4
    mov 0x8000 + (ap_page_table - ap_trampoline), %eax
    mov %eax, %cr3
    mov $0xC0000080, %ecx
    rdmsr
    or $0x901, %eax
    wrmsr
    mov %cr0, %eax
    and $0x9ffffff3, %eax
    or $0x80010022, %eax
    mov %eax, %cr0
    ljmp $0x08, $0x8000 + (ap_long - ap_trampoline)
    .code64
ap_long:
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    xor %eax, %eax
    mov %eax, %fs
    mov %eax, %gs
    mov 0x8000 + (ap_stack - ap_trampoline), %rsp
    mov 0x8000 + (ap_argument - ap_trampoline), %rdi
    xor %ebp, %ebp
    movabs $ap_start, %rax
    call *%rax
    ud2
    .balign 8
ap_gdt_pointer:
    .word 31
    .long 0x8000 + (ap_gdt - ap_trampoline)
    .balign 8
ap_gdt:
    .quad 0
    .quad 0x00af9b000000ffff        # 08 64-bit code
    .quad 0x00cf93000000ffff        # 10 data
    .quad 0x00cf9b000000ffff        # 18 32-bit code
# Filled in the copy, one processor at a time: see machine::cpu::smp.
ap_parameters:
ap_page_table: .quad 0
ap_stack:      .quad 0
ap_argument:   .quad 0
ap_trampoline_end:

    .balign 16
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff        # 08 64-bit code
    .quad 0x00cf93000000ffff        # 10 data
boot_gdt_pointer:
    .word 23
    .long boot_gdt, 0
boot_info: .long 0

    .section .bootbss, "aw", @nobits
    .balign 4096
boot_pml4:      .skip 4096
boot_pdpt_low:  .skip 4096
boot_pdpt_high: .skip 4096
boot_spare:     .skip 4096
boot_pd:        .skip 4096
    .global boot_stack_bottom, boot_stack_top
boot_stack_bottom: .skip 65536
boot_stack_top:
    .text
