//! Damaged stores. A store that is opened has all of its content, or was moved aside or refused
//! with a message, and is then empty; it never has some of it, or an older one.
//!
//! One file of each store has only the number of the last acknowledged change. If that file is
//! damaged too, an older state cannot be told from the newest; but it is a whole one.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use potluck_index::{
    fuzzing as index,
    internals::{Change, IndexStore as _, SledStore},
};
use potluck_peer::fuzzing as peer;
use tempfile::TempDir;

/// The files of a store, by their paths in its folder.
type Files = BTreeMap<PathBuf, Vec<u8>>;

/// A store as it is after some changes.
#[derive(Debug)]
struct State {
    files: Files,
    content: String,
}

/// Damages a store as the input says. The input is the number of the state (1 byte), and damages: a
/// kind (1 byte), a file (1 byte), and two numbers (2 bytes each) that say where. Returns the
/// damaged files and what the whole store has; `None` if nothing differs.
fn damage<'a>(states: &'a [State], input: &[u8]) -> Option<(Files, &'a State)> {
    let (&number, mut rest) = input.split_first()?;
    let (number, older) = (usize::from(number) % states.len(), usize::from(number / 16));
    let (state, older) = (&states[number], &states[older % (number + 1)]);
    let mut files = state.files.clone();
    while let Some((&[kind, file, a, b, c, d], after)) = rest.split_first_chunk() {
        rest = after;
        let names: Vec<PathBuf> = files.keys().cloned().collect();
        let Some(name) = names.get(usize::from(file) % names.len().max(1)) else {
            break;
        };
        let other = &names[usize::from(a) % names.len()];
        let bytes = files.get_mut(name).expect("one of the files");
        // Numbers are parts of 65536 of the file, so that small and large files are hit everywhere.
        let place = |high, low| bytes.len() * usize::from(u16::from_be_bytes([high, low])) / 65536;
        let (from, to) = (place(a, b), place(c, d));
        let len = (to % 600).min(bytes.len() - from);
        match kind % 9 {
            0 => bytes.truncate(from),
            1 if from < bytes.len() => bytes[from] ^= 1 << (d % 8),
            2 => bytes[from..from + len].fill(0),
            3 => {
                let len = len.min(bytes.len() - to);
                for at in 0..len {
                    bytes.swap(from + at, to + at);
                }
            }
            4 => {
                let copy = bytes[from..from + len].to_vec();
                let len = len.min(bytes.len() - to);
                bytes[to..to + len].copy_from_slice(&copy[..len]);
            }
            5 => drop(files.remove(name)),
            6 => {
                let (first, second) = (files[name].clone(), files[other].clone());
                files.insert(name.clone(), second);
                files.insert(other.clone(), first);
            }
            // One file as it was earlier, or a part of it.
            7 => match older.files.get(name) {
                Some(old) => drop(files.insert(name.clone(), old.clone())),
                None => drop(files.remove(name)),
            },
            _ => {
                let old = older.files.get(name).map_or(&[][..], Vec::as_slice);
                let end = (from + len).min(old.len());
                if from < end {
                    bytes[from..end].copy_from_slice(&old[from..end]);
                }
            }
        }
    }
    Some((files, state))
}

/// Whether a store may have this content after the damage.
fn is_right(
    content: &str,
    files: &Files,
    state: &State,
    states: &[State],
    generation: &str,
    empty: &str,
) -> bool {
    let generation = Path::new(generation);
    let is_guarded = files.get(generation) == state.files.get(generation);
    content == state.content
        || !is_guarded && (content == empty || states.iter().any(|state| content == state.content))
}

/// Whether to change the opened store and open it once more, which takes most of the time: for one
/// input in four.
fn tries_again(input: &[u8]) -> bool {
    input
        .iter()
        .fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
        .is_multiple_of(4)
}

/// What a store has that it must not have, for a message.
fn describe(content: &str, state: &State, states: &[State], empty: &str) -> String {
    let position = |wanted: &str| states.iter().position(|state| state.content == wanted);
    match (position(content), position(&state.content)) {
        _ if content == empty => "it is empty, and was not moved aside".to_owned(),
        (Some(found), Some(wanted)) => format!("it is in state {found} instead of {wanted}"),
        (_, wanted) => format!("it is in no state instead of {wanted:?}"),
    }
}

/// A folder in memory, where the machine has one: stores sync often.
fn folder() -> TempDir {
    let shared = Path::new("/dev/shm");
    let folder = match shared.is_dir() {
        true => tempfile::tempdir_in(shared),
        false => tempfile::tempdir(),
    };
    folder.expect("a temporary folder")
}

fn read_files(root: &Path) -> Files {
    let mut files = Files::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            match path.is_dir() {
                true => folders.push(path),
                false => {
                    let name = path.strip_prefix(root).expect("beneath the root").to_owned();
                    files.insert(name, fs::read(path).expect("a file"));
                }
            }
        }
    }
    files
}

fn write_files(root: &Path, files: &Files) -> io::Result<()> {
    for (name, bytes) in files {
        let path = root.join(name);
        fs::create_dir_all(path.parent().expect("a folder"))?;
        fs::write(path, bytes)?;
    }
    Ok(())
}

/// The states of a store after each of `count` changes.
fn states(
    count: u64,
    step: impl Fn(&Path, u64),
    content: impl Fn(&Path) -> String,
    without: &[&str],
) -> Vec<State> {
    let folder = folder();
    let state = |number| {
        step(folder.path(), number);
        let mut files = read_files(folder.path());
        files.retain(|name, _| !without.iter().any(|end| name.ends_with(end)));
        State {
            files,
            content: content(folder.path()),
        }
    };
    (0..count).map(state).collect()
}

