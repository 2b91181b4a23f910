//! A hash table of slots that grows in small steps.
//!
//! A hash table that doubles moves all entries at once: 10 million take 400 ms. This one consists
//! of many small tables, which double one at a time. The keys are in the entries that the slots
//! refer to.

use hashbrown::HashTable;

/// Number of small tables: at a hundred million entries, one doubles within 10 ms.
const SHARDS: usize = 2048;

/// The bits of a hash that choose the small table. hashbrown uses the lowest and the highest bits.
const SHARD_SHIFT: u32 = 32;

/// The slots, in small tables by hash.
#[derive(Debug)]
pub(crate) struct ShardedTable {
    shards: Box<[HashTable<u32>]>,
    len: usize,
}

impl Default for ShardedTable {
    fn default() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| HashTable::new()).collect(),
            len: 0,
        }
    }
}

const fn shard_of(hash: u64) -> usize {
    (hash >> SHARD_SHIFT) as usize % SHARDS
}

impl ShardedTable {
    /// The slot with this hash for which `is_equal` holds.
    pub(crate) fn find(&self, hash: u64, mut is_equal: impl FnMut(u32) -> bool) -> Option<u32> {
        self.shards[shard_of(hash)]
            .find(hash, |&slot| is_equal(slot))
            .copied()
    }

    /// Reads where a slot with this hash is or would be, so that the processor has it in its cache.
    /// Reading for several hashes takes little longer than for one, because the processor does not
    /// wait for one before it begins with the next.
    pub(crate) fn touch(&self, hash: u64) {
        let found = self.shards[shard_of(hash)].find(hash, |_| false);
        std::hint::black_box(found);
    }

    /// The slots that may have this hash.
    pub(crate) fn with_hash(&self, hash: u64) -> impl Iterator<Item = u32> + '_ {
        self.shards[shard_of(hash)].iter_hash(hash).copied()
    }

    /// Adds a slot that is not in the table. `hash_of` returns the hash of any slot in it.
    pub(crate) fn insert(&mut self, hash: u64, slot: u32, hash_of: impl Fn(u32) -> u64) {
        self.shards[shard_of(hash)].insert_unique(hash, slot, |&slot| hash_of(slot));
        self.len += 1;
    }

    /// Makes room for this many slots in an empty table, so that it does not grow several times.
    pub(crate) fn reserve(&mut self, slots: usize) {
        debug_assert!(self.is_empty(), "the table has entries");
        // The slots are not distributed quite equally.
        let per_shard = slots / SHARDS * 9 / 8;
        for shard in &mut self.shards {
            *shard = HashTable::with_capacity(per_shard);
        }
    }

    /// Gives back room if most of it is not used.
    pub(crate) fn shrink(&mut self, hash_of: impl Fn(u32) -> u64) {
        for shard in &mut self.shards {
            if shard.len() < shard.capacity() / 4 {
                shard.shrink_to_fit(|&slot| hash_of(slot));
            }
        }
    }

    /// Removes a slot; true if it was in the table.
    pub(crate) fn remove(&mut self, hash: u64, slot: u32) -> bool {
        let shard = &mut self.shards[shard_of(hash)];
        let Ok(entry) = shard.find_entry(hash, |&other| other == slot) else {
            return false;
        };
        entry.remove();
        self.len -= 1;
        true
    }

    /// Number of slots.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// Whether the table is empty.
    pub(crate) const fn is_empty(&self) -> bool {
        self.len == 0
    }
}
