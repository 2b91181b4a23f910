//! Tests of `network/journal.rs`.

use std::os::unix::fs::PermissionsExt as _;

use proptest::prelude::*;

use super::*;
use crate::network::membership::tests::{Step, decide, steps};

const NOW: u64 = 1_800_000_000;

fn make(journal: &mut Journal, step: &Step, now: u64) {
    let done: Result<(), JournalError> =
        journal.change(|members| Ok(((), decide(members, step, now))));
    done.unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn two_processes_see_the_same_members_also_after_a_restart(steps in steps()) {
        let dir = tempfile::tempdir().unwrap();
        let mut journals = [Journal::open(dir.path()).unwrap(), Journal::open(dir.path()).unwrap()];
        let mut now = NOW;
        for (n, step) in steps.iter().enumerate() {
            if let Step::Wait(seconds) = step {
                now += seconds;
            }
            make(&mut journals[n % 2], step, now);
        }
        for journal in &mut journals {
            journal.refresh().unwrap();
        }
        let again = Journal::open(dir.path()).unwrap();
        prop_assert_eq!(journals[0].members(), journals[1].members());
        prop_assert_eq!(again.members(), journals[0].members());
    }
}

#[test]
fn a_line_without_an_end_is_ignored_and_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(MEMBERS);
    let mut journal = Journal::open(dir.path()).unwrap();
    make(&mut journal, &Step::Invite(None, 1, 0, 1, 60), NOW);
    let mode = path.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let complete = std::fs::read(&path).unwrap();
    std::fs::write(&path, [&complete[..], b"{\"event\":\"revo"].concat()).unwrap();
    let mut journal = Journal::open(dir.path()).unwrap();
    make(&mut journal, &Step::Enroll(1, 0), NOW);
    let again = Journal::open(dir.path()).unwrap();
    assert_eq!(again.members(), journal.members());
    assert_eq!(again.members().members(None).count(), 1);
}

#[test]
fn a_damaged_line_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (header, _) = header(0, 0);
    for (text, line) in [("{}\n", 1), (&*format!("{header}\n"), 2)] {
        std::fs::write(dir.path().join(MEMBERS), text).unwrap();
        let error = Journal::open(dir.path()).unwrap_err().to_string();
        assert!(error.starts_with(&format!("line {line} of ")), "{error}");
    }
}

/// A network with a member that was revoked.
fn revoked(dir: &Path) -> Journal {
    let mut journal = Journal::open(dir).unwrap();
    make(&mut journal, &Step::Invite(None, 1, 0, 1, 60), NOW);
    make(&mut journal, &Step::Enroll(1, 0), NOW);
    make(&mut journal, &Step::Revoke(None, 0), NOW);
    journal
}

#[test]
fn any_change_of_a_line_and_any_missing_repeated_or_moved_line_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(MEMBERS);
    let expected = revoked(dir.path());
    let whole = std::fs::read(&path).unwrap();
    let lines: Vec<&[u8]> = whole.split_inclusive(|byte| *byte == b'\n').collect();
    let mut damaged: Vec<Vec<u8>> = (0..whole.len())
        .map(|at| {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            bytes
        })
        .collect();
    damaged.extend((0..whole.len()).map(|len| whole[..len].to_vec()));
    for (first, second) in [(0, 1), (1, 2), (2, 3), (1, 3)] {
        let mut swapped = lines.clone();
        swapped.swap(first, second);
        let mut repeated = lines.clone();
        repeated.insert(first, lines[second]);
        let mut missing = lines.clone();
        missing.remove(first);
        damaged.extend([swapped, repeated, missing].map(|lines| lines.concat()));
    }
    for bytes in damaged {
        std::fs::write(&path, &bytes).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        let error = Journal::open(dir.path()).map(|journal| journal.members);
        let error = error.expect_err(&text).to_string();
        assert!(error.contains("restore"), "{error}");
    }
    std::fs::remove_file(&path).unwrap();
    let error = Journal::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("0 of 3 changes"), "{error}");
    std::fs::write(&path, &whole).unwrap();
    assert_eq!(Journal::open(dir.path()).unwrap().members(), expected.members());
}

#[test]
fn an_older_copy_is_refused_until_its_owner_accepts_the_loss() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(MEMBERS);
    let mut journal = Journal::open(dir.path()).unwrap();
    make(&mut journal, &Step::Invite(None, 1, 0, 1, 60), NOW);
    make(&mut journal, &Step::Enroll(1, 0), NOW);
    let older = std::fs::read(&path).unwrap();
    let last = Step::Revoke(None, 0);
    make(&mut journal, &last, NOW);
    journal.position.lines = 3 * SLACK_LINES;
    journal.compact(NOW).unwrap();
    std::fs::write(&path, &older).unwrap();
    let error = Journal::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("2 of 3 changes"), "{error}");
    std::fs::remove_file(dir.path().join(GENERATION)).unwrap();
    let mut journal = Journal::open(dir.path()).unwrap();
    make(&mut journal, &last, NOW);
    assert_eq!(Journal::open(dir.path()).unwrap().members().revoked().count(), 1);
}

#[test]
fn a_file_without_checksums_gets_them_with_the_next_change() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(MEMBERS);
    let expected = revoked(dir.path());
    let mut text = "{\"potluck_members\":1}\n".to_owned();
    for line in std::fs::read_to_string(&path).unwrap().lines().skip(1) {
        let (event, _) = line.split_once(SUM).unwrap();
        text.push_str(&format!("{event}}}\n"));
    }
    std::fs::write(&path, text).unwrap();
    let mut journal = Journal::open(dir.path()).unwrap();
    assert_eq!(journal.members(), expected.members());
    make(&mut journal, &Step::Invite(None, 2, 0, 1, 60), NOW);
    let again = Journal::open(dir.path()).unwrap();
    assert_eq!(again.members(), journal.members());
    assert_eq!((again.position.version, again.position.generation), (VERSION, 4));
}

#[test]
fn a_file_with_many_obsolete_lines_is_rewritten() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(dir.path()).unwrap();
    make(&mut journal, &Step::Invite(None, 1, 2, 1, 60), NOW);
    make(&mut journal, &Step::Enroll(1, 0), NOW);
    let mut other = Journal::open(dir.path()).unwrap();
    let before = journal.members().clone();
    journal.position.lines = 3 * SLACK_LINES;
    journal.compact(NOW).unwrap();
    assert!(journal.position.lines < 10);
    assert_eq!(*journal.members(), before);
    // Another process notices that the file is a new one.
    make(&mut other, &Step::Invite(Some(0), 2, 0, 1, 60), NOW);
    assert!(journal.refresh().unwrap());
    assert_eq!(journal.members(), other.members());
}
