//! Parts on disk: resume, damage, and file systems that fail.

use std::fs::OpenOptions;

use potluck_testkit::{
    content::{id_of, manifest},
    system::disk::names_in,
};

use super::*;

const ID: FileId = FileId([7; 32]);

/// Opens the part of a file of this size at `folder/out`.
pub(crate) fn open_file(folder: &Path, size: u64) -> Result<(PartFile, FoundPart), Problem> {
    let plan = Arc::new(Plan::of_file(ID, size).unwrap());
    open_plan(folder, plan, None, &CancellationToken::new())
}

/// Opens the part of a collection with one file, `file`, at `folder/out`, and writes the content.
pub(crate) fn downloaded_collection(folder: &Path) -> PartFile {
    let part = open_folder(folder, &[("file", b"content")], &CancellationToken::new()).unwrap();
    part.write(0, &bytes::Bytes::from_static(b"content").into())
        .unwrap();
    part
}

/// Opens the part of a collection of these files, given by path and content, at `folder/out`.
fn open_folder(
    folder: &Path,
    files: &[(&str, &[u8])],
    stop: &CancellationToken,
) -> Result<PartFile, Problem> {
    let entries = files
        .iter()
        .map(|(path, content)| (*path, id_of(content), content.len() as u64));
    let manifest = Arc::new(manifest(entries));
    let plan = Arc::new(Plan::of_collection(&manifest));
    open_plan(folder, plan, Some(manifest), stop).map(|(part, _)| part)
}

fn open_plan(
    folder: &Path,
    plan: Arc<Plan>,
    manifest: Option<Arc<Manifest>>,
    stop: &CancellationToken,
) -> Result<(PartFile, FoundPart), Problem> {
    PartFile::open(ID, target_in(folder), plan, manifest, stop)
}

fn target_in(folder: &Path) -> DownloadTarget {
    DownloadTarget {
        path: folder.join("out"),
    }
}

fn open(folder: &Path) -> Result<PartFile, Problem> {
    open_file(folder, 100_000).map(|(part, _)| part)
}

#[test]
fn a_part_in_use_is_not_removed() {
    let folder = tempfile::tempdir().unwrap();
    let part = open(folder.path()).unwrap();
    let (target, there) = (part.target().clone(), || {
        fs::read_dir(folder.path()).unwrap().count()
    });
    assert_eq!(open(folder.path()).unwrap_err().reason, Reason::TargetExists);
    remove(ID, &target).unwrap();
    assert_eq!(there(), 2, "the part and its state");
    // An upload may still hold the part, but nothing writes it.
    part.unlock();
    remove(ID, &target).unwrap();
    assert_eq!(there(), 0);
}

