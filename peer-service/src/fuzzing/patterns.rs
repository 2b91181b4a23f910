//! `.potluckignore` files, and globs of chosen files.
//!
//! Compiling patterns takes a hundred times as long as deciding about a path. So an input has
//! patterns, a zero byte, and paths, most of whose mutations change only paths, and compiled
//! patterns are kept. An input without a zero byte has patterns only.

use std::{borrow::Cow, cell::RefCell, collections::HashMap, path::Path, rc::Rc, sync::Arc};

use globset::GlobSet;
use potluck_core::collection::{
    manifest::{EntryContent, Manifest, ManifestEntry},
    path::RelPath,
};

use crate::{
    catalog::share_options::ShareOptions,
    download::selection::{PathFilter, compile},
    library::scan::rules::{IgnoreRules, WalkRules},
};

/// Paths for patterns that come without any.
const PATHS: &str = "README.md\na\na/b\na/b/c.txt\na/b/c.bin\nbuild/out\nbuild.rs\n.hidden/x\n\
                     \u{e9}/\u{fc}\nz z";

/// More paths, for inputs to begin with: long ones, so that most mutations change paths.
const MORE_PATHS: &str = "docs/en/guide/getting-started/installation/index.md\n\
     src/library/reconcile/files_folder_scan/tests/mod.rs\n\
     target/debug/build/README/out.txt/c.bin/a/b\n\
     one/two/three/four/five/six/seven/eight/nine.bin\n\
     z z/trailing /{a,b}/[a-c]/*.txt/!c.bin/#x/a**b";

/// Maximum paths of an input that are looked at.
const MAX_PATHS: usize = 16;

/// Compiled patterns that are kept at once. Most texts are those of kept inputs.
const MAX_KEPT: usize = 1_000;

/// The compiled patterns of recent texts.
type Kept<T> = RefCell<HashMap<String, Rc<T>>>;

fn compiled<T>(kept: &Kept<T>, text: &str, compile: impl FnOnce(&str) -> T) -> Rc<T> {
    let mut kept = kept.borrow_mut();
    if let Some(found) = kept.get(text) {
        return Rc::clone(found);
    }
    if kept.len() >= MAX_KEPT {
        kept.clear();
    }
    let made = Rc::new(compile(text));
    kept.insert(text.to_owned(), Rc::clone(&made));
    made
}

/// The patterns and the paths of an input.
fn split(text: &str) -> (&str, impl Iterator<Item = &str>) {
    let (patterns, paths) = text.split_once('\0').unwrap_or((text, PATHS));
    let paths = paths.lines().filter(|path| RelPath::parse(path).is_ok());
    (patterns, paths.take(MAX_PATHS))
}

/// An input to begin with.
fn seed(patterns: &str) -> Vec<u8> {
    format!("{patterns}\0{PATHS}\n{MORE_PATHS}").into_bytes()
}

/// A `.potluckignore` file as it is, and in places where it must decide the same.
struct Ignoring {
    once: Arc<IgnoreRules>,
    /// For some texts only.
    others: Option<Others>,
}

struct Others {
    /// The text twice, and among comments; `None` if its first or last byte has a meaning only
    /// there.
    same: Option<[Arc<IgnoreRules>; 2]>,
    /// In the folder `a`, below a file that excludes everything.
    below: Arc<IgnoreRules>,
    /// In the folder `a/b`, a file that includes everything, below that one.
    all: Arc<IgnoreRules>,
}

impl Ignoring {
    fn parse(text: &str) -> Option<Self> {
        let parse = |text: &str, above: Option<&Arc<IgnoreRules>>, path: &str| {
            IgnoreRules::parse(above, text, path).map(Arc::new)
        };
        let once = match parse(text, None, "") {
            Ok(rules) => rules,
            Err(problem) => {
                assert!(problem.message.contains("pattern"), "{problem}");
                return None;
            }
        };
        let others = is_chosen(text).then(|| {
            let twice = format!("{text}\n{text}");
            let commented = format!("# comment\n{text}\n\n#");
            // Only at the start of a file is a byte order mark one; only before a line feed is a
            // carriage return the end of a line.
            let is_same = !text.starts_with('\u{feff}') && !text.ends_with('\r');
            let same = is_same.then(|| {
                [twice, commented].map(|text| parse(&text, None, "").expect("valid patterns"))
            });
            let above = parse("*", None, "").expect("a valid pattern");
            let below = parse(text, Some(&above), "a").expect("valid patterns");
            let all = parse("!*", Some(&below), "a/b").expect("a valid pattern");
            Others { same, below, all }
        });
        Some(Self { once, others })
    }
}

