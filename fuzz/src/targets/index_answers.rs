//! Answers of an index, as a peer or a command reads them.

use potluck_core::{
    FileId, Problem, Reason,
    collection::path::Label,
    grpc::counting_codec::list_items,
    index_client::ListedMember,
    model::{Address, FileKind, FileRecord, IndexedFile, Provider, ProviderEvent},
    network::{identity::Role, revocations::SignedRevocations},
    proto::v1,
};
use prost::Message;

use super::certificate::AUTHORITY;

/// A domain value that an answer becomes is valid, and survives the way back to a message. A list
/// is as long as it was counted before the message was decoded.
///
/// The first byte chooses the message.
pub fn index_answers(input: &[u8]) -> bool {
    let Some((&kind, bytes)) = input.split_first() else {
        return false;
    };
    match kind % 8 {
        0 => decode::<v1::FileRecord>(bytes).is_some_and(|message| {
            let record = FileRecord::try_from(message);
            record.inspect(check_record).is_ok()
        }),
        1 => decode::<v1::Provider>(bytes).is_some_and(|message| {
            let provider = Provider::try_from(message);
            provider.inspect(check_provider).is_ok()
        }),
        2 => decode::<v1::QueryResponse>(bytes).is_some_and(|message| {
            assert_eq!(list_items(bytes, 1).count(), message.files.len());
            let items = list_items(bytes, 1).zip(&message.files);
            for (item, file) in items {
                assert_eq!(list_items(item, 2).count(), file.names.len());
                assert_eq!(list_items(item, 4).count(), file.providers.len());
            }
            message.files.into_iter().all(|file| check_file(file.try_into()))
        }),
        3 => decode::<v1::SearchResponse>(bytes).is_some_and(|message| {
            assert_eq!(list_items(bytes, 1).count(), message.files.len());
            message.files.into_iter().all(|file| check_file(file.try_into()))
        }),
        4 => decode::<v1::WatchProvidersResponse>(bytes).is_some_and(|message| {
            match ProviderEvent::try_from(message) {
                Ok(ProviderEvent::Snapshot(providers)) => providers.iter().for_each(check_provider),
                Ok(ProviderEvent::Joined(provider)) => check_provider(&provider),
                Ok(ProviderEvent::Left(_)) => {}
                Err(problem) => return refused(&problem),
            }
            true
        }),
        5 => decode::<v1::Address>(bytes).is_some_and(|message| {
            let address = Address::try_from(message);
            address.inspect(check_address).is_ok()
        }),
        6 => decode::<v1::Member>(bytes).is_some_and(|message| {
            match ListedMember::try_from(message) {
                Ok(member) => assert!(Role::ALL.contains(&member.role)),
                Err(problem) => return refused(&problem),
            }
            true
        }),
        _ => match SignedRevocations::verify(bytes, AUTHORITY) {
            Ok(signed) => {
                assert_eq!(signed.as_bytes(), bytes);
                true
            }
            Err(_) => false,
        },
    }
}

fn decode<M: Message + Default>(bytes: &[u8]) -> Option<M> {
    M::decode(bytes).ok()
}

fn refused(problem: &Problem) -> bool {
    assert!(!problem.message.is_empty());
    false
}

fn check_file(file: Result<IndexedFile, Problem>) -> bool {
    let file = match file {
        Ok(file) => file,
        Err(problem) => return refused(&problem),
    };
    check_record(&file.file);
    file.providers.iter().for_each(check_provider);
    assert!(file.names.len() <= 16);
    assert!(file.names.iter().all(|name| Label::parse(name).is_ok()));
    true
}

