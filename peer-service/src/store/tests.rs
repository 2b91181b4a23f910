use potluck_core::{Root, collection::path::Label};
use rand::{RngExt as _, SeedableRng as _, rngs::Xoshiro256PlusPlus};
use redb::{Database, TableDefinition};

use super::*;
use crate::catalog::{
    row::WHOLE_ITEM,
    share_options::{LinkPolicy, ShareOptions},
    stamp::Stamp,
};

/// Number of random damages to try.
const DAMAGES: u64 = 250;

fn id(n: u8) -> FileId {
    FileId([n; 32])
}

fn stamp(n: u64) -> Stamp {
    Stamp {
        size: n,
        mtime: -(n as i64),
        inode: n + 1,
        ctime: i64::MAX - n as i64,
    }
}

fn file(path: &[u8], n: u8) -> ItemRow {
    ItemRow {
        path: path_of(path).into(),
        is_unrequested: false,
        label: None,
        options: None,
        id: id(n),
        root: Root([n + 100; 32]),
        body: RowBody::File(stamp(n.into())),
    }
}

fn collection(path: &[u8], n: u8, entries: usize) -> ItemRow {
    let members = Members {
        stamps: (0..entries as u64).map(stamp).collect(),
        roots: (0..entries).map(|n| Root([n as u8; 32])).collect(),
    };
    ItemRow {
        body: RowBody::Collection(Arc::new(members)),
        ..file(path, n)
    }
}

fn all(store: &Store) -> Vec<StoredItem> {
    store.items(None, usize::MAX).unwrap()
}

#[test]
fn stored_rows_are_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let layer: Arc<[Hash]> = Arc::from([[1; 32], [2; 32]]);
    let long = collection(b"/long", 4, 2 * rows::MEMBERS_PER_ROW + 1);
    let odd = ItemRow {
        label: Some(Label::parse("label from another peer").unwrap()),
        is_unrequested: true,
        options: Some(Arc::new(ShareOptions {
            links: LinkPolicy::Skip,
            is_strict: true,
            exclude: vec!["*.tmp".into(), String::new(), "ü/".into()],
        })),
        ..collection(b"/not utf-8 \xff", 3, 2)
    };
    let sha256 = |n: u8| Sha256([n; 32]);
    {
        let store = Store::open_in(dir.path()).unwrap();
        store
            .apply(&[
                CatalogChange::PutItem(1, file(b"/a/b", 1)),
                CatalogChange::PutItem(2, odd.clone()),
                CatalogChange::PutItem(3, file(b"/a/b", 1)),
                CatalogChange::PutSha256s(3, vec![(WHOLE_ITEM, sha256(9))]),
                CatalogChange::RemoveItem(3),
                CatalogChange::PutItem(4, long.clone()),
                CatalogChange::PutSha256s(4, vec![(2000, sha256(1)), (7, sha256(2))]),
                CatalogChange::PutSha256s(1, vec![(WHOLE_ITEM, sha256(3))]),
                CatalogChange::PutItem(5, long),
                CatalogChange::PutSha256s(5, vec![(0, sha256(4))]),
                CatalogChange::PutItem(5, odd.clone()),
                CatalogChange::PutLayer(id(3), layer.clone()),
                CatalogChange::PutLayer(id(2), layer.clone()),
                CatalogChange::RemoveLayer(id(2)),
                CatalogChange::AddTombstone("/a/hidden".into()),
            ])
            .unwrap();
        store.write_downloads(&[(9, Some(b"nine".to_vec()))]).unwrap();
    }
    let store = Store::open_in(dir.path()).unwrap();
    let long = collection(b"/long", 4, 2 * rows::MEMBERS_PER_ROW + 1);
    let expected = [
        (1, file(b"/a/b", 1), vec![(WHOLE_ITEM, sha256(3))]),
        (2, odd.clone(), vec![]),
        (4, long, vec![(7, sha256(2)), (2000, sha256(1))]),
        (5, odd, vec![]),
    ];
    assert_eq!(all(&store), expected);
    assert_eq!(store.items(None, 3).unwrap(), expected[..3]);
    assert_eq!(store.items(Some(2), 1).unwrap(), expected[2..3]);
    assert_eq!(store.items(Some(4), 3).unwrap(), expected[3..]);
    assert_eq!(store.items(Some(5), 3).unwrap(), []);
    assert_eq!(store.tombstones().unwrap(), [PathBuf::from("/a/hidden")]);
    assert_eq!(store.layer(&id(3)).unwrap(), Some(layer));
    assert_eq!(store.layer(&id(2)).unwrap(), None);
    assert_eq!(store.downloads().unwrap(), [(9, b"nine".to_vec())]);
    store.write_downloads(&[(9, None)]).unwrap();
    assert_eq!(store.downloads().unwrap(), []);
    assert_eq!(store.last_download_number().unwrap(), 9);
}

#[test]
fn items_of_the_first_version_are_migrated() {
    let dir = tempfile::tempdir().unwrap();
    {
        let database = Database::create(dir.path().join(FILE_NAME)).unwrap();
        let write = database.begin_write().unwrap();
        let items: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("items.v1");
        let row = [&[1][..], &[7; 32], b"/folder"].concat();
        write.open_table(items).unwrap().insert(3, &*row).unwrap();
        write.commit().unwrap();
    }
    let store = Store::open_in(dir.path()).unwrap();
    let [(number, row, _)] = &all(&store)[..] else {
        panic!("one item")
    };
    assert_eq!((*number, row.id, &*row.path), (3, id(7), Path::new("/folder")));
}