/// `.potluckignore` files: a text that is accepted decides the same when it is read twice, and a
/// comment in it changes nothing. A file in a subfolder counts before one above it.
pub fn ignore_rules(input: &[u8]) -> bool {
    thread_local! {
        static KEPT: Kept<Option<Ignoring>> = RefCell::default();
        static RULES: WalkRules =
            WalkRules::new(&ShareOptions::default(), None).expect("no rules");
    }
    let text = String::from_utf8_lossy(input);
    let (patterns, paths) = split(&text);
    let ignoring = KEPT.with(|kept| compiled(kept, patterns, Ignoring::parse));
    let Some(Ignoring { once, others }) = &*ignoring else {
        return false;
    };
    RULES.with(|rules| {
        let excludes = |ignored: &Arc<IgnoreRules>, path: &str| {
            rules.excludes(Some(ignored), Path::new(path), false)
        };
        for path in paths {
            let is_excluded = excludes(once, path);
            let Some(Others { same, below, all }) = others else {
                continue;
            };
            for other in same.iter().flatten() {
                assert_eq!(excludes(other, path), is_excluded, "{path}");
            }
            // Relative to its folder, the text decides as it does alone; otherwise `*` excludes.
            assert!(excludes(below, &format!("a/{path}")) || !is_excluded, "{path}");
            assert!(
                !excludes(all, &format!("a/b/{path}")),
                "the deepest file counts first"
            );
        }
    });
    true
}

/// One text in eight.
fn is_chosen(text: &str) -> bool {
    text.bytes()
        .fold(0, |sum: u8, byte| sum.wrapping_add(byte))
        .is_multiple_of(8)
}

/// Patterns of each kind.
pub fn ignore_rule_seeds() -> Vec<Vec<u8>> {
    let texts = [
        "*.bin\n!c.bin\n/build\n# comment\n\n",
        "a/**/c.*\n**/b\n[a-z]?/\n",
        "\u{feff}\\#x\ntrailing\\ \n{a,b}\n",
        "*\n!README.md\n",
        "*.bin\n#\u{1}",
    ];
    texts.map(seed).into()
}

/// A compiled glob.
struct Chosen {
    globs: GlobSet,
    /// `None` for syntax that the reference does not know.
    reference: Option<Reference>,
}

/// What the documentation says of globs, decided one component after the other.
struct Reference {
    components: Vec<String>,
}

impl Reference {
    /// `None` if the glob has more than literal characters, `*`, `?` (one byte), and a few whole
    /// components `**`.
    fn parse(glob: &str) -> Option<Self> {
        let path = glob.strip_prefix("./").unwrap_or(glob);
        let path = path.strip_suffix('/').unwrap_or(path);
        let is_anchored = path.contains('/');
        let path = path.strip_prefix('/').unwrap_or(path);
        let first = (!is_anchored).then_some("**");
        let components: Vec<String> = first
            .into_iter()
            .chain(path.split('/'))
            .map(str::to_owned)
            .collect();
        let is_known = |part: &String| {
            part == "**" || !part.is_empty() && !part.contains("**") && !part.contains(SYNTAX)
        };
        let wide = components.iter().filter(|part| *part == "**").count();
        (components.iter().all(is_known) && wide <= MAX_WIDE).then_some(Self { components })
    }

    /// Whether the glob matches the path, or a folder that contains it.
    fn matches(&self, path: &str) -> bool {
        let parts: Vec<&str> = path.split('/').collect();
        (1..=parts.len()).any(|len| matches_path(&self.components, &parts[..len]))
    }
}

/// Maximum components `**`: each multiplies the time.
const MAX_WIDE: usize = 3;

/// Characters of a glob that mean more than the reference knows.
const SYNTAX: [char; 6] = ['[', ']', '{', '}', '\\', ','];

fn matches_path(globs: &[String], parts: &[&str]) -> bool {
    let Some((glob, globs)) = globs.split_first() else {
        return parts.is_empty();
    };
    if glob == "**" {
        // At the end, something within the folder.
        let from = usize::from(globs.is_empty());
        return (from..=parts.len()).any(|skip| matches_path(globs, &parts[skip..]));
    }
    let Some((part, parts)) = parts.split_first() else {
        return false;
    };
    matches_name(glob.as_bytes(), part.as_bytes()) && matches_path(globs, parts)
}

