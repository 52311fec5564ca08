//! Paths as Linux reads them: bytes, components split at slashes (path_resolution(7)).

/// Longest component, in bytes.
pub const NAME_MAX: usize = 255;
/// Longest path, in bytes, its NUL included.
pub const PATH_MAX: usize = 4096;
/// Symbolic links that one walk may follow before it is ELOOP.
pub const LINKS_MAX: usize = 40;

/// Takes the first component off: (component, rest behind it). Slashes before the component are
/// skipped, those behind it stay with the rest. None if no component is left.
pub fn split_first(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let start = path.iter().position(|&b| b != b'/')?;
    let path = &path[start..];
    let end = path.iter().position(|&b| b == b'/').unwrap_or(path.len());
    Some(path.split_at(end))
}

/// No further component: empty, or slashes only.
pub fn is_exhausted(rest: &[u8]) -> bool {
    rest.iter().all(|&b| b == b'/')
}

pub fn is_absolute(path: &[u8]) -> bool {
    path.first() == Some(&b'/')
}

/// Joins components, given from the innermost to the outermost, to an absolute path.
pub fn join_reversed<'a>(components: impl DoubleEndedIterator<Item = &'a [u8]>) -> alloc::vec::Vec<u8> {
    let mut path = alloc::vec::Vec::new();
    for component in components.rev() {
        path.push(b'/');
        path.extend_from_slice(component);
    }
    if path.is_empty() {
        path.push(b'/');
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_and_rests() {
        assert_eq!(split_first(b"/usr//lib/"), Some((&b"usr"[..], &b"//lib/"[..])));
        assert_eq!(split_first(b"//lib/"), Some((&b"lib"[..], &b"/"[..])));
        assert_eq!(split_first(b"a"), Some((&b"a"[..], &b""[..])));
        assert_eq!(split_first(b"///"), None);
        assert_eq!(split_first(b""), None);
        assert!(is_exhausted(b"//") && is_exhausted(b"") && !is_exhausted(b"/x"));
    }

    #[test]
    fn joining() {
        assert_eq!(join_reversed([&b"c"[..], b"b", b"a"].into_iter()), b"/a/b/c");
        assert_eq!(join_reversed(core::iter::empty::<&[u8]>()), b"/");
    }
}