fn open_index(folder: &Path) -> (SledStore, String) {
    let (store, mut peers) = SledStore::open(folder).expect("the folder can be used");
    for peer in &mut peers {
        peer.files.sort_by_key(|file| file.file.id);
    }
    peers.sort_by_key(|peer| peer.record.id);
    (store, format!("{peers:?}"))
}

/// The index's registrations in sled.
pub fn index_store(input: &[u8]) -> bool {
    static STATES: LazyLock<Vec<State>> = LazyLock::new(|| {
        let step = |folder: &Path, number| {
            let (mut store, _) = open_index(folder);
            let n = (number % 4) as u8 + 1;
            let files = |range: std::ops::Range<u64>| range.map(index::registration);
            let change = match number % 3 {
                2 => Change::Unregister {
                    peer: index::peer(n - 1).id,
                    files: files(0..40).map(|file| file.file.id).collect(),
                },
                part => Change::Register {
                    peer: index::peer(n),
                    files: files(30 * part..60 + 10 * number).collect(),
                    new: 60,
                    replace: number == 9,
                },
            };
            let mut changes = vec![change];
            if number == 10 {
                changes.push(Change::Forget {
                    peer: index::peer(2).id,
                });
            }
            store.apply(&changes).expect("the store can be written");
        };
        states(12, step, |folder| open_index(folder).1, &["index.lock"])
    });
    let Some((files, state)) = damage(&STATES, input) else {
        return false;
    };
    let folder = folder();
    write_files(folder.path(), &files).expect("the folder can be written");
    let (mut store, content) = open_index(folder.path());
    let is_aside = |folder: &Path| {
        let mut entries = fs::read_dir(folder).expect("a folder");
        entries.any(|entry| {
            let name = entry.expect("an entry").file_name();
            name.to_string_lossy().starts_with("sled.damaged")
        })
    };
    let was_moved = is_aside(folder.path());
    let is_right = is_right(&content, &files, state, &STATES, "sled.generation", "[]");
    assert!(
        is_right || was_moved && content == "[]",
        "{}",
        describe(&content, state, &STATES, "[]")
    );
    assert!(
        files != state.files || !was_moved,
        "an undamaged store was moved aside"
    );
    if !tries_again(input) {
        return content == state.content;
    }
    // What was opened works.
    let change = Change::Register {
        peer: index::peer(9),
        files: vec![index::registration(1)],
        new: 1,
        replace: false,
    };
    store.apply(&[change]).expect("the store can be written");
    drop(store);
    let (_store, again) = open_index(folder.path());
    assert_eq!(
        again.matches("StoredPeer").count(),
        content.matches("StoredPeer").count() + 1
    );
    content == state.content
}

/// The peer's database.
pub fn peer_store(input: &[u8]) -> bool {
    static STATES: LazyLock<Vec<State>> = LazyLock::new(|| {
        let step =
            |folder: &Path, number| peer::store_step(folder, number).expect("a working store");
        let content = |folder: &Path| peer::store_content(folder).expect("a working store").0;
        states(12, step, content, &[])
    });
    static EMPTY: LazyLock<String> =
        LazyLock::new(|| peer::store_content(folder().path()).expect("a new store").0);
    let Some((files, state)) = damage(&STATES, input) else {
        return false;
    };
    let folder = folder();
    write_files(folder.path(), &files).expect("the folder can be written");
    let (content, aside) = peer::store_content(folder.path()).expect("any store opens");
    let is_right = is_right(
        &content,
        &files,
        state,
        &STATES,
        "potluck.redb.generation",
        &EMPTY,
    );
    assert!(
        is_right || aside.is_some() && content == *EMPTY,
        "{}",
        describe(&content, state, &STATES, &EMPTY)
    );
    assert!(
        files != state.files || aside.is_none(),
        "moved aside without damage"
    );
    if !tries_again(input) {
        return content == state.content;
    }
    // What was opened works.
    peer::store_step(folder.path(), 20).expect("a working store");
    let (again, _) = peer::store_content(folder.path()).expect("a working store");
    assert!(again.contains("/shared/20/") && again.len() > content.len());
    content == state.content
}

/// The members of a private network.
pub fn members(input: &[u8]) -> bool {
    static STATES: LazyLock<Vec<State>> = LazyLock::new(|| {
        let step =
            |folder: &Path, number| index::journal_step(folder, number).expect("a working journal");
        let content = |folder: &Path| index::journal_content(folder).expect("a working journal");
        states(40, step, content, &["members.lock"])
    });
    let Some((files, state)) = damage(&STATES, input) else {
        return false;
    };
    let folder = folder();
    write_files(folder.path(), &files).expect("the folder can be written");
    match index::journal_content(folder.path()) {
        Ok(content) => {
            let empty = "[] [] [] 0";
            assert!(is_right(
                &content,
                &files,
                state,
                &STATES,
                "members.generation",
                empty
            ));
            index::journal_step(folder.path(), 40).expect("a working journal");
            index::journal_content(folder.path()).expect("a working journal");
            content == state.content
        }
        Err(message) => {
            assert_ne!(files, state.files, "refused without damage: {message}");
            assert!(message.contains("restore"), "{message}");
            false
        }
    }
}

/// Inputs with each kind of damage.
pub fn seeds() -> Vec<Vec<u8>> {
    let damaged = |kind| vec![0x3b, kind, 1, 0x40, 0, 0x80, 7];
    let mut seeds: Vec<Vec<u8>> = (0..9).map(damaged).collect();
    seeds.extend([vec![11], vec![7, 1, 1, 0, 9, 0, 3, 7, 0, 0, 0, 0, 0]]);
    seeds
}
