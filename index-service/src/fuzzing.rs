//! The bodies of fuzz targets over private code of this crate. `fuzz/` runs them. Not a stable
//! interface.
//!
//! A target returns whether it accepted the input, and panics if a property does not hold.

use std::{net::IpAddr, path::Path, time::Duration};

use potluck_core::{
    FileId, PeerId, Root, Sha256,
    collection::path::Label,
    grpc::counting_codec::list_items,
    index_client::MAX_BATCH,
    model::{Address, FileKind, FileRecord, QueryKey, Registration},
    network::identity::{MemberId, Role},
    proto::v1,
};
use prost::Message;

use crate::{
    address::{self, AllowedHost},
    catalog::{ListingCursor, MAX_NAMES, SearchCursor, terms},
    grpc::{
        page_tokens::{PagePosition, PageTokens},
        request::{
            ParsedQuery, ParsedRegister, ParsedRenew, ParsedSearch, ParsedUnregister, ParsedWatch,
        },
    },
    network::{
        journal::{Journal, JournalError},
        membership::{Enrollment, Event, Membership},
    },
    store::{PeerRecord, segment},
};

/// Requests: a parsed request is within the contract. The first byte chooses the message.
pub fn requests(input: &[u8]) -> bool {
    let Some((&kind, bytes)) = input.split_first() else {
        return false;
    };
    match kind % 6 {
        0 => decode::<v1::RegisterRequest>(bytes).is_some_and(|request| {
            assert_eq!(list_items(bytes, 3).count(), request.files.len());
            let Ok(parsed) = ParsedRegister::try_from(request.clone()) else {
                return false;
            };
            assert_eq!(parsed.files.len(), request.files.len());
            assert!(parsed.files.len() <= MAX_BATCH);
            let limits = Duration::from_secs(1)..=Duration::from_secs(3600);
            assert!(parsed.ttl.is_none_or(|ttl| limits.contains(&ttl)));
            for registration in &parsed.files {
                let Registration { file, names, .. } = registration;
                assert_eq!(file.id, FileId::derive(file.size, &file.root));
                assert!(names.len() <= MAX_NAMES);
                assert!(names.iter().all(|name| Label::parse(name).is_ok()));
                let message = v1::Registration::from(registration);
                assert_eq!(message.encoded_len(), message.encode_to_vec().len());
            }
            check_address(&parsed.address);
            true
        }),
        1 => decode::<v1::RenewRequest>(bytes).is_some_and(|request| {
            let parsed = ParsedRenew::try_from(request);
            parsed.inspect(|it| check_address(&it.address)).is_ok()
        }),
        2 => decode::<v1::UnregisterRequest>(bytes).is_some_and(|request| {
            assert_eq!(list_items(bytes, 2).count(), request.file_ids.len());
            let all = request.all;
            let parsed = ParsedUnregister::try_from(request);
            let check = |it: &ParsedUnregister| assert_eq!(it.files.is_none(), all);
            parsed.inspect(check).is_ok()
        }),
        3 => decode::<v1::QueryRequest>(bytes).is_some_and(|request| {
            let Ok(parsed) = ParsedQuery::try_from(request) else {
                return false;
            };
            assert!((1..=1000).contains(&parsed.page_size));
            assert!((1..=1000).contains(&parsed.max_providers));
            if let QueryKey::Name(name) = &parsed.key {
                assert!(Label::parse(name).is_ok());
            }
            true
        }),
        4 => decode::<v1::SearchRequest>(bytes).is_some_and(|request| {
            let Ok(parsed) = ParsedSearch::try_from(request) else {
                return false;
            };
            assert!((1..=1000).contains(&parsed.page_size));
            let words = parsed.terms.words();
            assert!(words.is_sorted() && words.iter().all(|word| !word.is_empty()));
            // The words of the words are the words.
            let again = terms(&words.join(" "));
            assert!(again.is_ok_and(|again| again.words() == words), "{words:?}");
            true
        }),
        _ => decode::<v1::WatchProvidersRequest>(bytes).is_some_and(|request| {
            let parsed = ParsedWatch::try_from(request);
            let check = |it: &ParsedWatch| assert!((1..=1000).contains(&it.max_providers));
            parsed.inspect(check).is_ok()
        }),
    }
}

fn decode<M: Message + Default>(bytes: &[u8]) -> Option<M> {
    M::decode(bytes).ok()
}

