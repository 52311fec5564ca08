//! From a created virtual machine to the exit code: the steps of `java`'s `JavaMain`.
//!
//! The JDK's own `sun.launcher.LauncherHelper` loads and checks the main class, so its messages,
//! and its handling of the manifest, are the JDK's. An exception that `main` throws stays pending
//! until the thread is detached: only then do uncaught-exception handlers run and print it.

use std::{env, fs, os::unix::ffi::OsStringExt};

use jni_sys::{JNI_VERSION_21, JNI_VERSION_24};

use crate::{
    FAILED, Failure,
    config::Config,
    jni::{
        Libjvm,
        env::{Call, Class, Env, JavaString, JavaThrown, StringArray, Value},
    },
    options::VmOptions,
};

const HELPER: &str = "sun/launcher/LauncherHelper";
/// `LauncherHelper.LM_JAR`.
const LAUNCH_MODE_JAR: i32 = 2;

/// Creates the virtual machine on the calling thread, runs the jar, and waits for the last
/// non-daemon thread. The result is the exit code.
pub fn launch(libjvm: &Libjvm, config: &Config, options: &VmOptions) -> Result<i32, Failure> {
    // Not left to the virtual machine: it would start first, and then print a stack trace.
    fs::metadata(&config.jar).map_err(|error| {
        Failure::new(format!("unable to access jar file {}: {error}", config.jar), "name a jar that is in the image")
    })?;
    let vm = libjvm.create_vm(&options.options)?;
    let exit_code = run_main(&vm.env(), config);
    vm.destroy()?;
    Ok(exit_code)
}

fn run_main(env: &Env<'_>, config: &Config) -> i32 {
    match find_main(env, config) {
        Ok(main) if env.call(&main).is_ok() => 0,
        // Reported by the detach.
        Ok(_) => FAILED,
        Err(JavaThrown) => {
            env.describe_exception();
            FAILED
        }
    }
}

fn find_main<'vm>(env: &Env<'vm>, config: &Config) -> Result<Call<'vm>, JavaThrown> {
    let helper = env.find_class(HELPER)?;
    let jar = platform_string(env, helper, config.jar.as_bytes())?;
    let to_stderr = Value::Boolean(true);
    let class =
        env.call_static(helper, "checkAndLoadMain", &[to_stderr, Value::Int(LAUNCH_MODE_JAR), Value::String(jar)])?;
    let arguments = application_arguments(env, helper)?;

    match env.version() {
        JNI_VERSION_24.. => {
            let is_static = env.static_boolean(helper, "isStaticMain")?;
            let takes_none = env.static_boolean(helper, "noArgMain")?;
            main_of(env, class, is_static, (!takes_none).then_some(arguments))
        }
        // The helper does not say which main it found, and `java` tries. Other than a static main
        // with arguments exists only as a preview.
        JNI_VERSION_21.. => {
            for (is_static, arguments) in [(true, Some(arguments)), (false, Some(arguments)), (true, None)] {
                match main_of(env, class, is_static, arguments) {
                    Ok(main) => return Ok(main),
                    Err(JavaThrown) => env.clear_exception(),
                }
            }
            main_of(env, class, false, None)
        }
        _ => main_of(env, class, true, Some(arguments)),
    }
}

fn main_of<'vm>(
    env: &Env<'vm>,
    class: Class<'vm>,
    is_static: bool,
    arguments: Option<StringArray<'vm>>,
) -> Result<Call<'vm>, JavaThrown> {
    let values: Vec<_> = arguments.map(Value::Strings).into_iter().collect();
    if is_static { env.static_void(class, "main", &values) } else { env.void_on_new(class, "main", &values) }
}

fn application_arguments<'vm>(env: &Env<'vm>, helper: Class<'vm>) -> Result<StringArray<'vm>, JavaThrown> {
    let strings: Vec<_> = env::args_os()
        .skip(1)
        .map(|argument| platform_string(env, helper, &argument.into_vec()))
        .collect::<Result<_, _>>()?;
    env.new_string_array(&strings)
}

/// Decodes by the platform's encoding (`sun.jnu.encoding`), as `java` does for its arguments.
fn platform_string<'vm>(env: &Env<'vm>, helper: Class<'vm>, text: &[u8]) -> Result<JavaString<'vm>, JavaThrown> {
    let bytes = env.new_byte_array(text)?;
    env.call_static(helper, "makePlatformString", &[Value::Boolean(true), Value::Bytes(bytes)])
}
