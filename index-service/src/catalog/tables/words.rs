//! Splits names and search queries into words. Pure.
//!
//! A word is a run of letters and digits in lower case, after compatibility composition (Unicode
//! NFKC), so that text that looks the same matches. Non-goals: stemming, and word boundaries in
//! scripts without spaces.

use std::borrow::Cow;

use smallvec::SmallVec;
use unicode_normalization::UnicodeNormalization as _;

/// Maximum length of a search query, in bytes, as the contract defines it.
pub(crate) const MAX_QUERY_BYTES: usize = 255;

/// Maximum words of a search query, as the contract defines it.
pub(crate) const MAX_QUERY_WORDS: usize = 16;

/// The distinct words of a name, sorted.
pub(crate) fn words(text: &str) -> Vec<String> {
    let mut all = Vec::new();
    each_word(text, |word| all.push(word.to_owned()));
    all
}

/// Calls `each` for the distinct words of a name, in sorted order. Allocates at most once for most
/// names, because opening a large index calls this for every name.
pub(crate) fn each_word(text: &str, each: impl FnMut(&str)) {
    // NFKC leaves ASCII unchanged, and most names are ASCII.
    let normalized = if !text.is_ascii() {
        Cow::Owned(normalize(text))
    } else if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(text.to_ascii_lowercase())
    } else {
        Cow::Borrowed(text)
    };
    let mut words: SmallVec<[&str; 16]> = normalized
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .collect();
    words.sort_unstable();
    words.dedup();
    words.into_iter().for_each(each);
}

fn normalize(text: &str) -> String {
    lower(text).collect()
}

fn lower(text: &str) -> impl Iterator<Item = char> + '_ {
    text.nfkc().flat_map(char::to_lowercase).nfkc()
}

// `Matcher::matches` uses a `u32` with one bit per term.
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

/// The terms of a query. A name matches if each term is a prefix of one of its words. An empty
/// query has no terms and matches every name.
///
/// # Errors
/// [`TermsError`] if the query is too long, has too many words, or has text but no words.
pub fn terms(query: &str) -> Result<Vec<String>, TermsError> {
    if query.len() > MAX_QUERY_BYTES {
        return Err(TermsError::TooLong(query.len()));
    }
    let mut terms = words(query);
    if terms.len() > MAX_QUERY_WORDS {
        return Err(TermsError::TooManyWords(terms.len()));
    }
    if terms.is_empty() && !query.trim().is_empty() {
        return Err(TermsError::NoWords);
    }
    // Terms are sorted, so a prefix of the next term is redundant and removed.
    for i in (1..terms.len()).rev() {
        if terms[i].starts_with(&terms[i - 1]) {
            terms.remove(i - 1);
        }
    }
    Ok(terms)
}

/// Matches names against the terms of one search, without an allocation per name.
#[derive(Debug)]
pub(crate) struct Matcher {
    /// From [`terms`]: sorted, and no term is a prefix of another, so a word matches at most one
    /// term.
    terms: Vec<String>,
    /// Buffer for the current name in lower case and composed.
    normalized: String,
}

impl Matcher {
    /// Creates a matcher for terms from [`terms`].
    pub(crate) const fn new(terms: Vec<String>) -> Self {
        Self {
            terms,
            normalized: String::new(),
        }
    }

    /// The terms.
    pub(crate) fn terms(&self) -> &[String] {
        &self.terms
    }

    /// Whether each term is a prefix of a word of the name. Also returns the steps taken.
    pub(crate) fn matches(&mut self, name: &str) -> (bool, usize) {
        if self.terms.is_empty() {
            return (true, 1);
        }
        self.normalized.clear();
        let steps = if name.is_ascii() {
            self.normalized.push_str(name);
            self.normalized.make_ascii_lowercase();
            4 + name.len() / 4
        } else {
            self.normalized.extend(lower(name));
            // Composition is slow, and a character may expand to eighteen.
            4 + 2 * name.len().max(self.normalized.len())
        };
        let mut missing = (1_u32 << self.terms.len()) - 1;
        for word in self.normalized.split(|c: char| !c.is_alphanumeric()) {
            // Strings between a term and a word with that prefix also start with the term. So only
            // the last term up to the word can be its prefix.
            let count = self.terms.partition_point(|term| term.as_str() <= word);
            if count > 0 && word.starts_with(&self.terms[count - 1]) {
                missing &= !(1 << (count - 1));
                if missing == 0 {
                    return (true, steps);
                }
            }
        }
        (false, steps)
    }
}

/// The same test as [`Matcher::matches`], implemented simply as a reference for tests.
#[cfg(test)]
pub(crate) fn matches(name: &str, terms: &[String]) -> bool {
    let words = words(name);
    terms
        .iter()
        .all(|term| words.iter().any(|word| word.starts_with(term)))
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
                let mut matcher = Matcher::new(terms.clone());
                for name in names {
                    let expected = matches(&name, &terms);
                    let (found, _) = matcher.matches(&name);
                    prop_assert_eq!(found, expected, "{:?} in {:?}", terms, name);
                }
            }
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
    fn ascii_needs_no_composition() {
        let all: String = (0..=127u8).map(char::from).collect();
        assert_eq!(normalize(&all), all.to_ascii_lowercase());
    }

    #[test]
    fn queries_are_limited_in_bytes_and_words() {
        assert_eq!(terms(""), Ok(vec![]));
        assert_eq!(terms("  "), Ok(vec![]));
        assert_eq!(terms("..."), Err(TermsError::NoWords));
        assert_eq!(terms(&"a".repeat(256)), Err(TermsError::TooLong(256)));
        let many: Vec<String> = (0..17).map(|n| format!("w{n:02}")).collect();
        assert_eq!(terms(&many.join(" ")), Err(TermsError::TooManyWords(17)));
    }

    #[test]
    fn a_term_that_is_a_prefix_of_another_is_dropped() {
        assert_eq!(
            terms("mod model mode x"),
            Ok(vec!["model".to_owned(), "x".to_owned()])
        );
    }
}