#[test]
fn reading_does_not_recreate_a_file_that_its_owner_removed() {
    let folder = tempfile::tempdir().unwrap();
    let part = downloaded_collection(folder.path());
    assert_eq!(part.read(0).unwrap().len(), 7);
    let path = part.target().part().join("file");
    fs::remove_file(&path).unwrap();
    assert_eq!(part.file(0).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(!path.exists());
}

#[test]
fn no_flush_succeeds_after_one_has_failed() {
    let folder = tempfile::tempdir().unwrap();
    let mut part = open(folder.path()).unwrap();
    let units = part.plan().unit_count();
    let (path, none) = (part.target().state(), Bitfield::new(units));
    let state = || ResumeState::load(&path).unwrap().map(|state| state.have);
    let PartStorage::File(file) = &part.storage else {
        panic!("a plain file");
    };
    let file = Arc::clone(file);
    for stored in [true, false] {
        if !stored {
            fs::remove_file(&path).unwrap();
            part.has_valid_resume_state = AtomicBool::new(false);
        }
        // `/dev/null` cannot be flushed and stands for a failing disk; the next attempt succeeds,
        // as on Linux.
        part.storage = PartStorage::File(Arc::new(File::open("/dev/null").unwrap()));
        part.sync_error = OnceLock::new();
        assert!(part.checkpoint(&Bitfield::full(units)).is_err());
        part.storage = PartStorage::File(Arc::clone(&file));
        assert!(part.checkpoint(&Bitfield::full(units)).is_err());
        assert_eq!(
            state(),
            Some(none.clone()),
            "it lists no unit that was not flushed"
        );
    }
    let finished =
        crate::download::storage::finalize::finalize(&part, None, &CancellationToken::new());
    assert!(finished.is_err());
    assert!(!part.target().path.exists() && part.target().part().exists());
}

#[test]
fn after_a_flush_without_room_a_new_part_continues_with_the_flushed_units() {
    let folder = tempfile::tempdir().unwrap();
    let open = || open_file(folder.path(), 1 << 20).unwrap();
    let (part, _) = open();
    let mut have = Bitfield::new(part.plan().unit_count());
    have.set(0, true);
    part.checkpoint(&have).unwrap();
    have.set(1, true);
    part.sync_error.set(ErrorKind::StorageFull.into()).unwrap();
    let problem = part.checkpoint(&have).unwrap_err();
    assert_eq!(problem.reason, Reason::DiskFull);
    assert!(part.sync_failed());
    part.unlock();
    have.set(1, false);
    let (part, found) = open();
    assert_eq!(found, FoundPart::Resume(have));
    assert!(!part.sync_failed());
}

#[test]
fn a_copied_or_truncated_part_is_not_trusted() {
    let folder = tempfile::tempdir().unwrap();
    let open = || open_file(folder.path(), 1 << 20).unwrap();
    let (path, copy) = (folder.path().join("out.part"), folder.path().join("copy"));
    let (part, _) = open();
    let mut have = Bitfield::new(part.plan().unit_count());
    have.set(0, true);
    let checkpoint = |part: &PartFile| part.checkpoint(&have).unwrap();
    checkpoint(&part);
    drop(part);
    assert_eq!(open().1, FoundPart::Resume(have.clone()));
    fs::copy(&path, &copy).unwrap();
    fs::rename(&copy, &path).unwrap();
    let (copied, found) = open();
    assert_eq!(found, FoundPart::Unverified);
    checkpoint(&copied);
    drop(copied);
    assert_eq!(open().1, FoundPart::Resume(have.clone()), "verified since");
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len((1 << 20) - 1).unwrap();
    for _ in 0..2 {
        assert_eq!(
            open().1,
            FoundPart::Unverified,
            "also if it was stopped before it was verified"
        );
    }
}

#[test]
fn a_folder_that_lost_data_is_not_trusted_or_filled_with_zeros() {
    let folder = tempfile::tempdir().unwrap();
    let id = id_of(b"content");
    let manifest = Arc::new(manifest([("a", id, 7), ("b", id, 7)]));
    let plan = Arc::new(Plan::of_collection(&manifest));
    let target = target_in(folder.path());
    let open = || {
        let (plan, manifest) = (Arc::clone(&plan), Some(Arc::clone(&manifest)));
        open_plan(folder.path(), plan, manifest, &CancellationToken::new()).unwrap()
    };
    let complete = |part: &PartFile| match part.storage() {
        PartStorage::Tree(tree) => tree.finish(&CancellationToken::new()),
        PartStorage::File(_) => panic!("a folder"),
    };
    let have = Bitfield::full(plan.unit_count());
    let (part, _) = open();
    part.write(0, &bytes::Bytes::from_static(b"content").into())
        .unwrap();
    part.checkpoint(&have).unwrap();
    drop(part);
    let (part, found) = open();
    assert_eq!(found, FoundPart::Resume(have));
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
    assert_eq!(found, FoundPart::Unverified);
    assert_eq!(complete(&part).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    fs::remove_file(target.part().join("a")).unwrap();
    drop(part);
    let (part, found) = open();
    assert_eq!(found, FoundPart::Unverified);
    assert_eq!(complete(&part).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(!target.part().join("a").exists());
}

#[test]
fn a_file_of_another_entry_is_never_written() {
    let folder = tempfile::tempdir().unwrap();
    let entries: [(&str, &[u8]); 2] = [("README", b"two"), ("Readme", b"one")];
    let part = open_folder(folder.path(), &entries, &CancellationToken::new()).unwrap();
    // Simulates a file system that equates both names, without detection by the probe.
    let theirs = part.target().part().join("Readme");
    fs::write(&theirs, "their").unwrap();
    let data: ChunkList = bytes::Bytes::from_static(b"twoone").into();
    let error = part.write(0, &data).unwrap_err();
    let problem = target::target_problem(&part.target().part(), &error);
    assert_eq!(problem.reason, Reason::TargetUnsuitable);
    for name in ["`Readme`", "`README`"] {
        assert!(problem.message.contains(name), "{problem}");
    }
    assert_eq!(fs::read(&theirs).unwrap(), b"their");
    fs::remove_file(&theirs).unwrap();
    for _ in 0..2 {
        part.write(0, &data).unwrap();
    }
    assert_eq!(fs::read(theirs).unwrap(), b"one", "also when it is written again");
}

#[test]
fn a_folder_without_a_resume_state_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let there = folder.path().join("out.part");
    fs::create_dir(&there).unwrap();
    fs::write(there.join("a"), "theirs").unwrap();
    let open = || open_folder(folder.path(), &[("a", b"ours")], &CancellationToken::new());
    assert_eq!(open().unwrap_err().reason, Reason::TargetExists);
    assert_eq!(fs::read(there.join("a")).unwrap(), b"theirs");
    fs::remove_file(there.join("a")).unwrap();
    drop(open().expect("an empty folder can be used"));
    fs::write(folder.path().join("out.part.state"), "damaged").unwrap();
    open().expect("a damaged state means that everything is verified");
}

#[test]
fn too_long_paths_are_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let long = vec!["x".repeat(250); 15].join("/");
    let below = folder.path().join("y".repeat(200)).join("z".repeat(150));
    fs::create_dir_all(&below).unwrap();
    let entries: [(&str, &[u8]); 1] = [(&long, b"1")];
    let problem = open_folder(&below, &entries, &CancellationToken::new()).unwrap_err();
    assert_eq!(problem.reason, Reason::TargetUnsuitable, "{problem}");
    assert!(problem.message.contains("has 3764 bytes"), "{problem}");
    assert!(names_in(&below).is_empty());
    open_folder(folder.path(), &entries, &CancellationToken::new()).expect("fits here");
}

#[test]
fn a_stop_while_the_folders_are_created_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let stop = CancellationToken::new();
    stop.cancel();
    let problem = open_folder(folder.path(), &[("a/b/c", b"1")], &stop).unwrap_err();
    assert_eq!(problem.reason, Reason::Cancelled);
    assert!(names_in(folder.path()).is_empty());
}

