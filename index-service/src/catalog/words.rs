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
    text.nfkc().flat_map(char::to_lowercase).nfkc().collect()
}

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

/// Whether a name holds a word that begins with each of the terms.
pub fn fits(name: &str, terms: &[String]) -> bool {
    let words = words(name);
    terms
        .iter()
        .all(|term| words.iter().any(|word| word.starts_with(term)))
}

#[cfg(test)]
mod tests {
    use super::*;

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
