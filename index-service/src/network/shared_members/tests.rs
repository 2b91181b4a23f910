//! Tests of `network/shared_members.rs`, with a log in memory that loses lines.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::{
    network::{
        member_store::{MemberStore, NetworkLog},
        membership::tests::{Step, decide, steps},
    },
    store::shared_log::LogPart,
};

const NOW: u64 = 1_800_000_000;

/// A log in memory.
#[derive(Debug, Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    fn change(&self, end: &LogEnd, change: impl FnOnce(&mut Vec<String>)) -> bool {
        let mut lines = self.0.lock().unwrap();
        let last = lines.last().cloned().unwrap_or_default();
        let is_expected = end.len == lines.len() as u64 && end.last == last;
        if is_expected {
            change(&mut lines);
        }
        is_expected
    }

    /// Forgets the last lines, as a failover does.
    fn lose(&self, count: usize) {
        let mut lines = self.0.lock().unwrap();
        let left = lines.len().saturating_sub(count);
        lines.truncate(left);
    }
}

impl SharedLog for Lines {
    fn read(&mut self, from: u64) -> Result<LogPart, StoreError> {
        let lines = self.0.lock().unwrap();
        Ok(LogPart {
            first: lines.first().cloned(),
            lines: lines.iter().skip(from as usize).cloned().collect(),
        })
    }

    fn append(&mut self, end: &LogEnd, lines: &[String]) -> Result<bool, StoreError> {
        Ok(self.change(end, |all| all.extend_from_slice(lines)))
    }

    fn replace(&mut self, end: &LogEnd, lines: &[String]) -> Result<bool, StoreError> {
        Ok(self.change(end, |all| *all = lines.to_vec()))
    }
}

/// Indexes of one network, each with a folder of its own.
struct World {
    lines: Lines,
    folders: [TempDir; 2],
    stores: [MemberStore; 2],
}

fn open(folder: &TempDir, lines: &Lines, network: &str) -> Result<MemberStore, SharedMembersError> {
    let log = NetworkLog {
        log: Box::new(lines.clone()),
        network: network.to_owned(),
        secret: [7; 32],
    };
    MemberStore::open(folder.path(), Some(log), NOW)
}

impl World {
    fn new() -> Self {
        let lines = Lines::default();
        let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let stores = [0, 1].map(|n: usize| open(&folders[n], &lines, "net").unwrap());
        Self {
            lines,
            folders,
            stores,
        }
    }

    fn make(&mut self, index: usize, step: &Step, now: u64) {
        let decide = |members: &Membership| Ok(((), decide(members, step, now)));
        let made: Result<(), SharedMembersError> = self.stores[index].change(decide);
        made.unwrap();
    }

    /// A change by a program that works on the folder of an index.
    fn make_beside(&self, index: usize, step: &Step, now: u64) {
        let mut journal = Journal::open(self.folders[index].path()).unwrap();
        let decide = |members: &Membership| Ok(((), decide(members, step, now)));
        let made: Result<(), JournalError> = journal.change(decide);
        made.unwrap();
    }

    fn restart(&mut self, index: usize) {
        self.stores[index] = open(&self.folders[index], &self.lines, "net").unwrap();
    }

    fn refresh(&mut self) {
        // What the second appends, the first reads the second time.
        for index in [0, 1, 0] {
            self.stores[index].refresh().unwrap();
        }
    }

    #[track_caller]
    fn assert_equal(&mut self) {
        self.refresh();
        assert_eq!(self.stores[0].members(), self.stores[1].members());
        for (folder, store) in self.folders.iter().zip(&self.stores) {
            let journal = Journal::open(folder.path()).unwrap();
            assert_eq!(journal.members(), store.members());
        }
    }

    fn states(&self, index: usize) -> Vec<MemberState> {
        let members = self.stores[index].members().members(None);
        members.map(|(_, entry)| entry.state).collect()
    }
}

const INVITE: Step = Step::Invite(None, 1, 0, 3, 100_000);

#[test]
fn a_change_at_one_index_counts_at_the_other() {
    let mut world = World::new();
    world.make(0, &INVITE, NOW);
    world.make(1, &Step::Enroll(1, 0), NOW);
    world.assert_equal();
    assert_eq!(world.states(0), [MemberState::Active]);
    // Decided by the latest members, although this index was not refreshed.
    world.make(0, &Step::Revoke(None, 0), NOW);
    world.make(1, &Step::EnrollPeer(0, 1), NOW);
    world.assert_equal();
    assert_eq!(world.states(1), [MemberState::Revoked]);
}

#[test]
fn a_program_beside_an_index_changes_all() {
    let mut world = World::new();
    world.make_beside(1, &INVITE, NOW);
    world.refresh();
    world.make(0, &Step::Enroll(1, 0), NOW);
    // While the index does not run, and while another one makes a change.
    world.make_beside(1, &Step::Invite(None, 2, 0, 1, 100_000), NOW);
    world.make(0, &Step::Enroll(1, 1), NOW);
    world.restart(1);
    world.make(0, &Step::Enroll(2, 2), NOW);
    world.assert_equal();
    assert_eq!(world.states(0).len(), 3);
}

