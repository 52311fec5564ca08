//! The first program: from the boot configuration to its first task.
use alloc::{string::String, sync::Arc, vec::Vec};
use core::fmt;

use abi::BootConfig;
use fs::{OpenFile, OpenFlags, Vfs, vfs::{Base, Follow}};
use rt::{
    rt,
    task::{Start, TaskSpec},
};

use crate::{
    dispatch::Linux,
    errno::{EMFILE, Errno, SysResult},
    loader::{self, Request},
    program::{self, Directory, INIT_PID, NewProgram, Program},
    thread::Thread,
    threads,
};

static PERSONALITY: Linux = Linux;

/// Why the first program did not start; displays as one line.
#[derive(Clone, Debug)]
pub struct StartError {
    what: String,
    errno: Errno,
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot start {}: {}", self.what, self.errno)
    }
}

impl core::error::Error for StartError {}

/// Registers the personality, loads `config.init` from the mounted tree, and makes its first task
/// runnable. The machine powers off with the program's exit code when it ends.
pub fn start_init(config: &BootConfig, vfs: Arc<Vfs>) -> Result<(), StartError> {
    rt::set_personality(&PERSONALITY);
    let path = config.init.as_deref().unwrap_or("/sbin/init");
    let failed = |errno| StartError { what: String::from(path), errno };
    let root = vfs.root();
    let cwd = config.cwd.as_deref().unwrap_or("/");
    let cwd_location = Base::new(&root, &root)
        .resolve(cwd.as_bytes(), Follow::Yes)
        .map_err(|error| StartError { what: alloc::format!("{path} in {cwd}"), errno: error.into() })?;
    let program = Program::new(NewProgram {
        pid: INIT_PID,
        parent: 0,
        vfs,
        directory: Directory { root, cwd: cwd_location },
        trace: config.strace,
    });
    run(&program, config, path).map_err(|errno| {
        rt().address_space().release(program.owner);
        program::unregister(program.pid);
        failed(errno)
    })
}

fn run(program: &Arc<Program>, config: &BootConfig, path: &str) -> SysResult<()> {
    open_standard_files(program)?;
    let strings = |list: &[String]| list.iter().map(|s| s.as_bytes().to_vec()).collect::<Vec<_>>();
    let mut arguments = alloc::vec![path.as_bytes().to_vec()];
    arguments.extend(strings(&config.args));
    let directory = program.directory.lock().clone();
    let stack_limit = program.limits.lock().stack();
    let request = Request { path: path.as_bytes(), arguments, environment: strings(&config.env), stack_limit };
    let ready = loader::load(program.owner, &Base::new(&directory.root, &directory.cwd), request)?;

    *program.brk.lock() = ready.brk;
    *program.image.lock() = ready.image;
    let thread = Arc::new(Thread::new(program.clone(), &ready.name));
    let spec = TaskSpec {
        name: thread.name_string(),
        start: Start::Application { frame: ready.frame, fs_base: 0, inherit_vectors: false },
        extension: Some(thread.clone()),
        affinity: u64::MAX >> (64 - rt().cpu_count().clamp(1, 64)),
        nice: 0,
    };
    rt().spawn_prepared(spec, &mut |task| threads::adopt_first(task, &thread))?;
    Ok(())
}

/// Descriptors 0, 1 and 2: the console, opened once.
fn open_standard_files(program: &Program) -> SysResult<()> {
    let console: Arc<OpenFile> = OpenFile::new(fs::console::Console::get(), OpenFlags::READ_WRITE);
    let mut files = program.files.lock();
    for _ in 0..3 {
        files.insert(console.clone(), false, 0).map_err(|_| EMFILE)?;
    }
    Ok(())
}