/// The greedy algorithm: only the last `*` is ever tried again, with one byte more.
fn matches_name(glob: &[u8], name: &[u8]) -> bool {
    let (mut in_glob, mut in_name) = (0, 0);
    let mut last_star = None;
    while in_name < name.len() {
        match glob.get(in_glob) {
            Some(b'*') => {
                last_star = Some((in_glob, in_name));
                in_glob += 1;
            }
            Some(&wanted) if wanted == b'?' || wanted == name[in_name] => {
                in_glob += 1;
                in_name += 1;
            }
            _ => {
                let Some((star, from)) = last_star else {
                    return false;
                };
                last_star = Some((star, from + 1));
                (in_glob, in_name) = (star + 1, from + 1);
            }
        }
    }
    glob[in_glob..].iter().all(|&byte| byte == b'*')
}

/// Globs of chosen files: they match what their documentation says, and everything in a folder that
/// they match. Including what matches and leaving out what matches divide a collection in two. The
/// patterns of an input are globs, one a line.
pub fn path_filter(input: &[u8]) -> bool {
    thread_local! {
        static KEPT: Kept<Option<Chosen>> = RefCell::default();
    }
    let text: Cow<'_, str> = String::from_utf8_lossy(input);
    let (globs, paths) = split(&text);
    let globs: Vec<&str> = globs.lines().take(4).collect();
    let compiled: Vec<_> = globs
        .iter()
        .map(|glob| {
            let compile = |glob: &str| match compile(glob) {
                Ok(globs) => Some(Chosen {
                    globs,
                    reference: Reference::parse(glob),
                }),
                Err(message) => {
                    assert!(message.contains("glob"), "{message}");
                    None
                }
            };
            KEPT.with(|kept| compiled(kept, glob, compile))
        })
        .collect();
    let all: Option<Vec<&Chosen>> = compiled.iter().map(|glob| glob.as_ref().as_ref()).collect();
    for path in paths {
        for (glob, text) in all.iter().flatten().zip(&globs) {
            let is_match = glob.globs.is_match(path);
            if let Some(reference) = &glob.reference {
                assert_eq!(is_match, reference.matches(path), "{text:?}, {path:?}");
            }
            let mut folder = path;
            while let Some((above, _)) = folder.rsplit_once('/') {
                assert!(is_match || !glob.globs.is_match(above), "{text:?}, {path:?}");
                folder = above;
            }
        }
    }
    let has_syntax = all.is_some();
    if !is_divided(&text) {
        return has_syntax && !globs.is_empty();
    }
    divide(globs.into_iter().map(str::to_owned).collect(), has_syntax)
}

/// One text in 256: this compiles the globs again.
fn is_divided(text: &str) -> bool {
    text.bytes().fold(0, |sum: u8, byte| sum.wrapping_add(byte)) == 0
}

/// Chooses entries by globs, and by leaving out the same globs.
fn divide(globs: Vec<String>, has_syntax: bool) -> bool {
    let choose = |include: &[String], exclude: &[String]| {
        PathFilter::new(include.to_vec(), exclude.to_vec())?.choose(&manifest())
    };
    match (choose(&globs, &[]), choose(&[], &globs)) {
        (Ok(included), Ok(rest)) if globs.is_empty() => {
            assert_eq!(included.entries, rest.entries);
            false
        }
        (Ok(included), Ok(rest)) => {
            let (a, b) = (included.entries.count(), rest.entries.count());
            assert_eq!(a + b, included.entries.len());
            assert!(included.entries.ones().all(|entry| !rest.entries.get(entry)));
            true
        }
        // Everything is left out.
        (Ok(included), Err(problem)) => {
            assert!(included.entries.is_full(), "{problem}");
            true
        }
        (Err(problem), Ok(_)) => panic!("matches nothing, and yet leaves something out: {problem}"),
        (Err(first), Err(second)) => {
            assert!(!first.message.is_empty() && !second.message.is_empty());
            has_syntax
        }
    }
}

/// Globs of each kind.
pub fn path_filter_seeds() -> Vec<Vec<u8>> {
    let texts = [
        "*.txt",
        "a/**\n*.md",
        "a/b",
        "[a-c]*\n{README,z z}*",
        "**/c.?in",
        "build*",
        "docs/**/index.md\n?.txt",
        "./src/*/b/",
        "/a",
        "?",
    ];
    texts.map(seed).into()
}

fn manifest() -> Manifest {
    let is_file = |path: &&str| !["a", "a/b"].contains(path);
    let mut paths: Vec<&str> = PATHS.lines().filter(is_file).collect();
    paths.sort_unstable();
    let entries = paths.into_iter().map(|path| ManifestEntry {
        path: RelPath::parse(path).expect("a valid path"),
        content: EntryContent::EmptyDirectory,
    });
    Manifest::new(entries).expect("a valid manifest")
}
