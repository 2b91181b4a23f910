//! A set of units in the encoding of BitTorrent's bitfield (BEP 3): bit `i` is bit `7 - i % 8` of
//! byte `i / 8`.
//!
//! Invariant: bits beyond the length are zero.

/// A set of `u32` below a fixed length.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bitfield {
    len: u32,
    count: u32,
    bytes: Vec<u8>,
}

impl Bitfield {
    /// A set of length `len` without members.
    pub fn new(len: u32) -> Self {
        Self {
            len,
            count: 0,
            bytes: vec![0; len.div_ceil(8) as usize],
        }
    }

    /// A set of length `len` with all members.
    pub fn full(len: u32) -> Self {
        let mut bits = Self {
            len,
            count: len,
            bytes: vec![0xff; len.div_ceil(8) as usize],
        };
        if let (Some(last), spare @ 1..) = (bits.bytes.last_mut(), bits.len % 8) {
            *last = 0xff << (8 - spare);
        }
        bits
    }

    /// Decodes a bitfield. `None` if the number of bytes does not match `len` or a spare bit is
    /// set.
    pub fn from_bytes(len: u32, bytes: &[u8]) -> Option<Self> {
        if bytes.len() != len.div_ceil(8) as usize {
            return None;
        }
        if let (Some(last), spare @ 1..) = (bytes.last(), len % 8)
            && last << spare != 0
        {
            return None;
        }
        let count = bytes.iter().map(|byte| byte.count_ones()).sum();
        Some(Self {
            len,
            count,
            bytes: bytes.to_vec(),
        })
    }

    /// The encoding for the wire and the disk.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Length in bits.
    pub const fn len(&self) -> u32 {
        self.len
    }

    /// Whether the length is zero.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of bits that are one.
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// Whether all bits are one.
    pub const fn is_full(&self) -> bool {
        self.count == self.len
    }

    /// Whether bit `index` is one; `false` beyond the length.
    pub fn get(&self, index: u32) -> bool {
        index < self.len && self.bytes[index as usize / 8] & (0x80 >> (index % 8)) != 0
    }

    /// Sets bit `index` and returns whether its value changed. Does nothing beyond the length.
    pub fn set(&mut self, index: u32, value: bool) -> bool {
        if index >= self.len || self.get(index) == value {
            return false;
        }
        self.bytes[index as usize / 8] ^= 0x80 >> (index % 8);
        if value {
            self.count += 1
        } else {
            self.count -= 1
        }
        true
    }

    /// Indexes of the bits that are one, in ascending order.
    pub fn ones(&self) -> impl Iterator<Item = u32> + '_ {
        ones_of(self.bytes.iter().copied())
    }

    /// Indexes of the bits that are one in `self` and zero in `other`, in ascending order.
    pub fn ones_not_in(&self, other: &Self) -> impl Iterator<Item = u32> + '_ {
        let others = other.bytes.iter().copied().chain(std::iter::repeat(0));
        let differ: Vec<u8> = self
            .bytes
            .iter()
            .zip(others)
            .map(|(mine, theirs)| mine & !theirs)
            .collect();
        ones_of(differ.into_iter())
    }
}

/// Skips a byte without ones in one step: in a large set, most bytes are all zeros or all ones.
fn ones_of(bytes: impl Iterator<Item = u8>) -> impl Iterator<Item = u32> {
    (0..)
        .zip(bytes)
        .filter(|&(_, byte)| byte != 0)
        .flat_map(|(at, byte)| {
            (0..8)
                .filter(move |bit| byte & (0x80 >> bit) != 0)
                .map(move |bit| at * 8 + bit)
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_as_a_set(
            len in 0u32..100,
            changes in proptest::collection::vec((0u32..120, any::<bool>()), 0..200),
        ) {
            let mut bits = Bitfield::new(len);
            let mut set = std::collections::BTreeSet::new();
            for (index, value) in changes {
                let changed = bits.set(index, value);
                let expected = index < len && if value { set.insert(index) } else { set.remove(&index) };
                prop_assert_eq!(changed, expected);
            }
            prop_assert_eq!(bits.ones().collect::<Vec<_>>(), set.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(bits.count() as usize, set.len());
            prop_assert_eq!(Bitfield::from_bytes(len, bits.as_bytes()), Some(bits));
        }

        #[test]
        fn full_is_all_ones(len in 0u32..100) {
            prop_assert_eq!(Bitfield::full(len).ones().count() as u32, len);
            prop_assert_eq!(Bitfield::from_bytes(len, Bitfield::full(len).as_bytes()), Some(Bitfield::full(len)));
        }
    }

    #[test]
    fn spare_bits_are_refused() {
        assert_eq!(Bitfield::from_bytes(3, &[0b0001_0000]), None);
        assert_eq!(Bitfield::from_bytes(3, &[]), None);
    }
}
