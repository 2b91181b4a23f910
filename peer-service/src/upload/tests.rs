//! Bounded work while a disk hangs.

use std::{fs::File, io::Write as _, ops::Range, sync::mpsc};

use futures_util::StreamExt as _;
use parking_lot::Mutex;
use potluck_core::{
    Root,
    availability::Availability,
    identity::merkle::Hash,
    model::{FileKind, FileRecord},
};
use tokio::sync::{Notify, watch};

use super::*;

/// Batch size for a connection that is not known to be fast, in bytes.
const BATCH: u64 = 64 * 1024;

/// A file on a disk that hangs after a number of operations, until it is revived.
#[derive(Debug)]
struct HungDiskContent {
    file: Arc<File>,
    record: FileRecord,
    answers: Mutex<(usize, mpsc::Receiver<()>)>,
    asked: Arc<Notify>,
}

impl HungDiskContent {
    fn ask(&self) {
        let (answers, revived) = &mut *self.answers.lock();
        match answers.checked_sub(1) {
            Some(left) => *answers = left,
            None => {
                self.asked.notify_one();
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
        unreachable!("nobody watches it")
    }

    fn changes(&self) -> Option<watch::Receiver<u64>> {
        None
    }

    fn open(&self, _: Range<u64>) -> Result<Arc<File>, Problem> {
        self.ask();
        Ok(self.file.clone())
    }

    fn try_open(&self, _: Range<u64>) -> Option<Arc<File>> {
        None
    }

    fn is_unchanged(&self, _: &File) -> bool {
        false
    }

    fn check_unchanged(&self, _: &File) -> Result<(), Problem> {
        self.ask();
        Ok(())
    }
}

#[tokio::test]
async fn a_read_that_hangs_keeps_its_slot_though_nobody_waits_for_it() {
    // The disk hangs immediately, or after the first batch, which takes one open and one check.
    for (answers, batches) in [(0, 0), (2, 1)] {
        let (revive, revived) = mpsc::channel();
        let size = 2 * BATCH;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![1; size as usize]).unwrap();
        let asked = Arc::new(Notify::new());
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
            answers: Mutex::new((answers, revived)),
            asked: asked.clone(),
        });
        let limits = Limits::new(0, 0, 1);
        let api = PeerApi::new(
            vec![Arc::new(SingleContent(content))],
            PeerId([1; 32]),
            limits.clone(),
            Arc::default(),
        );
        let download = || {
            let connection = SendScheduler::new().add_connection(ClientAddress::LOCAL);
            let span = v1::Span {
                file_id: record.id.to_bytes(),
                offset: 0,
                length: size,
            };
            api.download(v1::DownloadRequest { spans: vec![span] }, connection)
        };
        let got = Mutex::new(0);
        let follow = async {
            let mut stream = std::pin::pin!(download().await.unwrap());
            while let Some(batch) = stream.next().await {
                batch.unwrap();
                *got.lock() += 1;
            }
        };
        tokio::select! {
            () = follow => panic!("the disk does not answer"),
            () = asked.notified() => {}
        }
        // The caller has dropped its request, and the slot is still in use.
        assert_eq!((limits.active_uploads(), *got.lock()), (1, batches));
        let problem = download().await.err().expect("there is no other slot");
        assert_eq!(problem.reason, Reason::Busy);
        drop(revive);
        while limits.active_uploads() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let stream = download().await.expect("the disk answers");
        assert_eq!(stream.count().await, 2);
        assert_eq!(limits.active_uploads(), 0);
    }
}
