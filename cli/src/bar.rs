//! Progress on standard error: a bar on a terminal, nothing elsewhere.
use std::{cell::RefCell, time::Duration};

use image::Progress;
use indicatif::{ProgressBar, ProgressStyle};

#[derive(Default)]
pub struct Bar {
    shown: RefCell<Option<ProgressBar>>,
}

impl Progress for Bar {
    fn begin(&self, what: &str, total_bytes: u64) {
        let (bar, template) = match total_bytes {
            0 => (ProgressBar::new_spinner(), "{spinner} {msg}"),
            _ => (ProgressBar::new(total_bytes), "{msg} {wide_bar} {bytes}/{total_bytes} {eta}"),
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(what.to_string());
        bar.enable_steady_tick(Duration::from_millis(100));
        self.shown.replace(Some(bar));
    }

    fn reached(&self, done_bytes: u64) {
        if let Some(bar) = &*self.shown.borrow() {
            bar.set_position(done_bytes);
        }
    }

    fn end(&self) {
        if let Some(bar) = self.shown.take() {
            bar.finish_and_clear();
        }
    }
}

/// A step that failed half-way must not leave its bar above the error.
impl Drop for Bar {
    fn drop(&mut self) {
        self.end();
    }
}
