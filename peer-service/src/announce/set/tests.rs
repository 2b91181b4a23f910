//! A listener that applies the changes knows the announce set.

use potluck_testkit::records;
use proptest::prelude::*;

use super::*;

fn registration(n: u8, name: &str, is_complete: bool) -> Registration {
    Registration {
        is_complete,
        ..records::registration(n.into(), name)
    }
}

/// A library with a map of registrations.
#[derive(Debug, Default)]
struct FakeLibrary(Mutex<HashMap<FileId, Registration>>);

impl RegistrationSource for FakeLibrary {
    fn registration(&self, id: &FileId) -> Option<Registration> {
        self.0.lock().get(id).cloned()
    }
}

#[derive(Debug, Clone)]
enum AnnounceOp {
    Put(u8, u8),
    Complete(u8, u8),
    Remove(u8),
    /// A download begins.
    Begin(u8, u8),
    /// A download ends.
    End(u8),
    Sync,
}

fn op() -> impl Strategy<Value = AnnounceOp> {
    prop_oneof![
        2 => (0u8..8, 0u8..3).prop_map(|(n, name)| AnnounceOp::Put(n, name)),
        3 => (0u8..8, 0u8..3).prop_map(|(n, name)| AnnounceOp::Begin(n, name)),
        4 => (0u8..8, 0u8..3).prop_map(|(n, name)| AnnounceOp::Complete(n, name)),
        3 => (0u8..8).prop_map(AnnounceOp::Remove),
        2 => (0u8..8).prop_map(AnnounceOp::End),
        2 => Just(AnnounceOp::Sync),
    ]
}

proptest! {
    /// A listener that applies all changes ends with exactly the announce set.
    #[test]
    fn a_listener_misses_nothing(ops in proptest::collection::vec(op(), 0..80), most in 1usize..5) {
        let announce_set = AnnounceSet::new();
        let library = Arc::new(FakeLibrary::default());
        let source: Weak<FakeLibrary> = Arc::downgrade(&library);
        announce_set.set_source(source);
        // The expected set, updated without any shortcuts.
        let mut model = HashMap::new();
        let mut downloads: HashMap<u8, Vec<PartialAnnouncement>> = HashMap::new();
        let first = registration(1, "before", true);
        model.insert(first.file.id, first.clone());
        announce_set.put(vec![first]);
        let listener = announce_set.subscribe();
        let mut copy = HashMap::new();
        let mut seen = 0;
        let mut sync = |seen: &mut u64| {
            loop {
                let changes = listener.changes(*seen, most, usize::MAX);
                for put in changes.put {
                    copy.insert(put.file.id, put);
                }
                for id in changes.removed {
                    copy.remove(&id);
                }
                *seen = changes.up_to;
                listener.forget_removals(*seen);
                if !changes.more {
                    break;
                }
            }
            copy.clone()
        };
        for op in ops {
            match op {
                AnnounceOp::Put(n, name) => {
                    let one = registration(n, &name.to_string(), true);
                    model.insert(one.file.id, one.clone());
                    announce_set.put(vec![one]);
                }
                AnnounceOp::Begin(n, name) => {
                    let one = registration(n, &name.to_string(), false);
                    if model.get(&one.file.id).is_none_or(|old| !old.is_complete) {
                        model.insert(one.file.id, one.clone());
                    }
                    downloads.entry(n).or_default().push(announce_set.announce_partial(one));
                }
                AnnounceOp::Complete(n, name) => {
                    let one = registration(n, &name.to_string(), true);
                    model.insert(one.file.id, one.clone());
                    library.0.lock().insert(one.file.id, one.clone());
                    announce_set.announce_complete(&[one.file.id]);
                }
                AnnounceOp::Remove(n) => {
                    let id = registration(n, "", true).file.id;
                    model.remove(&id);
                    library.0.lock().remove(&id);
                    announce_set.remove(&[id]);
                }
                AnnounceOp::End(n) => {
                    let id = registration(n, "", true).file.id;
                    let downloads = downloads.entry(n).or_default();
                    if downloads.pop().is_some() && downloads.is_empty() {
                        model.retain(|of, one| *of != id || one.is_complete);
                    }
                }
                AnnounceOp::Sync => {
                    sync(&mut seen);
                }
            }
        }
        let copy = sync(&mut seen);
        let expected: HashMap<_, _> =
            announce_set.snapshot().into_iter().map(|registration| (registration.file.id, registration)).collect();
        prop_assert_eq!(&copy, &expected);
        prop_assert_eq!(&copy, &model);
        prop_assert_eq!(announce_set.len(), model.len());
        drop(listener);
        prop_assert_eq!(announce_set.state().log.after(0).count(), model.len());
    }
}

#[test]
fn an_unchanged_registration_is_no_change() {
    let announce_set = AnnounceSet::new();
    announce_set.put(vec![registration(1, "a", true)]);
    let version = announce_set.version();
    announce_set.put(vec![registration(1, "a", true)]);
    assert_eq!(announce_set.version(), version);
    announce_set.put(vec![registration(1, "b", true)]);
    assert!(announce_set.version() > version);
}

#[test]
fn a_partial_registration_does_not_replace_a_complete_one() {
    let announce_set = AnnounceSet::new();
    announce_set.put(vec![registration(1, "a", false)]);
    announce_set.put(vec![registration(1, "a", true)]);
    announce_set.put(vec![registration(1, "a", false)]);
    assert!(announce_set.snapshot()[0].is_complete);
}

#[test]
fn the_end_of_a_download_removes_only_its_own_announcement() {
    let announce_set = AnnounceSet::new();
    let (part, whole) = (registration(1, "a", false), registration(1, "b", true));
    let library = Arc::new(FakeLibrary::default());
    library.0.lock().insert(whole.file.id, whole.clone());
    let source: Weak<FakeLibrary> = Arc::downgrade(&library);
    announce_set.set_source(source);
    let (one, other) = (
        announce_set.announce_partial(part.clone()),
        announce_set.announce_partial(part.clone()),
    );
    drop(one);
    assert_eq!(
        announce_set.snapshot(),
        std::slice::from_ref(&part),
        "another download announces it"
    );
    drop(other);
    assert!(announce_set.is_empty());
    // The library has the file before the download ends.
    let one = announce_set.announce_partial(part);
    announce_set.announce_complete(&[whole.file.id]);
    drop(one);
    assert_eq!(announce_set.snapshot(), [whole]);
}

#[test]
fn a_reader_of_a_private_network_announces_no_names() {
    let announce_set = AnnounceSet::new();
    assert!(announce_set.hide_names());
    assert!(!announce_set.hide_names(), "again");
    let named = registration(1, "secret plans", true);
    announce_set.put(vec![named.clone()]);
    let nameless = Registration {
        names: Vec::new(),
        ..named
    };
    assert_eq!(announce_set.snapshot(), std::slice::from_ref(&nameless));
    let mut expected = SetDigest::default();
    expected.insert(&(&nameless).into());
    assert_eq!(announce_set.digest().unwrap().1, expected);
}
