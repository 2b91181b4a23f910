//! Splits names and search queries into words, and compares them. Pure.
//!
//! A word is a run of letters and digits after *folding*, so that a person finds a name without its
//! case, accents and typographic forms. Folding is compatibility decomposition (Unicode NFKD), case
//! folding, and composition (NFKC). In between, the accents of Latin, Greek and Cyrillic letters are
//! removed, and some Latin letters that have no accent in Unicode become ASCII. Marks of other scripts
//! stay, since there they are vowels.
//!
//! Non-goals: stemming, transliteration, and word boundaries in scripts without spaces.

use std::borrow::Cow;

use caseless::Caseless as _;
use smallvec::SmallVec;
use unicode_normalization::UnicodeNormalization as _;

/// Maximum length of a search query, in bytes, as the contract defines it.
pub(crate) const MAX_QUERY_BYTES: usize = 255;

/// Maximum distinct words of a search query, as the contract defines it.
pub(crate) const MAX_QUERY_WORDS: usize = 16;

/// The distinct words of a name, sorted.
#[cfg(test)]
pub(crate) fn words(text: &str) -> Vec<String> {
    let mut all = Vec::new();
    each_word(text, |word| all.push(word.text.to_owned()));
    all
}

/// A word of a name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Word<'a> {
    /// The word.
    pub(crate) text: &'a str,
    /// Where it starts in the name, in bytes, if the name has the word there except for the case of
    /// its ASCII letters. `None` otherwise, and beyond 255.
    pub(crate) start: Option<u8>,
}

/// Calls `each` for the distinct words of a name, in sorted order. Allocates at most once for most
/// names, because opening a large index calls this for every name.
pub(crate) fn each_word(text: &str, mut each: impl FnMut(Word<'_>)) {
    // Folding only changes the case of ASCII, and most names are ASCII.
    let normalized = if !text.is_ascii() {
        Cow::Owned(fold(text).collect())
    } else if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(text.to_ascii_lowercase())
    } else {
        Cow::Borrowed(text)
    };
    let mut words: SmallVec<[&str; 16]> = split(&normalized).collect();
    words.sort_unstable();
    words.dedup();
    let begin = normalized.as_ptr().addr();
    for word in words {
        let start = match text.is_ascii() {
            true => u8::try_from(word.as_ptr().addr() - begin).ok(),
            false => None,
        };
        each(Word { text: word, start });
    }
}

/// The words of a folded text.
fn split(folded: &str) -> impl Iterator<Item = &str> {
    folded
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
}

/// A text without case, accents and typographic forms.
fn fold(text: &str) -> impl Iterator<Item = char> + '_ {
    let base = text.nfkd().filter(|c| !is_accent(*c)).default_case_fold();
    // Case folding makes a new accent or typographic form of few letters.
    let base = base.nfkd().filter(|c| !is_accent(*c));
    base.flat_map(|c| match ascii_of(c) {
        Some(ascii) => Letters::Ascii(ascii.chars()),
        None => Letters::Other(std::iter::once(c)),
    })
    .nfkc()
}

enum Letters {
    Ascii(std::str::Chars<'static>),
    Other(std::iter::Once<char>),
}

impl Iterator for Letters {
    type Item = char;

    fn next(&mut self) -> Option<char> {
        match self {
            Self::Ascii(ascii) => ascii.next(),
            Self::Other(other) => other.next(),
        }
    }
}

/// Whether this is an accent of a Latin, Greek or Cyrillic letter: Unicode's block "Combining
/// Diacritical Marks".
const fn is_accent(c: char) -> bool {
    matches!(c, '\u{300}'..='\u{36f}')
}

/// What people type for a Latin letter that Unicode does not decompose.
const fn ascii_of(c: char) -> Option<&'static str> {
    Some(match c {
        'æ' => "ae",
        'œ' => "oe",
        'ø' => "o",
        'ð' | 'đ' => "d",
        'þ' => "th",
        'ħ' => "h",
        'ı' => "i",
        'ł' => "l",
        'ŧ' => "t",
        _ => return None,
    })
}

// `Matcher::level` uses a `u32` with one bit per word.
const _: () = assert!(MAX_QUERY_WORDS < 32);

/// The reason why a query is invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TermsError {
    /// Longer than `MAX_QUERY_BYTES`.
    #[error("a search query has at most {MAX_QUERY_BYTES} bytes, but this one has {0}")]
    TooLong(usize),
    /// More words than `MAX_QUERY_WORDS`.
    #[error("a search query has at most {MAX_QUERY_WORDS} words, but this one has {0}")]
    TooManyWords(usize),
    /// Not empty, but without a letter or digit.
    #[error("a search query needs a letter or a digit; an empty query finds all files")]
    NoWords,
}

/// The words of a query, in the forms that a search needs. An empty query has no words and matches
/// every name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SearchTerms {
    /// The query as it was typed, without surrounding white space.
    text: String,
    /// The words in the order of the query.
    in_order: Vec<String>,
    /// The distinct words, sorted.
    words: Vec<String>,
    /// The words that are not prefixes of others, sorted.
    prefixes: Vec<String>,
}

