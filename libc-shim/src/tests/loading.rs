//! The loader on the host's own programs.
use alloc::vec::Vec;

use fs::{OpenFlags, SliceSource, vfs::Base};
use rt::rt;

use super::{Caller, in_program};
use crate::{
    errno::{ENOENT, ENOEXEC, SysResult},
    loader::{Ready, Request, load},
};

fn put(caller: &Caller, path: &str, bytes: &[u8]) {
    let root = caller.program.vfs.root();
    let base = Base::new(&root, &root);
    for (at, _) in path.match_indices('/').skip(1) {
        let _ = base.create_directory(&path.as_bytes()[..at], 0o755);
    }
    let file = base.open(path.as_bytes(), OpenFlags::CREATE | OpenFlags::READ_WRITE, 0o755).unwrap();
    let mut source = SliceSource::new(bytes);
    while fs::Source::remaining(&source) > 0 {
        file.write(&mut source).unwrap();
    }
}

fn try_load(caller: &Caller, path: &str) -> SysResult<Ready> {
    let root = caller.program.vfs.root();
    let request = Request {
        path: path.as_bytes(),
        arguments: Vec::from([path.as_bytes().to_vec()]),
        environment: Vec::new(),
        stack_limit: 8 << 20,
    };
    load(caller.program.owner, &Base::new(&root, &root), request)
}

fn mapping_of(caller: &Caller, address: u64) -> Option<rt::space::Prot> {
    let mut found = None;
    rt().address_space().regions(caller.program.owner, &mut |region| {
        if (region.start..region.end).contains(&address) {
            found = Some(region.prot);
        }
    });
    found
}

#[test]
fn a_dynamic_program_starts_in_its_interpreter() {
    let (program, interpreter) = ("/bin/true", "/lib64/ld-linux-x86-64.so.2");
    let (Ok(program_bytes), Ok(interpreter_bytes)) = (std::fs::read(program), std::fs::read(interpreter)) else {
        return;
    };
    in_program(move |caller| {
        put(caller, program, &program_bytes);
        assert_eq!(try_load(caller, program).err(), Some(ENOENT));
        rt().address_space().release(caller.program.owner);
        put(caller, interpreter, &interpreter_bytes);
        let ready = try_load(caller, program).unwrap();
        assert!(mapping_of(caller, ready.frame.rip).unwrap().contains(rt::space::Prot::EXEC));
        assert_eq!(ready.frame.rsp % 16, 0);
        assert_eq!(ready.name, b"true");
        assert!(ready.brk.start > ready.image.data.1);
        let mut argc = [0; 8];
        rt().user().read(&mut argc, ready.frame.rsp).unwrap();
        assert_eq!(u64::from_le_bytes(argc), 1);
    });
}

#[test]
fn what_is_no_program_is_refused() {
    in_program(|caller| {
        put(caller, "/text", b"hello");
        put(caller, "/cut", b"\x7fELF\x02\x01\x01");
        put(caller, "/script", b"#!/nowhere -x\n");
        assert_eq!(try_load(caller, "/text").err(), Some(ENOEXEC));
        assert_eq!(try_load(caller, "/cut").err(), Some(ENOEXEC));
        assert_eq!(try_load(caller, "/script").err(), Some(ENOENT));
        assert_eq!(try_load(caller, "/missing").err(), Some(ENOENT));
    });
}
