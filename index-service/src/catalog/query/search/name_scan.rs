//! The names that may match a query, in the order of their slots.
//!
//! A term of few names selects them directly. Otherwise the scan goes through the names in blocks.
//! In each block, the rarest terms select candidate names by word, as far as that is cheaper than
//! checking each name as text.

use std::ops::RangeInclusive;

use roaring::{RoaringBitmap, bitmap};

use crate::catalog::{
    query::{page::PageBounds, search::cursor::Tier},
    storage::posting_list::block_end,
    tables::{
        names::{Names, Term},
        words::SearchTerms,
    },
};

/// Maximum words counted per term, to find the rarest term.
const MAX_COUNTED_WORDS: usize = 256;

/// Number of candidate names up to which checking each is cheaper than looking up another term.
const FEW_NAMES: u64 = 64;

/// Maximum names of a term that selects them directly.
const MAX_SELECTED: u64 = 1024;

/// Steps that a term's lookup may take for each name that it could exclude.
const STEPS_PER_EXCLUDED_NAME: usize = 8;

/// Empty slots skipped per step.
const EMPTY_SLOTS_PER_STEP: usize = 16;

/// A scan of the names for one tier of a search.
#[derive(Debug)]
pub(super) struct NameScan {
    tier: Tier,
    /// The next slot to look at.
    position: u32,
    /// Indices of the terms, rarest first.
    term_order: Vec<usize>,
    /// One bit per term that is a prefix of too many words to be looked up.
    broad_terms: u32,
    stage: Stage,
}

/// What a scan finds next.
#[derive(Debug)]
pub(super) enum NextName {
    /// A name that may match.
    Name(u32),
    /// Nothing within the permitted steps.
    Pending,
    /// No further name.
    End,
}

#[derive(Debug)]
enum Stage {
    /// The terms are looked up among all names.
    Plan {
        /// The names that match the terms of few names.
        selected: Option<RoaringBitmap>,
        /// Number of words of each term.
        counts: Vec<usize>,
    },
    /// A new block of names begins.
    Block,
    /// The terms are looked up in a block.
    Terms(TermLookup),
    /// The candidates of a block, and its last slot.
    Candidates(NameSlots, u32),
    /// No name is left.
    End,
}

/// The lookup of the terms in one block.
#[derive(Debug)]
struct TermLookup {
    /// Number of terms that were looked up.
    terms_done: usize,
    /// The names that match these terms; `None` stands for all.
    names: Option<RoaringBitmap>,
}

enum NameSlots {
    Selected(Box<bitmap::IntoIter>),
    All(RangeInclusive<u32>),
}

impl std::fmt::Debug for NameSlots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NameSlots")
    }
}

impl Iterator for NameSlots {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        match self {
            Self::Selected(slots) => slots.next(),
            Self::All(slots) => slots.next(),
        }
    }
}

/// The terms that a name of a tier contains.
fn terms_of(terms: &SearchTerms, tier: Tier) -> Vec<Term<'_>> {
    match tier {
        Tier::Typed => Vec::new(),
        Tier::Words => terms.words().iter().map(|word| Term::Word(word)).collect(),
        Tier::Prefixes => terms.prefixes().iter().map(|word| Term::Prefix(word)).collect(),
    }
}

/// Estimates how many files of a tier a search finds, rather too many. Adds the steps taken.
pub(super) fn estimate_files(
    names: &Names,
    terms: &SearchTerms,
    tier: Tier,
    steps: &mut usize,
) -> u64 {
    if tier == Tier::Typed {
        let name = names.find(terms.text());
        return name.map_or(0, |name| names.files_of(name).len());
    }
    let (mut least, mut rarest) = (u64::MAX, None);
    for term in terms_of(terms, tier) {
        let (count, term_steps) = names.words().count_names(term, MAX_COUNTED_WORDS);
        *steps += term_steps;
        if let Some(count) = count.filter(|&count| count < least) {
            (least, rarest) = (count, Some(term));
        }
    }
    // A few names may have many files.
    if let Some(term) = rarest.filter(|_| least <= MAX_SELECTED) {
        let (selected, term_steps) = names.words().find_few(term, MAX_SELECTED);
        let selected = selected.into_iter().flatten();
        let names_in_use = selected.filter(|&name| names.get_text(name).is_some());
        least = names_in_use.map(|name| names.files_of(name).len()).sum();
        *steps += 2 * term_steps;
    }
    least
}

impl NameScan {
    /// A scan of the names from slot `from` on.
    pub(super) const fn new(tier: Tier, from: u32) -> Self {
        Self {
            tier,
            position: from,
            term_order: Vec::new(),
            broad_terms: 0,
            stage: Stage::Plan {
                selected: None,
                counts: Vec::new(),
            },
        }
    }

    /// The slot after all names that were returned or ruled out.
    pub(super) const fn position(&self) -> u32 {
        self.position
    }