impl SearchTerms {
    /// The query as it was typed: perhaps a whole name.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// The distinct words, sorted.
    pub fn words(&self) -> &[String] {
        &self.words
    }

    /// The words that are not prefixes of others, sorted. A name matches if each of them is a prefix
    /// of one of its words.
    pub(crate) fn prefixes(&self) -> &[String] {
        &self.prefixes
    }

    /// Whether every name matches.
    pub(crate) const fn is_empty(&self) -> bool {
        self.words.is_empty()
    }
}

/// The words of a query.
///
/// # Errors
/// [`TermsError`] if the query is too long, has too many words, or has text but no words.
pub fn terms(query: &str) -> Result<SearchTerms, TermsError> {
    if query.len() > MAX_QUERY_BYTES {
        return Err(TermsError::TooLong(query.len()));
    }
    let text = query.trim().to_owned();
    let folded: String = fold(query).collect();
    let in_order: Vec<String> = split(&folded).map(str::to_owned).collect();
    let mut words = in_order.clone();
    words.sort_unstable();
    words.dedup();
    if words.len() > MAX_QUERY_WORDS {
        return Err(TermsError::TooManyWords(words.len()));
    }
    if words.is_empty() && !text.is_empty() {
        return Err(TermsError::NoWords);
    }
    // The words are sorted, so a prefix of the next one is redundant.
    let mut prefixes = words.clone();
    for i in (1..prefixes.len()).rev() {
        if prefixes[i].starts_with(&prefixes[i - 1]) {
            prefixes.remove(i - 1);
        }
    }
    Ok(SearchTerms {
        text,
        in_order,
        words,
        prefixes,
    })
}

/// How well a name matches a query; the best is the least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub(crate) enum MatchLevel {
    /// The name is the query as it was typed.
    Typed,
    /// The name has the words of the query, in the same order, and no others.
    SameWords,
    /// Each word of the query is a word of the name.
    WholeWords,
    /// Each word of the query is a prefix of a word of the name.
    Prefixes,
}

impl MatchLevel {
    /// The level with this number.
    pub(crate) const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::Typed,
            1 => Self::SameWords,
            2 => Self::WholeWords,
            3 => Self::Prefixes,
            _ => return None,
        })
    }
}

/// Matches names against the terms of one search, without an allocation per name.
#[derive(Debug)]
pub(crate) struct Matcher {
    terms: SearchTerms,
    /// Buffer for the current name after folding.
    folded: String,
}

impl Matcher {
    /// Creates a matcher.
    pub(crate) const fn new(terms: SearchTerms) -> Self {
        Self {
            terms,
            folded: String::new(),
        }
    }

    /// The terms.
    pub(crate) const fn terms(&self) -> &SearchTerms {
        &self.terms
    }

    /// How well a name matches, if it does. Also returns the steps taken.
    pub(crate) fn level(&mut self, name: &str) -> (Option<MatchLevel>, usize) {
        let SearchTerms {
            text,
            in_order,
            words,
            prefixes,
        } = &self.terms;
        if words.is_empty() {
            return (Some(MatchLevel::Prefixes), 1);
        }
        self.folded.clear();
        let steps = if name.is_ascii() {
            self.folded.push_str(name);
            self.folded.make_ascii_lowercase();
            4 + name.len() / 4
        } else {
            self.folded.extend(fold(name));
            // Composition is slow, and a character may expand to eighteen.
            4 + 2 * name.len().max(self.folded.len())
        };
        let all = |words: &[String]| (1_u32 << words.len()) - 1;
        let (mut missing, mut missing_prefixes) = (all(words), all(prefixes));
        let (mut count, mut is_in_order) = (0, true);
        for word in split(&self.folded) {
            is_in_order &= in_order.get(count).is_some_and(|next| next == word);
            count += 1;
            // Strings between a prefix and a word that begins with it also begin with the prefix. So
            // only the last of the sorted prefixes up to the word can be its prefix.
            let up_to = prefixes.partition_point(|prefix| prefix.as_str() <= word);
            if up_to > 0 && word.starts_with(&prefixes[up_to - 1]) {
                missing_prefixes &= !(1 << (up_to - 1));
            }
            if let Ok(at) = words.binary_search_by(|other| other.as_str().cmp(word)) {
                missing &= !(1 << at);
            }
        }
        let level = match (missing_prefixes, missing) {
            _ if name == text => Some(MatchLevel::Typed),
            (0, 0) if is_in_order && count == in_order.len() => Some(MatchLevel::SameWords),
            (0, 0) => Some(MatchLevel::WholeWords),
            (0, _) => Some(MatchLevel::Prefixes),
            _ => None,
        };
        (level, steps)
    }
}

