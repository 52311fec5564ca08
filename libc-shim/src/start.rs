//! The first program: from the boot configuration to its first task.
use alloc::{string::String, sync::Arc, vec::Vec};
use core::fmt;

use abi::{BootConfig, ConsoleInput};
use fs::{
    OpenFile, OpenFlags, Vfs,
    console::{Console, KeyboardSignal},
    descriptor::Descriptor,
    vfs::{Base, Follow, MountSpec},
};
use rt::{
    Extension, rt,
    task::{Start, TaskSpec},
};

use crate::{
    dispatch::Linux,
    errno::{Errno, SysResult},
    loader::{self, Request},
    procfs,
    program::{self, Directory, INIT_PID, NewProgram, Program},
    signal::{SigInfo, send},
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
    mount_generated(&vfs);
    Console::get().set_signal_hook(keyboard_signal);
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

/// What the keyboard's interrupt and quit characters do: there is one session, and its foreground is
/// the first program. ^Z is ignored, as there is no job control.
fn keyboard_signal(signal: KeyboardSignal) {
    const SIGINT: u32 = 2;
    const SIGQUIT: u32 = 3;
    let signal = match signal {
        KeyboardSignal::Interrupt => SIGINT,
        KeyboardSignal::Quit => SIGQUIT,
        KeyboardSignal::Stop => return,
    };
    if let Some(program) = program::by_pid(INIT_PID) {
        // Standard signals are pending once: nothing can be refused.
        let _ = send::to_program(&program, SigInfo::from_kernel(signal));
    }
}

/// Mounts /proc and /sys, if the tree has the directories or takes them.
fn mount_generated(vfs: &Vfs) {
    let root = vfs.root();
    let base = Base::new(&root, &root);
    for (path, file_system) in [("/proc", procfs::proc_file_system()), ("/sys", procfs::sys_file_system())] {
        let _ = base.create_directory(path.as_bytes(), 0o555);
        let source = file_system.type_name();
        let mounted = base
            .resolve(path.as_bytes(), Follow::Yes)
            .and_then(|at| vfs.mount(&at, file_system, MountSpec::new(source)));
        if let Err(error) = mounted {
            log::warn!("cannot mount {path}: {error:?}");
        }
    }
}

fn run(program: &Arc<Program>, config: &BootConfig, path: &str) -> SysResult<()> {
    open_standard_files(program, config.stdin)?;
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
        extension: Some(Extension::new(thread.clone())),
        affinity: u64::MAX >> (64 - rt().cpu_count().clamp(1, 64)),
        nice: 0,
    };
    rt().spawn_prepared(spec, &mut |task| threads::adopt_first(task, &thread))?;
    Ok(())
}

/// Descriptors 0, 1 and 2: the console, opened once. By its path, so that stat shows a terminal; a
/// tree without /dev gets the object itself. Descriptor 0 is a pipe if the host says that it has no terminal.
fn open_standard_files(program: &Program, stdin: ConsoleInput) -> SysResult<()> {
    let root = program.vfs.root();
    let by_path = Base::new(&root, &root).open(b"/dev/console", OpenFlags::READ_WRITE, 0);
    let console: Arc<OpenFile> = by_path.unwrap_or_else(|_| OpenFile::new(Console::get(), OpenFlags::READ_WRITE));
    let input = if stdin == ConsoleInput::Pipe { fs::stdin::open() } else { console.clone() };
    for file in [input, console.clone(), console] {
        let placed = program.files.lock().insert(Descriptor::new(file), false, 0);
        placed.map_err(|refused| refused.why)?;
    }
    Ok(())
}
