//! Names and searches as words. Pure.
//!
//! A word is a run of letters and digits in lower case, after Unicode's compatibility composition (NFKC), so that what looks
//! the same is found the same. Non-goals: stemming, and word boundaries in scripts that write none.

use std::borrow::Cow;

use smallvec::SmallVec;
use unicode_normalization::UnicodeNormalization as _;

/// Longest search, in bytes, as the contract has it.
pub const MAX_QUERY_BYTES: usize = 255;

/// Most words of a search, as the contract has it.
pub const MAX_QUERY_WORDS: usize = 16;

/// The distinct words of a name, sorted.
pub fn words(text: &str) -> Vec<String> {
    let mut all = Vec::new();
    each_word(text, |word| all.push(word.to_owned()));
    all
}

/// Gives the distinct words of a name in order. A large index is rebuilt word by word when it is opened: most names cost no more
/// than one allocation here.
pub fn each_word(text: &str, each: impl FnMut(&str)) {
    // Most names are ASCII, which composition leaves as it is.
    let normal = if !text.is_ascii() {
        Cow::Owned(normalize(text))
    } else if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(text.to_ascii_lowercase())
    } else {
        Cow::Borrowed(text)
    };
    let mut words: SmallVec<[&str; 16]> = normal
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

// A bit for each term.
const _: () = assert!(MAX_QUERY_WORDS < 32);

/// Why text is no search.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TermsError {
    /// Over [`MAX_QUERY_BYTES`].
    #[error("a search is at most {MAX_QUERY_BYTES} bytes long, this has {0}")]
    TooLong(usize),
    /// Over [`MAX_QUERY_WORDS`].
    #[error("a search has at most {MAX_QUERY_WORDS} words, this has {0}")]
    TooManyWords(usize),
    /// Text, but none of it a letter or digit.
    #[error("a search needs a letter or a digit; leave it empty to list everything")]
    NoWords,
}

/// The words to search for: every name has to hold each of them, whole or as the beginning of a word.
///
/// # Errors
/// [`TermsError`]; empty text is a search for everything.
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
    // Sorted: a word that another one begins with says nothing of its own.
    for i in (1..terms.len()).rev() {
        if terms[i].starts_with(&terms[i - 1]) {
            terms.remove(i - 1);
        }
    }
    Ok(terms)
}

/// Checks names against the terms of one search, without an allocation for each name.
#[derive(Debug)]
pub struct Matcher {
    /// As [`terms`] gives them: sorted, and none the beginning of another, so that a word begins with one at most.
    terms: Vec<String>,
    /// The name at hand as words are compared: in lower case and composed.
    normal: String,
}

impl Matcher {
    /// For terms as [`terms`] gives them.
    pub const fn new(terms: Vec<String>) -> Self {
        Self {
            terms,
            normal: String::new(),
        }
    }

    /// The terms.
    pub fn terms(&self) -> &[String] {
        &self.terms
    }

    /// Whether a name holds a word that begins with each of the terms, and the steps that it took to tell.
    pub fn fits(&mut self, name: &str) -> (bool, usize) {
        if self.terms.is_empty() {
            return (true, 1);
        }
        self.normal.clear();
        let steps = if name.is_ascii() {
            self.normal.push_str(name);
            self.normal.make_ascii_lowercase();
            4 + name.len() / 4
        } else {
            self.normal.extend(lower(name));
            // Composing is slow, and some characters become eighteen.
            4 + 2 * name.len().max(self.normal.len())
        };
        let mut missing = (1_u32 << self.terms.len()) - 1;
        for word in self.normal.split(|c: char| !c.is_alphanumeric()) {
            // Whatever lies between a term and a word that begins with it begins with the term as well.
            let after = self.terms.partition_point(|term| term.as_str() <= word);
            if after > 0 && word.starts_with(&self.terms[after - 1]) {
                missing &= !(1 << (after - 1));
                if missing == 0 {
                    return (true, steps);
                }
            }
        }
        (false, steps)
    }
}

/// Whether a name holds a word that begins with each of the terms: the plain way, which tests compare [`Matcher`] with.
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
        fn a_matcher_tells_what_the_plain_way_does(
            query in "[abAé ]{0,8}",
            names in prop::collection::vec("[abABéﬁ .-]{0,10}|\\PC{0,12}", 0..8),
        ) {
            if let Ok(terms) = terms(&query) {
                let mut matcher = Matcher::new(terms.clone());
                for name in names {
                    prop_assert_eq!(matcher.fits(&name).0, matches(&name, &terms), "{:?} in {:?}", terms, name);
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
    fn what_looks_the_same_is_the_same() {
        assert_eq!(words("Cafe\u{301}"), words("CAFÉ"));
        assert_eq!(words("ﬁle"), words("FILE"));
    }

    #[test]
    fn ascii_needs_no_composition() {
        let all: String = (0..=127u8).map(char::from).collect();
        assert_eq!(normalize(&all), all.to_ascii_lowercase());
    }

    #[test]
    fn searches_are_bounded() {
        assert_eq!(terms(""), Ok(vec![]));
        assert_eq!(terms("  "), Ok(vec![]));
        assert_eq!(terms("..."), Err(TermsError::NoWords));
        assert_eq!(terms(&"a".repeat(256)), Err(TermsError::TooLong(256)));
        let many: Vec<String> = (0..17).map(|n| format!("w{n:02}")).collect();
        assert_eq!(terms(&many.join(" ")), Err(TermsError::TooManyWords(17)));
    }

    #[test]
    fn a_term_within_another_is_dropped() {
        assert_eq!(
            terms("mod model mode x"),
            Ok(vec!["model".to_owned(), "x".to_owned()])
        );
    }
}
