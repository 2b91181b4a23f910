use super::*;
use crate::store::{
    SledStore,
    contract::{peer, registration},
};

/// A data folder with two peers; the second has many files.
fn filled() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = SledStore::open(dir.path()).unwrap();
    for n in [1, 2] {
        for round in 0..20 {
            let files = (0..u64::from(n) * 300).map(|file| registration(file, &format!("{round}")));
            let change = Change::Register {
                peer: peer(n),
                files: files.collect(),
                new: 0,
                replace: false,
            };
            store.apply(&[change]).unwrap();
        }
    }
    dir
}

fn exported(dir: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut stored = StoredRegistrations::open(dir).unwrap();
    stored
        .export(|line| {
            lines.push(serde_json::to_string(&line).unwrap());
            Ok(())
        })
        .unwrap();
    lines.sort();
    lines
}

#[test]
fn what_was_backed_up_is_restored() {
    let (dir, other) = (filled(), tempfile::tempdir().unwrap());
    let file = other.path().join("backup");
    let before = StoredRegistrations::open(dir.path())
        .unwrap()
        .back_up(&file)
        .unwrap();
    assert_eq!((before.peers, before.registrations), (2, 900));
    let again = StoredRegistrations::open(dir.path()).unwrap().back_up(&file);
    assert!(matches!(again, Err(MaintenanceError::FileExists(_))));

    let target = other.path().join("index");
    let (now, replaced) = restore(&target, &file, false).unwrap();
    assert_eq!((now.peers, now.registrations, replaced), (2, 900, None));
    assert_eq!(exported(&target), exported(dir.path()));

    // Only with consent over another store, which is kept.
    let refused = restore(&target, &file, false);
    assert!(matches!(refused, Err(MaintenanceError::Exists(_))));
    let forget = Change::Forget { peer: peer(1).id };
    SledStore::open(&target).unwrap().0.apply(&[forget]).unwrap();
    assert_eq!(exported(&target).len(), 600);
    let (now, replaced) = restore(&target, &file, true).unwrap();
    assert_eq!(now.registrations, 900);
    assert!(replaced.unwrap().is_dir());
    // The index takes it as its own: nothing is moved aside.
    let (_, peers) = SledStore::open(&target).unwrap();
    assert_eq!(peers.len(), 2);
}

#[test]
fn a_compact_store_is_smaller_and_has_the_same_content() {
    let dir = filled();
    let before = StoredRegistrations::open(dir.path()).unwrap().summary();
    let content = exported(dir.path());
    let after = StoredRegistrations::open(dir.path()).unwrap().compact().unwrap();
    assert!(after.bytes < before.bytes, "{} of {}", after.bytes, before.bytes);
    assert_eq!(after.cluster_id, before.cluster_id);
    assert_eq!(exported(dir.path()), content);
    // What an interrupted attempt left is removed by the next.
    fs::create_dir_all(dir.path().join(BUILDING).join("sled")).unwrap();
    StoredRegistrations::open(dir.path()).unwrap().compact().unwrap();
    assert_eq!(exported(dir.path()), content);
    assert!(!dir.path().join(BUILDING).exists());
}

#[test]
fn a_damaged_store_is_reported_and_stays() {
    let dir = filled();
    let file = dir.path().join("sled").join("conf");
    fs::write(&file, vec![0xa5; 70_000]).unwrap();
    for _ in 0..2 {
        let found = StoredRegistrations::open(dir.path()).unwrap_err();
        assert!(matches!(found, MaintenanceError::Damaged { .. }), "{found}");
    }
    assert_eq!(fs::read(&file).unwrap(), vec![0xa5; 70_000]);
}

#[test]
fn a_folder_that_is_empty_or_in_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    let refused = StoredRegistrations::open(&missing).unwrap_err();
    assert!(matches!(refused, MaintenanceError::Empty(_)), "{refused}");
    assert!(!missing.exists(), "nothing is made");
    let dir = filled();
    let _index = SledStore::open(dir.path()).unwrap();
    let refused = StoredRegistrations::open(dir.path()).unwrap_err();
    assert!(
        matches!(refused, MaintenanceError::Folder(FolderError::InUse { .. })),
        "{refused}"
    );
}

#[test]
fn the_layout_of_a_later_version_is_refused_and_kept() {
    let dir = filled();
    let db = loop {
        match ::sled::open(dir.path().join("sled")) {
            Err(::sled::Error::Io(error)) if error.to_string().contains("lock") => {
                std::thread::yield_now();
            }
            opened => break opened.unwrap(),
        }
    };
    db.insert("potluck.layout", "2").unwrap();
    db.flush().unwrap();
    drop(db);
    let refused = SledStore::open(dir.path()).map(|_| ()).unwrap_err();
    assert!(refused.to_string().contains("later version"), "{refused}");
    let refused = StoredRegistrations::open(dir.path()).unwrap_err();
    assert!(
        matches!(refused, MaintenanceError::Folder(FolderError::Newer { .. })),
        "{refused}"
    );
    let names = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    assert!(
        names
            .into_iter()
            .all(|name| !name.to_string_lossy().contains("damaged"))
    );
}
