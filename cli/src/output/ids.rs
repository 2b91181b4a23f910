//! File ids for people: as many digits as tell the ids of one table apart.
//!
//! Pure.

use potluck_core::FileId;

/// Digits of an id.
const ALL_DIGITS: usize = 64;

/// Minimum number of digits: as many as commands accept in place of an id.
const MIN_DIGITS: usize = potluck_core::identity::id_prefix::MIN_DIGITS;

/// How to print the ids of one table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IdFormat {
    digits: usize,
}

impl IdFormat {
    /// All digits.
    pub(crate) const FULL: Self = Self { digits: ALL_DIGITS };

    /// As few digits as tell the ids apart, at least [`MIN_DIGITS`].
    pub(crate) fn shortest<'a>(ids: impl IntoIterator<Item = &'a FileId>) -> Self {
        let mut ids: Vec<&FileId> = ids.into_iter().collect();
        ids.sort_unstable();
        ids.dedup();
        // Ids that share the most digits are neighbours.
        let shared = ids.windows(2).map(|pair| shared_digits(pair[0], pair[1])).max();
        Self {
            digits: shared.map_or(MIN_DIGITS, |shared| MIN_DIGITS.max(shared + 1)),
        }
    }

    /// The id as text.
    pub(crate) fn text(self, id: &FileId) -> String {
        let mut text = id.to_string();
        text.truncate(self.digits);
        text
    }
}

/// Number of first digits that two ids share.
fn shared_digits(a: &FileId, b: &FileId) -> usize {
    let pairs = a.as_bytes().iter().zip(b.as_bytes());
    match pairs.map(|(a, b)| a ^ b).enumerate().find(|&(_, xor)| xor != 0) {
        Some((byte, xor)) => 2 * byte + usize::from(xor >> 4 == 0),
        None => ALL_DIGITS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(prefix: &str) -> FileId {
        format!("{prefix:0<64}").parse().unwrap()
    }

    #[test]
    fn ids_are_as_long_as_it_takes_to_tell_them_apart() {
        let text = |ids: &[FileId]| {
            let format = IdFormat::shortest(ids);
            ids.iter().map(|id| format.text(id)).collect::<Vec<_>>()
        };
        assert_eq!(text(&[]), [""; 0]);
        assert_eq!(text(&[id("3f9a")]), ["3f9a0000"]);
        assert_eq!(
            text(&[id("3f9a"), id("3f9a"), id("4")]),
            ["3f9a0000", "3f9a0000", "40000000"]
        );
        assert_eq!(
            text(&[id("3f9a00000"), id("3f9a000001"), id("4")]),
            ["3f9a000000", "3f9a000001", "4000000000"]
        );
        let last = format!("{}1", "0".repeat(63));
        assert_eq!(text(&[id("0"), id(&last)])[1], last);
        assert_eq!(IdFormat::FULL.text(&id("3f9a")), id("3f9a").to_string());
    }
}
