//! The catalog: peers, files, names, words and claims, held compactly in memory for queries.
//!
//! | module | its one job |
//! |---|---|
//! | `lookup` | the [`Catalog`], and lookups of one peer or one file |
//! | `change` | peers and registrations come and go |
//! | `query` | paged searches and listings, descriptions, samples of providers |
//! | `tables` | the values, each stored once |
//! | `storage` | the structures that tables consist of |
//!
//! Other tables refer to a value by a 4-byte slot. A *claim* holds the names, SHA-256 and kind in a
//! registration, once for all registrations that agree on them. Each file counts its providers per
//! claim, so the most common claims are known without a look at each provider.
//!
//! A peer is *live* or *hidden*. Queries find only live peers. Hiding keeps readers from waiting:
//!
//! - A peer that leaves is hidden immediately and cleared in small steps.
//! - A peer that replaces all of its files is filled while hidden and then published.
//!
//! Counts of providers and registrations leave hidden peers out. The number of distinct files may
//! include files that only hidden peers have.
//!
//! A *binder* keeps the names that a peer of a private network bound to files, beyond the lease of
//! that peer. It is like a hidden peer that can be found by its id: its registrations have names, by
//! which a file is found, but they provide nothing. So a name shows exactly while a live peer has
//! the file.
//!
//! Each registration is charged for the memory that it added. The first registration of a file pays
//! for the file, and the first with a new claim pays for the claim. A peer is charged for its
//! registrations, and a host for its peers.
//!
//! Invariant: a file, name, word or claim exists exactly as long as a registration refers to it.
//!
//! Pure: there is no clock, and randomness is a parameter. Non-goals: leases, durability, locks.
#![deny(
    clippy::disallowed_methods,
    reason = "pure: time, randomness and I/O come in from outside"
)]

mod change;
mod lookup;
mod query;
mod storage;
mod tables;
#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) use self::query::page::{MAX_CALL_STEPS, MAX_ITEM_STEPS, PageBounds};
pub use self::{
    change::PutOutcome,
    lookup::Catalog,
    query::{
        listing::{Listing, ListingCursor, ListingPage},
        search::{SearchCursor, SearchPage, SearchScan},
    },
    tables::words::{SearchTerms, TermsError, terms},
};
pub(crate) use self::{
    lookup::PeerCursor,
    query::{describe::MAX_NAMES, search::cursor},
    tables::{cost, peers::PeerSlot, words},
};
