# Copies that touch application memory. A fault that cannot be served continues at the routine's
# fixup, by the exception table; the result says how it went. SSE2, xmm0-3 only.

    .macro EXCEPTION from, to
    .pushsection .ex_table, "a"
    .balign 8
    .quad \from, \to
    .popsection
    .endm

    .text
# user_copy(rdi destination, rsi source, rdx bytes) -> rax: 0, or 1 after a bad address. Either side
# may be application memory.
    .global user_copy
    .balign 16
user_copy:
    sub $64, %rdx
    jb 2f
10: movups (%rsi), %xmm0
11: movups 16(%rsi), %xmm1
12: movups 32(%rsi), %xmm2
13: movups 48(%rsi), %xmm3
14: movups %xmm0, (%rdi)
15: movups %xmm1, 16(%rdi)
16: movups %xmm2, 32(%rdi)
17: movups %xmm3, 48(%rdi)
    add $64, %rsi
    add $64, %rdi
    sub $64, %rdx
    jae 10b
2:  add $64, %edx
3:  sub $8, %edx
    jb 4f
18: mov (%rsi), %rax
19: mov %rax, (%rdi)
    add $8, %rsi
    add $8, %rdi
    jmp 3b
4:  add $8, %edx
    jz 6f
20: movzbl (%rsi), %eax
21: mov %al, (%rdi)
    inc %rsi
    inc %rdi
    dec %edx
    jnz 20b
6:  xor %eax, %eax
    ret
user_copy_bad:
    mov $1, %eax
    ret
    EXCEPTION 10b, user_copy_bad
    EXCEPTION 11b, user_copy_bad
    EXCEPTION 12b, user_copy_bad
    EXCEPTION 13b, user_copy_bad
    EXCEPTION 14b, user_copy_bad
    EXCEPTION 15b, user_copy_bad
    EXCEPTION 16b, user_copy_bad
    EXCEPTION 17b, user_copy_bad
    EXCEPTION 18b, user_copy_bad
    EXCEPTION 19b, user_copy_bad
    EXCEPTION 20b, user_copy_bad
    EXCEPTION 21b, user_copy_bad

# user_zero(rdi destination, rsi bytes) -> rax: 0 or 1
    .global user_zero
    .balign 16
user_zero:
    xor %eax, %eax
1:  sub $8, %rsi
    jb 2f
30: mov %rax, (%rdi)
    add $8, %rdi
    jmp 1b
2:  add $8, %rsi
    jz 4f
31: mov %al, (%rdi)
    inc %rdi
    dec %rsi
    jnz 31b
4:  ret
    EXCEPTION 30b, user_copy_bad
    EXCEPTION 31b, user_copy_bad

# user_string(rdi kernel destination, rsi source, rdx limit) -> rax: length without the NUL; limit if
# there is none within it; -1 after a bad address.
    .global user_string
    .balign 16
user_string:
    xor %eax, %eax
1:  cmp %rdx, %rax
    je 2f
40: movzbl (%rsi,%rax), %ecx
    mov %cl, (%rdi,%rax)
    test %ecx, %ecx
    jz 2f
    inc %rax
    jmp 1b
2:  ret
user_string_bad:
    mov $-1, %rax
    ret
    EXCEPTION 40b, user_string_bad

# user_load_u32(rdi address) -> rax: the value; bit 63 set after a bad address.
    .global user_load_u32
    .balign 16
user_load_u32:
50: mov (%rdi), %eax
    ret
user_u32_bad:
    mov $1, %eax
    shl $63, %rax
    ret
    EXCEPTION 50b, user_u32_bad

# The same without ever asking for the page: a fault at this address is bad at once.
    .global user_load_u32_nofault, user_load_u32_nofault_at
    .balign 16
user_load_u32_nofault:
user_load_u32_nofault_at:
60: mov (%rdi), %eax
    ret
    EXCEPTION 60b, user_u32_bad

# user_exchange_u32(rdi address, esi current, edx new) -> rax: the old value; bit 63 as above.
    .global user_exchange_u32
    .balign 16
user_exchange_u32:
    mov %esi, %eax
70: lock cmpxchg %edx, (%rdi)
    mov %eax, %eax
    ret
    EXCEPTION 70b, user_u32_bad
