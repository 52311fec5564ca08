//! Java's store of trusted certificates, written as `ca-certificates-java` would: a JKS file.
//!
//! The format is that of `sun.security.provider.JavaKeyStore`, big-endian: a magic, version 2, the
//! entries (tag 2: trusted certificate), and a SHA-1 digest keyed by the password.
use std::{fs, io, path::Path};

use sha1::{Digest, Sha1};

/// The password of every `cacerts`; it keeps nothing secret.
const PASSWORD: &str = "changeit";
const MAGIC: u32 = 0xfeed_feed;
const TAG_TRUSTED: u32 = 2;

/// A certificate authority: its alias and its certificate in DER.
pub(super) struct Authority {
    pub alias: String,
    pub der: Vec<u8>,
}

/// The authorities in a folder of PEM files and its subfolders, in order of file name.
pub(super) fn read_authorities(folder: &Path) -> io::Result<Vec<Authority>> {
    let mut authorities = Vec::new();
    let mut paths = fs::read_dir(folder)?.map(|entry| entry.map(|e| e.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    for path in paths {
        if path.is_dir() {
            authorities.extend(read_authorities(&path)?);
            continue;
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy().to_lowercase();
        let certificates = pem::parse_many(fs::read(&path)?).map_err(io::Error::other)?;
        for (n, certificate) in certificates.into_iter().filter(|part| part.tag() == "CERTIFICATE").enumerate() {
            let alias = if n == 0 { format!("debian:{name}.pem") } else { format!("debian:{name}.{n}.pem") };
            authorities.push(Authority { alias, der: certificate.into_contents() });
        }
    }
    Ok(authorities)
}

/// `time_s`: creation time of the entries, seconds since 1970.
pub(super) fn encode_jks(authorities: &[Authority], time_s: u64) -> Vec<u8> {
    let mut out = Vec::new();
    for word in [MAGIC, 2, authorities.len() as u32] {
        out.extend_from_slice(&word.to_be_bytes());
    }
    for authority in authorities {
        out.extend_from_slice(&TAG_TRUSTED.to_be_bytes());
        put_text(&mut out, &authority.alias);
        out.extend_from_slice(&(time_s * 1000).to_be_bytes());
        put_text(&mut out, "X.509");
        out.extend_from_slice(&(authority.der.len() as u32).to_be_bytes());
        out.extend_from_slice(&authority.der);
    }
    let mut digest = Sha1::new();
    for unit in PASSWORD.encode_utf16() {
        digest.update(unit.to_be_bytes());
    }
    digest.update(b"Mighty Aphrodite");
    digest.update(&out);
    out.extend_from_slice(&digest.finalize());
    out
}

/// The same certificates as one PEM file, for programs that use OpenSSL.
pub(super) fn encode_pem(authorities: &[Authority]) -> String {
    let parts: Vec<pem::Pem> =
        authorities.iter().map(|authority| pem::Pem::new("CERTIFICATE", authority.der.clone())).collect();
    pem::encode_many_config(&parts, pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF))
}

/// `DataOutputStream.writeUTF`; for file names, where modified UTF-8 is UTF-8.
fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_store_has_the_documented_layout() {
        let store = encode_jks(&[Authority { alias: "a".into(), der: vec![0x30, 0] }], 1);
        let entry: &[u8] = &[
            0, 0, 0, 2, 0, 1, b'a', 0, 0, 0, 0, 0, 0, 3, 0xe8, 0, 5, b'X', b'.', b'5', b'0', b'9', 0, 0, 0, 2, 0x30, 0,
        ];
        assert_eq!(&store[..12], &[0xfe, 0xed, 0xfe, 0xed, 0, 0, 0, 2, 0, 0, 0, 1]);
        assert_eq!(&store[12..12 + entry.len()], entry);
        assert_eq!(store.len(), 12 + entry.len() + 20);
    }
}
