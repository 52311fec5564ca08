//! The root file system: the image, writable by copy-up until exit, with /dev, /tmp and /dev/shm over
//! it. `/proc` and `/sys` come from the personality, which knows what is in them.
use alloc::{boxed::Box, format, sync::Arc};

use abi::{boot::Root, exit};
use fs::{
    FileSystem, FsError, Vfs,
    devfs::devfs,
    erofs::Erofs,
    tmpfs::TmpFs,
    vfs::{Base, Follow, MountSpec},
};
use machine::drivers::ram_disk::RamDisk;
use rt::{block::BlockDevice, rt};

/// What cannot be mounted, in one line, and the machine's exit code for it.
pub struct MountError {
    pub text: Box<str>,
    pub exit_code: u32,
}

impl MountError {
    fn new(what: &str, error: FsError) -> Self {
        let exit_code = if error == FsError::OutOfMemory { exit::OUT_OF_MEMORY } else { exit::BAD_BOOT };
        Self { text: format!("{what}: {error:?}").into(), exit_code }
    }
}

impl From<&str> for MountError {
    fn from(text: &str) -> Self {
        Self { text: text.into(), exit_code: exit::BAD_BOOT }
    }
}

/// Opens the device that `root` names, or the one there is.
pub fn device(root: Option<Root>, module: Option<(u64, u64)>) -> Result<Arc<dyn BlockDevice>, MountError> {
    let module_disk = || module.and_then(RamDisk::new).map(|disk| Arc::new(disk) as Arc<dyn BlockDevice>);
    let disk = || machine::drivers::first_disk();
    match root {
        Some(Root::Module) => module_disk().ok_or_else(|| "root=module, but there is no boot module".into()),
        Some(Root::Vda) => disk().ok_or_else(|| "root=vda, but there is no virtio disk".into()),
        None => module_disk().or_else(disk).ok_or_else(|| "no image: neither a boot module nor a virtio disk".into()),
    }
}

/// Mounts the image on `device` and what belongs over it.
pub fn mount(device: Arc<dyn BlockDevice>) -> Result<Arc<Vfs>, MountError> {
    let image = Erofs::open(device).map_err(|error| MountError::new("the image is no EROFS file system", error))?;
    let (total, _) = rt().memory_bytes();
    let changes = TmpFs::over(&*image, total / 2).map_err(|error| MountError::new("the image's root", error))?;
    let vfs = Vfs::new(changes, MountSpec::new("image"));
    let attach = |path: &str, file_system: fs::FsResult<Arc<TmpFs>>| {
        file_system
            .and_then(|file_system| mount_at(&vfs, path, file_system))
            .map_err(|error| MountError::new(&format!("cannot mount {path}"), error))
    };
    attach("/dev", devfs())?;
    attach("/dev/shm", Ok(TmpFs::new(total / 2)))?;
    attach("/tmp", Ok(TmpFs::new(total / 2)))?;
    Ok(vfs)
}

fn mount_at(vfs: &Arc<Vfs>, path: &str, file_system: Arc<TmpFs>) -> Result<(), FsError> {
    let root = vfs.root();
    let base = Base::new(&root, &root);
    match base.create_directory(path.as_bytes(), 0o755) {
        Ok(()) | Err(FsError::Exists) => {}
        Err(error) => return Err(error),
    }
    let at = base.resolve(path.as_bytes(), Follow::Yes)?;
    let source = file_system.type_name();
    vfs.mount(&at, file_system, MountSpec::new(source))?;
    Ok(())
}
