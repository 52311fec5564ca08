#![allow(unsafe_code, reason = "calls through the JNI function table")]
//! Calls into Java from the main thread.
//!
//! A [`Call`] derives its JNI signature from the values it passes and the type it returns, so the
//! two cannot disagree: that is what makes calling safe. References are local ones, and live until
//! the thread is detached (a launcher makes few of them).
//!
//! Every function that may throw returns [`JavaThrown`] and leaves the exception pending. While one
//! is pending only [`Env::clear_exception`] and [`Env::describe_exception`] may be called.

use std::{
    ffi::CString,
    marker::PhantomData,
    ptr::{self, NonNull},
};

use jni_sys::{_jobject, JNIEnv, jint, jmethodID, jobject, jvalue};

/// An exception is pending in the environment.
#[derive(Debug, Clone, Copy)]
pub struct JavaThrown;

/// The JNI environment of the main thread.
pub struct Env<'vm> {
    raw: *mut JNIEnv,
    vm: PhantomData<&'vm ()>,
}

/// A reference to a Java object; never null.
#[derive(Clone, Copy)]
pub struct Object<'vm> {
    raw: NonNull<_jobject>,
    vm: PhantomData<&'vm ()>,
}

/// A `java.lang.Class`.
#[derive(Clone, Copy)]
pub struct Class<'vm>(Object<'vm>);

/// A `java.lang.String`.
#[derive(Clone, Copy)]
pub struct JavaString<'vm>(Object<'vm>);

/// A `String[]`.
#[derive(Clone, Copy)]
pub struct StringArray<'vm>(Object<'vm>);

/// A `byte[]`.
#[derive(Clone, Copy)]
pub struct ByteArray<'vm>(Object<'vm>);

/// An argument of a call.
#[derive(Clone, Copy)]
pub enum Value<'vm> {
    Boolean(bool),
    Int(i32),
    String(JavaString<'vm>),
    Strings(StringArray<'vm>),
    Bytes(ByteArray<'vm>),
}

impl Value<'_> {
    /// JNI specification, "Type Signatures".
    fn signature(self) -> &'static str {
        match self {
            Self::Boolean(_) => "Z",
            Self::Int(_) => "I",
            Self::String(_) => JavaString::SIGNATURE,
            Self::Strings(_) => "[Ljava/lang/String;",
            Self::Bytes(_) => "[B",
        }
    }

    fn raw(self) -> jvalue {
        match self {
            Self::Boolean(z) => jvalue { z },
            Self::Int(i) => jvalue { i },
            Self::String(JavaString(object)) | Self::Strings(StringArray(object)) | Self::Bytes(ByteArray(object)) => {
                jvalue { l: object.raw.as_ptr() }
            }
        }
    }
}

/// A type of reference that a call may return.
pub trait Reference<'vm> {
    const SIGNATURE: &'static str;
    fn from_object(object: Object<'vm>) -> Self;
}

impl<'vm> Reference<'vm> for JavaString<'vm> {
    const SIGNATURE: &'static str = "Ljava/lang/String;";
    fn from_object(object: Object<'vm>) -> Self {
        Self(object)
    }
}

impl<'vm> Reference<'vm> for Class<'vm> {
    const SIGNATURE: &'static str = "Ljava/lang/Class;";
    fn from_object(object: Object<'vm>) -> Self {
        Self(object)
    }
}

/// A `void` method together with what it is called on and with.
pub struct Call<'vm> {
    target: Object<'vm>,
    is_static: bool,
    method: jmethodID,
    values: Vec<jvalue>,
}

impl<'vm> Env<'vm> {
    /// # Safety
    /// `raw` is the calling thread's environment, and stays so for `'vm`.
    pub unsafe fn from_raw(raw: *mut JNIEnv) -> Self {
        Self { raw, vm: PhantomData }
    }

