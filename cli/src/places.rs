//! Where the built parts are: beside this program, unless the environment says otherwise.
use std::{
    env,
    path::{Path, PathBuf},
};

use crate::failure::{Failure, TOOL_FAILED};

/// The bootable kernel.
pub fn kernel(given: Option<&Path>) -> Result<PathBuf, Failure> {
    match given {
        Some(path) => present(path.to_path_buf()),
        None => part("kernel.elf", "DEMITASSE_KERNEL"),
    }
}

/// The guest's first program.
pub fn jvm_host() -> Result<PathBuf, Failure> {
    part("jvm-host", "DEMITASSE_JVM_HOST")
}

fn part(name: &str, variable: &str) -> Result<PathBuf, Failure> {
    if let Some(path) = env::var_os(variable) {
        return present(path.into());
    }
    let own = env::current_exe().and_then(|path| path.canonicalize()).map_err(|error| {
        Failure::new(TOOL_FAILED, format!("this program's own path: {error}"), format!("set {variable}"))
    })?;
    present(own.with_file_name(name))
}

fn present(path: PathBuf) -> Result<PathBuf, Failure> {
    if path.is_file() {
        return Ok(path);
    }
    Err(Failure::new(TOOL_FAILED, format!("{}: no such file", path.display()), "run scripts/build"))
}
