//! The results of hashing, and the age at which a file may be hashed.

use std::path::PathBuf;

use super::*;

fn observer<'a>(
    on_progress: &'a OnProgress<'a>,
    is_cancelled: &'a IsCancelled<'a>,
) -> HashObserver<'a> {
    HashObserver {
        on_size: &|_| {},
        on_progress,
        is_cancelled,
    }
}

#[test]
fn a_failure_does_not_affect_the_other_files() {
    let dir = tempfile::tempdir().unwrap();
    let mut paths = Vec::new();
    for n in 0..20u64 {
        let path = dir.path().join(n.to_string());
        if n != 7 {
            std::fs::write(&path, vec![1; n as usize]).unwrap();
        }
        let stamp = path.symlink_metadata().map(|metadata| stamp_of(&metadata));
        paths.push((path, stamp.ok()));
    }
    let results = Mutex::new(vec![None; paths.len()]);
    let file = |index: usize| (paths[index].0.as_path(), paths[index].1);
    let on_done = |outcomes: Vec<HashResult<'_>>| {
        for (index, path, result) in outcomes {
            assert_eq!(path, paths[index].0);
            results.lock()[index] = Some(result);
        }
    };
    let base = BaseFolder::default();
    assert!(hash_many(
        &base,
        20,
        &file,
        &|_, _, _| true,
        &on_done,
        3,
        &observer(&|_, _| {}, &|| false),
    ));
    let cancelled = observer(&|_, _| {}, &|| true);
    assert!(!hash_many(
        &base,
        20,
        &file,
        &|_, _, _| true,
        &on_done,
        3,
        &cancelled
    ));
    for (n, result) in results.lock().drain(..).enumerate() {
        match (n, result.unwrap()) {
            (7, result) => assert_eq!(result.unwrap_err().reason, Reason::NotFound),
            (n, result) => assert_eq!(
                result.unwrap().tree,
                potluck_core::identity::hash::hash_bytes(&vec![1; n])
            ),
        }
    }
}

#[test]
fn files_hashed_together_have_the_hashes_that_they_have_alone() {
    let dir = tempfile::tempdir().unwrap();
    let leaf = LEAF_SIZE as u64;
    let sizes = [
        0,
        1,
        leaf,
        leaf + 1,
        3,
        15 * leaf,
        16 * leaf,
        16 * leaf + 1,
        131_073,
        0,
        7 * leaf + 5,
        2,
    ];
    let path = |index: usize| dir.path().join(index.to_string());
    for (index, &size) in sizes.iter().enumerate() {
        let size = if index == 11 { 40 * leaf } else { size };
        std::fs::write(path(index), vec![index as u8; size as usize]).unwrap();
    }
    // File 11 grew after its `stat`; file 4 was replaced by one of the same size.
    let listed_stamp = |index: usize| {
        let stamp = stamp_of(&path(index).symlink_metadata().unwrap());
        match index {
            11 => Stamp { size: 1, ..stamp },
            4 => Stamp { inode: 0, ..stamp },
            _ => stamp,
        }
    };
    let (done, hashed_bytes) = (Mutex::new(Vec::new()), AtomicUsize::new(0));
    let on_progress = |path: &dyn Fn() -> PathBuf, bytes: u64| {
        assert!(path().is_file());
        hashed_bytes.fetch_add(bytes as usize, Ordering::Relaxed);
    };
    let on_done = |outcomes: Vec<HashResult<'_>>| {
        for (index, path, result) in outcomes {
            let alone = hash_one(&dir.path().join(path), 1, &|_, _| {}, &|| false).unwrap();
            let result = result.unwrap();
            assert_eq!(
                (result.tree, result.stamp),
                (alone.tree, alone.stamp),
                "file {index}"
            );
            done.lock().push(index);
        }
    };
    // Some files have no `stat` yet; some are not wanted.
    let (count, refused) = (sizes.len() + 2, AtomicUsize::new(0));
    std::fs::write(path(12), "12").unwrap();
    std::fs::write(path(13), "13").unwrap();
    let names: Vec<PathBuf> = (0..count).map(|index| index.to_string().into()).collect();
    let file = |index: usize| {
        let has_stat = !index.is_multiple_of(3) && index < 12;
        (names[index].as_path(), has_stat.then(|| listed_stamp(index)))
    };
    let is_wanted = |index: usize, _: &Path, stat: FileStat| {
        assert_eq!(stat.stamp, stamp_of(&path(index).metadata().unwrap()));
        refused.fetch_add(usize::from(index > 11), Ordering::Relaxed);
        index < 12
    };
    let (base, observer) = (
        BaseFolder::at(dir.path()).unwrap(),
        observer(&on_progress, &|| false),
    );
    assert!(hash_many(&base, count, &file, &is_wanted, &on_done, 1, &observer));
    let mut done = done.into_inner();
    done.sort_unstable();
    assert_eq!(done, (0..sizes.len()).collect::<Vec<_>>());
    let all: u64 = sizes[..11].iter().sum::<u64>() + 40 * leaf;
    assert_eq!(hashed_bytes.into_inner() as u64, all);
    assert_eq!(refused.into_inner(), 2);
}

