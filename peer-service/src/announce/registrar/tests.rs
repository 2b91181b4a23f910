use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use potluck_core::{FileId, Token, model::Registration};
use potluck_testkit::{
    records::{own_address, registration},
    services::TestIndex,
};

use super::*;
use crate::announce::set::RegistrationSource;

/// A library with a list of registrations.
#[derive(Debug, Default)]
struct ListLibrary(Mutex<Vec<Registration>>);

impl RegistrationSource for ListLibrary {
    fn registration(&self, id: &FileId) -> Option<Registration> {
        let all = self.0.lock();
        all.iter().find(|one| one.file.id == *id).cloned()
    }
}

#[tokio::test]
async fn a_file_removed_while_it_is_announced_does_not_cause_a_full_replacement() {
    let index = TestIndex::in_memory().await;
    let (kept, removed) = (registration(1, "kept"), registration(2, "removed"));
    let announce_set = AnnounceSet::new();
    let library = Arc::new(ListLibrary::default());
    let source: Weak<ListLibrary> = Arc::downgrade(&library);
    announce_set.set_source(source);
    let connection = IndexConnection::new(
        index.new_client(),
        Caller::Token(Token::generate()),
        own_address(4),
        None,
    );
    let (mut task, reports) = RegistrarTask::new(connection, announce_set.subscribe());
    // As if the library had removed a file, but not yet reported it.
    library.0.lock().push(kept.clone());
    announce_set.announce_complete(&[kept.file.id, removed.file.id]);
    task.sync().await.unwrap();
    assert_eq!(
        (task.sync_state().must_replace, task.sync_state().acknowledged),
        (false, announce_set.version())
    );
    assert_eq!(reports.status.borrow().file_count, 1);
    announce_set.remove(&[removed.file.id]);
    task.sync().await.unwrap();
    let state = task.sync_state();
    assert_eq!(
        (state.must_replace, state.has_replaced, state.expected_files),
        (false, false, Some(1))
    );
    drop(task);
    index.stop().await;
}