    /// The next name, or [`NextName::Pending`] once `steps` is at least `until`.
    pub(super) fn next(
        &mut self,
        names: &Names,
        terms: &SearchTerms,
        bounds: PageBounds,
        steps: &mut usize,
        until: usize,
    ) -> NextName {
        loop {
            if *steps >= until {
                return NextName::Pending;
            }
            self.stage = match std::mem::replace(&mut self.stage, Stage::End) {
                Stage::Plan { selected, counts } => {
                    self.plan(names, terms, bounds, steps, selected, counts)
                }
                Stage::Block if self.position >= names.end() => Stage::End,
                Stage::Block => {
                    *steps += 1;
                    Stage::Terms(TermLookup {
                        terms_done: 0,
                        names: None,
                    })
                }
                Stage::Terms(lookup) => self.look_up_term(names, terms, bounds, steps, lookup),
                Stage::Candidates(mut slots, last) => {
                    let found = self.next_candidate(names, &mut slots, steps, until);
                    if let Some(name) = found {
                        self.stage = Stage::Candidates(slots, last);
                        return NextName::Name(name);
                    }
                    if *steps >= until {
                        self.stage = Stage::Candidates(slots, last);
                        return NextName::Pending;
                    }
                    self.position = last.saturating_add(1);
                    match last {
                        u32::MAX => Stage::End,
                        _ => Stage::Block,
                    }
                }
                Stage::End => return NextName::End,
            };
        }
    }

    /// Looks up the next term among all names.
    fn plan(
        &mut self,
        names: &Names,
        terms: &SearchTerms,
        bounds: PageBounds,
        steps: &mut usize,
        mut selected: Option<RoaringBitmap>,
        mut counts: Vec<usize>,
    ) -> Stage {
        *steps += 1;
        if self.tier == Tier::Typed {
            let found = names.find(terms.text());
            return self.select(found.into_iter().collect());
        }
        let all = terms_of(terms, self.tier);
        let are_few = |selected: &RoaringBitmap| selected.len() <= FEW_NAMES;
        match all.get(counts.len()) {
            Some(&term) if !selected.as_ref().is_some_and(are_few) => {
                let max = MAX_SELECTED.min(bounds.term_steps as u64);
                let (few, term_steps) = names.words().find_few(term, max);
                *steps += term_steps;
                if let Some(few) = few {
                    counts.push(0);
                    selected = Some(match selected {
                        Some(selected) => selected & few,
                        None => few,
                    });
                } else {
                    let (count, term_steps) = names.words().count(term, MAX_COUNTED_WORDS);
                    *steps += 8 + term_steps;
                    counts.push(count);
                }
                Stage::Plan { selected, counts }
            }
            _ => match selected {
                Some(selected) => self.select(selected),
                None => {
                    self.term_order = (0..all.len()).collect();
                    self.term_order.sort_by_key(|&term| counts[term]);
                    Stage::Block
                }
            },
        }
    }

    fn select(&self, names: RoaringBitmap) -> Stage {
        let names = Box::new(names.into_range(self.position..));
        Stage::Candidates(NameSlots::Selected(names), u32::MAX)
    }

    fn look_up_term(
        &mut self,
        names: &Names,
        terms: &SearchTerms,
        bounds: PageBounds,
        steps: &mut usize,
        TermLookup {
            terms_done,
            names: found,
        }: TermLookup,
    ) -> Stage {
        let left = found.as_ref().map_or(u64::MAX, RoaringBitmap::len);
        let next = self.term_order.get(terms_done).filter(|_| left > FEW_NAMES);
        let Some(&at) = next else {
            let last = block_end(self.position);
            let slots = match found {
                Some(found) => NameSlots::Selected(Box::new(found.into_iter())),
                None => NameSlots::All(self.position..=last.min(names.end().saturating_sub(1))),
            };
            return Stage::Candidates(slots, last);
        };
        let next = |names| {
            Stage::Terms(TermLookup {
                terms_done: terms_done + 1,
                names,
            })
        };
        if self.broad_terms & (1 << at) != 0 {
            *steps += 1;
            return next(found);
        }
        let worthwhile = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .saturating_mul(STEPS_PER_EXCLUDED_NAME);
        let max = bounds.term_steps.min(worthwhile);
        let term = terms_of(terms, self.tier)[at];
        let (matches, term_steps) = names.words().find_in_block(term, self.position, max);
        *steps += term_steps;
        next(match (matches, found) {
            (Some(matches), Some(found)) => Some(matches & found),
            (Some(matches), None) => Some(matches),
            (None, found) => {
                if max == bounds.term_steps {
                    self.broad_terms |= 1 << at;
                }
                found
            }
        })
    }

    /// The next candidate that is in use; `None` without one, or if `steps` reaches `until`.
    fn next_candidate(
        &mut self,
        names: &Names,
        slots: &mut NameSlots,
        steps: &mut usize,
        until: usize,
    ) -> Option<u32> {
        let mut empty_slots = 0;
        while *steps < until {
            let name = slots.next()?;
            self.position = name.saturating_add(1);
            if names.get_text(name).is_some() {
                return Some(name);
            }
            empty_slots += 1;
            *steps += usize::from(empty_slots % EMPTY_SLOTS_PER_STEP == 1);
        }
        None
    }
}