#[test]
fn a_damaged_database_is_moved_aside() {
    for damage in [
        &b"not a database, but long enough to be read as one"[..],
        b"x",
        &[0; 1 << 16],
    ] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE_NAME), damage).unwrap();
        let store = Store::open_in(dir.path()).unwrap();
        assert!(all(&store).is_empty());
        let aside = std::fs::read(dir.path().join("potluck.redb.damaged-1")).unwrap();
        assert_eq!(aside, damage);
    }
}

#[test]
fn keys_out_of_order_are_damage() {
    let mut last = Some(3);
    assert!(check_ascends(&mut last, 4).is_ok());
    for back in [4, 2] {
        let error = check_ascends(&mut Some(4), back).unwrap_err();
        assert!(error.is_damaged(), "{error}");
    }
}

/// Reads everything that the peer reads, and changes everything.
fn use_all(store: &Store) -> Result<(), StoreError> {
    let mut after = None;
    loop {
        let found = store.items(after, 100)?;
        let Some((last, ..)) = found.last() else {
            break;
        };
        after = Some(*last);
    }
    store.tombstones()?;
    store.downloads()?;
    for n in 0..20 {
        store.layer(&id(n))?;
    }
    store.write_downloads(&[(1, Some(b"row".to_vec())), (2, None)])?;
    store.apply(&[
        CatalogChange::PutItem(7, file(b"/new", 1)),
        CatalogChange::PutSha256s(7, vec![(WHOLE_ITEM, Sha256([1; 32]))]),
        CatalogChange::PutLayer(id(1), Arc::from([[1; 32]; 3])),
        CatalogChange::RemoveItem(8),
        CatalogChange::AddTombstone("/another".into()),
    ])
}

#[test]
fn the_store_opens_whatever_bytes_are_damaged() {
    let whole = {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open_in(dir.path()).unwrap();
        let mut changes = Vec::new();
        for n in 0..200 {
            let path = format!("/folder/file {n}");
            changes.push(CatalogChange::PutItem(n, file(path.as_bytes(), (n % 100) as u8)));
            changes.push(CatalogChange::PutLayer(
                id(n as u8),
                Arc::from([[n as u8; 32]; 40]),
            ));
            changes.push(CatalogChange::AddTombstone(path.into()));
        }
        changes.push(CatalogChange::PutItem(
            200,
            collection(b"/long", 4, 2 * rows::MEMBERS_PER_ROW),
        ));
        store.apply(&changes).unwrap();
        for n in 0..40 {
            store.write_downloads(&[(n, Some(vec![b'x'; 200]))]).unwrap();
        }
        drop(store);
        std::fs::read(dir.path().join(FILE_NAME)).unwrap()
    };
    let mut moved = 0;
    for seed in 0..DAMAGES {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut bytes = whole.clone();
        for _ in 0..rng.random_range(1..=24) {
            // Half of the damages hit the roots of all trees.
            let max = if rng.random() { 8192 } else { bytes.len() };
            let at = rng.random_range(0..max);
            bytes[at] ^= 1 << rng.random_range(0..8);
        }
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join(FILE_NAME), &bytes).unwrap();
            let store = Store::open_in(dir.path()).unwrap();
            if let Err(error) = use_all(&store) {
                assert!(error.is_damaged(), "seed {seed}: {error}");
                // Damage found during use is found again at the next start.
                drop(store);
                let store = Store::open_in(dir.path()).unwrap();
                if let Err(error) = use_all(&store) {
                    store.replace_damaged(&error).unwrap();
                    use_all(&store).unwrap();
                }
            }
            let aside = dir.path().join("potluck.redb.damaged-1").exists();
            let _ = sender.send(aside);
        });
        let aside = receiver.recv_timeout(std::time::Duration::from_secs(60));
        moved += usize::from(aside.unwrap_or_else(|error| panic!("seed {seed}: {error}")));
    }
    assert!(moved > 0, "no damage was found");
}

#[test]
fn a_truncated_database_is_moved_aside() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);
    drop(Store::open_in(dir.path()).unwrap());
    let len = path.metadata().unwrap().len();
    std::fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(len / 2)
        .unwrap();
    let store = Store::open_in(dir.path()).unwrap();
    assert!(all(&store).is_empty());
}

#[test]
fn an_older_copy_of_the_database_is_moved_aside() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);
    let hide = |name: &str| {
        let store = Store::open_in(dir.path()).unwrap();
        store.apply(&[CatalogChange::AddTombstone(name.into())]).unwrap();
    };
    hide("/first");
    let older = std::fs::read(&path).unwrap();
    hide("/second");
    let newest = std::fs::read(&path).unwrap();
    std::fs::write(&path, &older).unwrap();
    let store = Store::open_in(dir.path()).unwrap();
    assert!(store.warning().is_some());
    assert!(store.tombstones().unwrap().is_empty());
    drop(store);
    // The new database counts its own changes.
    hide("/third");
    let store = Store::open_in(dir.path()).unwrap();
    assert!(store.warning().is_none());
    drop(store);
    // Without the number, any copy is as good as another: a restored backup.
    std::fs::write(&path, &newest).unwrap();
    std::fs::remove_file(path.with_extension("redb.generation")).unwrap();
    let store = Store::open_in(dir.path()).unwrap();
    assert!(store.warning().is_none());
    assert_eq!(
        store.tombstones().unwrap(),
        ["/first", "/second"].map(PathBuf::from)
    );
}

#[test]
fn a_lost_database_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_in(dir.path()).unwrap();
    store.write_downloads(&[(1, Some(b"row".to_vec()))]).unwrap();
    drop(store);
    std::fs::remove_file(dir.path().join(FILE_NAME)).unwrap();
    assert!(Store::open_in(dir.path()).unwrap().warning().is_some());
    assert!(Store::open_in(dir.path()).unwrap().warning().is_none());
}
