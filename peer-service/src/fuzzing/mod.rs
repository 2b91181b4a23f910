//! The bodies of fuzz targets over private code of this crate. `fuzz/` runs them. Not a stable
//! interface.
//!
//! A target returns whether it accepted the input, and panics if a property does not hold.

mod patterns;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use potluck_core::{
    FileId, Root,
    availability::AvailabilityUpdate,
    bitfield::Bitfield,
    collection::path::Label,
    grpc::{counting_codec::list_items, transport::Endpoint},
    model::{Address, Labels},
    proto::v1,
};
use potluck_swarm::{Action, PeerKey, Swarm, SwarmConfig};
use prost::Message as _;
use sha2::{Digest as _, Sha256};

use crate::{
    catalog::{
        change::CatalogChange,
        row::{ItemRow, Members, RowBody, WHOLE_ITEM},
        share_options::{LinkPolicy, ShareOptions},
        stamp::Stamp,
    },
    content::FileRange,
    download::{
        peers::rpc::availability::{PeerReport, WatchError},
        seeding::{SeedLimit, Seeding},
        selection::PathFilter,
        status::{DownloadSpec, LimitsUpdate},
        storage::{persisted::PersistedDownload, resume_state::ResumeState},
    },
    limits::Priority,
    store::{
        Store,
        rows::{
            add_members, decode_item, encode_item, encode_members, from_first_version, path_of,
        },
    },
    upload::grpc::wire::{
        MAX_BYTES, MAX_SPANS, encode_piece_hashes, parse_bad_pieces, parse_download,
        parse_piece_hashes,
    },
};

pub use patterns::{ignore_rule_seeds, ignore_rules, path_filter, path_filter_seeds};

/// Requests of other peers: a parsed request is within the limits, and asks for what the message
/// says. The first byte chooses the message.
pub fn requests(input: &[u8]) -> bool {
    let Some((&kind, bytes)) = input.split_first() else {
        return false;
    };
    match kind % 4 {
        0 => {
            let Ok(request) = v1::DownloadRequest::decode(bytes) else {
                return false;
            };
            assert_eq!(list_items(bytes, 1).count(), request.spans.len());
            let Ok(ranges) = parse_download(request.clone()) else {
                return false;
            };
            assert!(ranges.len() <= MAX_SPANS);
            assert!(ranges.iter().map(FileRange::len).sum::<u64>() <= MAX_BYTES);
            for (FileRange { id, range }, span) in ranges.iter().zip(&request.spans) {
                assert_eq!(span.file_id, id.to_bytes());
                assert_eq!((range.start, range.end - range.start), (span.offset, span.length));
            }
            true
        }
        1 => v1::GetPieceHashesRequest::decode(bytes).is_ok_and(|request| {
            let parsed = parse_piece_hashes(&request);
            let count = parsed.as_ref().map(|parsed| parsed.count);
            assert!(count.is_err() || count == Ok(Some(request.count).filter(|count| *count > 0)));
            parsed.is_ok()
        }),
        2 => v1::ReportBadPiecesRequest::decode(bytes).is_ok_and(|request| {
            let parsed = parse_bad_pieces(&request);
            assert!(parsed.as_ref().is_ok_and(|it| it.count > 0) || parsed.is_err());
            parsed.is_ok()
        }),
        _ => {
            let (hashes, _) = bytes.as_chunks::<32>();
            let message = encode_piece_hashes(usize::from(kind), hashes);
            let message = v1::GetPieceHashesResponse::decode(&message[5..]);
            assert_eq!(message.map(|it| it.hashes).as_deref(), Ok(hashes.as_flattened()));
            true
        }
    }
}

/// Requests of each kind.
pub fn request_seeds() -> Vec<Vec<u8>> {
    let span = |offset, length| v1::Span {
        file_id: vec![7; 32].into(),
        offset,
        length,
    };
    let spans = vec![span(0, 131_072), span(1 << 40, 9), span(u64::MAX, 0)];
    let download = v1::DownloadRequest {
        spans,
        ..Default::default()
    };
    let hashes = v1::GetPieceHashesRequest {
        file_id: vec![7; 32].into(),
        first_piece: 3,
        count: 100,
        large_files: true,
    };
    let bad = v1::ReportBadPiecesRequest {
        file_id: vec![7; 32].into(),
        first_piece: 9,
        count: 2,
    };
    let messages = [
        (0, download.encode_to_vec()),
        (1, hashes.encode_to_vec()),
        (2, bad.encode_to_vec()),
        (3, vec![5; 96]),
    ];
    messages.map(|(kind, bytes)| [vec![kind], bytes].concat()).into()
}

/// The file of the availability target.
const FILE: FileId = FileId([7; 32]);

