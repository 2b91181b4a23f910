use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use potluck_core::{
    FileId, Root, Token,
    index_client::IndexClient,
    model::{Address, FileKind, FileRecord, Registration},
};
use tokio::net::TcpListener;

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

fn registration(n: u8) -> Registration {
    let root = Root([n; 32]);
    let file = FileRecord {
        id: FileId::derive(1, &root),
        size: 1,
        root,
        sha256: None,
        kind: FileKind::File,
    };
    Registration {
        file,
        names: vec![n.to_string()],
        is_complete: true,
    }
}

#[tokio::test]
async fn a_file_removed_while_it_is_announced_does_not_cause_a_full_replacement() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string().parse().unwrap();
    let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
    let config = potluck_index::Config {
        store: potluck_index::StoreConfig::Memory,
        ..Default::default()
    };
    let served = potluck_index::serve(listener, config, stop.clone());
    tracker.spawn(async move { served.await.unwrap() });
    let (kept, removed) = (registration(1), registration(2));
    let announce_set = AnnounceSet::new();
    let library = Arc::new(ListLibrary::default());
    let source: Weak<ListLibrary> = Arc::downgrade(&library);
    announce_set.set_source(source);
    let address = Address {
        host: String::new(),
        port: 4,
    };
    let index = IndexConnection::new(IndexClient::new(endpoint), Token::generate(), address, None);
    let (mut task, reports) = RegistrarTask::new(index, announce_set.subscribe());
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
    stop.cancel();
    tracker.close();
    tracker.wait().await;
}
