# The C memory functions that rustc's generated code calls, and that the shipped compiler_builtins
# for linux-gnu leaves to libc. SSE2 only: kernel code never touches the upper vector halves.
# Rust copies would not do here: LLVM turns a copy loop back into a call of memcpy.
    .text
    .global memcpy, memmove, memset, memcmp, bcmp, strlen
    .type memcpy, @function
    .type memmove, @function
    .type memset, @function
    .type memcmp, @function
    .type bcmp, @function
    .type strlen, @function

# memmove(rdi destination, rsi source, rdx bytes)
    .balign 16
memmove:
    mov %rdi, %rax
    sub %rsi, %rax
    cmp %rdx, %rax
    jb copy_down                    # source < destination < source + bytes
# memcpy falls in: the forward copy loads a block before it stores it, so it is right for
# destination < source as well.
    .balign 16
memcpy:
    mov %rdi, %rax
    cmp $16, %rdx
    jb copy_small
    movups -16(%rsi,%rdx), %xmm4    # the last 16 bytes, before any store
    lea -16(%rdi,%rdx), %r8
    sub $64, %rdx
    jb 2f
1:  movups (%rsi), %xmm0
    movups 16(%rsi), %xmm1
    movups 32(%rsi), %xmm2
    movups 48(%rsi), %xmm3
    movups %xmm0, (%rdi)
    movups %xmm1, 16(%rdi)
    movups %xmm2, 32(%rdi)
    movups %xmm3, 48(%rdi)
    add $64, %rsi
    add $64, %rdi
    sub $64, %rdx
    jae 1b
2:  add $64, %edx                   # 0..63 bytes left
3:  sub $16, %edx
    jb 4f
    movups (%rsi), %xmm0
    movups %xmm0, (%rdi)
    add $16, %rsi
    add $16, %rdi
    jmp 3b
4:  movups %xmm4, (%r8)
    ret
copy_small:                         # 0..15 bytes, all loaded before the first store
    test $8, %dl
    jnz 8f
    test $4, %dl
    jnz 4f
    test $2, %dl
    jnz 2f
    test %edx, %edx
    jz 9f
    movzbl (%rsi), %ecx
    mov %cl, (%rdi)
9:  ret
8:  mov (%rsi), %rcx
    mov -8(%rsi,%rdx), %r8
    mov %rcx, (%rdi)
    mov %r8, -8(%rdi,%rdx)
    ret
4:  mov (%rsi), %ecx
    mov -4(%rsi,%rdx), %r8d
    mov %ecx, (%rdi)
    mov %r8d, -4(%rdi,%rdx)
    ret
2:  movzwl (%rsi), %ecx
    movzwl -2(%rsi,%rdx), %r8d
    mov %cx, (%rdi)
    mov %r8w, -2(%rdi,%rdx)
    ret
copy_down:
    mov %rdi, %rax
    cmp $16, %rdx
    jb copy_small
    movups (%rsi), %xmm4            # the first 16 bytes, before any store
1:  movups -16(%rsi,%rdx), %xmm0
    movups %xmm0, -16(%rdi,%rdx)
    sub $16, %rdx
    cmp $16, %rdx
    jae 1b
    movups %xmm4, (%rdi)
    ret

# memset(rdi destination, sil byte, rdx bytes)
    .balign 16
memset:
    mov %rdi, %rax
    movzbl %sil, %ecx
    imul $0x01010101, %ecx, %ecx
    cmp $16, %rdx
    jb 5f
    movd %ecx, %xmm0
    pshufd $0, %xmm0, %xmm0
    movups %xmm0, -16(%rdi,%rdx)
    sub $64, %rdx
    jb 2f
1:  movups %xmm0, (%rdi)
    movups %xmm0, 16(%rdi)
    movups %xmm0, 32(%rdi)
    movups %xmm0, 48(%rdi)
    add $64, %rdi
    sub $64, %rdx
    jae 1b
2:  add $64, %edx
3:  sub $16, %edx
    jb 4f
    movups %xmm0, (%rdi)
    add $16, %rdi
    jmp 3b
4:  ret
5:  test %edx, %edx
    jz 4b
    mov %cl, (%rdi)
    inc %rdi
    dec %edx
    jmp 5b

# memcmp(rdi, rsi, rdx bytes): eax < 0, 0, > 0
    .balign 16
memcmp:
bcmp:
    cmp $8, %rdx
    jb 3f
1:  mov (%rdi), %rax
    mov (%rsi), %rcx
    cmp %rcx, %rax
    jne 2f
    add $8, %rdi
    add $8, %rsi
    sub $8, %rdx
    cmp $8, %rdx
    jae 1b
    jmp 3f
2:  bswap %rax
    bswap %rcx
    cmp %rcx, %rax
    sbb %eax, %eax
    or $1, %eax
    ret
3:  test %edx, %edx
    jz 5f
4:  movzbl (%rdi), %eax
    movzbl (%rsi), %ecx
    inc %rdi
    inc %rsi
    sub %ecx, %eax
    jnz 6f
    dec %edx
    jnz 4b
5:  xor %eax, %eax
6:  ret

strlen:
    xor %eax, %eax
1:  cmpb $0, (%rdi,%rax)
    je 2f
    inc %rax
    jmp 1b
2:  ret

# Landing pads of the prebuilt liballoc and libcore name these; with panic=abort nothing gets here.
    .global _Unwind_Resume, rust_eh_personality
_Unwind_Resume:
rust_eh_personality:
    ud2
