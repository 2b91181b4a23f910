//! Names that are safe to create: a path in a collection, and a label of a file.
//!
//! Only parsing creates these types, so that their text needs no further checks. They do not
//! describe the disk: the writer must open paths beneath the target folder without following
//! links.

use std::{fmt, path::PathBuf};

/// Maximum length of a path component, in bytes: the limit of common file systems.
pub const MAX_COMPONENT_LEN: usize = 255;

/// Maximum length of a path, in bytes: `PATH_MAX` of Linux.
pub const MAX_PATH_LEN: usize = 4096;

/// Maximum components of a path: far deeper than real folders, and a limit on the cost of a
/// hostile manifest.
pub const MAX_DEPTH: usize = 256;

/// Result of [`Label::sanitize`] if no part of the name is usable.
const FALLBACK_LABEL: &str = "unnamed";

/// Why text is not a safe path or label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// An empty path or component.
    #[error("a path and each of its parts need at least one character")]
    Empty,
    /// The path starts with a slash.
    #[error("the path is absolute, and only relative paths are allowed")]
    Absolute,
    /// A component is `.` or `..`.
    #[error("`.` and `..` are not allowed in a path")]
    Dots,
    /// A control character, including NUL.
    #[error("control characters are not allowed in names")]
    Control,
    /// A character that reorders the surrounding text or separates lines.
    #[error(
        "characters that change the direction of text, and line separators, are not allowed in names"
    )]
    Reordering,
    /// No visible character.
    #[error("a name needs at least one visible character")]
    Invisible,
    /// A backslash, which is a separator on some systems.
    #[error("backslashes are not allowed in names")]
    Backslash,
    /// A slash in a label.
    #[error("slashes are not allowed in a name")]
    Slash,
    /// A component is longer than [`MAX_COMPONENT_LEN`].
    #[error("a name has at most {MAX_COMPONENT_LEN} bytes, but this one has {0}")]
    ComponentTooLong(usize),
    /// The path is longer than [`MAX_PATH_LEN`].
    #[error("a path has at most {MAX_PATH_LEN} bytes, but this one has {0}")]
    TooLong(usize),
    /// More than [`MAX_DEPTH`] components.
    #[error("a path has at most {MAX_DEPTH} components, but this one has {0}")]
    TooDeep(usize),
}

/// A safe relative path: UTF-8 components joined by `/`. Ordered by bytes, as in a manifest.
/// Borrows its text, so that many paths can share one buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelPath<'a>(&'a str);

impl<'a> RelPath<'a> {
    /// Parses a path.
    ///
    /// # Errors
    /// A [`PathError`] if the path is not safe and relative.
    pub fn parse(text: &'a str) -> Result<Self, PathError> {
        if text.is_empty() {
            return Err(PathError::Empty);
        }
        if text.len() > MAX_PATH_LEN {
            return Err(PathError::TooLong(text.len()));
        }
        if text.starts_with('/') {
            return Err(PathError::Absolute);
        }
        let mut depth = 0;
        for component in text.split('/') {
            check_component(component)?;
            depth += 1;
        }
        if depth > MAX_DEPTH {
            return Err(PathError::TooDeep(depth));
        }
        Ok(Self(text))
    }

    /// A path that was parsed before or will be parsed by the caller.
    pub(crate) const fn unchecked(text: &'a str) -> Self {
        Self(text)
    }

    /// The text.
    pub const fn as_str(self) -> &'a str {
        self.0
    }

    /// The components, outermost first; at least one.
    pub fn components(self) -> impl DoubleEndedIterator<Item = &'a str> {
        self.0.split('/')
    }

    /// The last component.
    pub fn file_name(self) -> &'a str {
        self.0.rsplit('/').next().unwrap_or(self.0)
    }

    /// Path of the parent folder; `None` at the top level.
    pub fn parent(self) -> Option<&'a str> {
        self.0.rsplit_once('/').map(|(parent, _)| parent)
    }

    /// The path as a relative [`PathBuf`].
    pub fn to_path_buf(self) -> PathBuf {
        self.components().collect()
    }
}

impl fmt::Display for RelPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// A file's name in the index and for display: one path component.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label(Box<str>);

impl Label {
    /// Parses a label.
    ///
    /// # Errors
    /// A [`PathError`] if the text is not a plain file name of 1 to 255 bytes.
    pub fn parse(text: &str) -> Result<Self, PathError> {
        if text.contains('/') {
            return Err(PathError::Slash);
        }
        check_component(text)?;
        Ok(Self(text.into()))
    }