/// The same as [`Matcher::level`], implemented simply as a reference for tests.
#[cfg(test)]
pub(crate) fn level(name: &str, query: &str) -> Option<MatchLevel> {
    let in_order = |text: &str| -> Vec<String> {
        let folded: String = fold(text).collect();
        split(&folded).map(str::to_owned).collect()
    };
    let (of_name, of_query) = (in_order(name), in_order(query));
    let has = |word: &String| of_name.contains(word);
    let has_prefix = |word: &String| of_name.iter().any(|other| other.starts_with(word));
    match () {
        () if of_query.is_empty() => Some(MatchLevel::Prefixes),
        () if name == query.trim() => Some(MatchLevel::Typed),
        () if of_name == of_query => Some(MatchLevel::SameWords),
        () if of_query.iter().all(has) => Some(MatchLevel::WholeWords),
        () if of_query.iter().all(has_prefix) => Some(MatchLevel::Prefixes),
        () => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_matcher_agrees_with_a_simple_implementation(
            query in "[abAé ]{0,8}",
            names in prop::collection::vec("[abABéﬁ .-]{0,10}|\\PC{0,12}", 0..8),
        ) {
            if let Ok(terms) = terms(&query) {
                let mut matcher = Matcher::new(terms);
                for name in names.iter().chain([&query]) {
                    let expected = level(name, &query);
                    prop_assert_eq!(matcher.level(name).0, expected, "{:?} in {:?}", query, name);
                }
            }
        }

        #[test]
        fn folding_a_folded_text_changes_nothing(text in "\\PC{0,20}") {
            let once: String = fold(&text).collect();
            let twice: String = fold(&once).collect();
            prop_assert_eq!(once, twice);
        }
    }

    #[test]
    fn folding_a_folded_character_changes_nothing() {
        for c in (char::MIN..=char::MAX).filter(|c| !c.is_ascii()) {
            let once: String = fold(&c.to_string()).collect();
            let twice: String = fold(&once).collect();
            assert_eq!(once, twice, "{c:?}");
        }
    }

    #[test]
    fn names_are_found_without_case_accents_and_typographic_forms() {
        for (name, query) in [
            ("Ünïcôdé", "unicode"),
            ("unicode", "ÜNÏCÔDÉ"),
            ("STRASSE", "straße"),
            ("Łódź Ørsted Þór Đà smørrebrød", "lodz orsted thor da smorrebrod"),
            ("Œuvre ﬁnale ²", "oeuvre finale 2"),
            ("ΟΔΥΣΣΕΥΣ Ὀδυσσεύς", "οδυσσευς"),
            ("Ёлка Йод", "елка иод"),
            ("İstanbul ışık", "istanbul isik"),
            ("ｆｕｌｌ　ｗｉｄｔｈ", "full width"),
            ("한국어", "한국어"),
            ("が", "か\u{3099}"),
        ] {
            assert!(level(name, query).is_some(), "{query:?} in {name:?}");
        }
        // Marks of other scripts make other words.
        assert_eq!(level("が", "か"), None);
        assert_eq!(level("किताब", "कताब"), None);
    }

    #[test]
    fn whole_names_and_whole_words_match_best() {
        use MatchLevel::{Prefixes, SameWords, Typed, WholeWords};
        for (name, query, expected) in [
            ("model 7b", "model 7b ", Some(Typed)),
            ("Model-7B", "model 7b", Some(SameWords)),
            ("model-7b.bin", "7b model", Some(WholeWords)),
            ("model-7b.bin", "mod", Some(Prefixes)),
            ("model-7b.bin", "mod model", Some(Prefixes)),
            ("model-7b.bin", "odel", None),
        ] {
            let (found, _) = Matcher::new(terms(query).unwrap()).level(name);
            assert_eq!(found, expected, "{query:?} in {name:?}");
        }
    }

    #[test]
    fn words_are_runs_of_letters_and_digits() {
        assert_eq!(
            words("Llama-3_8B.Q4.gguf"),
            ["3", "8b", "gguf", "llama", "q4"].map(str::to_owned).to_vec()
        );
        assert!(words("--- !").is_empty());
    }

    #[test]
    fn text_that_looks_the_same_has_the_same_words() {
        assert_eq!(words("Cafe\u{301}"), words("CAFÉ"));
        assert_eq!(words("ﬁle"), words("FILE"));
    }

    #[test]
    fn folding_only_changes_the_case_of_ascii() {
        let all: String = (0..=127u8).map(char::from).collect();
        assert!(fold(&all).eq(all.to_ascii_lowercase().chars()));
    }

    #[test]
    fn queries_are_limited_in_bytes_and_words() {
        assert!(terms("").unwrap().is_empty());
        assert!(terms("  ").unwrap().is_empty());
        assert_eq!(terms("..."), Err(TermsError::NoWords));
        assert_eq!(terms(&"a".repeat(256)), Err(TermsError::TooLong(256)));
        let many: Vec<String> = (0..17).map(|n| format!("w{n:02}")).collect();
        assert_eq!(terms(&many.join(" ")), Err(TermsError::TooManyWords(17)));
    }

    #[test]
    fn a_prefix_of_another_word_is_redundant() {
        let terms = terms("mod model mode x").unwrap();
        assert_eq!(terms.prefixes(), ["model", "x"]);
        assert_eq!(terms.words(), ["mod", "mode", "model", "x"]);
    }
}