/// Events of other peers about their availability: what is parsed is in range, and any sequence
/// keeps the invariants of a swarm, which then requests only units that a peer has.
///
/// The input is a number of units (1 byte), and messages: a peer (1 byte), a length (1 byte), the
/// message.
pub fn availability(input: &[u8]) -> bool {
    let Some((&units, mut rest)) = input.split_first() else {
        return false;
    };
    let units = u32::from(units);
    let endpoint: Endpoint = "127.0.0.1:1".parse().expect("an address");
    let mut swarm = Swarm::new(
        SwarmConfig::default(),
        vec![16 * 1024; units as usize],
        Bitfield::new(units),
        1,
    );
    let own = Labels::from(v1::Labels {
        zone: "a".into(),
        rack: "1".into(),
    });
    // What each peer has; `None` before its first event.
    let mut known: [Option<Bitfield>; 4] = Default::default();
    let mut now = Duration::ZERO;
    let mut accepted = false;
    for key in 0..4 {
        swarm.peer_joined(PeerKey(key), now);
    }
    while let Some((&[peer, len], after)) = rest.split_first_chunk() {
        let (message, after) = after.split_at(usize::from(len).min(after.len()));
        rest = after;
        let (key, have) = (PeerKey(u64::from(peer % 4)), &mut known[usize::from(peer % 4)]);
        now += Duration::from_millis(u64::from(peer));
        let Ok(event) = v1::WatchAvailabilityResponse::decode(message) else {
            continue;
        };
        let report = PeerReport::parse(&endpoint, event, (FILE, units), have.is_none());
        let update = report.map(|PeerReport { update, labels }| {
            let labels = labels.unwrap_or_default();
            swarm.set_distance(key, own.distance_to(&labels));
            update
        });
        match update {
            Ok(AvailabilityUpdate::Snapshot(snapshot)) => {
                assert_eq!((snapshot.have.len(), snapshot.fetching.len()), (units, units));
                swarm.availability(key, &snapshot, now);
                *have = Some(snapshot.have);
                accepted = true;
            }
            Ok(AvailabilityUpdate::Change(change)) => {
                let have = have.as_mut().expect("a change follows a snapshot");
                let lists = [&change.have, &change.fetching, &change.abandoned];
                for list in lists {
                    assert!(list.len() <= units as usize && list.iter().all(|&unit| unit < units));
                }
                swarm.availability_changed(key, lists[0], lists[1], lists[2], now);
                for &unit in &change.have {
                    have.set(unit, true);
                }
                accepted = true;
            }
            Err(WatchError::Failed(problem) | WatchError::UnitCountMismatch(problem)) => {
                assert!(!problem.message.is_empty());
            }
        }
        while let Some(action) = swarm.poll_action(now) {
            if let Action::Request { peer, unit, .. } = action {
                let have = known[peer.0 as usize].as_ref();
                assert!(have.is_some_and(|have| have.get(unit)), "{peer:?} lacks {unit}");
            }
        }
        for view in swarm.peers() {
            let have = known[view.key.0 as usize].as_ref();
            assert_eq!(view.units, have.map_or(0, Bitfield::count), "{view:?}");
        }
        swarm.handle_timeout(now);
    }
    accepted
}

/// Sequences of snapshots and changes.
pub fn availability_seeds() -> Vec<Vec<u8>> {
    use v1::watch_availability_response::Event;
    let snapshot = |have: &'static [u8], fetching: &'static [u8], complete| {
        Event::Snapshot(v1::AvailabilitySnapshot {
            units: 12,
            complete,
            have: have.into(),
            fetching: fetching.into(),
            file_id: FILE.to_bytes(),
            labels: complete.then(|| v1::Labels {
                zone: "a".into(),
                rack: "2".into(),
            }),
        })
    };
    let change = |have: &[u32], fetching: &[u32], abandoned: &[u32]| {
        Event::Change(v1::AvailabilityChange {
            have: have.to_vec(),
            fetching: fetching.to_vec(),
            abandoned: abandoned.to_vec(),
        })
    };
    let sequence = |events: Vec<(u8, Event)>| {
        let mut input = vec![12];
        for (peer, event) in events {
            let message = v1::WatchAvailabilityResponse { event: Some(event) }.encode_to_vec();
            input.extend([peer, message.len() as u8]);
            input.extend(message);
        }
        input
    };
    vec![
        sequence(vec![(0, snapshot(&[], &[], true))]),
        sequence(vec![
            (1, snapshot(&[0b1010_0000, 0], &[0b0101_0000, 0b1111_0000], false)),
            (1, change(&[1, 3], &[4, 5], &[8])),
            (2, snapshot(&[], &[], false)),
            (2, change(&[0, 0, 11], &[0], &[])),
            (1, snapshot(&[0xff, 0xf0], &[0xff, 0xf0], false)),
            (5, snapshot(&[], &[], false)),
        ]),
    ]
}

