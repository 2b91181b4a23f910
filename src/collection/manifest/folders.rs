//! The folders that the paths of a manifest imply.

/// End offsets of the ancestors of `path` that are not ancestors of `previous`, outermost first.
///
/// `previous` is the preceding path in the manifest's order. In this order, paths with a common
/// ancestor are adjacent, so that a whole manifest yields each folder once.
pub(crate) fn new_folders<'a>(
    previous: &str,
    path: &'a str,
) -> impl Iterator<Item = usize> + use<'a> {
    let same = previous.bytes().zip(path.bytes());
    let shared = same.take_while(|(a, b)| a == b).count();
    // An ancestor is shared only if its slash is.
    let slashes = path.as_bytes()[shared..].iter().enumerate();
    let slashes = slashes.filter(|&(_, &byte)| byte == b'/');
    slashes.map(move |(at, _)| shared + at)
}