    /// The newest JNI version that the virtual machine has.
    pub fn version(&self) -> jint {
        // SAFETY: `raw` is this thread's valid environment (type invariant), here and below.
        unsafe { ((**self.raw).v1_2.GetVersion)(self.raw) }
    }

    /// Prints the pending exception with its stack, and clears it. Nothing happens without one.
    pub fn describe_exception(&self) {
        // SAFETY: as in `version`; allowed while an exception is pending.
        unsafe { ((**self.raw).v1_2.ExceptionDescribe)(self.raw) }
    }

    pub fn clear_exception(&self) {
        // SAFETY: as in `version`; allowed while an exception is pending.
        unsafe { ((**self.raw).v1_2.ExceptionClear)(self.raw) }
    }

    fn check_exception(&self) -> Result<(), JavaThrown> {
        // SAFETY: as in `version`; allowed while an exception is pending.
        if unsafe { ((**self.raw).v1_2.ExceptionCheck)(self.raw) } { Err(JavaThrown) } else { Ok(()) }
    }

    /// A null result of a function that throws when it fails becomes the error.
    fn object(&self, raw: jobject) -> Result<Object<'vm>, JavaThrown> {
        self.check_exception()?;
        let raw = NonNull::new(raw).ok_or(JavaThrown)?;
        Ok(Object { raw, vm: PhantomData })
    }

    /// `name` with slashes, as in `java/lang/String`.
    pub fn find_class(&self, name: &str) -> Result<Class<'vm>, JavaThrown> {
        let name = c_string(name);
        // SAFETY: as in `version`; `name` outlives the call.
        let raw = unsafe { ((**self.raw).v1_2.FindClass)(self.raw, name.as_ptr()) };
        self.object(raw).map(Class)
    }

    pub fn static_boolean(&self, class: Class<'vm>, field: &str) -> Result<bool, JavaThrown> {
        let (name, signature) = (c_string(field), c_string("Z"));
        let class = class.0.raw.as_ptr();
        // SAFETY: as in `version`; the field id is used only if the field exists, as a boolean.
        unsafe {
            let id = ((**self.raw).v1_2.GetStaticFieldID)(self.raw, class, name.as_ptr(), signature.as_ptr());
            self.check_exception()?;
            Ok(((**self.raw).v1_2.GetStaticBooleanField)(self.raw, class, id))
        }
    }

    pub fn new_byte_array(&self, content: &[u8]) -> Result<ByteArray<'vm>, JavaThrown> {
        let len = jint::try_from(content.len()).map_err(|_| JavaThrown)?;
        // SAFETY: as in `version`.
        let array = self.object(unsafe { ((**self.raw).v1_2.NewByteArray)(self.raw, len) })?;
        // SAFETY: the array has `len` elements, and so has `content`.
        unsafe {
            ((**self.raw).v1_2.SetByteArrayRegion)(self.raw, array.raw.as_ptr(), 0, len, content.as_ptr().cast());
        }
        self.check_exception()?;
        Ok(ByteArray(array))
    }

    pub fn new_string_array(&self, strings: &[JavaString<'vm>]) -> Result<StringArray<'vm>, JavaThrown> {
        let class = self.find_class("java/lang/String")?.0.raw.as_ptr();
        let len = jint::try_from(strings.len()).map_err(|_| JavaThrown)?;
        // SAFETY: as in `version`; null is allowed as the initial element.
        let raw = unsafe { ((**self.raw).v1_2.NewObjectArray)(self.raw, len, class, ptr::null_mut()) };
        let array = self.object(raw)?;
        for (index, string) in (0..len).zip(strings) {
            // SAFETY: index < len, and the element is a String as the array demands.
            unsafe {
                ((**self.raw).v1_2.SetObjectArrayElement)(self.raw, array.raw.as_ptr(), index, string.0.raw.as_ptr());
            }
        }
        self.check_exception()?;
        Ok(StringArray(array))
    }

    /// Makes an object by the class' constructor without arguments.
    pub fn new_object(&self, class: Class<'vm>) -> Result<Object<'vm>, JavaThrown> {
        let (name, signature) = (c_string("<init>"), c_string("()V"));
        let class = class.0.raw.as_ptr();
        // SAFETY: as in `version`; the constructor takes no arguments, so none are read.
        let raw = unsafe {
            let id = ((**self.raw).v1_2.GetMethodID)(self.raw, class, name.as_ptr(), signature.as_ptr());
            self.check_exception()?;
            ((**self.raw).v1_2.NewObjectA)(self.raw, class, id, ptr::null())
        };
        self.object(raw)
    }

    /// Calls a static method that returns a reference; null counts as thrown.
    pub fn call_static<R: Reference<'vm>>(
        &self,
        class: Class<'vm>,
        name: &str,
        values: &[Value<'vm>],
    ) -> Result<R, JavaThrown> {
        let method = self.static_method(class, name, &signature(values, R::SIGNATURE))?;
        let values: Vec<_> = values.iter().map(|value| value.raw()).collect();
        let class = class.0.raw.as_ptr();
        // SAFETY: as in `version`; `method` was found by the signature of exactly these values.
        let raw = unsafe { ((**self.raw).v1_2.CallStaticObjectMethodA)(self.raw, class, method, values.as_ptr()) };
        self.object(raw).map(R::from_object)
    }

    /// Finds a static `void` method that takes `values`.
    pub fn static_void(&self, class: Class<'vm>, name: &str, values: &[Value<'vm>]) -> Result<Call<'vm>, JavaThrown> {
        let method = self.static_method(class, name, &signature(values, "V"))?;
        let values = values.iter().map(|value| value.raw()).collect();
        Ok(Call { target: class.0, is_static: true, method, values })
    }

    /// Finds a `void` method of `class` that takes `values`, and the object to call it on: a new one,
    /// from the constructor without arguments.
    pub fn void_on_new(&self, class: Class<'vm>, name: &str, values: &[Value<'vm>]) -> Result<Call<'vm>, JavaThrown> {
        let target = self.new_object(class)?;
        let (name, signature) = (c_string(name), c_string(&signature(values, "V")));
        let class = class.0.raw.as_ptr();
        // SAFETY: as in `version`.
        let method = unsafe { ((**self.raw).v1_2.GetMethodID)(self.raw, class, name.as_ptr(), signature.as_ptr()) };
        self.check_exception()?;
        let values = values.iter().map(|value| value.raw()).collect();
        Ok(Call { target, is_static: false, method, values })
    }

    pub fn call(&self, call: &Call<'vm>) -> Result<(), JavaThrown> {
        let (target, values) = (call.target.raw.as_ptr(), call.values.as_ptr());
        // SAFETY: as in `version`; the method belongs to the target and was found by the signature
        // of exactly these values (Call is only made so).
        unsafe {
            if call.is_static {
                ((**self.raw).v1_2.CallStaticVoidMethodA)(self.raw, target, call.method, values);
            } else {
                ((**self.raw).v1_2.CallVoidMethodA)(self.raw, target, call.method, values);
            }
        }
        self.check_exception()
    }

    fn static_method(&self, class: Class<'vm>, name: &str, signature: &str) -> Result<jmethodID, JavaThrown> {
        let (name, signature) = (c_string(name), c_string(signature));
        let class = class.0.raw.as_ptr();
        // SAFETY: as in `version`; both texts outlive the call.
        let method =
            unsafe { ((**self.raw).v1_2.GetStaticMethodID)(self.raw, class, name.as_ptr(), signature.as_ptr()) };
        self.check_exception()?;
        Ok(method)
    }
}

fn signature(values: &[Value<'_>], returned: &str) -> String {
    let arguments: String = values.iter().map(|value| value.signature()).collect();
    format!("({arguments}){returned}")
}

/// Names and signatures are constants of this program.
fn c_string(text: &str) -> CString {
    CString::new(text).expect("a Java name contains no NUL")
}
