use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use potluck_core::{
    FileId, Root,
    model::{FileKind, FileRecord, Registration},
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
async fn a_file_that_goes_while_it_is_told_does_not_make_the_index_replace_all() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string().parse().unwrap();
    let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
    let config = potluck_index::Config {
        store: potluck_index::StoreConfig::Memory,
        ..Default::default()
    };
    let served = potluck_index::serve(listener, config, stop.clone());
    tracker.spawn(async move { served.await.unwrap() });
    let (stays, goes) = (registration(1), registration(2));
    let announce_set = AnnounceSet::new();
    let content_source = Arc::new(ListLibrary::default());
    let source: Weak<ListLibrary> = Arc::downgrade(&content_source);
    announce_set.set_source(source);
    let index = IndexConnection {
        client: IndexClient::new(endpoint),
        token: Token::generate(),
        address: Address {
            host: String::new(),
            port: 4,
        },
        ttl: None,
    };
    let (status, acknowledged) = (watch::Sender::default(), watch::Sender::default());
    let mut task = RegistrarTask::new(index, announce_set.subscribe(), status, acknowledged);
    // As if the library had removed a file, but not yet reported it.
    content_source.0.lock().push(stays.clone());
    announce_set.announce_complete(&[stays.file.id, goes.file.id]);
    let count = |task: &RegistrarTask| task.status.borrow().file_count;
    task.sync().await.unwrap();
    assert_eq!(
        (task.replace, task.synced_version, count(&task)),
        (false, announce_set.version(), 1)
    );
    announce_set.remove(&[goes.file.id]);
    task.sync().await.unwrap();
    assert_eq!(
        (task.replace, task.replaced, task.expected_files),
        (false, false, Some(1))
    );
    drop(task);
    stop.cancel();
    tracker.close();
    tracker.wait().await;
}
