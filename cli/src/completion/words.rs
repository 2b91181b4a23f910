//! Splits an incomplete line into words as a POSIX shell does, and quotes candidates. Pure.
//!
//! Nothing is expanded or run: `$(x)` is text.

#![deny(clippy::disallowed_methods)]

/// The word at the end of a line, and the words before it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Word {
    /// The words before, unquoted.
    pub(crate) before: Vec<String>,
    /// The word, unquoted; empty after a space.
    pub(crate) value: String,
    /// Where the word begins in the line, in bytes.
    pub(crate) start: usize,
    /// The quote that is still open at the end of the line.
    pub(crate) open_quote: Option<char>,
}

/// Splits a line that ends at the cursor.
pub(crate) fn last_word(line: &str) -> Word {
    let mut word = Word::default();
    let mut is_in_word = false;
    let mut rest = line.char_indices().peekable();
    while let Some((at, c)) = rest.next() {
        if word.open_quote.is_none() && c.is_ascii_whitespace() {
            if is_in_word {
                word.before.push(std::mem::take(&mut word.value));
                is_in_word = false;
            }
            continue;
        }
        if !is_in_word {
            is_in_word = true;
            word.start = at;
        }
        match (word.open_quote, c) {
            (Some(quote), c) if c == quote => word.open_quote = None,
            (None, '\'' | '"') => word.open_quote = Some(c),
            (None, '\\') => word.value.extend(rest.next().map(|(_, escaped)| escaped)),
            (Some('"'), '\\') => {
                let is_special = |next: &(usize, char)| matches!(next.1, '$' | '`' | '"' | '\\');
                match rest.next_if(is_special) {
                    Some((_, escaped)) => word.value.push(escaped),
                    None => word.value.push('\\'),
                }
            }
            (_, c) => word.value.push(c),
        }
    }
    if !is_in_word {
        word.start = line.len();
    }
    word
}

/// Quotes text with backslashes, so that a shell reads it as one plain word.
pub(crate) fn backslash_escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        let is_plain = !c.is_ascii()
            || c.is_ascii_alphanumeric()
            || matches!(c, '.' | '_' | '-' | '/' | ',' | '+');
        if !is_plain {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

/// Text to insert in an open quote. `None` if the quote cannot hold it without escapes.
pub(crate) fn inside_quote(text: &str, quote: char) -> Option<&str> {
    let is_special = |c: char| match quote {
        '"' => matches!(c, '"' | '$' | '`' | '\\' | '!'),
        // bash expands `!` before it looks at single quotes that a line continues.
        _ => matches!(c, '\'' | '!'),
    };
    (!text.contains(is_special)).then_some(text)
}

/// What bash must insert for `candidate`, a whole unquoted word, at the end of `line`. bash replaces
/// only `replaced`, the end of the word after the last `:`, `=`, `@` or opening quote. `None` if the
/// candidate does not fit what is typed.
pub(crate) fn bash_replacement(line: &str, replaced: &str, candidate: &str) -> Option<String> {
    let kept = line.strip_suffix(replaced)?;
    let at = last_word(line).start.min(kept.len());
    let kept = last_word(&kept[at..]);
    let rest = candidate.strip_prefix(&kept.value)?;
    match kept.open_quote {
        Some(quote) => inside_quote(rest, quote).map(ToOwned::to_owned),
        None => Some(backslash_escaped(rest)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn last(line: &str) -> (Vec<String>, String, usize, Option<char>) {
        let word = last_word(line);
        (word.before, word.value, word.start, word.open_quote)
    }

    #[test]
    fn an_incomplete_line_is_split_like_a_shell_does() {
        let before = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        assert_eq!(last("get mo"), (before(&["get"]), "mo".into(), 4, None));
        assert_eq!(last("get "), (before(&["get"]), String::new(), 4, None));
        assert_eq!(last("get 'a b"), (before(&["get"]), "a b".into(), 4, Some('\'')));
        assert_eq!(
            last(r#"get "a\"b"#),
            (before(&["get"]), "a\"b".into(), 4, Some('"'))
        );
        assert_eq!(last(r"get a\ b"), (before(&["get"]), "a b".into(), 4, None));
        assert_eq!(
            last("get 'x y' z"),
            (before(&["get", "x y"]), "z".into(), 10, None)
        );
        assert_eq!(last("a ''"), (before(&["a"]), String::new(), 2, None));
        assert_eq!(last(""), (vec![], String::new(), 0, None));
    }

    #[test]
    fn bash_gets_the_part_that_it_replaces() {
        let insert = |line: &str, replaced: &str, candidate: &str| {
            bash_replacement(line, replaced, candidate)
        };
        assert_eq!(
            insert("potluck get m", "m", "my file").as_deref(),
            Some(r"my\ file")
        );
        assert_eq!(
            insert(r"potluck get my\ f", r"my\ f", "my file").as_deref(),
            Some(r"my\ file")
        );
        assert_eq!(
            insert("potluck get a:b", "b", "a:b.bin").as_deref(),
            Some("b.bin")
        );
        assert_eq!(
            insert("potluck get 'my f", "my f", "my file").as_deref(),
            Some("my file")
        );
        assert_eq!(insert("potluck get 'my f", "my f", "my f'$(x)"), None);
        assert_eq!(insert("potluck get \"a", "a", "a$(x)"), None);
        assert_eq!(
            insert("potluck get ", "", "$(touch x);`y`").as_deref(),
            Some(r"\$\(touch\ x\)\;\`y\`")
        );
        assert_eq!(
            insert("potluck get --limit=", "", "--limit=5").as_deref(),
            Some("5")
        );
    }

    proptest! {
        #[test]
        fn an_escaped_word_is_read_back_unchanged(text in "[^\\p{Cc}]{1,20}") {
            let escaped = backslash_escaped(&text);
            prop_assert_eq!(shlex::split(&escaped), Some(vec![text.clone()]));
            let line = format!("get {escaped}");
            prop_assert_eq!(last_word(&line).value, text);
        }

        #[test]
        fn any_line_is_split(line in any::<String>()) {
            let word = last_word(&line);
            prop_assert!(line.is_char_boundary(word.start));
            bash_replacement(&line, &line[word.start..], "x");
        }
    }
}
