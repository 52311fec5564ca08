#![allow(unsafe_code, reason = "defines the C symbol `main`")]
//! The C entry point.
//!
//! Rust's own start-up code is left out: it handles SIGSEGV and SIGBUS and ignores SIGPIPE, and
//! HotSpot would chain to those handlers before it writes its crash report. `java` starts with the
//! default dispositions, and so does this.

use core::ffi::{c_char, c_int};

/// Called by the C library. Arguments are read through `std::env`, which glibc fills by itself.
// SAFETY: the one definition of `main` in this program, with the signature that C gives it.
#[unsafe(no_mangle)]
extern "C" fn main(_argc: c_int, _argv: *const *const c_char) -> c_int {
    crate::run()
}
