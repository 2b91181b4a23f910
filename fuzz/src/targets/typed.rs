//! What people type: rates, times, addresses, ids, names.

use std::time::Duration;

use potluck_core::{
    FileId, IdPrefix, Sha256,
    collection::{
        manifest::{check_link, fold},
        path::{Label, RelPath},
    },
    grpc::transport::Endpoint,
    network::{identity::MemberId, own_pki::RoleTable},
    units::{duration_argument, parse_duration, parse_rate, rate_argument},
};

/// What is accepted comes back when it is printed and read again.
///
/// The input is a text; its first eight bytes are also read as a number.
pub fn typed(input: &[u8]) -> bool {
    if let Some((number, _)) = input.split_first_chunk() {
        let number = u64::from_le_bytes(*number);
        assert_eq!(parse_rate(&rate_argument(number)), Ok(number));
        check_duration(Duration::from_millis(number));
    }
    let Ok(text) = std::str::from_utf8(input) else {
        return false;
    };
    let mut accepted = false;
    if let Ok(rate) = parse_rate(text) {
        assert_eq!(parse_rate(&rate_argument(rate)), Ok(rate));
        accepted = true;
    }
    if let Ok(duration) = parse_duration(text) {
        check_duration(duration);
        accepted = true;
    }
    if let Ok(endpoint) = text.parse::<Endpoint>() {
        let shown = endpoint.to_string();
        assert_eq!(
            shown.parse::<Endpoint>().map(|again| again.to_string()),
            Ok(shown)
        );
        accepted = true;
    }
    if let Ok(id) = text.parse::<FileId>() {
        assert_eq!(id.to_string(), text.to_lowercase());
        assert_eq!(text.parse(), Ok(Sha256(id.0)));
        accepted = true;
    }
    if let Ok(prefix) = text.parse::<IdPrefix>() {
        assert_eq!(prefix.to_string(), text.to_lowercase());
        accepted = true;
    }
    if let Ok(member) = text.parse::<MemberId>() {
        assert_eq!(member.to_string(), text.to_lowercase());
        accepted = true;
    }
    let roles = RoleTable::parse(text);
    accepted |= roles.is_ok_and(|table| table != RoleTable::default());
    accepted
}

fn check_duration(duration: Duration) {
    let shown = duration_argument(duration);
    assert_eq!(parse_duration(&shown), Ok(duration), "{shown}");
}

/// Texts of each kind.
pub fn typed_seeds() -> Vec<Vec<u8>> {
    let texts = [
        "10MiB/s",
        "500 kb/s",
        "1.5 GiB",
        "65536",
        "1h 30m 5s 3ms",
        "18446744073709551615",
        "localhost:1313",
        "http://[2001:db8::1]:1313/",
        "http://[fe80::1%eth0]:1313",
        "unix:///run/potluck.sock",
        "/run/potluck.sock",
        "//run/potluck.sock",
        "3f9a12345678",
        "0123456789abcdef0123456789ABCDEF0123456789abcdef0123456789abcdef",
        "0123456789abcdef0123456789abcdef",
        "admin CN=me\n# comment\nreader *\n",
    ];
    texts.map(|text| text.as_bytes().to_vec()).into()
}

/// Units and signs.
pub const TYPED_WORDS: &[&[u8]] = &[
    b"/s",
    b"MiB",
    b"kB",
    b"days",
    b"years",
    b"ms",
    b"us",
    b"h",
    b".",
    b"-",
    b"e9",
    b"http://",
    b"unix:",
    b":1313",
    b"[",
    b"]",
    b"%",
    b"@",
    b"#",
    b"*",
    b"reader",
    b"admin",
    b"\n",
    b"99999999999",
];

/// Names and paths from outside stay beneath their folder, and a label that was made of any text is
/// a valid label.
///
/// The input is a text.
pub fn names(input: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(input) else {
        return false;
    };
    let label = Label::sanitize(text);
    assert_eq!(Label::parse(label.as_str()).as_ref(), Ok(&label));
    assert!(RelPath::parse(label.as_str()).is_ok(), "a label is a path");
    // Two names that fold to the same one are similar on some file system; folding is stable.
    let folded = fold(text);
    assert_eq!(fold(&folded), folded, "{text:?}");
    let parsed = Label::parse(text);
    if let Ok(parsed) = &parsed {
        assert_eq!(&label, parsed, "a valid label is left alone");
    }
    let Ok(path) = RelPath::parse(text) else {
        assert!(parsed.is_err(), "a label is a path");
        return false;
    };
    let buffer = path.to_path_buf();
    let root = std::path::Path::new("/target/folder");
    let parts = root.join(&buffer).components().count();
    assert_eq!(parts, 3 + path.components().count());
    assert!(
        buffer
            .components()
            .all(|part| matches!(part, std::path::Component::Normal(_)))
    );
    assert_eq!(path.components().last(), Some(path.file_name()));
    if let Some((link, target)) = text.split_once("/->/")
        && let Ok(link) = RelPath::parse(link)
        && check_link(link, target).is_ok()
    {
        let folder = link.parent().map_or(0, |parent| parent.split('/').count() as i64);
        let step = |depth: i64, part: &str| match part {
            "" | "." => depth,
            ".." => depth - 1,
            _ => depth + 1,
        };
        let mut depth = folder;
        for part in target.split('/') {
            depth = step(depth, part);
            assert!(depth >= 0, "{text:?}");
        }
    }
    true
}

/// Names of several scripts, and paths.
pub fn name_seeds() -> Vec<Vec<u8>> {
    let texts = [
        "model.safetensors",
        "a/b/c.tar.gz",
        "../../etc/passwd",
        "C:\\x\\y.iso",
        "cv\u{202e}fdp.exe",
        "👩\u{200d}👩\u{200d}👧.png",
        "\u{3164}\u{115f}",
        "한국어/É/é",
        "ﬁ ß İ ǆ",
        "a/link/->/../b",
        ".hidden",
    ];
    texts.map(|text| text.as_bytes().to_vec()).into()
}

/// Parts of paths, and characters with a meaning.
pub const NAME_WORDS: &[&[u8]] = &[
    b"/",
    b"..",
    b"../",
    b"./",
    b"\\",
    b"\0",
    b"/->/",
    "\u{202e}".as_bytes(),
    "\u{301}".as_bytes(),
    "\u{345}".as_bytes(),
    "\u{130}".as_bytes(),
    "\u{1e9e}".as_bytes(),
    "\u{feff}".as_bytes(),
    "\u{ad}".as_bytes(),
    "\u{ac00}".as_bytes(),
    "\u{1f88}".as_bytes(),
    "\u{fb03}".as_bytes(),
];
