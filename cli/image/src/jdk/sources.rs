//! The machine's Debian package sources, turned to the release that a JDK comes from.
//!
//! Reads what sources.list(5) describes, deb822 stanzas and one-line entries, keeps the entries of
//! the Debian archive and its security archive, and rewrites their suite. So a machine's mirror and
//! keyring are used, and signatures are checked by apt as always.
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// One archive: where it is, and how its signature is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Source {
    uri: String,
    security: bool,
    /// Value of `Signed-By`, a path or key ids. Embedded keys are not carried over.
    signed_by: Option<String>,
}

const RELEASES: [&str; 11] =
    ["buster", "bullseye", "bookworm", "trixie", "forky", "duke", "sid", "oldstable", "stable", "testing", "unstable"];
const DEBIAN_KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The Debian archives in an apt configuration folder, each once, in order.
pub(super) fn find(apt_folder: &Path) -> io::Result<Vec<Source>> {
    let mut found: Vec<Source> = Vec::new();
    for path in files(apt_folder)? {
        let text = fs::read_to_string(&path)?;
        let sources = if path.extension().is_some_and(|extension| extension == "sources") {
            text.split("\n\n").flat_map(parse_stanza).collect::<Vec<_>>()
        } else {
            text.lines().filter_map(parse_line).collect()
        };
        for source in sources {
            if !found.iter().any(|known| known.uri == source.uri && known.security == source.security) {
                found.push(source);
            }
        }
    }
    Ok(found)
}

/// A deb822 file that names `release` in the given archives.
pub(super) fn for_release(sources: &[Source], release: &str) -> String {
    let mut out = String::new();
    for source in sources {
        let suites =
            if source.security { format!("{release}-security") } else { format!("{release} {release}-updates") };
        let signed_by = source.signed_by.as_deref().unwrap_or(DEBIAN_KEYRING);
        out += &format!(
            "Types: deb\nURIs: {}\nSuites: {suites}\nComponents: main\nArchitectures: amd64\nSigned-By: {signed_by}\n\n",
            source.uri
        );
    }
    out
}

fn files(apt_folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = Vec::new();
    let list = apt_folder.join("sources.list");
    if list.exists() {
        files.push(list);
    }
    let parts = apt_folder.join("sources.list.d");
    if parts.is_dir() {
        let mut found = fs::read_dir(parts)?.map(|entry| entry.map(|e| e.path())).collect::<io::Result<Vec<_>>>()?;
        found.retain(|path| path.extension().is_some_and(|e| e == "list" || e == "sources"));
        found.sort();
        files.extend(found);
    }
    Ok(files)
}

/// All archives of a deb822 stanza; none if it is disabled, for sources, or not Debian's.
fn parse_stanza(stanza: &str) -> Vec<Source> {
    let field = |name: &str| -> Option<String> {
        let mut value: Option<String> = None;
        for line in stanza.lines().filter(|line| !line.starts_with('#')) {
            if let Some(value) = value.as_mut() {
                // A folded field goes on in lines that begin with white space.
                match line.strip_prefix([' ', '\t']) {
                    Some(more) => *value = format!("{value} {}", more.trim()),
                    None => break,
                }
            } else if let Some((key, rest)) = line.split_once(':')
                && key.eq_ignore_ascii_case(name)
            {
                value = Some(rest.trim().to_string());
            }
        }
        value
    };
    let words = |name| field(name).unwrap_or_default();
    let disabled = field("Enabled").is_some_and(|value| matches!(value.to_ascii_lowercase().as_str(), "no" | "false"));
    if disabled || !words("Types").split_whitespace().any(|kind| kind == "deb") {
        return Vec::new();
    }
    let signed_by = field("Signed-By").filter(|value| !value.contains("BEGIN PGP"));
    words("URIs")
        .split_whitespace()
        .filter_map(|uri| archive(uri, &words("Suites"), &words("Components"), signed_by.clone()))
        .collect()
}

/// `deb [options] URI SUITE COMPONENTS`.
fn parse_line(line: &str) -> Option<Source> {
    let rest = line.split('#').next()?.trim().strip_prefix("deb")?;
    let rest = rest.strip_prefix([' ', '\t'])?.trim();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let signed_by = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by=")).map(str::to_string);
    let mut words = rest.split_whitespace();
    let (uri, suite) = (words.next()?, words.next()?);
    archive(uri, suite, &words.collect::<Vec<_>>().join(" "), signed_by)
}

/// The entry if it is Debian's own archive: a suite of a Debian release, component main, at a path
/// that is named after Debian.
fn archive(uri: &str, suites: &str, components: &str, signed_by: Option<String>) -> Option<Source> {
    if !components.split_whitespace().any(|component| component == "main") {
        return None;
    }
    if !uri.trim_end_matches('/').rsplit('/').next()?.starts_with("debian") {
        return None;
    }
    let mut known = suites.split_whitespace().filter(|suite| {
        let release = suite.split(['-', '/']).next().unwrap_or_default();
        RELEASES.contains(&release)
    });
    let security = known.next()?.contains("security");
    Some(Source { uri: uri.to_string(), security, signed_by })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_and_other_archives_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let parts = folder.path().join("sources.list.d");
        fs::create_dir(&parts).unwrap();
        fs::write(
            folder.path().join("sources.list"),
            "# comment\ndeb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian/ bookworm main non-free # x\n\
             deb-src http://mirror.example/debian bookworm main\n\
             deb http://mirror.example/debian-security bookworm-security main\n\
             deb http://other.example/docker/debian bookworm stable\n\
             deb http://other.example/apt cloud-bookworm main\n",
        )
        .unwrap();
        fs::write(
            parts.join("more.sources"),
            "Types: deb\nURIs: http://mirror.example/debian/\n http://second.example/debian\nSuites: bookworm bookworm-updates\n\
             Components: main\nSigned-By: /k.gpg\n\nEnabled: no\nTypes: deb\nURIs: http://off.example/debian\n\
             Suites: bookworm\nComponents: main\n\nTypes: deb\nURIs: http://node.example/node\nSuites: nodistro\nComponents: main\n",
        )
        .unwrap();
        let found = find(folder.path()).unwrap();
        let uris: Vec<(&str, bool)> = found.iter().map(|source| (source.uri.as_str(), source.security)).collect();
        assert_eq!(
            uris,
            [
                ("http://mirror.example/debian/", false),
                ("http://mirror.example/debian-security", true),
                ("http://second.example/debian", false)
            ]
        );
        assert_eq!(found[0].signed_by.as_deref(), Some("/k.gpg"));
        let text = for_release(&found, "trixie");
        assert!(text.contains("Suites: trixie trixie-updates\n") && text.contains("Suites: trixie-security\n"));
        assert!(!text.contains("bookworm") && text.contains(DEBIAN_KEYRING));
    }
}
