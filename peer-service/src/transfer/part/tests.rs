use potluck_core::{
    manifest::{Content, Entry},
    path::RelPath,
};
use tokio_util::sync::CancellationToken;

use super::*;

const ID: FileId = FileId([7; 32]);

fn open(folder: &Path) -> Result<Part, Problem> {
    let target = Target {
        path: folder.join("out"),
    };
    let plan = Arc::new(Plan::of_file(ID, 100_000).unwrap());
    Part::open(ID, target, plan, None).map(|(part, _)| part)
}

#[test]
fn a_part_that_somebody_writes_is_not_removed() {
    let folder = tempfile::tempdir().unwrap();
    let part = open(folder.path()).unwrap();
    let (target, there) = (part.target().clone(), || {
        fs::read_dir(folder.path()).unwrap().count()
    });
    assert_eq!(open(folder.path()).unwrap_err().reason, Reason::TargetExists);
    remove(ID, &target).unwrap();
    assert_eq!(there(), 2, "the part and its state");
    // Held for somebody who is being served, and no longer written.
    part.release();
    remove(ID, &target).unwrap();
    assert_eq!(there(), 0);
}

#[test]
fn what_is_served_is_not_made_where_its_owner_removed_it() {
    let folder = tempfile::tempdir().unwrap();
    let target = Target {
        path: folder.path().join("out"),
    };
    let tree = potluck_core::hash::hash_bytes(b"content");
    let entry = Entry {
        path: RelPath::parse("file").unwrap(),
        content: Content::File {
            id: tree.id(),
            size: tree.size,
            executable: false,
        },
    };
    let manifest = Arc::new(Manifest::new([entry]).unwrap());
    let plan = Arc::new(Plan::of_collection(&manifest));
    let (part, _) = Part::open(ID, target.clone(), plan, Some(manifest)).unwrap();
    part.write(0, &bytes::Bytes::from_static(b"content").into())
        .unwrap();
    assert_eq!(part.read(0).unwrap().len(), 7);
    let path = target.part().join("file");
    fs::remove_file(&path).unwrap();
    assert_eq!(part.file(0).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(!path.exists());
}

#[test]
fn a_flush_that_failed_once_is_never_believed_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut part = open(folder.path()).unwrap();
    let units = part.plan().unit_count();
    let (path, none) = (part.target().state(), Bits::new(units));
    let state = || Resume::load(&path).unwrap().map(|state| state.have);
    let Body::File(file) = &part.body else {
        panic!("a plain file");
    };
    let file = Arc::clone(file);
    for stored in [true, false] {
        if !stored {
            fs::remove_file(&path).unwrap();
            part.is_stated = AtomicBool::new(false);
        }
        // What cannot be flushed stands for a disk that fails; the next try succeeds, as it does on Linux.
        part.body = Body::File(Arc::new(File::open("/dev/null").unwrap()));
        part.unflushed = OnceLock::new();
        assert!(part.checkpoint(&Bits::full(units)).is_err());
        part.body = Body::File(Arc::clone(&file));
        assert!(part.checkpoint(&Bits::full(units)).is_err());
        assert_eq!(
            state(),
            Some(none.clone()),
            "it speaks of nothing that was not flushed"
        );
    }
    let finished = crate::transfer::place::finish(&part, None, &CancellationToken::new());
    assert!(finished.is_err());
    assert!(!part.target().path.exists() && part.target().part().exists());
}

#[test]
fn a_flush_without_room_is_made_good_by_a_new_part_with_what_was_flushed_before() {
    let folder = tempfile::tempdir().unwrap();
    let target = Target {
        path: folder.path().join("out"),
    };
    let plan = Arc::new(Plan::of_file(ID, 1 << 20).unwrap());
    let open = || Part::open(ID, target.clone(), Arc::clone(&plan), None).unwrap();
    let (part, _) = open();
    let mut have = Bits::new(plan.unit_count());
    have.set(0, true);
    part.checkpoint(&have).unwrap();
    have.set(1, true);
    part.unflushed.set(ErrorKind::StorageFull.into()).unwrap();
    let problem = part.checkpoint(&have).unwrap_err();
    assert_eq!(problem.reason, Reason::DiskFull);
    assert!(part.has_lost());
    part.release();
    have.set(1, false);
    let (part, found) = open();
    assert_eq!(found, Found::Resume(have));
    assert!(!part.has_lost());
}

#[test]
fn what_was_copied_or_cut_short_is_not_believed() {
    let folder = tempfile::tempdir().unwrap();
    let target = Target {
        path: folder.path().join("out"),
    };
    let plan = Arc::new(Plan::of_file(ID, 1 << 20).unwrap());
    let open = || Part::open(ID, target.clone(), Arc::clone(&plan), None).unwrap();
    let (part, copy) = (target.part(), folder.path().join("copy"));
    let mut have = Bits::new(plan.unit_count());
    have.set(0, true);
    let checkpoint = |part: &Part| part.checkpoint(&have).unwrap();
    checkpoint(&open().0);
    assert_eq!(open().1, Found::Resume(have.clone()));
    fs::copy(&part, &copy).unwrap();
    fs::rename(&copy, &part).unwrap();
    let (copied, found) = open();
    assert_eq!(found, Found::Unknown);
    checkpoint(&copied);
    drop(copied);
    assert_eq!(open().1, Found::Resume(have.clone()), "looked through since");
    let file = OpenOptions::new().write(true).open(&part).unwrap();
    file.set_len((1 << 20) - 1).unwrap();
    for _ in 0..2 {
        assert_eq!(
            open().1,
            Found::Unknown,
            "also where it was stopped before it was looked through"
        );
    }
}

#[test]
fn a_folder_that_lost_something_is_not_believed_nor_filled_with_zeros() {
    let folder = tempfile::tempdir().unwrap();
    let target = Target {
        path: folder.path().join("out"),
    };
    let tree = potluck_core::hash::hash_bytes(b"content");
    let entry = |path| Entry {
        path: RelPath::parse(path).unwrap(),
        content: Content::File {
            id: tree.id(),
            size: tree.size,
            executable: false,
        },
    };
    let manifest = Arc::new(Manifest::new([entry("a"), entry("b")]).unwrap());
    let plan = Arc::new(Plan::of_collection(&manifest));
    let open = || Part::open(ID, target.clone(), Arc::clone(&plan), Some(Arc::clone(&manifest))).unwrap();
    let complete = |part: &Part| match part.body() {
        Body::Tree(tree) => tree.complete(),
        Body::File(_) => panic!("a folder"),
    };
    let have = Bits::full(plan.unit_count());
    let (part, _) = open();
    part.write(0, &bytes::Bytes::from_static(b"content").into())
        .unwrap();
    part.checkpoint(&have).unwrap();
    drop(part);
    let (part, found) = open();
    assert_eq!(found, Found::Resume(have));
    complete(&part).unwrap();
    drop(part);
    for path in ["a", "b"] {
        assert_eq!(fs::read(target.part().join(path)).unwrap(), b"content");
    }
    let file = OpenOptions::new()
        .write(true)
        .open(target.part().join("a"))
        .unwrap();
    file.set_len(6).unwrap();
    let (part, found) = open();
    assert_eq!(found, Found::Unknown);
    assert_eq!(complete(&part).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    fs::remove_file(target.part().join("a")).unwrap();
    drop(part);
    let (part, found) = open();
    assert_eq!(found, Found::Unknown);
    assert_eq!(complete(&part).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(!target.part().join("a").exists());
}
