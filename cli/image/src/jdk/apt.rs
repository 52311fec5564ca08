//! apt with a configuration of its own: fetches packages of any Debian release without touching the
//! machine's package state, and checks signatures as it always does.
//!
//! Proxies and the like still come from the machine's own configuration, which apt reads first.
use std::{
    fs,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{JdkError, sources};
use crate::progress::Progress;

pub(super) struct Apt {
    config: PathBuf,
}

/// A package as the archive offers it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Offer {
    pub package: String,
    pub version: String,
    pub len_bytes: u64,
}

impl Apt {
    /// Writes the configuration into `folder` and fetches the signed package lists of `release`.
    pub(super) fn open(folder: &Path, release: &str) -> Result<Self, JdkError> {
        let sources = sources::find(Path::new("/etc/apt")).map_err(JdkError::io("/etc/apt"))?;
        if sources.is_empty() {
            return Err(JdkError::NoDebianSources);
        }
        let write = || -> io::Result<PathBuf> {
            for name in ["state/lists/partial", "cache/archives/partial", "sources"] {
                fs::create_dir_all(folder.join(name))?;
            }
            fs::write(folder.join("status"), "")?;
            fs::write(folder.join("sources/debian.sources"), sources::for_release(&sources, release))?;
            let config = folder.join("apt.conf");
            fs::write(&config, configuration(folder))?;
            Ok(config)
        };
        let apt = Self { config: write().map_err(JdkError::io(folder))? };
        apt.run(&["update"], folder, &mut |_| {})?;
        Ok(apt)
    }

    /// What the archive offers for each of `packages`.
    pub(super) fn offers(&self, packages: &[&str]) -> Result<Vec<Offer>, JdkError> {
        let mut arguments = vec!["download", "--print-uris"];
        arguments.extend(packages);
        let mut offers = Vec::new();
        self.run(&arguments, Path::new("/"), &mut |line| offers.extend(parse_offer(line)))?;
        Ok(offers)
    }

    /// Downloads the packages into `folder`, checked against the signed lists.
    pub(super) fn download(&self, offers: &[Offer], folder: &Path, progress: &dyn Progress) -> Result<(), JdkError> {
        let total: u64 = offers.iter().map(|offer| offer.len_bytes).sum();
        let wanted: Vec<String> = offers.iter().map(|offer| format!("{}={}", offer.package, offer.version)).collect();
        let mut arguments = vec!["download"];
        arguments.extend(wanted.iter().map(String::as_str));
        progress.begin("fetching packages", total);
        let result = self.run(&arguments, folder, &mut |line| {
            if let Some(percent) = parse_status(line) {
                progress.reached((total as f64 * percent / 100.0) as u64);
            }
        });
        progress.end();
        result
    }

    fn run(&self, arguments: &[&str], folder: &Path, line: &mut dyn FnMut(&str)) -> Result<(), JdkError> {
        let mut child = Command::new("apt-get")
            .args(["-qq", "-o", "APT::Status-Fd=1", "-c"])
            .arg(&self.config)
            .args(arguments)
            .current_dir(folder)
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| JdkError::ToolMissing { tool: "apt-get", source })?;
        // apt says little on stderr, far less than a pipe holds, so stdout can be read first.
        if let Some(stdout) = child.stdout.take() {
            for text in BufReader::new(stdout).lines() {
                line(&text.map_err(JdkError::io("apt-get"))?);
            }
        }
        let mut complaint = String::new();
        if let Some(mut stderr) = child.stderr.take() {
            stderr.read_to_string(&mut complaint).map_err(JdkError::io("apt-get"))?;
        }
        let status = child.wait().map_err(JdkError::io("apt-get"))?;
        // `update` succeeds with old or no lists when an archive is out of reach: its E: and W: lines tell.
        let failed_fetch = complaint.lines().find(|line| line.contains("Failed to fetch"));
        if status.success() && failed_fetch.is_none() {
            return Ok(());
        }
        let first = failed_fetch.or_else(|| complaint.lines().find(|line| line.starts_with("E:")));
        let message = first.or_else(|| complaint.lines().next()).unwrap_or("no message").to_string();
        Err(JdkError::Apt { command: arguments[0].to_string(), message })
    }
}

fn configuration(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        r#"Dir::State "{folder}/state";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "{folder}/sources";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
APT::Architecture "amd64";
APT::Architectures {{ "amd64"; }};
APT::Sandbox::User "root";
Acquire::Languages "none";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
"#
    )
}

/// `'URI' NAME_VERSION_ARCH.deb BYTES HASH`. The version's colon is written `%3a`.
fn parse_offer(line: &str) -> Option<Offer> {
    let mut words = line.strip_prefix('\'')?.split_whitespace();
    let (file, len) = (words.nth(1)?, words.next()?);
    let mut parts = file.strip_suffix(".deb")?.splitn(3, '_');
    let (package, version) = (parts.next()?, parts.next()?);
    Some(Offer { package: package.to_string(), version: version.replace("%3a", ":"), len_bytes: len.parse().ok()? })
}

/// `dlstatus:ITEM:PERCENT:TEXT`.
fn parse_status(line: &str) -> Option<f64> {
    line.strip_prefix("dlstatus:")?.split(':').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offers_and_status_lines_are_read() {
        let line = "'http://mirror.example/z/zlib1g_1.3_amd64.deb' zlib1g_1%3a1.3+really-1_amd64.deb 88720 SHA256:00";
        let offer = Offer { package: "zlib1g".into(), version: "1:1.3+really-1".into(), len_bytes: 88720 };
        assert_eq!(parse_offer(line), Some(offer));
        assert_eq!(parse_offer("Reading package lists..."), None);
        assert_eq!(parse_status("dlstatus:3:20.5000:Retrieving file 3 of 9"), Some(20.5));
        assert_eq!(parse_status("pmstatus:x:1:y"), None);
    }
}