/// Resume states: one that is accepted is what a peer writes, or an earlier version, which is not
/// trusted. The input is a state, with and without its checksum.
pub fn resume_state(input: &[u8]) -> bool {
    let sealed = [input, Sha256::digest(input).as_slice()].concat();
    let check = |bytes: &[u8]| {
        let Some(state) = ResumeState::decode(bytes) else {
            return false;
        };
        let encoded = state.encode();
        match bytes[..8] == encoded[..8] {
            true => assert_eq!(encoded, bytes),
            false => assert_eq!(state.inode, 0, "an earlier version is trusted"),
        }
        assert_eq!(ResumeState::decode(&encoded), Some(state));
        true
    };
    let plain = check(input);
    check(&sealed) || plain
}

/// States of each version.
pub fn resume_state_seeds() -> Vec<Vec<u8>> {
    let state = |units| ResumeState {
        id: FILE,
        size: 123_456,
        inode: 77,
        have: Bitfield::full(units),
    };
    let current = state(9).encode();
    let body = current[..current.len() - 32].to_vec();
    let other_units = [b"PLPART2\n", &body[8..]].concat();
    let without_inode = [b"PLPART1\n", &body[8..48], &body[56..]].concat();
    let empty = state(0).encode();
    let empty = empty[..empty.len() - 32].to_vec();
    vec![current, body, other_units, without_inode, empty]
}

/// Rows of shared items: a row that is accepted is what a peer writes. The first byte chooses the
/// kind of row.
pub fn item_rows(input: &[u8]) -> bool {
    let Some((&kind, row)) = input.split_first() else {
        return false;
    };
    match kind % 3 {
        0 => decode_item(row).is_some_and(|item| {
            assert!(item.path.is_absolute());
            assert_eq!(encode_item(&item), row);
            true
        }),
        1 => {
            let mut members = Members::default();
            let accepted = add_members(&mut members, row);
            assert_eq!(accepted, row.len().is_multiple_of(64));
            assert_eq!(members.stamps.len(), members.roots.len());
            if accepted {
                assert_eq!(encode_members(&members).collect::<Vec<_>>().concat(), row);
            }
            accepted
        }
        _ => from_first_version(row).is_some_and(|row| {
            // The root is unknown.
            decode_item(&row).is_none_or(|item| item.root == Root([0; 32]) || row[0] > 1)
        }),
    }
}

/// Rows of each kind.
pub fn item_row_seeds() -> Vec<Vec<u8>> {
    let item = |number| [vec![0], encode_item(&item(number))].concat();
    let members = members(3);
    let members = encode_members(&members).flatten();
    let first = [&[2, 0][..], &[7; 32], &[1; 32], b"/a"].concat();
    let mut seeds: Vec<_> = (0..4).map(item).collect();
    seeds.extend([[1].into_iter().chain(members).collect(), first]);
    seeds
}

/// Stored downloads: what is accepted is stored again as the same download.
pub fn persisted_download(input: &[u8]) -> bool {
    let Some(download) = PersistedDownload::decode(input) else {
        return false;
    };
    // A priority that is out of range becomes the default, so the first round may change it.
    let again = PersistedDownload::decode(&download.encode()).expect("an encoded download");
    assert_eq!(again.spec.id, download.spec.id);
    assert_eq!(again.spec.target, download.spec.target);
    assert_eq!(again.spec.filter, download.spec.filter);
    assert_eq!(again.seeding, download.seeding);
    assert_eq!(again.created_at, download.created_at);
    assert_eq!(PersistedDownload::decode(&again.encode()), Some(again));
    true
}

/// A small download, and one with all fields.
pub fn persisted_download_seeds() -> Vec<Vec<u8>> {
    let plain = download(0);
    let full = PersistedDownload {
        spec: DownloadSpec {
            name: Some("a b".into()),
            target: Some("/x/y".into()),
            sha256: Some(potluck_core::Sha256([4; 32])),
            providers: vec![Address {
                host: "::1".into(),
                port: 7,
            }],
            seed: Some(SeedLimit::Ratio(1500)),
            filter: PathFilter::new(vec!["*.json".into()], vec!["a/**".into()])
                .expect("valid globs"),
            limits: LimitsUpdate {
                max_bytes_per_second: Some(u64::MAX),
                priority: Priority::new(3),
            },
            ..plain.spec.clone()
        },
        path: Some("/x/y".into()),
        seeding: Some(Seeding {
            since: std::time::UNIX_EPOCH + Duration::from_secs(1_796_000_001),
            size: 7,
            uploaded: 8,
        }),
        ..plain.clone()
    };
    vec![plain.encode(), full.encode()]
}

