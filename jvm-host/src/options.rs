//! The virtual machine's options: what `java` makes of its command line and of `JDK_JAVA_OPTIONS`.
//!
//! `JAVA_TOOL_OPTIONS` and `_JAVA_OPTIONS` are read by the virtual machine itself. Of the launcher's
//! own options only those that are rewritten for the virtual machine are known here; others
//! (`-version`, `-XshowSettings`, `@argfiles`) it refuses as unrecognized.

use std::env;

use crate::{Failure, config::Config};

/// `java` starts its main thread on no smaller stack, whatever -Xss says.
const MIN_STACK_BYTES: usize = 64 << 10;

/// Options that `java` also takes with their value as the next argument; the virtual machine wants
/// `=` between the two.
const VALUE_FOLLOWS: [&str; 9] = [
    "--module-path",
    "--upgrade-module-path",
    "--add-modules",
    "--enable-native-access",
    "--limit-modules",
    "--add-exports",
    "--add-opens",
    "--add-reads",
    "--patch-module",
];

/// What the virtual machine is created with.
#[derive(Debug, PartialEq, Eq)]
pub struct VmOptions {
    pub options: Vec<String>,
    /// From the last -Xss. None: the virtual machine's default.
    pub main_stack_bytes: Option<usize>,
}

impl VmOptions {
    /// `from_environment`: the value of `JDK_JAVA_OPTIONS`.
    pub fn new(config: &Config, from_environment: Option<&str>) -> Result<Self, Failure> {
        Self::build(config, from_environment, env::args().skip(1))
    }

    fn build(
        config: &Config,
        from_environment: Option<&str>,
        arguments: impl Iterator<Item = String>,
    ) -> Result<Self, Failure> {
        let mut words = Vec::new();
        if let Some(text) = from_environment {
            // The words are `java`'s; programs know to ignore this line.
            eprintln!("NOTE: Picked up JDK_JAVA_OPTIONS: {text}");
            words = split(text)?;
        }
        words.extend(config.jvm_args.iter().cloned());
        let mut options = joined(words);
        let main_stack_bytes = options.iter().filter_map(|option| stack_bytes(option)).next_back();

        let command = arguments.fold(config.jar.clone(), |command, argument| command + " " + &argument);
        options.push(format!("-Djava.class.path={}", config.jar));
        options.push(format!("-Dsun.java.command={command}"));
        options.push("-Dsun.java.launcher=SUN_STANDARD".into());
        Ok(Self { options, main_stack_bytes })
    }
}

/// Splits at white space; either kind of quote holds a word together and is taken off (`java`'s
/// manual, "JDK_JAVA_OPTIONS").
fn split(text: &str) -> Result<Vec<String>, Failure> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for character in text.chars() {
        match quote {
            Some(open) if character == open => quote = None,
            Some(_) => word.get_or_insert_default().push(character),
            None if matches!(character, '"' | '\'') => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            None if character.is_ascii_whitespace() => words.extend(word.take()),
            None => word.get_or_insert_default().push(character),
        }
    }
    if quote.is_some() {
        return Err(Failure::new("unmatched quote in JDK_JAVA_OPTIONS", "close the quote, or remove it"));
    }
    words.extend(word);
    if let Some(refused) = words.iter().find(|word| word.starts_with('@') || *word == "-jar") {
        return Err(Failure::new(
            format!("{refused} is not allowed in JDK_JAVA_OPTIONS"),
            "give the virtual machine's options themselves; the jar is named on the command line",
        ));
    }
    Ok(words)
}

/// Puts each value that stands alone behind its option.
fn joined(words: Vec<String>) -> Vec<String> {
    let mut options = Vec::with_capacity(words.len() + 3);
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        if VALUE_FOLLOWS.contains(&word.as_str()) {
            match words.next() {
                Some(value) => options.push(word + "=" + &value),
                // The virtual machine says what is missing.
                None => options.push(word),
            }
        } else {
            options.push(word);
        }
    }
    options
}

/// The size in -XssSIZE. None if it is another option, or 0 or malformed, which `java` leaves to the
/// virtual machine as well.
fn stack_bytes(option: &str) -> Option<usize> {
    let size = option.strip_prefix("-Xss")?;
    let digits = size.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match size[digits.len()..].to_ascii_lowercase().as_str() {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        _ => return None,
    };
    let bytes = digits.parse::<usize>().ok()?.checked_mul(1 << shift)?;
    (bytes > 0).then(|| bytes.max(MIN_STACK_BYTES))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn the_command_line_comes_after_the_environment_and_wins() {
        let config = Config { jar: "/a.jar".into(), java_home: "/jdk".into(), jvm_args: words("-Xss2m -ea") };
        let options = VmOptions::build(&config, Some(" -Xss1m\t-Dx='a b' "), words("one two").into_iter()).unwrap();
        assert_eq!(options.main_stack_bytes, Some(2 << 20));
        assert_eq!(
            options.options,
            [
                "-Xss1m",
                "-Dx=a b",
                "-Xss2m",
                "-ea",
                "-Djava.class.path=/a.jar",
                "-Dsun.java.command=/a.jar one two",
                "-Dsun.java.launcher=SUN_STANDARD",
            ]
        );
    }

    #[test]
    fn quotes_hold_words_together_and_nest_in_the_other_kind() {
        assert_eq!(split(r#"a"b c"d 'say "x"' '' e"#).unwrap(), ["ab cd", "say \"x\"", "", "e"]);
        assert!(split(r#"-Dx="open"#).is_err());
        assert!(split("@file").is_err());
        assert!(split("-jar other.jar").is_err());
    }

    #[test]
    fn values_of_module_options_are_joined() {
        let options = joined(words("--add-opens java.base/java.lang=ALL-UNNAMED --add-modules=a --limit-modules"));
        assert_eq!(options, words("--add-opens=java.base/java.lang=ALL-UNNAMED --add-modules=a --limit-modules"));
    }

    #[test]
    fn stack_sizes_are_read_as_java_reads_them() {
        assert_eq!(stack_bytes("-Xss1m"), Some(1 << 20));
        assert_eq!(stack_bytes("-Xss512K"), Some(512 << 10));
        assert_eq!(stack_bytes("-Xss100"), Some(MIN_STACK_BYTES));
        assert_eq!(stack_bytes("-Xss0"), None);
        assert_eq!(stack_bytes("-Xss1mb"), None);
        assert_eq!(stack_bytes("-Xmx1m"), None);
    }
}
