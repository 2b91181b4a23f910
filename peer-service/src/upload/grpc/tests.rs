//! Work is bounded while a disk hangs.

use std::{
    fs::File,
    io::Write as _,
    ops::Range,
    sync::{Arc, mpsc},
    time::Duration,
};

use futures_util::StreamExt as _;
use parking_lot::Mutex;
use potluck_core::{
    FileId, PeerId, Problem, Reason, Root,
    availability::Availability,
    grpc::limiter::ClientAddress,
    identity::merkle::Hash,
    model::{FileKind, FileRecord},
    proto::v1,
};
use tokio::sync::{Notify, watch};

use crate::{
    content::{Content, ContentSource},
    limits::Limits,
    upload::{PeerApi, SendScheduler},
};

/// Batch size for a connection that is not known to be fast, in bytes.
const BATCH: u64 = 64 * 1024;

/// A file on a disk that hangs after a number of operations, until it is revived.
#[derive(Debug)]
struct HungDiskContent {
    file: Arc<File>,
    record: FileRecord,
    accesses: Mutex<(usize, mpsc::Receiver<()>)>,
    hanging: Arc<Notify>,
}

impl HungDiskContent {
    fn access(&self) {
        let (left, revived) = &mut *self.accesses.lock();
        match left.checked_sub(1) {
            Some(fewer) => *left = fewer,
            None => {
                self.hanging.notify_one();
                // Returns an error once the sender is dropped.
                let _ = revived.recv();
            }
        }
    }
}

#[derive(Debug)]
struct SingleContent(Arc<HungDiskContent>);

impl ContentSource for SingleContent {
    fn find(&self, _: &FileId) -> Option<Arc<dyn Content>> {
        Some(self.0.clone())
    }
}

impl Content for HungDiskContent {
    fn id(&self) -> FileId {
        self.record.id
    }

    fn size(&self) -> u64 {
        self.record.size
    }

    fn record(&self) -> Result<FileRecord, Problem> {
        Ok(self.record)
    }

    fn name(&self) -> String {
        String::new()
    }

    fn piece_hashes(&self) -> Result<Arc<[Hash]>, Problem> {
        Ok(Arc::from([]))
    }

    fn availability(&self) -> Availability {
        unreachable!("not watched")
    }

    fn changes(&self) -> Option<watch::Receiver<u64>> {
        None
    }

    fn open(&self, _: Range<u64>) -> Result<Arc<File>, Problem> {
        self.access();
        Ok(self.file.clone())
    }

    fn try_open(&self, _: Range<u64>) -> Option<Arc<File>> {
        None
    }

    fn is_unchanged(&self, _: &File) -> bool {
        false
    }

    fn check_unchanged(&self, _: &File) -> Result<(), Problem> {
        self.access();
        Ok(())
    }
}

#[tokio::test]
async fn a_hanging_read_keeps_its_slot_after_its_caller_left() {
    // The disk hangs immediately, or after the first batch, which takes one open and one check.
    for (accesses, batches) in [(0, 0), (2, 1)] {
        let (revive, revived) = mpsc::channel();
        let size = 2 * BATCH;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![1; size as usize]).unwrap();
        let hanging = Arc::new(Notify::new());
        let root = Root([1; 32]);
        let record = FileRecord {
            id: FileId::derive(size, &root),
            size,
            root,
            sha256: None,
            kind: FileKind::File,
        };
        let content = Arc::new(HungDiskContent {
            file: Arc::new(file),
            record,
            accesses: Mutex::new((accesses, revived)),
            hanging: hanging.clone(),
        });
        let limits = Limits::new(0, 0, 1);
        let api = PeerApi::new(
            vec![Arc::new(SingleContent(content))],
            PeerId([1; 32]),
            limits.clone(),
            Arc::default(),
            Default::default(),
        );
        let download = || {
            let connection = SendScheduler::new().add_connection(ClientAddress::LOCAL);
            let span = v1::Span {
                file_id: record.id.to_bytes(),
                offset: 0,
                length: size,
            };
            api.download(
                v1::DownloadRequest {
                    spans: vec![span],
                    ..Default::default()
                },
                connection,
            )
        };
        let received = Mutex::new(0);
        let receive = async {
            let mut stream = std::pin::pin!(download().await.unwrap());
            while let Some(batch) = stream.next().await {
                batch.unwrap();
                *received.lock() += 1;
            }
        };
        tokio::select! {
            () = receive => panic!("the disk hangs"),
            () = hanging.notified() => {}
        }
        // The caller has dropped its request, and the slot is still in use.
        assert_eq!((limits.active_uploads(), *received.lock()), (1, batches));
        let problem = download().await.err().expect("the only slot is taken");
        assert_eq!(problem.reason, Reason::Busy);
        drop(revive);
        while limits.active_uploads() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let stream = download().await.expect("the disk works again");
        assert_eq!(stream.count().await, 2);
        assert_eq!(limits.active_uploads(), 0);
    }
}
