//! How the machine ended: codes that the kernel writes to QEMU's `isa-debug-exit` port.
//!
//! QEMU then exits with status `code << 1 | 1`, so no code can look like QEMU's own success (0) or
//! failure (1). The application's exit code travels in a control frame ([`crate::control`]).

/// I/O port of `-device isa-debug-exit,iobase=0xf4,iosize=4`.
pub const PORT: u16 = 0xf4;

/// The application ended, and its exit code has been reported.
pub const ORDERLY: u32 = 0x10;
/// The kernel panicked.
pub const PANIC: u32 = 0x20;
/// There is nothing to run: no root image, a broken one, or no such program in it.
pub const BAD_BOOT: u32 = 0x21;
/// Too little memory to start or to go on.
pub const OUT_OF_MEMORY: u32 = 0x22;
/// A built-in kernel test failed.
pub const TEST_FAILED: u32 = 0x23;
/// No boot structure where the loader said, or one that makes no sense.
pub const BAD_START_INFO: u32 = 0x24;
/// No memory map, or one with no RAM where the kernel lies.
pub const BAD_MEMORY_MAP: u32 = 0x25;
/// A boot module outside RAM, or over the kernel.
pub const BAD_MODULE: u32 = 0x26;
/// A command line without an end, or one that the kernel does not understand.
pub const BAD_COMMAND_LINE: u32 = 0x27;

/// Whether `code` says that the machine could not start.
pub const fn is_bad_boot(code: u32) -> bool {
    matches!(code, BAD_BOOT | BAD_START_INFO..=BAD_COMMAND_LINE)
}

/// QEMU's exit status after `code` was written.
pub const fn qemu_status(code: u32) -> i32 {
    (code << 1 | 1) as i32
}

/// The code behind QEMU's exit status; `None` for a status of QEMU's own.
pub const fn from_qemu_status(status: i32) -> Option<u32> {
    if status > 1 && status & 1 == 1 { Some(status as u32 >> 1) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_fits_an_exit_status_and_comes_back() {
        let starting = [BAD_START_INFO, BAD_MEMORY_MAP, BAD_MODULE, BAD_COMMAND_LINE];
        for code in [ORDERLY, PANIC, BAD_BOOT, OUT_OF_MEMORY, TEST_FAILED].into_iter().chain(starting) {
            assert!(qemu_status(code) < 128);
            assert_eq!(from_qemu_status(qemu_status(code)), Some(code));
        }
        assert_eq!(from_qemu_status(0), None);
        assert_eq!(from_qemu_status(1), None);
    }
}