fn check_record(record: &FileRecord) {
    assert_eq!(record.id, FileId::derive(record.size, &record.root));
    assert!(potluck_core::FileLayout::new(record.size).is_some());
    let message = v1::FileRecord::from(record);
    assert_eq!(FileRecord::try_from(message.clone()).as_ref(), Ok(record));
    // Another size makes another id.
    let other = v1::FileRecord {
        size: record.size ^ 1,
        ..message
    };
    let problem = FileRecord::try_from(other).expect_err("the id commits to the size");
    assert!(matches!(problem.reason, Reason::IdMismatch | Reason::OutOfRange));
}

fn check_provider(provider: &Provider) {
    check_address(&provider.address);
    let message = v1::Provider::from(provider);
    assert_eq!(Provider::try_from(message).as_ref(), Ok(provider));
}

fn check_address(address: &Address) {
    use potluck_core::grpc::transport::Endpoint;
    assert_ne!(address.port, 0);
    assert!(!address.host.contains(char::is_control));
    // An address that is an endpoint is the same host and port, and no path or user.
    if let Ok(endpoint) = address.to_string().parse::<Endpoint>()
        && !address.host.is_empty()
    {
        assert_eq!(endpoint.to_string(), format!("http://{address}"));
    }
}

/// One message of each kind.
pub fn seeds() -> Vec<Vec<u8>> {
    let root = potluck_core::Root([7; 32]);
    let record = FileRecord {
        id: FileId::derive(300_000, &root),
        size: 300_000,
        root,
        sha256: Some(potluck_core::Sha256([8; 32])),
        kind: FileKind::File,
    };
    let file = v1::FileRecord::from(&record);
    let address = |host: &str| v1::Address {
        host: host.to_owned(),
        port: 12349,
    };
    let provider = |host| v1::Provider {
        peer_id: vec![9; 32].into(),
        address: Some(address(host)),
        complete: true,
    };
    let result = v1::QueryResult {
        file: Some(file.clone()),
        names: vec!["a.bin".to_owned(), "b c.bin".to_owned()],
        provider_count: 2,
        providers: vec![provider("192.0.2.7"), provider("host.example")],
    };
    let found = v1::SearchResult {
        file: Some(v1::FileRecord {
            kind: 2,
            ..file.clone()
        }),
        names: vec!["folder".to_owned()],
        provider_count: 1,
    };
    use v1::watch_providers_response::Event;
    let watch = |event| v1::WatchProvidersResponse { event: Some(event) }.encode_to_vec();
    let member = v1::Member {
        member_id: vec![3; 16].into(),
        name: "kitchen".to_owned(),
        role: v1::Role::Admin.into(),
        expires_unix_seconds: 1_800_000_000,
        ..Default::default()
    };
    let messages = [
        (0, file.encode_to_vec()),
        (1, provider("2001:db8::7").encode_to_vec()),
        (
            2,
            v1::QueryResponse {
                files: vec![result.clone(), result],
                ..Default::default()
            }
            .encode_to_vec(),
        ),
        (
            3,
            v1::SearchResponse {
                files: vec![found],
                ..Default::default()
            }
            .encode_to_vec(),
        ),
        (4, watch(Event::Joined(provider("fe80::1")))),
        (4, watch(Event::Left(vec![9; 32].into()))),
        (
            4,
            watch(Event::Snapshot(v1::ProviderSnapshot {
                providers: vec![provider("192.0.2.7")],
                ..Default::default()
            })),
        ),
        (5, address("::ffff:192.0.2.7").encode_to_vec()),
        (6, member.encode_to_vec()),
        (7, include_bytes!("../../data/revocations").to_vec()),
    ];
    messages.map(|(kind, bytes)| [vec![kind], bytes].concat()).into()
}

/// Keys of fields with their lengths.
pub const WORDS: &[&[u8]] = &[
    &[0x0a, 32],
    &[0x12, 32],
    &[0x1a, 32],
    &[0x22],
    &[0x0a],
    &[0x12],
    &[0x1a],
    &[0x18],
    &[0x10],
    b"potluck/revocations/v1\0",
    b"::1",
    b"%eth0",
    b"@",
    b"[",
    b"]",
    b"..",
];
