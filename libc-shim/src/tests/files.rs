//! File and memory calls, and strace's lines.
use core::sync::atomic::Ordering;

use super::in_program;

#[test]
fn a_file_is_written_read_and_mapped() {
    in_program(|caller| {
        let path = caller.write(0, b"/notes\0");
        let at_cwd = -100i64 as u64;
        let fd = caller.call(257, &[at_cwd, path, 0o102, 0o644]);
        assert_eq!(fd, 0);
        let text = caller.write(64, b"hello");
        assert_eq!(caller.call(1, &[0, text, 5]), 5);
        assert_eq!(caller.call(8, &[0, 1, 0]), 1);
        assert_eq!(caller.call(0, &[0, caller.memory + 128, 100]), 4);
        assert_eq!(&caller.read::<4>(128), b"ello");
        let mapped = caller.call(9, &[0, 4096, 1, 2, 0, 0]);
        assert!(mapped > 0);
        let mut byte = [0; 5];
        rt::rt().user().read(&mut byte, mapped as u64).unwrap();
        assert_eq!(&byte, b"hello");
        assert_eq!(caller.call(3, &[0]), 0);
        assert_eq!(caller.call(3, &[0]), -9);
        assert_eq!(caller.call(257, &[at_cwd, path, 0o200000, 0]), -20);
    });
}

#[test]
fn readiness_is_waited_for() {
    in_program(|caller| {
        let ends = caller.memory + 256;
        assert_eq!(caller.call(293, &[ends, 0]), 0);
        let pollfd = caller.write(0, &[0, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(caller.call(7, &[pollfd, 1, 5]), 0);
        assert_eq!(caller.call(1, &[1, caller.memory, 1]), 1);
        assert_eq!(caller.call(7, &[pollfd, 1, u64::MAX]), 1);
        assert_eq!(caller.read::<2>(6), [1, 0]);
    });
}

#[test]
fn unknown_calls_and_bad_addresses_have_their_errno() {
    in_program(|caller| {
        assert_eq!(caller.call(9999, &[]), -38);
        assert_eq!(caller.call(1, &[77, 0, 0]), -9);
        assert_eq!(caller.call(79, &[8, 100]), -14);
        assert_eq!(caller.call(257, &[0, 8, 0]), -14);
    });
}

#[test]
fn strace_prints_calls_as_they_are_made() {
    in_program(|caller| {
        caller.program.trace.store(true, Ordering::Relaxed);
        let path = caller.write(0, b"/none\0");
        caller.call(257, &[-100i64 as u64, path, 0o2000000, 0]);
        let output = rt::host::install().take_console_output();
        let line = format!("[{}] openat(AT_FDCWD, \"/none\", O_CLOEXEC, 0o0) = -1 ENOENT\n", caller.program.pid);
        assert!(String::from_utf8(output).unwrap().contains(&line));
    });
}