/// An address that the index hands out is the caller's own, or allowed.
fn check_address(claimed: &Address) {
    let caller: IpAddr = "192.0.2.7".parse().expect("an address");
    let allowed: [AllowedHost; 2] =
        ["10.0.0.0/8", "host.example"].map(|text| text.parse().expect("an allowed host"));
    let Ok(resolved) = address::resolve(claimed, Some(caller), &allowed) else {
        return;
    };
    assert_eq!(resolved.port, claimed.port);
    let is_allowed = match resolved.host.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => ip == caller || ip.octets()[0] == 10,
        Ok(IpAddr::V6(_)) => false,
        Err(_) => resolved.host == "host.example",
    };
    assert!(is_allowed, "{claimed:?} became {resolved:?}");
    assert!(!address::host_key(&resolved.host).is_empty());
}

/// A request of each kind.
pub fn request_seeds() -> Vec<Vec<u8>> {
    let registration = |n| v1::Registration::from(&registration(n));
    let address = |host: &str| {
        Some(v1::Address {
            host: host.to_owned(),
            port: 12349,
        })
    };
    let register = v1::RegisterRequest {
        token: vec![1; 32].into(),
        address: address("10.1.2.3"),
        files: vec![registration(1), registration(2)],
        ttl_ms: 60_000,
        replace: true,
        instance: vec![3; 16].into(),
        version: "0.1.0".to_owned(),
    };
    let renew = v1::RenewRequest {
        token: vec![1; 32].into(),
        address: address("Host.Example"),
        ..Default::default()
    };
    let unregister = v1::UnregisterRequest {
        token: vec![1; 32].into(),
        file_ids: vec![vec![7; 32].into()],
        ..Default::default()
    };
    use v1::query_request::Key;
    let query = |key| {
        let request = v1::QueryRequest {
            key: Some(key),
            ..Default::default()
        };
        request.encode_to_vec()
    };
    let search = v1::SearchRequest {
        query: "Größe model-v2 mod".to_owned(),
        page_size: 5000,
        ..Default::default()
    };
    let watch = v1::WatchProvidersRequest {
        file_id: vec![7; 32].into(),
        ..Default::default()
    };
    let messages = [
        (0, register.encode_to_vec()),
        (1, renew.encode_to_vec()),
        (2, unregister.encode_to_vec()),
        (3, query(Key::FileId(vec![7; 32].into()))),
        (3, query(Key::FileIdPrefix("3f9a1234".to_owned()))),
        (3, query(Key::Name("a.bin".to_owned()))),
        (4, search.encode_to_vec()),
        (5, watch.encode_to_vec()),
    ];
    messages.map(|(kind, bytes)| [vec![kind], bytes].concat()).into()
}

/// Page tokens: a token is accepted only for the query, the position and the run that it was made
/// for. The input is a position, and a text that is tried as a token.
pub fn page_token(input: &[u8]) -> bool {
    let tokens = PageTokens::default();
    let (position, text) = input.split_at(input.len().min(PageTokens::MAX_POSITION));
    let text = String::from_utf8_lossy(text);
    let query = ("name", 7);
    for token in [&*text, &hex::encode(input)] {
        let guessed = tokens.position::<SearchCursor>(&query, token);
        assert!(
            matches!(guessed, Ok(None) | Err(_)),
            "a guessed token is accepted"
        );
        assert_eq!(guessed == Ok(None), token.is_empty());
        let guessed = tokens.position::<ListingCursor>(&query, token);
        assert!(
            matches!(guessed, Ok(None) | Err(_)),
            "a guessed token is accepted"
        );
    }
    let search = round_trip::<SearchCursor>(&tokens, position);
    round_trip::<ListingCursor>(&tokens, position) || search
}

fn round_trip<P: PagePosition + PartialEq + std::fmt::Debug + Copy>(
    tokens: &PageTokens,
    bytes: &[u8],
) -> bool {
    let Some(position) = P::from_bytes(bytes) else {
        return false;
    };
    assert_eq!(position.to_bytes(), bytes);
    let token = tokens.token(&"query", Some(position));
    assert_eq!(tokens.position(&"query", &token), Ok(Some(position)));
    assert_eq!(
        tokens.position(&"query", &token.to_uppercase()),
        Ok(Some(position))
    );
    assert!(tokens.position::<P>(&"other", &token).is_err());
    assert!(PageTokens::default().position::<P>(&"query", &token).is_err());
    // The checksum covers each byte.
    for at in [0, bytes.len() / 2, bytes.len() - 1] {
        let mut wrong = hex::decode(&token).expect("hex digits");
        wrong[at] ^= 1;
        assert!(tokens.position::<P>(&"query", &hex::encode(wrong)).is_err());
    }
    true
}

/// Positions and texts.
pub fn page_token_seeds() -> Vec<Vec<u8>> {
    vec![
        vec![1; 8],
        vec![2; 48],
        [&[2; 48][..], b"00ff00ff00ff00ff"].concat(),
    ]
}