#[test]
fn what_a_failover_lost_is_appended_again() {
    for lost in [1, 2, 3, 100] {
        let mut world = World::new();
        world.make(0, &INVITE, NOW);
        world.make(0, &Step::Enroll(1, 0), NOW);
        world.make(0, &Step::Enroll(1, 1), NOW);
        world.make(0, &Step::Revoke(None, 0), NOW);
        world.lines.lose(lost);
        // An index that never saw the revocation goes on from the shorter log.
        world.make(1, &Step::Invite(None, 3, 0, 1, 100_000), NOW);
        world.assert_equal();
        let expected = [MemberState::Revoked, MemberState::Active];
        assert_eq!(world.states(1), expected, "{lost} lines were lost");
    }
}

#[test]
fn a_revoked_member_does_not_come_back_with_an_older_log() {
    let mut world = World::new();
    world.make(0, &INVITE, NOW);
    world.make(0, &Step::Enroll(1, 0), NOW);
    world.refresh();
    let older = world.lines.0.lock().unwrap().clone();
    world.make(0, &Step::Revoke(None, 0), NOW);
    world.refresh();
    *world.lines.0.lock().unwrap() = older;
    world.restart(0);
    world.restart(1);
    world.assert_equal();
    assert_eq!(world.states(0), [MemberState::Revoked]);
}

#[test]
fn lines_that_no_index_wrote_are_refused() {
    let mut world = World::new();
    world.make(0, &INVITE, NOW);
    let event = Event::Numbered {
        revocations_number: 1,
    };
    let forged = format!("{}\t{}", journal::encode(&event), hex::encode([1; 32]));
    world.lines.0.lock().unwrap().push(forged);
    let refused = world.stores[1].refresh().unwrap_err();
    assert!(
        matches!(refused, SharedMembersError::Damaged { line: 4, .. }),
        "{refused}"
    );
    let refused = open(&world.folders[0], &world.lines, "net").unwrap_err();
    assert!(matches!(refused, SharedMembersError::Damaged { .. }), "{refused}");
    let refused = open(&world.folders[0], &world.lines, "other").unwrap_err();
    assert!(matches!(refused, SharedMembersError::OtherNetwork), "{refused}");
    // A line moved to another place.
    world.lines.lose(1);
    world.lines.0.lock().unwrap().swap(1, 2);
    assert!(open(&world.folders[0], &world.lines, "net").is_err());
}

#[test]
fn a_log_with_many_obsolete_lines_is_rewritten() {
    let mut world = World::new();
    world.make(0, &INVITE, NOW);
    world.make(0, &Step::Enroll(1, 0), NOW);
    for n in 0..SLACK_LINES + 10 {
        world.make((n % 2) as usize, &Step::Renew(0, None), NOW + n);
    }
    world.refresh();
    world.stores[0].compact_log(NOW).unwrap();
    assert!(world.lines.0.lock().unwrap().len() < 10);
    world.assert_equal();
    world.make(1, &Step::Enroll(1, 1), NOW);
    world.restart(0);
    world.assert_equal();
    assert_eq!(world.states(0).len(), 2);
}

#[derive(Debug, Clone)]
enum Happening {
    Make(usize),
    MakeBeside(usize),
    Refresh(usize),
    Restart(usize),
    Lose(usize),
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let happening = prop_oneof![
        8 => (0..2usize).prop_map(Happening::Make),
        2 => (0..2usize).prop_map(Happening::MakeBeside),
        3 => (0..2usize).prop_map(Happening::Refresh),
        1 => (0..2usize).prop_map(Happening::Restart),
        1 => (1..6usize).prop_map(Happening::Lose),
    ];
    prop::collection::vec(happening, 80)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn indexes_agree_whatever_happens_and_revocations_stay(
        steps in steps(),
        happenings in happenings(),
    ) {
        let mut world = World::new();
        let (mut now, mut out) = (NOW, BTreeSet::new());
        for (step, happening) in steps.iter().zip(&happenings) {
            if let Step::Wait(seconds) = step {
                now += seconds;
            }
            match *happening {
                Happening::Make(index) => world.make(index, step, now),
                Happening::MakeBeside(index) => world.make_beside(index, step, now),
                Happening::Refresh(index) => drop(world.stores[index].refresh().unwrap()),
                Happening::Restart(index) => world.restart(index),
                Happening::Lose(lines) => world.lines.lose(lines),
            }
            for store in &world.stores {
                let members = store.members().members(None);
                let revoked = members.filter(|(_, entry)| entry.state != MemberState::Active);
                out.extend(revoked.map(|(id, _)| *id));
            }
        }
        world.assert_equal();
        for id in out {
            prop_assert!(world.stores[0].members().active(&id).is_err(), "{id:?} came back");
        }
    }
}