    /// Makes a label from any text: takes the last component, replaces forbidden characters with
    /// `_`, and truncates it but keeps the extension.
    pub fn sanitize(text: &str) -> Self {
        let last = text
            .rsplit(['/', '\\'])
            .find(|part| !part.is_empty())
            .unwrap_or(FALLBACK_LABEL);
        let clean: String = last
            .chars()
            .map(|c| {
                if c.is_control() || is_reordering(c) {
                    '_'
                } else {
                    c
                }
            })
            .collect();
        let cut = truncate(&clean);
        Self::parse(&cut).unwrap_or_else(|_| Self(FALLBACK_LABEL.into()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Label> for String {
    fn from(label: Label) -> Self {
        label.0.into()
    }
}

fn check_component(component: &str) -> Result<(), PathError> {
    match component {
        "" => return Err(PathError::Empty),
        "." | ".." => return Err(PathError::Dots),
        _ => {}
    }
    if component.len() > MAX_COMPONENT_LEN {
        return Err(PathError::ComponentTooLong(component.len()));
    }
    check_characters(component)?;
    if component.chars().all(|c| c.is_whitespace() || is_invisible(c)) {
        return Err(PathError::Invisible);
    }
    Ok(())
}

/// Whether a character reorders the surrounding text, as `U+202E` does, or separates lines. File
/// names need none of them: letters of right-to-left scripts have their own direction.
pub const fn is_reordering(c: char) -> bool {
    matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Whether a character is invisible but not white space: `Default_Ignorable_Code_Point` of Unicode
/// 16, and the blank braille pattern. A fixed list: the validity of a manifest must not depend on
/// a library's Unicode version.
pub const fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{2800}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
        | '\u{ffa0}' | '\u{fff0}'..='\u{fff8}' | '\u{1bca0}'..='\u{1bca3}'
        | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// Rejects characters that are invalid in both paths and link targets.
pub(crate) fn check_characters(text: &str) -> Result<(), PathError> {
    if text.chars().any(char::is_control) {
        return Err(PathError::Control);
    }
    if text.contains('\\') {
        return Err(PathError::Backslash);
    }
    if text.chars().any(is_reordering) {
        return Err(PathError::Reordering);
    }
    Ok(())
}

fn truncate(name: &str) -> String {
    // A longer suffix does not count as an extension.
    const MAX_EXTENSION: usize = 32;
    if name.len() <= MAX_COMPONENT_LEN {
        return name.to_owned();
    }
    let extension = name.rfind('.').map_or("", |dot| &name[dot..]);
    let extension = if extension.len() <= MAX_EXTENSION {
        extension
    } else {
        ""
    };
    let mut end = MAX_COMPONENT_LEN - extension.len();
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{extension}", &name[..end])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn plain_paths_are_accepted() {
        for text in ["a", "a/b", "a b/ü/…", ".hidden", "...", "a..b", "-", "~", "a:b"] {
            let path = RelPath::parse(text).unwrap();
            assert_eq!(path.as_str(), text);
            assert_eq!(path.to_path_buf(), PathBuf::from(text));
        }
        let path = RelPath::parse("a/b/c").unwrap();
        assert_eq!((path.file_name(), path.parent()), ("c", Some("a/b")));
        assert_eq!(RelPath::parse("a").unwrap().parent(), None);
    }

    #[test]
    fn paths_that_leave_the_folder_are_refused() {
        let refused = |text: &str| RelPath::parse(text).unwrap_err();
        assert_eq!(refused(""), PathError::Empty);
        assert_eq!(refused("/"), PathError::Absolute);
        assert_eq!(refused("/etc/passwd"), PathError::Absolute);
        assert_eq!(refused("a//b"), PathError::Empty);
        assert_eq!(refused("a/"), PathError::Empty);
        for text in ["..", ".", "a/..", "a/../b", "./a", "a/./b"] {
            assert_eq!(refused(text), PathError::Dots, "{text}");
        }
        for text in ["a\0", "a\n/b", "\u{7f}", "\u{85}", "\u{1b}[2J"] {
            assert_eq!(refused(text), PathError::Control, "{text:?}");
        }
        assert_eq!(refused("..\\a"), PathError::Backslash);
    }

    #[test]
    fn misleading_and_invisible_names_are_refused() {
        for text in [
            "cv\u{202e}fdp.exe",
            "a/\u{2066}b\u{2069}",
            "a\u{2028}b",
            "\u{202b}x",
        ] {
            assert_eq!(RelPath::parse(text), Err(PathError::Reordering), "{text:?}");
        }
        for c in "\u{3164}\u{115f}\u{1160}\u{2800}\u{ffa0}\u{200b}\u{feff}\u{e0041}\u{a0}\u{fe0f} "
            .chars()
        {
            assert_eq!(Label::parse(&c.to_string()), Err(PathError::Invisible), "{c:?}");
            assert_eq!(
                RelPath::parse(&format!("a/{c}{c} ")),
                Err(PathError::Invisible),
                "{c:?}"
            );
            assert_eq!(Label::sanitize(&c.to_string()).as_str(), FALLBACK_LABEL);
        }
        assert_eq!(Label::sanitize("cv\u{202e}fdp.exe").as_str(), "cv_fdp.exe");
    }

    #[test]
    fn names_in_all_scripts_are_accepted() {
        for text in [
            "👩\u{200d}👩\u{200d}👧.png",
            "❤\u{fe0f}.txt",
            "🏴\u{e0067}\u{e0062}\u{e0065}\u{e006e}\u{e0067}\u{e007f}",
            "تقرير نهائي.pdf",
            "می\u{200c}خواهم.txt",
            "דוח \u{200f}סופי.doc",
            "हिन्दी क्\u{200d}ष.txt",
            "한국어.txt",
            "Capture d’écran à 10\u{202f}h.png",
            "名前\u{3000}一.bin",
        ] {
            assert_eq!(Label::parse(text).map(String::from).as_deref(), Ok(text));
        }
    }

    #[test]
    fn lengths_are_bounded() {
        assert!(RelPath::parse(&"a".repeat(255)).is_ok());
        assert_eq!(
            RelPath::parse(&"a".repeat(256)),
            Err(PathError::ComponentTooLong(256))
        );
        let deep = vec!["a"; MAX_DEPTH].join("/");
        assert!(RelPath::parse(&deep).is_ok());
        assert_eq!(
            RelPath::parse(&format!("{deep}/a")),
            Err(PathError::TooDeep(MAX_DEPTH + 1))
        );
        let long = vec!["a".repeat(255); 17].join("/");
        assert_eq!(RelPath::parse(&long), Err(PathError::TooLong(17 * 256 - 1)));
    }

    #[test]
    fn labels_are_one_component() {
        assert!(Label::parse("model.safetensors").is_ok());
        assert_eq!(Label::parse("a/b"), Err(PathError::Slash));
        assert_eq!(Label::parse("a\\b"), Err(PathError::Backslash));
        assert_eq!(Label::parse(".."), Err(PathError::Dots));
        assert_eq!(Label::parse(""), Err(PathError::Empty));
        assert!(
            Label::parse(&"é".repeat(128)).is_err(),
            "bytes count, not characters"
        );
    }

    #[test]
    fn sanitizing_keeps_a_name_recognizable() {
        let label = |text: &str| Label::sanitize(text).as_str().to_owned();
        assert_eq!(label("a.bin"), "a.bin");
        assert_eq!(label("../../etc/passwd"), "passwd");
        assert_eq!(label("C:\\x\\y.iso"), "y.iso");
        assert_eq!(label("folder/"), "folder");
        assert_eq!(label("a\nb"), "a_b");
        for text in ["", "/", "..", ".", "a/.."] {
            assert_eq!(label(text), FALLBACK_LABEL, "{text:?}");
        }
        let long = label(&format!("{}.tar", "é".repeat(300)));
        assert!(
            long.ends_with("é.tar") && long.len() <= MAX_COMPONENT_LEN,
            "{long}"
        );
    }

    proptest! {
        #[test]
        fn sanitizing_always_gives_a_label(text in any::<String>()) {
            let label = Label::sanitize(&text);
            prop_assert_eq!(Label::parse(label.as_str()), Ok(label));
        }

        #[test]
        fn sanitizing_does_not_change_a_label(text in any::<String>()) {
            if let Ok(label) = Label::parse(&text) {
                prop_assert_eq!(Label::sanitize(&text), label);
            }
        }

        #[test]
        fn a_path_stays_beneath_its_folder(text in "[a./\\\\\0é-]{0,12}") {
            if let Ok(path) = RelPath::parse(&text) {
                let all_normal = path
                    .to_path_buf()
                    .components()
                    .all(|component| matches!(component, std::path::Component::Normal(_)));
                prop_assert!(all_normal);
                prop_assert_eq!(path.components().count(), path.to_path_buf().components().count());
            }
        }
    }
}
