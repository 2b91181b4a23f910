//! Which entries of the cache are evicted; pure.
//!
//! Entries that were not used for the longest time go first. Protected entries never go: those that
//! are pinned, in use, or arriving.

#![deny(
    clippy::disallowed_methods,
    reason = "pure: time, randomness and I/O come in from outside"
)]

/// The part of the limit that is left after an eviction, in percent. Room for several objects is made
/// at once, so that a full cache does not evict for each new object.
const LOW_WATERMARK: u64 = 90;

/// What the choice knows of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// The bytes that it takes, or will take once it has arrived.
    pub(crate) bytes: u64,
    /// When it was last used, in seconds.
    pub(crate) last_used: u64,
    /// Whether it must stay.
    pub(crate) is_protected: bool,
}

/// Why entries are evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Goal {
    /// `incoming` more bytes must fit below the limit.
    Limit {
        /// Maximum bytes of all entries.
        max: u64,
        /// Bytes that are about to be added.
        incoming: u64,
    },
    /// At most so many bytes may remain.
    Shrink(u64),
    /// At least so many bytes must become free, or as many as possible.
    Free(u64),
    /// Entries that were last used before this time, in seconds.
    UnusedSince(u64),
}

/// Incoming bytes do not fit, even if everything goes that may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NoRoom {
    /// The bytes of protected entries.
    pub(crate) protected: u64,
}

/// The indexes of the entries to evict, in this order.
///
/// # Errors
/// [`NoRoom`]: nothing is evicted then, because it would not help.
pub(crate) fn choose(candidates: &[Candidate], goal: Goal) -> Result<Vec<usize>, NoRoom> {
    let sum = |bytes: &mut dyn Iterator<Item = u64>| bytes.fold(0, u64::saturating_add);
    let total = sum(&mut candidates.iter().map(|entry| entry.bytes));
    let protected = candidates.iter().filter(|entry| entry.is_protected);
    let protected = sum(&mut protected.map(|entry| entry.bytes));
    let excess = match goal {
        Goal::Limit { max, incoming } if total.saturating_add(incoming) <= max => 0,
        Goal::Limit { max, incoming } => {
            if incoming > 0 && protected.saturating_add(incoming) > max {
                return Err(NoRoom { protected });
            }
            let low = (u128::from(max) * u128::from(LOW_WATERMARK) / 100) as u64;
            total.saturating_sub(low.min(max.saturating_sub(incoming)))
        }
        Goal::Shrink(max) => total.saturating_sub(max),
        Goal::Free(bytes) => bytes,
        Goal::UnusedSince(_) => u64::MAX,
    };
    let mut order: Vec<usize> = (0..candidates.len())
        .filter(|&index| !candidates[index].is_protected)
        .collect();
    order.sort_by_key(|&index| (candidates[index].last_used, index));
    let mut freed = 0_u64;
    let mut chosen = Vec::new();
    for index in order {
        let entry = candidates[index];
        let is_recent = matches!(goal, Goal::UnusedSince(time) if entry.last_used >= time);
        if freed >= excess || is_recent {
            break;
        }
        freed = freed.saturating_add(entry.bytes);
        chosen.push(index);
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entries() -> impl Strategy<Value = Vec<Candidate>> {
        let entry = (0..1000_u64, 0..20_u64, prop::bool::weighted(0.3));
        prop::collection::vec(entry, 0..30).prop_map(|entries| {
            let entry = |(bytes, last_used, is_protected)| Candidate {
                bytes,
                last_used,
                is_protected,
            };
            entries.into_iter().map(entry).collect()
        })
    }

    /// The same by removing one entry at a time from a list, as slowly and as plainly as possible.
    fn model(candidates: &[Candidate], goal: Goal) -> Option<Vec<usize>> {
        let mut left: Vec<usize> = (0..candidates.len()).collect();
        let total = |left: &[usize]| left.iter().map(|&index| candidates[index].bytes).sum::<u64>();
        let oldest = |left: &[usize]| {
            let free = left.iter().copied();
            let free = free.filter(|&index| !candidates[index].is_protected);
            free.min_by_key(|&index| (candidates[index].last_used, index))
        };
        if let Goal::Limit { max, incoming } = goal {
            let stays = (0..candidates.len()).filter(|&index| candidates[index].is_protected);
            let stays = total(&stays.collect::<Vec<_>>());
            if incoming > 0 && stays + incoming > max && total(&left) + incoming > max {
                return None;
            }
        }
        let first = total(&left);
        let mut gone = Vec::new();
        while let Some(next) = oldest(&left) {
            let now = total(&left);
            let is_done = match goal {
                Goal::Limit { max, incoming } => {
                    let fits = now + incoming <= max && now <= max * 9 / 10;
                    first + incoming <= max || fits
                }
                Goal::Shrink(max) => now <= max,
                Goal::Free(bytes) => first - now >= bytes,
                Goal::UnusedSince(time) => candidates[next].last_used >= time,
            };
            if is_done {
                break;
            }
            left.retain(|&index| index != next);
            gone.push(next);
        }
        Some(gone)
    }

    proptest! {
        #[test]
        fn the_choice_is_that_of_a_list_from_which_the_oldest_is_removed(
            candidates in entries(),
            kind in 0..4,
            first in 0..20_000_u64,
            second in 0..20_000_u64,
        ) {
            let goal = match kind {
                0 => Goal::Limit { max: first, incoming: second / 4 },
                1 => Goal::Shrink(first),
                2 => Goal::Free(first),
                _ => Goal::UnusedSince(first % 22),
            };
            let chosen = choose(&candidates, goal);
            prop_assert_eq!(chosen.clone().ok(), model(&candidates, goal));
            let chosen = chosen.unwrap_or_default();
            prop_assert!(chosen.iter().all(|&index| !candidates[index].is_protected));
        }
    }

    #[test]
    fn room_is_made_for_several_objects_at_once() {
        let entry = |last_used| Candidate {
            bytes: 10,
            last_used,
            is_protected: false,
        };
        let full: Vec<_> = (0..10).map(entry).collect();
        let fits = Goal::Limit {
            max: 100,
            incoming: 0,
        };
        assert_eq!(choose(&full, fits), Ok(vec![]));
        let one_more = Goal::Limit {
            max: 100,
            incoming: 1,
        };
        assert_eq!(choose(&full, one_more), Ok(vec![0]));
        let two_more = Goal::Limit {
            max: 100,
            incoming: 11,
        };
        assert_eq!(choose(&full, two_more), Ok(vec![0, 1]));
    }

    #[test]
    fn what_can_never_fit_evicts_nothing() {
        let pinned = Candidate {
            bytes: 60,
            last_used: 0,
            is_protected: true,
        };
        let free = Candidate {
            is_protected: false,
            ..pinned
        };
        let goal = Goal::Limit {
            max: 100,
            incoming: 41,
        };
        assert_eq!(choose(&[pinned, free], goal), Err(NoRoom { protected: 60 }));
    }
}
