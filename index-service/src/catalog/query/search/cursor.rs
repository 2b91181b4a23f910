//! Where a page of a search ends.
//!
//! A search returns files in *tiers* by how well their names match. Within a tier it goes through
//! the files in *groups*, which are consecutive in the order of a *pass*, and ranks each group.

use std::cmp::Reverse;

use potluck_core::FileId;

use crate::catalog::tables::{popular_files::MAX_CLASS, words::MatchLevel};

/// A tier of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Tier {
    /// A name of the file is the query as it was typed.
    Typed,
    /// A name contains all words of the query.
    Words,
    /// A name contains words that begin with the words of the query.
    Prefixes,
}

impl Tier {
    /// The tier of a match.
    pub(crate) const fn of(level: MatchLevel) -> Self {
        match level {
            MatchLevel::Typed => Self::Typed,
            MatchLevel::SameWords | MatchLevel::WholeWords => Self::Words,
            MatchLevel::Prefixes => Self::Prefixes,
        }
    }

    /// The next tier.
    pub(crate) const fn next(self) -> Option<Self> {
        match self {
            Self::Typed => Some(Self::Words),
            Self::Words => Some(Self::Prefixes),
            Self::Prefixes => None,
        }
    }

    /// The tier with this number.
    pub(crate) const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::Typed,
            1 => Self::Words,
            2 => Self::Prefixes,
            _ => return None,
        })
    }
}

/// Which files of a tier a pass goes through, and in which order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Pass {
    /// All files, by name, in one group. If they are more, the tier begins again with another pass.
    All,
    /// Those with several providers, by number of providers. [`Self::Others`] follows.
    Popular,
    /// Those with at most one provider, by name.
    Others,
    /// Those of one [class](crate::catalog::tables::popular_files), by name: [`MAX_CLASS`] less the
    /// class. The next class follows.
    Class(u8),
    /// All files, by name: the tier was one group at first and has grown since.
    Grown,
}

/// The number of [`Pass::Class`] with the highest class.
const FIRST_CLASS: u8 = 4;

/// `Pass::Class` of the files with at most one provider.
pub(crate) const LAST_CLASS: u8 = MAX_CLASS as u8;

impl Pass {
    /// A number for each pass.
    pub(crate) const fn number(self) -> u8 {
        match self {
            Self::All => 0,
            Self::Popular => 1,
            Self::Others => 2,
            Self::Grown => 3,
            Self::Class(class) => FIRST_CLASS + class,
        }
    }

    /// The pass with this number.
    pub(crate) const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::All,
            1 => Self::Popular,
            2 => Self::Others,
            3 => Self::Grown,
            FIRST_CLASS..=u8::MAX if number - FIRST_CLASS <= LAST_CLASS => {
                Self::Class(number - FIRST_CLASS)
            }
            _ => return None,
        })
    }
}

/// A place in the order of a pass: slots of a name and a file, or for [`Pass::Popular`] the fields
/// of a [`PopularPlace`](crate::catalog::tables::popular_files::PopularPlace).
pub(crate) type Place = (u32, u32);

/// The place after all others.
pub(crate) const END: Place = (u32::MAX, u32::MAX);

/// The order of the files of a group: best match, most providers, then id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FileRank {
    pub(crate) level: MatchLevel,
    pub(crate) providers: Reverse<u64>,
    pub(crate) file: FileId,
}

impl FileRank {
    /// Less than any file's: no file has this many providers.
    pub(crate) const FIRST: Self = Self {
        level: MatchLevel::Typed,
        providers: Reverse(u64::MAX),
        file: FileId([0; 32]),
    };
}

/// The end of a page of a search.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SearchCursor {
    pub(crate) tier: Tier,
    pub(crate) pass: Pass,
    /// Where the group begins.
    pub(crate) from: Place,
    /// The last file that was returned.
    pub(crate) after: FileRank,
    /// Where the group ends, [`END`] if it is the last one or its end is not known yet.
    pub(crate) to: Place,
}

impl SearchCursor {
    /// The beginning of a tier.
    pub(crate) const fn tier(tier: Tier) -> Self {
        Self::pass(tier, Pass::All)
    }

    /// The beginning of a pass.
    pub(crate) const fn pass(tier: Tier, pass: Pass) -> Self {
        Self::group(tier, pass, (0, 0))
    }

    /// A group that begins at a place.
    pub(crate) const fn group(tier: Tier, pass: Pass, from: Place) -> Self {
        Self {
            tier,
            pass,
            from,
            after: FileRank::FIRST,
            to: END,
        }
    }

    /// The group that follows, if there is one.
    pub(crate) fn next(self) -> Option<Self> {
        if self.to != END {
            return Some(Self::group(self.tier, self.pass, self.to));
        }
        match self.pass {
            Pass::Popular => Some(Self::pass(self.tier, Pass::Others)),
            Pass::Class(class) if class < LAST_CLASS => {
                Some(Self::pass(self.tier, Pass::Class(class + 1)))
            }
            Pass::All | Pass::Others | Pass::Class(_) | Pass::Grown => {
                self.tier.next().map(Self::tier)
            }
        }
    }
}