fn stamp(n: u64) -> Stamp {
    Stamp {
        size: n,
        mtime: -(n as i64),
        inode: n + 1,
        ctime: i64::MAX - n as i64,
    }
}

fn members(entries: u64) -> Members {
    Members {
        stamps: (0..entries).map(stamp).collect(),
        roots: (0..entries).map(|n| Root([n as u8; 32])).collect(),
    }
}

/// Item number `number` of the store targets.
fn item(number: u64) -> ItemRow {
    let options = ShareOptions {
        links: LinkPolicy::Follow,
        is_strict: true,
        exclude: vec!["*.tmp".into(), "ü/".into()],
    };
    ItemRow {
        path: path_of(format!("/shared/{number}/not utf-8 \u{ff}").as_bytes()).into(),
        is_unrequested: number.is_multiple_of(3),
        label: (number % 4 == 1).then(|| Label::sanitize(&format!("label {number}"))),
        options: (number % 4 == 2).then(|| Arc::new(options)),
        id: FileId([number as u8; 32]),
        root: Root([number as u8 + 1; 32]),
        body: match number % 5 {
            4 => RowBody::Collection(Arc::new(members(30 * number))),
            _ => RowBody::File(stamp(number)),
        },
    }
}

fn download(number: u64) -> PersistedDownload {
    PersistedDownload {
        spec: DownloadSpec::new(FileId([number as u8; 32])),
        running: true,
        name: format!("download {number}"),
        path: None,
        seeding: None,
        created_at: Some(std::time::UNIX_EPOCH + Duration::from_secs(1_796_000_000 + number)),
    }
}

/// What a peer's store holds, as text, and where a damaged one was moved.
pub type StoreContent = (String, Option<PathBuf>);

/// Opens the store in a folder and reads all of it.
///
/// # Errors
/// The store cannot be opened or read.
pub fn store_content(folder: &Path) -> Result<StoreContent, String> {
    let store = Store::open_in(folder).map_err(|error| error.to_string())?;
    let read = || {
        let items = store.items(None, usize::MAX)?;
        let mut layers = Vec::new();
        for number in 0..STEPS {
            layers.push(store.layer(&FileId([number as u8; 32]))?);
        }
        let (tombstones, damaged) = (store.tombstones()?, store.damaged()?);
        let downloads = store.downloads()?;
        let content = format!("{items:?} {layers:?} {tombstones:?} {damaged:?} {downloads:?}");
        Ok::<_, crate::store::StoreError>(content)
    };
    let content = read().map_err(|error| error.to_string())?;
    let aside = std::fs::read_dir(folder).map_err(|error| error.to_string())?;
    let mut aside = aside.filter_map(|entry| Some(entry.ok()?.path()));
    let is_aside = |path: &PathBuf| path.to_string_lossy().contains("redb.damaged");
    Ok((content, aside.find(is_aside)))
}

/// Number of different changes that [`store_step`] makes.
pub const STEPS: u64 = 24;

/// Makes change number `step` to the store in a folder: it adds, replaces and removes rows of each
/// kind.
///
/// # Errors
/// The store cannot be opened or written.
pub fn store_step(folder: &Path, step: u64) -> Result<(), String> {
    let store = Store::open_in(folder).map_err(|error| error.to_string())?;
    let id = FileId([step as u8; 32]);
    let layer: Arc<[[u8; 32]]> = vec![[step as u8; 32]; 64].into();
    let mut changes = vec![
        CatalogChange::PutItem(step, item(step)),
        CatalogChange::PutSha256s(step, vec![(WHOLE_ITEM, potluck_core::Sha256([9; 32]))]),
        CatalogChange::PutLayer(id, layer),
        CatalogChange::AddTombstone(format!("/hidden/{step}").into()),
    ];
    if step.is_multiple_of(2) {
        changes.push(CatalogChange::PutDamaged(step, 0));
    }
    if step % 3 == 2 {
        changes.push(CatalogChange::RemoveItem(step - 1));
        changes.push(CatalogChange::RemoveTombstone(
            format!("/hidden/{}", step - 1).into(),
        ));
        changes.push(CatalogChange::RemoveLayer(FileId([step as u8 - 2; 32])));
    }
    let written = store.apply(&changes).and_then(|()| {
        let done = (step % 4 == 3).then(|| (step - 2, None));
        let new = (step, Some(download(step).encode()));
        store.write_downloads(&[new].into_iter().chain(done).collect::<Vec<_>>())
    });
    written.map_err(|error| error.to_string())
}