#[test]
fn copied_bytes_are_counted_and_a_stop_ends_copying() {
    let folder = tempfile::tempdir().unwrap();
    let entries = ["a", "b", "c"].map(|path| (path, b"content".as_slice()));
    let stop = CancellationToken::new();
    let part = open_folder(folder.path(), &entries, &stop).unwrap();
    part.write(0, &bytes::Bytes::from_static(b"content").into())
        .unwrap();
    let finish = |stop| crate::download::storage::finalize::finalize(&part, None, stop);
    let stopped = CancellationToken::new();
    stopped.cancel();
    assert_eq!(finish(&stopped).unwrap_err().reason, Reason::Cancelled);
    assert_eq!(names_in(&part.target().part()), ["a"]);
    finish(&stop).unwrap().unwrap();
    assert_eq!(part.copied(), 14);
    for path in ["a", "b", "c"] {
        assert_eq!(fs::read(part.target().path.join(path)).unwrap(), b"content");
    }
}

#[test]
fn a_pipe_folder_or_link_in_place_of_a_part_or_its_state_is_refused_without_waiting() {
    use rustix::fs::{CWD, FileType, Mode};
    type Put = (&'static str, fn(&Path));
    let put: [Put; 3] = [
        ("pipe", |path| {
            rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RWXU, 0).unwrap();
        }),
        ("folder", |path| fs::create_dir(path).unwrap()),
        ("link", |path| {
            std::os::unix::fs::symlink("/etc/passwd", path).unwrap()
        }),
    ];
    for suffix in [".part", ".part.state"] {
        for (kind, put) in put {
            let folder = tempfile::tempdir().unwrap();
            put(&folder.path().join(format!("out{suffix}")));
            let problem = open(folder.path()).unwrap_err();
            assert_eq!(
                problem.reason,
                Reason::TargetExists,
                "{kind} at {suffix}: {problem}"
            );
            let target = target_in(folder.path());
            // Not created by a download.
            let _ = remove(ID, &target);
            assert_eq!(names_in(folder.path()).len(), 1, "{kind} at {suffix}");
        }
    }
}
