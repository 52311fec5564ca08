#![allow(unsafe_code, reason = "loads libjvm and calls its C entry points")]
//! The JNI invocation interface: loading `libjvm.so`, creating the virtual machine, ending it.
//!
//! # Invariants
//! One virtual machine in a process, ever (HotSpot creates no second one). A [`Vm`] stays on the
//! thread that created it; everything borrowed from it (see [`env`]) ends before [`Vm::destroy`].

pub mod env;

use std::{
    ffi::{CString, c_char, c_int, c_void},
    marker::PhantomData,
    path::Path,
    ptr,
};

use jni_sys::{JNI_ENOMEM, JNI_OK, JNI_VERSION_1_1, JNI_VERSION_1_2, JNIEnv, JavaVM, JavaVMInitArgs, JavaVMOption};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW, Symbol};

use crate::Failure;
use env::Env;

/// The `JNI_VERSION_1_1` form of `JNI_GetDefaultJavaVMInitArgs`' argument, which is how a launcher
/// asks for the default stack size. Layout: `jni.h` of JDK 1.1; HotSpot writes `java_stack_size`.
#[repr(C)]
struct InitArgs1_1 {
    version: c_int,
    properties: *mut *mut c_char,
    check_source: c_int,
    native_stack_size: c_int,
    java_stack_size: c_int,
    /// Fields that HotSpot does not touch; ample, so that a longer structure would still fit.
    rest: [*mut c_void; 16],
}

/// What HotSpot has on x86-64 when it does not tell.
const USUAL_STACK_BYTES: usize = 1 << 20;

type CreateJavaVm = unsafe extern "system" fn(*mut *mut JavaVM, *mut *mut c_void, *mut c_void) -> c_int;
type GetDefaultInitArgs = unsafe extern "system" fn(*mut c_void) -> c_int;

/// A loaded `libjvm.so`.
pub struct Libjvm {
    create: Symbol<CreateJavaVm>,
    get_default_init_args: Symbol<GetDefaultInitArgs>,
}

impl Libjvm {
    /// Loads the server virtual machine of the JDK at `java_home`, for the process' life.
    pub fn load(java_home: &Path) -> Result<Self, Failure> {
        let path = java_home.join("lib/server/libjvm.so");
        let failed = |error: libloading::Error| {
            Failure::new(
                format!("cannot load {}: {}", path.display(), deepest(&error)),
                "java_home must be a JDK or JRE for x86-64 and this C library, 17 or later",
            )
        };
        // SAFETY: libjvm's initialisers are written to be run by dlopen, which is how `java` loads
        // it, with the same flags.
        let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) }.map_err(failed)?;
        // SAFETY: jni.h declares these names with these types.
        let libjvm = unsafe {
            Self {
                create: library.get(b"JNI_CreateJavaVM\0").map_err(failed)?,
                get_default_init_args: library.get(b"JNI_GetDefaultJavaVMInitArgs\0").map_err(failed)?,
            }
        };
        // Unloading it is impossible (its threads may live until exit), and the symbols above stay
        // valid only while it is loaded.
        std::mem::forget(library);
        Ok(libjvm)
    }

    /// The stack size that the virtual machine would give a Java thread.
    pub fn default_stack_bytes(&self) -> usize {
        let mut args = InitArgs1_1 {
            version: JNI_VERSION_1_1,
            properties: ptr::null_mut(),
            check_source: 0,
            native_stack_size: 0,
            java_stack_size: 0,
            rest: [ptr::null_mut(); 16],
        };
        // SAFETY: for this version the function writes an int at `java_stack_size`, within `args`.
        // It reports the version as unsupported and fills the field all the same, hence no check.
        unsafe { (self.get_default_init_args)((&raw mut args).cast()) };
        usize::try_from(args.java_stack_size).ok().filter(|&bytes| bytes > 0).unwrap_or(USUAL_STACK_BYTES)
    }

    /// Creates the virtual machine, with the calling thread as its main thread. Options must be
    /// recognised: the virtual machine names the first that is not on standard error.
    pub fn create_vm(&self, options: &[String]) -> Result<Vm<'_>, Failure> {
        let texts: Vec<CString> = options
            .iter()
            .map(|option| CString::new(option.as_str()))
            .collect::<Result<_, _>>()
            .map_err(|_| Failure::new("a JVM option contains a NUL byte", "remove it from jvm_args"))?;
        let mut table: Vec<JavaVMOption> = texts
            .iter()
            .map(|text| JavaVMOption { optionString: text.as_ptr().cast_mut(), extraInfo: ptr::null_mut() })
            .collect();
        let mut args = JavaVMInitArgs {
            version: JNI_VERSION_1_2,
            nOptions: table.len() as i32,
            options: table.as_mut_ptr(),
            ignoreUnrecognized: false,
        };
        let mut vm: *mut JavaVM = ptr::null_mut();
        let mut env: *mut c_void = ptr::null_mut();
        // SAFETY: `args` and the texts that it points to outlive the call, and HotSpot copies what
        // it keeps. Both results are written before JNI_OK is returned.
        let status = unsafe { (self.create)(&raw mut vm, &raw mut env, (&raw mut args).cast()) };
        match status {
            JNI_OK => Ok(Vm { vm, env: env.cast(), libjvm: PhantomData }),
            JNI_ENOMEM => Err(Failure::new(
                "not enough memory to create the Java virtual machine",
                "give the machine more memory, or the virtual machine a smaller heap (-Xmx)",
            )),
            status => Err(Failure::new(
                format!("could not create the Java virtual machine (JNI error {status})"),
                "its own message stands above; check jvm_args, JDK_JAVA_OPTIONS and JAVA_TOOL_OPTIONS",
            )),
        }
    }
}

/// The dynamic linker's message, which libloading keeps as the source of its error.
fn deepest(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), deepest)
}

/// The virtual machine, attached to the thread that created it. Neither `Send` nor `Sync`.
pub struct Vm<'jvm> {
    vm: *mut JavaVM,
    env: *mut JNIEnv,
    libjvm: PhantomData<&'jvm Libjvm>,
}

impl Vm<'_> {
    pub fn env(&self) -> Env<'_> {
        // SAFETY: `env` came from JNI_CreateJavaVM on this thread (Vm is not Send), and is valid
        // until the detach in `destroy`, which the borrow of `self` excludes.
        unsafe { Env::from_raw(self.env) }
    }

    /// Detaches this thread, which reports a pending exception through the uncaught-exception
    /// handlers; waits until no non-daemon thread is left, runs the shutdown hooks, and ends the
    /// virtual machine. It is not attached by guard, since the order of the two matters.
    pub fn destroy(self) -> Result<(), Failure> {
        // SAFETY: the virtual machine is alive, as only this function ends it and consumes `self`;
        // no `Env` is left. Both functions exist in JNI 1.2, which was asked for.
        let detached = unsafe {
            let detached = ((**self.vm).v1_2.DetachCurrentThread)(self.vm);
            ((**self.vm).v1_2.DestroyJavaVM)(self.vm);
            detached
        };
        match detached {
            JNI_OK => Ok(()),
            status => Err(Failure::new(
                format!("could not detach the main thread from the virtual machine (JNI error {status})"),
                "this is a fault of the virtual machine; its own message may stand above",
            )),
        }
    }
}
