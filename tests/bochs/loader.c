/* Brings the kernel into a machine that has no PVH loader: GRUB starts this by Multiboot, and it starts the
 * kernel as QEMU, Firecracker and Cloud Hypervisor do (x86/HVM direct boot ABI).
 *
 * Its modules, in this order: padding, which keeps the others away from where the kernel goes; the kernel,
 * whose string is the kernel's command line; perhaps the image. */

#include <stddef.h>
#include <stdint.h>

enum { MULTIBOOT_MAGIC = 0x2badb002, PVH_MAGIC = 0x336ec578, PVH_ENTRY_NOTE = 18, PT_LOAD = 1, PT_NOTE = 4, MAX_RANGES = 64, HAS_MODULES = 1 << 3, HAS_MAP = 1 << 6 };

struct multiboot {
    uint32_t flags, memory[2], boot_device, command_line, module_count, modules, symbols[4], map_bytes, map;
};

struct multiboot_module {
    uint32_t start, end, string, reserved;
};

struct multiboot_range {
    uint32_t size; /* of the rest */
    uint64_t address, bytes;
    uint32_t type;
} __attribute__((packed));

struct elf {
    uint8_t ident[16];
    uint16_t type, machine;
    uint32_t version;
    uint64_t entry, headers, sections;
    uint32_t flags;
    uint16_t header_bytes, program_header_bytes, program_headers;
};

struct program_header {
    uint32_t type, flags;
    uint64_t offset, virtual_address, address, file_bytes, bytes, align;
};

struct note {
    uint32_t name_bytes, bytes, type;
};

struct pvh_range {
    uint64_t address, bytes;
    uint32_t type, reserved;
};

struct pvh_module {
    uint64_t address, bytes, command_line, reserved;
};

struct pvh_start {
    uint32_t magic, version, flags, module_count;
    uint64_t modules, command_line, rsdp, map;
    uint32_t ranges, reserved;
};

static struct pvh_range map[MAX_RANGES];
static struct pvh_module image;
static struct pvh_start start;

static void say(const char *text) {
    for (; *text; text++)
        __asm__ volatile("outb %0, %1" : : "a"(*text), "d"((uint16_t)0x3f8));
}

static void fail(const char *why) {
    say(why);
    for (;;)
        __asm__ volatile("cli; hlt");
}

static void copy(uint32_t to, const void *from, uint32_t bytes) {
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes) : : "memory");
}

static void clear(uint32_t at, uint32_t bytes) {
    __asm__ volatile("rep stosb" : "+D"(at), "+c"(bytes) : "a"(0) : "memory");
}

static uint32_t aligned(uint32_t bytes) { return (bytes + 3) & ~3u; }

/* The root pointer of ACPI: on a 16-byte boundary in the BIOS (ACPI 6.5, 5.2.5.1). */
static uint32_t find_rsdp(void) {
    for (uint32_t at = 0xe0000; at < 0x100000; at += 16) {
        const uint32_t *words = (const uint32_t *)at;
        if (words[0] == 0x20445352 && words[1] == 0x20525450) /* "RSD PTR " */
            return at;
    }
    return 0;
}

static uint32_t entry_of(const uint8_t *notes, uint32_t bytes) {
    for (uint32_t at = 0; at + sizeof(struct note) <= bytes;) {
        const struct note *note = (const struct note *)(notes + at);
        const uint8_t *value = (const uint8_t *)(note + 1) + aligned(note->name_bytes);
        if (note->type == PVH_ENTRY_NOTE)
            return *(const uint32_t *)value;
        at += sizeof *note + aligned(note->name_bytes) + aligned(note->bytes);
    }
    return 0;
}

/* Puts the kernel where it wants to be, below `limit`; its PVH entry point. */
static uint32_t place(const uint8_t *file, uint32_t limit) {
    const struct elf *elf = (const struct elf *)file;
    const struct program_header *header = (const struct program_header *)(file + (uint32_t)elf->headers);
    uint32_t entry = 0;
    for (int left = elf->program_headers; left > 0; left--, header++) {
        const uint8_t *content = file + (uint32_t)header->offset;
        if (header->type == PT_LOAD) {
            if (header->address + header->bytes > limit)
                fail("loader: the kernel does not fit into the padding's place\n");
            copy(header->address, content, header->file_bytes);
            clear(header->address + header->file_bytes, header->bytes - header->file_bytes);
        } else if (header->type == PT_NOTE) {
            entry = entry_of(content, header->file_bytes);
        }
    }
    return entry;
}

void load(uint32_t magic, const struct multiboot *given) {
    const struct multiboot_module *modules = (const struct multiboot_module *)given->modules;
    if (magic != MULTIBOOT_MAGIC || !(given->flags & HAS_MODULES) || given->module_count < 2)
        fail("loader: there is no kernel\n");
    if (!(given->flags & HAS_MAP))
        fail("loader: there is no memory map\n");
    uint32_t limit = modules[1].start;
    if (given->module_count > 2 && modules[2].start < limit)
        limit = modules[2].start;
    uint32_t entry = place((const uint8_t *)modules[1].start, limit);
    if (!entry)
        fail("loader: the kernel has no PVH entry\n");
    for (uint32_t at = given->map; at < given->map + given->map_bytes && start.ranges < MAX_RANGES;) {
        const struct multiboot_range *range = (const struct multiboot_range *)at;
        map[start.ranges++] = (struct pvh_range){range->address, range->bytes, range->type, 0};
        at += range->size + sizeof range->size;
    }
    start.magic = PVH_MAGIC;
    start.version = 1;
    start.command_line = modules[1].string;
    start.rsdp = find_rsdp();
    start.map = (uint32_t)map;
    if (given->module_count > 2) {
        image.address = modules[2].start;
        image.bytes = modules[2].end - modules[2].start;
        start.modules = (uint32_t)&image;
        start.module_count = 1;
    }
    __asm__ volatile("cli; jmp *%0" : : "r"(entry), "b"(&start) : "memory");
}
