//! What to run: the configuration file that the image builder writes.

use std::{env, ffi::OsString, fs, path::PathBuf};

use serde::Deserialize;

use crate::Failure;

/// Where the image has it.
const PATH: &str = "/etc/demitasse/jvm-host.conf";
/// Names another file, for tests on the host.
const PATH_VARIABLE: &str = "DEMITASSE_JVM_HOST_CONF";

/// The file's content, JSON.
#[derive(Deserialize, Debug, PartialEq, Eq)]
pub struct Config {
    /// Handed to the virtual machine as it stands: its class path and part of its command line.
    pub jar: String,
    /// Contains `lib/server/libjvm.so`.
    pub java_home: PathBuf,
    /// As they would stand before `-jar`.
    #[serde(default)]
    pub jvm_args: Vec<String>,
}

impl Config {
    pub fn load() -> Result<Self, Failure> {
        let path = env::var_os(PATH_VARIABLE).unwrap_or_else(|| OsString::from(PATH));
        let shown = path.to_string_lossy();
        let text = fs::read(&path).map_err(|error| {
            Failure::new(
                format!("cannot read {shown}: {error}"),
                "`demitasse run` writes it into the image; on a host, name a file by DEMITASSE_JVM_HOST_CONF",
            )
        })?;
        Self::parse(&text).map_err(|error| {
            Failure::new(
                format!("{shown}: {error}"),
                r#"it must be like {"jar": "/app/hello.jar", "java_home": "/usr/lib/jvm/jdk", "jvm_args": []}"#,
            )
        })
    }

    fn parse(text: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_may_be_left_out() {
        let config = Config::parse(br#"{"jar": "/app/a b.jar", "java_home": "/jdk"}"#).unwrap();
        assert_eq!(config, Config { jar: "/app/a b.jar".into(), java_home: "/jdk".into(), jvm_args: vec![] });
    }

    #[test]
    fn jar_and_java_home_may_not() {
        assert!(Config::parse(br#"{"jar": "/app/a.jar"}"#).is_err());
        assert!(Config::parse(br#"{"java_home": "/jdk"}"#).is_err());
        assert!(Config::parse(b"").is_err());
    }
}
