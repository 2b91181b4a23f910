//! Records without a root: content from an origin, which peers know by size and SHA-256.

use bytes::Bytes;
use potluck_core::{
    FileId, Reason, Sha256,
    model::{FileRecord, QueryKey, Registration},
    proto::v1,
};
use potluck_testkit::{
    records::{own_address, token, with_sha256},
    services::TestIndex,
};
use tokio::net::TcpListener;

use super::refusal;

const SUM: Sha256 = Sha256([7; 32]);
const SIZE: u64 = 1000;

fn provisional() -> Registration {
    Registration {
        file: FileRecord::provisional(SIZE, SUM),
        names: vec!["a.bin".to_owned()],
        is_complete: false,
    }
}

#[tokio::test]
async fn peers_meet_under_a_provisional_id() {
    let index = TestIndex::in_memory().await;
    for n in 1..=3 {
        index.register(n, &[provisional()]).await;
    }
    // A peer that has everything knows the root.
    index.register(4, &[with_sha256(999, "a.bin", 7)]).await;
    let id = FileId::provisional(SIZE, &SUM);
    let found = index.query(id).await.unwrap();
    assert_eq!(
        (found.file, found.provider_count),
        (FileRecord::provisional(SIZE, SUM), 3)
    );
    let key = QueryKey::Sha256(SUM);
    let files = index.client.query(&key, 10, None).await.unwrap().files;
    let provisional = files.iter().filter(|found| found.file.is_provisional());
    assert_eq!((files.len(), provisional.count()), (2, 1));
    assert!(index.client.unregister(&token(1), Some(&[id])).await.is_ok());
    assert_eq!(index.provider_count(id).await, 2);
}

#[tokio::test]
async fn a_provisional_record_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let listener = || async { TcpListener::bind("127.0.0.1:0").await.unwrap() };
    let index = TestIndex::in_folder(listener().await, dir.path());
    index.register(1, &[provisional()]).await;
    index.stop().await;
    let index = TestIndex::in_folder(listener().await, dir.path());
    let found = index.query(FileId::provisional(SIZE, &SUM)).await.unwrap();
    assert_eq!(found.file, FileRecord::provisional(SIZE, SUM));
}

#[tokio::test]
async fn a_provisional_id_must_fit_its_size_and_sha256() {
    let index = TestIndex::in_memory().await;
    let mut raw = index.raw_client().await;
    let request = |change: &dyn Fn(&mut v1::FileRecord)| {
        let mut registration = v1::Registration::from(&provisional());
        change(registration.file.as_mut().unwrap());
        v1::RegisterRequest {
            token: Bytes::copy_from_slice(token(1).expose()),
            address: Some((&own_address(7001)).into()),
            files: vec![registration],
            ..Default::default()
        }
    };
    assert!(raw.register(request(&|_| {})).await.is_ok());
    assert!(
        raw.register(request(&|file| file.file_id = Bytes::new()))
            .await
            .is_ok()
    );
    for (change, reason) in [
        (
            &(|file: &mut v1::FileRecord| file.size += 1) as &dyn Fn(&mut v1::FileRecord),
            Reason::IdMismatch,
        ),
        (&|file| file.sha256 = vec![8; 32].into(), Reason::IdMismatch),
        (&|file| file.size = 0, Reason::IdMismatch),
        (
            &|file| file.kind = v1::FileKind::Collection.into(),
            Reason::IdMismatch,
        ),
        (&|file| file.sha256 = vec![8; 31].into(), Reason::InvalidId),
        (&|file| file.sha256 = Bytes::new(), Reason::InvalidId),
        (&|file| file.size = 1 << 63, Reason::OutOfRange),
    ] {
        assert_eq!(refusal(raw.register(request(change)).await).reason, reason);
    }
}
