//! Resource limits: prlimit64 and its relatives.
//!
//! RLIMIT_NOFILE and RLIMIT_STACK have their effect; the others are kept and shown.
use core::sync::atomic::Ordering;

use crate::{
    args::{Addr, names::Resource, pair_bytes, split_pair},
    call::Ctx,
    errno::{EINVAL, EPERM, ESRCH, SysResult},
    program,
};

pub const INFINITY: u64 = u64::MAX;
const COUNT: usize = 16;
/// fs.nr_open's default: no descriptor table grows beyond.
const OPEN_FILES_MAX: u64 = 1 << 20;

/// Soft and hard limit of each resource.
#[derive(Clone)]
pub struct Limits([(u64, u64); COUNT]);

impl Default for Limits {
    fn default() -> Self {
        let mut limits = [(INFINITY, INFINITY); COUNT];
        limits[Resource::STACK as usize] = (8 << 20, INFINITY);
        limits[Resource::CORE as usize] = (0, INFINITY);
        limits[Resource::NOFILE as usize] = (1 << 20, OPEN_FILES_MAX);
        limits[Resource::MSGQUEUE as usize] = (819_200, 819_200);
        limits[Resource::NICE as usize] = (0, 0);
        limits[Resource::RTPRIO as usize] = (0, 0);
        limits[Resource::SIGPENDING as usize] = (4096, 4096);
        Self(limits)
    }
}

impl Limits {
    pub fn get(&self, resource: i32) -> Option<(u64, u64)> {
        self.0.get(usize::try_from(resource).ok()?).copied()
    }

    pub fn open_files(&self) -> u32 {
        self.0[Resource::NOFILE as usize].0.min(OPEN_FILES_MAX) as u32
    }

    pub fn stack(&self) -> u64 {
        self.0[Resource::STACK as usize].0
    }

    fn set(&mut self, resource: i32, soft: u64, hard: u64) {
        self.0[resource as usize] = (soft, hard);
    }
}

/// prlimit64(2).
pub fn prlimit64(cx: &mut Ctx<'_>, pid: i32, resource: Resource, new: Addr, old: Addr) -> SysResult {
    let program = match pid {
        0 => cx.program().clone(),
        _ => u32::try_from(pid).ok().and_then(program::by_pid).ok_or(ESRCH)?,
    };
    let wanted = match new.is_null() {
        true => None,
        false => {
            let (soft, hard) = split_pair(&new.read()?);
            Some((soft as u64, hard as u64))
        }
    };
    let mut limits = program.limits.lock();
    let before = limits.get(resource.0).ok_or(EINVAL)?;
    if let Some((soft, hard)) = wanted {
        if soft > hard {
            return Err(EINVAL);
        }
        if resource.0 == Resource::NOFILE && hard > OPEN_FILES_MAX {
            return Err(EPERM);
        }
        limits.set(resource.0, soft, hard);
    }
    let open_files = limits.open_files();
    drop(limits);
    if wanted.is_some() && resource.0 == Resource::NOFILE {
        program.files.lock().set_limit(open_files);
    }
    if !old.is_null() {
        old.write(&pair_bytes(before.0, before.1))?;
    }
    Ok(0)
}

/// getrlimit(2).
pub fn getrlimit(cx: &mut Ctx<'_>, resource: Resource, old: Addr) -> SysResult {
    prlimit64(cx, 0, resource, Addr(0), old)
}

/// setrlimit(2).
pub fn setrlimit(cx: &mut Ctx<'_>, resource: Resource, new: Addr) -> SysResult {
    prlimit64(cx, 0, resource, new, Addr(0))
}

/// umask(2).
pub fn umask(cx: &mut Ctx<'_>, mask: crate::args::Mode) -> SysResult {
    Ok(u64::from(cx.program().umask.swap(mask.0 & 0o777, Ordering::Relaxed)))
}