/// Stored rows: a segment or a peer that is accepted is stored again as the same. The first byte
/// chooses the row.
pub fn stored_rows(input: &[u8]) -> bool {
    let Some((&kind, row)) = input.split_first() else {
        return false;
    };
    if kind.is_multiple_of(2) {
        let Ok(entries) = segment::decode(row) else {
            return false;
        };
        for (id, registration) in &entries {
            let derived = registration.as_ref().map(|it| match it.file.is_provisional() {
                true => FileId::provisional(it.file.size, &Sha256(it.file.root.0)),
                false => FileId::derive(it.file.size, &it.file.root),
            });
            assert!(derived.is_none_or(|derived| derived == *id));
        }
        let encoded = segment::encode(entries.iter().map(|(id, it)| (*id, it.as_ref())));
        assert_eq!(encoded.iter().map(|it| it.entries).sum::<usize>(), entries.len());
        let again: Result<Vec<_>, _> =
            encoded.iter().map(|it| segment::decode(&it.bytes)).collect();
        assert_eq!(again.expect("an encoded segment").concat(), entries);
        return true;
    }
    let Ok(peer) = segment::decode_peer(row) else {
        return false;
    };
    let encoded = segment::encode_peer(&peer.0, peer.1);
    assert_eq!(segment::decode_peer(&encoded).expect("an encoded peer"), peer);
    true
}

/// A row of each kind.
pub fn stored_row_seeds() -> Vec<Vec<u8>> {
    let files: Vec<_> = (1..5).map(registration).collect();
    let removed = (FileId([9; 32]), None);
    let entries = files
        .iter()
        .map(|file| (file.file.id, Some(file)))
        .chain([removed]);
    let segment = segment::encode(entries).remove(0).bytes;
    let PeerRecord { address, ttl, .. } = peer(1);
    vec![
        [vec![0], segment].concat(),
        [vec![1], segment::encode_peer(&address, ttl)].concat(),
    ]
}

/// A peer of the store targets.
pub fn peer(n: u8) -> PeerRecord {
    PeerRecord {
        id: PeerId([n; 32]),
        address: Address {
            host: format!("192.0.2.{n}"),
            port: 12349,
        },
        // The fourth holds bindings.
        ttl: Duration::from_secs(if n == 4 { 0 } else { 60 }),
    }
}

/// A registration of the store targets.
pub fn registration(n: u64) -> Registration {
    let root = Root([n as u8; 32]);
    let file = FileRecord {
        id: FileId::derive(n, &root),
        size: n,
        root,
        sha256: n.is_multiple_of(3).then_some(Sha256([n as u8; 32])),
        kind: match n % 5 {
            0 => FileKind::Collection,
            _ => FileKind::File,
        },
    };
    Registration {
        file,
        names: vec![format!("file number {n}.bin"); 1 + n as usize % 3],
        is_complete: !n.is_multiple_of(2),
    }
}

/// What the journal of a network holds, as text.
///
/// # Errors
/// The message that the operator of the index sees.
pub fn journal_content(folder: &Path) -> Result<String, String> {
    let journal = Journal::open(folder).map_err(|error| error.to_string())?;
    let members = journal.members();
    let (revoked, peers): (Vec<_>, Vec<_>) =
        (members.revoked().collect(), members.revoked_peers().collect());
    let all: Vec<_> = members.members(None).collect();
    Ok(format!(
        "{all:?} {revoked:?} {peers:?} {}",
        members.revocations_number()
    ))
}

/// Makes change number `step` to the journal in a folder: codes, members, peers and revocations.
///
/// # Errors
/// The message that the operator of the index sees.
pub fn journal_step(folder: &Path, step: u64) -> Result<(), String> {
    let mut journal = Journal::open(folder).map_err(|error| error.to_string())?;
    let now = 1_800_000_000 + step;
    let n = (step / 4) as u8;
    let (member, secret) = (MemberId([n; 16]), Sha256([n; 32]));
    let expires = now + 7 * 24 * 3600;
    let decide = |members: &Membership| match step % 4 {
        0 => members
            .invite(None, secret, Role::ALL[usize::from(n % 3)], Some(2), None, now)
            .ok(),
        1 => match members.enroll(&secret, &member, "machine", now) {
            Ok(Enrollment::New { .. }) => members
                .joined(secret, member, "machine", vec![n; 400], expires, now)
                .ok(),
            _ => None,
        },
        2 => Some(Event::Certified {
            member,
            peer: Some(PeerId([n; 32])),
            expires,
        }),
        _ if n.is_multiple_of(2) => members.revoke(None, &member, now).ok().flatten(),
        _ => members.peer_leaves(&member, PeerId([n; 32]), now).ok().flatten(),
    };
    let done: Result<(), JournalError> = journal.change(|members| Ok(((), decide(members))));
    done.map_err(|error| error.to_string())
}
