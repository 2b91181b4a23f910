//! Posting lists: the names that contain a word, and unions of them.

use roaring::RoaringBitmap;
use smallvec::SmallVec;

/// The names that contain a word. Most words occur in few names, but some occur in most names.
#[derive(Debug)]
pub(crate) enum PostingList {
    List(SmallVec<[u32; 4]>),
    Bitmap(Box<RoaringBitmap>),
}

/// Maximum length of a list before it becomes a bitmap: inserting into a shorter list is cheaper.
const MAX_LIST: usize = 64;

impl PostingList {
    /// A list of one name.
    pub(crate) fn of(name: u32) -> Self {
        Self::List(SmallVec::from_slice(&[name]))
    }

    /// Number of names.
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::List(list) => list.len() as u64,
            Self::Bitmap(bitmap) => bitmap.len(),
        }
    }

    /// The names in ascending order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        let (list, bitmap) = match self {
            Self::List(list) => (&**list, None),
            Self::Bitmap(bitmap) => (&[][..], Some(bitmap.iter())),
        };
        list.iter().copied().chain(bitmap.into_iter().flatten())
    }

    /// Adds a name.
    pub(crate) fn add(&mut self, name: u32) {
        match self {
            Self::List(list) => {
                if let Err(at) = list.binary_search(&name) {
                    list.insert(at, name);
                }
                if list.len() > MAX_LIST {
                    *self = Self::Bitmap(Box::new(list.iter().copied().collect()));
                }
            }
            Self::Bitmap(bitmap) => {
                bitmap.insert(name);
            }
        }
    }

    /// Removes a name; true once no name is left.
    pub(crate) fn remove(&mut self, name: u32) -> bool {
        match self {
            Self::List(list) => {
                if let Ok(at) = list.binary_search(&name) {
                    list.remove(at);
                }
                list.is_empty()
            }
            Self::Bitmap(bitmap) => {
                bitmap.remove(name);
                bitmap.is_empty()
            }
        }
    }
}

/// Slots per block: those of one container of a [`RoaringBitmap`].
const BLOCK: u32 = 1 << 16;

/// The last slot of the block that contains `slot`.
pub(crate) const fn block_end(slot: u32) -> u32 {
    slot | (BLOCK - 1)
}

/// The union of many posting lists within one block of slots.
pub(crate) struct BlockUnion {
    range: RoaringBitmap,
    from: u32,
    end: u32,
    /// Number of blocks of all names.
    blocks: usize,
    /// Names from lists, one bit each; allocated on first use.
    bits: Vec<u8>,
    /// Names from bitmaps.
    bitmap: RoaringBitmap,
}

impl BlockUnion {
    /// An empty union for the slots from `from` to the end of its block. `names_end` is one past
    /// the highest slot of all names.
    pub(crate) fn new(from: u32, names_end: u32) -> Self {
        let end = block_end(from);
        let mut range = RoaringBitmap::new();
        range.insert_range(from..=end);
        Self {
            range,
            from,
            end,
            blocks: (names_end / BLOCK) as usize,
            bits: Vec::new(),
            bitmap: RoaringBitmap::new(),
        }
    }

    /// Adds one name; returns the steps taken.
    pub(crate) fn add_name(&mut self, name: u32) -> usize {
        if (self.from..=self.end).contains(&name) {
            self.add_to_bits(&[name]);
        }
        1
    }

    fn add_to_bits(&mut self, names: &[u32]) {
        if !names.is_empty() && self.bits.is_empty() {
            self.bits = vec![0; BLOCK as usize / 8];
        }
        for name in names {
            let at = name & (BLOCK - 1);
            self.bits[at as usize / 8] |= 1 << (at % 8);
        }
    }

    /// Adds a posting list; returns the steps taken.
    pub(crate) fn add(&mut self, posting: &PostingList) -> usize {
        match posting {
            PostingList::List(list) => {
                let list = &list[list.partition_point(|&slot| slot < self.from)..];
                let in_block = &list[..list.partition_point(|&slot| slot <= self.end)];
                self.add_to_bits(in_block);
                2 + in_block.len() / 8
            }
            PostingList::Bitmap(bitmap) => {
                /// Maximum entries of a sparse container; a larger one is stored as plain bits.
                const SPARSE: u64 = 4096;
                let in_block = &**bitmap & &self.range;
                let steps = in_block.len().min(SPARSE) + self.bitmap.len().min(SPARSE);
                if self.bitmap.is_empty() {
                    self.bitmap = in_block;
                } else {
                    self.bitmap |= in_block;
                }
                16 + self.blocks / 8 + steps as usize / 16
            }
        }
    }

    /// The names.
    pub(crate) fn into_bitmap(mut self) -> RoaringBitmap {
        if !self.bits.is_empty() {
            self.bitmap |= RoaringBitmap::from_lsb0_bytes(self.from & !(BLOCK - 1), &self.bits);
        }
        self.bitmap
    }
}