#[test]
fn a_stamp_of_whole_seconds_settles_later() {
    const SECOND: i64 = 1_000_000_000;
    let after = |mtime, ctime, millis: u64| {
        let stamp = Stamp {
            mtime,
            ctime,
            ..Stamp::default()
        };
        settle_delay_at(&stamp, Duration::from_millis(10_000 + millis))
    };
    let whole = 10 * SECOND;
    assert_eq!(after(whole, whole, 1_999), Some(Duration::from_millis(21)));
    assert_eq!(
        after(whole - SECOND, whole, 1_999),
        Some(Duration::from_millis(21))
    );
    assert_eq!(after(whole, whole, 2_020), None);
    // Times that a tool set to whole seconds, and a change at such a moment.
    assert_eq!(after(whole - SECOND, whole + 1, 21), None);
    assert_eq!(after(whole - 1, whole, 20), None);
    assert_eq!(after(whole - 1, whole, 19), Some(Duration::from_millis(1)));
}

#[test]
fn a_fresh_file_settles_first() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fresh");
    std::fs::write(&path, "1").unwrap();
    let done = hash_one(&path, 1, &|_, _| {}, &|| false).unwrap();
    assert_eq!(settle_delay(&done.stamp), None);
}

#[test]
fn a_file_that_keeps_changing_is_waited_for_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("written to");
    std::fs::write(&path, "").unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                std::fs::write(&path, "1").unwrap();
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let opened = open_settled(&BaseFolder::default(), &path);
        let wait = opened.map(|(_, stamp)| settle_delay(&stamp));
        stop.store(true, Ordering::Relaxed);
        match wait {
            Ok(wait) => assert_eq!(wait, None),
            Err(problem) => assert_eq!(problem.reason, Reason::FileChanged),
        }
    });
}

#[test]
#[cfg(target_os = "linux")]
fn a_file_of_another_length_than_its_file_system_reports_is_refused() {
    // The first reports 0 bytes and has some; the second reports a page and has less.
    let odd = ["/proc/self/status", "/sys/kernel/mm/transparent_hugepage/enabled"];
    for path in odd.map(Path::new) {
        let (Ok(metadata), Ok(content)) = (path.metadata(), std::fs::read(path)) else {
            eprintln!("skipped: no {} here", path.display());
            continue;
        };
        assert_ne!(metadata.len(), content.len() as u64);
        let refused = hash_one(path, 1, &|_, _| {}, &|| false).unwrap_err();
        assert_eq!(refused.reason, Reason::UnsizedFile, "{}", path.display());
        // The same as one of many files.
        let refused = Mutex::new(None);
        let on_done = |outcomes: Vec<HashResult<'_>>| {
            for (_, _, result) in outcomes {
                *refused.lock() = result.err();
            }
        };
        let (base, observer) = (BaseFolder::default(), observer(&|_, _| {}, &|| false));
        assert!(hash_many(
            &base,
            1,
            &|_| (path, None),
            &|_, _, _| true,
            &on_done,
            1,
            &observer
        ));
        let refused = refused.into_inner().unwrap();
        assert_eq!(refused.reason, Reason::UnsizedFile, "{}", path.display());
    }
}
