//! Tests of `store/sled.rs`.

use potluck_core::{FileId, model::Registration};

use super::{batch::SLACK_ENTRIES, *};
use crate::store::{
    contract::{peer, registration},
    segment::SEGMENT_BYTES,
};

fn open(dir: &Path) -> (SledStore, Vec<StoredPeer>) {
    SledStore::open(dir).unwrap()
}

#[test]
fn files_registered_one_by_one_share_few_segments() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = open(dir.path());
    for n in 0..300 {
        let files = vec![registration(n, "one of many.bin")];
        store
            .apply(&[Change::Register {
                peer: peer(1),
                files,
                new: 0,
                replace: false,
            }])
            .unwrap();
    }
    let segments = &store.open.as_ref().unwrap().peers[&peer(1).id];
    assert_eq!(segments.entries, 300);
    assert!(
        segments.list.len() <= 300 * 100 / SEGMENT_BYTES * 2 + 8,
        "{} segments",
        segments.list.len()
    );
}

#[test]
fn two_segments_that_just_fit_one_are_merged() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = open(dir.path());
    // These files take 2048 and 2047 bytes in a segment.
    let files: Vec<_> = [242, 241]
        .map(|last| {
            let mut file = registration(1, "");
            file.file.root.0[8] = last;
            file.file.id = FileId::derive(file.file.size, &file.file.root);
            file.names = vec!["x".repeat(249); 7];
            file.names.push("x".repeat(last.into()));
            file.is_complete = true;
            file
        })
        .to_vec();
    let change = Change::Register {
        peer: peer(1),
        files: files.clone(),
        new: 2,
        replace: false,
    };
    store.apply(&[change]).unwrap();
    let sizes: Vec<_> = store.open.as_ref().unwrap().peers[&peer(1).id]
        .list
        .iter()
        .map(|segment| (segment.bytes, segment.entries))
        .collect();
    assert_eq!(sizes, [(SEGMENT_BYTES - 1, 2)]);
    drop(store);
    let mut stored = open(dir.path()).1.remove(0).files;
    stored.sort_by_key(|file| std::cmp::Reverse(file.names[7].len()));
    assert_eq!(stored, files);
}

#[test]
fn removed_entries_do_not_accumulate() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = open(dir.path());
    for round in 0..20 {
        let files: Vec<_> = (0..1000)
            .map(|n| registration(round * 1000 + n, "removed soon.bin"))
            .collect();
        let ids = files.iter().map(|file| file.file.id).collect();
        let id = peer(1).id;
        store
            .apply(&[
                Change::Register {
                    peer: peer(1),
                    files,
                    new: 0,
                    replace: false,
                },
                Change::Unregister { peer: id, files: ids },
            ])
            .unwrap();
    }
    assert!(store.open.as_ref().unwrap().peers[&peer(1).id].entries <= 2 * SLACK_ENTRIES);
    drop(store);
    assert!(open(dir.path()).1[0].files.is_empty());
}

#[test]
fn the_last_entry_of_a_file_counts_across_the_parts_of_a_peer() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = open(dir.path());
    let register = |files: Vec<Registration>| Change::Register {
        peer: peer(1),
        new: files.len(),
        files,
        replace: false,
    };
    let mut expected: Vec<_> = (0..6000).map(|n| registration(n, "before.bin")).collect();
    store.apply(&[register(expected.clone())]).unwrap();
    for file in expected.iter_mut().step_by(3) {
        file.names = vec!["after.bin".to_owned()];
    }
    let changed = expected.iter().step_by(3).cloned().collect();
    store.apply(&[register(changed)]).unwrap();
    let removed = expected.split_off(5000).iter().map(|file| file.file.id).collect();
    let id = peer(1).id;
    store
        .apply(&[Change::Unregister {
            peer: id,
            files: removed,
        }])
        .unwrap();
    assert!(
        store.open.as_ref().unwrap().peers[&id].list.len() > 100,
        "several parts"
    );
    drop(store);
    let (store, mut stored) = open(dir.path());
    let mut files = stored.remove(0).files;
    files.sort_by_key(|file| file.file.size);
    assert_eq!(files, expected);
    assert_eq!(store.open.as_ref().unwrap().peers[&id].needed_entries, 5000);
}
