//! Attacks with gRPC calls whose HTTP/2 is right.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use potluck_core::{network::key::IdentityKey, proto::v1};
use prost::Message as _;

use super::{
    ClientAttack, Scope,
    lane::{DEFAULT_WINDOW, H2Connection, Lane},
};
use crate::{frames::framed, target::Service};

const SECOND: Duration = Duration::from_secs(1);

/// Calls on one connection at once.
const CALLS: usize = 100;

pub(super) const ATTACKS: &[ClientAttack] = &[
    ClientAttack {
        name: "zero-window",
        description: "asks for large answers and never opens the window",
        scope: Scope::Any,
        lanes: 16,
        run: |lane| Box::pin(unread_answers(lane, 0)),
    },
    ClientAttack {
        name: "tiny-window",
        description: "asks for large answers and takes one byte of each",
        scope: Scope::Any,
        lanes: 16,
        run: |lane| Box::pin(unread_answers(lane, 1)),
    },
    ClientAttack {
        name: "slow-body",
        description: "sends a byte a second of each of 1,600 requests",
        scope: Scope::Any,
        lanes: 16,
        run: |lane| Box::pin(slow_body(lane)),
    },
    ClientAttack {
        name: "half-open-body",
        description: "sends whole requests and never ends them",
        scope: Scope::Any,
        lanes: 16,
        run: |lane| Box::pin(half_open_body(lane)),
    },
    ClientAttack {
        name: "half-sent-body",
        description: "sends all but the last byte of the largest requests",
        scope: Scope::Any,
        lanes: 8,
        run: |lane| Box::pin(half_sent_body(lane)),
    },
    ClientAttack {
        name: "idle-streams",
        description: "opens as many calls as the server allows and sends no request",
        scope: Scope::Any,
        lanes: 16,
        run: |lane| Box::pin(idle_streams(lane)),
    },
    ClientAttack {
        name: "lying-length",
        description: "announces a message of 4 GiB",
        scope: Scope::Any,
        lanes: 4,
        run: |lane| Box::pin(repeated(lane, &[], |_| lying_length())),
    },
    ClientAttack {
        name: "compressed-message",
        description: "sets the flag of a compressed message, and sends a gzip bomb",
        scope: Scope::Any,
        lanes: 4,
        run: |lane| Box::pin(repeated(lane, GZIP, |_| compressed())),
    },
    ClientAttack {
        name: "garbage-message",
        description: "sends random bytes as a message",
        scope: Scope::Any,
        lanes: 4,
        run: |lane| Box::pin(repeated(lane, &[], |_| garbage())),
    },
    ClientAttack {
        name: "unknown-method",
        description: "calls methods that do not exist",
        scope: Scope::Any,
        lanes: 4,
        run: |lane| Box::pin(unknown_method(lane)),
    },
    ClientAttack {
        name: "huge-lists",
        description: "sends the largest request, filled with two million empty entries",
        scope: Scope::Any,
        lanes: 4,
        run: |lane| Box::pin(repeated(lane, &[], huge_list)),
    },
    ClientAttack {
        name: "watch-flood",
        description: "opens 10,000 watches",
        scope: Scope::Any,
        lanes: 20,
        run: |lane| Box::pin(watch_flood(lane)),
    },
    ClientAttack {
        name: "diagnostics-flood",
        description: "opens streams of the services for health and reflection",
        scope: Scope::Any,
        lanes: 4,
        run: |lane| Box::pin(diagnostics_flood(lane)),
    },
    ClientAttack {
        name: "broad-searches",
        description: "searches for all files, and for prefixes that many names have",
        scope: Scope::Index,
        lanes: 4,
        run: |lane| Box::pin(broad_searches(lane)),
    },
    ClientAttack {
        name: "enroll-flood",
        description: "tries to enrol with wrong codes, without a certificate",
        scope: Scope::PrivateIndex,
        lanes: 4,
        run: |lane| Box::pin(enroll_flood(lane)),
    },
    ClientAttack {
        name: "calls-of-outsiders",
        description: "makes calls for members without a certificate",
        scope: Scope::PrivateIndex,
        lanes: 4,
        run: |lane| Box::pin(calls_of_outsiders(lane)),
    },
];

const GZIP: &[(&str, &str)] = &[("grpc-encoding", "gzip")];

const HEALTH_WATCH: &str = "/grpc.health.v1.Health/Watch";
const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
const REGISTER: &str = "/potluck.v1.IndexService/Register";
const SEARCH: &str = "/potluck.v1.IndexService/Search";
const DOWNLOAD: &str = "/potluck.v1.PeerService/Download";

/// The call with the largest request.
fn largest_call(lane: &Lane) -> &'static str {
    match lane.target.service {
        Service::Index => REGISTER,
        Service::Peer => DOWNLOAD,
    }
}

/// Size of the largest request, in bytes.
fn largest_request(lane: &Lane) -> usize {
    match lane.target.service {
        Service::Index => 4 * 1024 * 1024 - 1024,
        Service::Peer => 200 * 1024,
    }
}

/// A call with a large answer, and its request.
fn large_answer(lane: &Lane) -> (&'static str, Bytes) {
    match lane.target.service {
        Service::Index => {
            let request = v1::SearchRequest {
                page_size: 1_000,
                ..Default::default()
            };
            (SEARCH, framed(&request.encode_to_vec()).into())
        }
        Service::Peer => {
            let span = v1::Span {
                file_id: lane.target.file.to_bytes(),
                offset: 0,
                length: lane.target.data.len() as u64,
            };
            let request = v1::DownloadRequest {
                spans: vec![span; 4],
                ..Default::default()
            };
            (DOWNLOAD, framed(&request.encode_to_vec()).into())
        }
    }
}

/// Opens a connection and makes one small call, as a peer does that renews its lease.
pub(super) async fn open_and_call(lane: &Lane) -> Option<H2Connection> {
    let connection = lane.open_h2(DEFAULT_WINDOW).await?;
    let path = match lane.target.service {
        Service::Index => "/potluck.v1.IndexService/GetStats",
        Service::Peer => "/potluck.v1.PeerService/Identify",
    };
    connection.call(path, &[], framed(&[]), 10 * SECOND).await?;
    Some(connection)
}

/// Waits until the server closes the connection.
pub(super) async fn until_closed(connection: &H2Connection) {
    while connection.is_open() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn unread_answers(lane: Lane, window: u32) -> Option<()> {
    let connection = lane.open_h2(window).await?;
    let (path, request) = large_answer(&lane);
    let mut held = Vec::new();
    for _ in 0..CALLS {
        let (response, mut sending) = connection.begin(path, &[]).await?;
        sending.send_data(request.clone(), true).ok()?;
        held.push((response, sending));
    }
    until_closed(&connection).await;
    Some(())
}

async fn slow_body(lane: Lane) -> Option<()> {
    let connection = lane.open_h2(DEFAULT_WINDOW).await?;
    let mut calls = Vec::new();
    for _ in 0..CALLS {
        calls.push(connection.begin(largest_call(&lane), &[]).await?);
    }
    while connection.is_open() {
        for (_, sending) in &mut calls {
            // A call that the server ended takes no more.
            let _ = sending.send_data(Bytes::from_static(&[0]), false);
        }
        tokio::time::sleep(SECOND).await;
    }
    Some(())
}

async fn half_open_body(lane: Lane) -> Option<()> {
    let connection = lane.open_h2(DEFAULT_WINDOW).await?;
    let (path, request) = large_answer(&lane);
    let mut held = Vec::new();
    for _ in 0..CALLS {
        let (response, mut sending) = connection.begin(path, &[]).await?;
        sending.send_data(request.clone(), false).ok()?;
        held.push((response, sending));
    }
    until_closed(&connection).await;
    Some(())
}

async fn half_sent_body(lane: Lane) -> Option<()> {
    let connection = lane.open_h2(DEFAULT_WINDOW).await?;
    let request = Bytes::from(framed(&vec![0; largest_request(&lane)]));
    let mut held = Vec::new();
    for _ in 0..CALLS {
        let (response, mut sending) = connection.begin(largest_call(&lane), &[]).await?;
        let most = request.slice(..request.len() - 1);
        sending.send_data(most, false).ok()?;
        held.push((response, sending));
    }
    until_closed(&connection).await;
    Some(())
}

async fn idle_streams(lane: Lane) -> Option<()> {
    let connection = lane.open_h2(DEFAULT_WINDOW).await?;
    let mut held = Vec::new();
    while connection.is_open() {
        // Waits here once the server allows no more.
        held.push(connection.begin(largest_call(&lane), &[]).await?);
    }
    Some(())
}

/// Makes calls with these bytes without pause.
async fn repeated(
    lane: Lane,
    headers: &[(&'static str, &'static str)],
    body: fn(&Lane) -> Bytes,
) -> Option<()> {
    const AT_ONCE: usize = 8;
    let connection = lane.open_h2(DEFAULT_WINDOW).await?;
    let path = largest_call(&lane);
    loop {
        let calls = (0..AT_ONCE).map(|_| connection.call(path, headers, body(&lane), SECOND));
        join_all(calls).await.into_iter().collect::<Option<()>>()?;
    }
}

fn lying_length() -> Bytes {
    [&[0, 0xff, 0xff, 0xff, 0xff][..], &[0; 1024]].concat().into()
}

fn compressed() -> Bytes {
    // The header of a gzip file, and noise.
    let gzip = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 2, 3, 0xed, 0xc1, 1, 1];
    let mut message = framed(&[&gzip[..], &[0; 512]].concat());
    message[0] = 1;
    message.into()
}

fn garbage() -> Bytes {
    let noise: [[u8; 32]; 32] = rand::random();
    framed(&noise.concat()).into()
}

fn huge_list(lane: &Lane) -> Bytes {
    // Field 3 of a registration or field 1 of a download, both empty messages.
    let entry = match lane.target.service {
        Service::Index => [0x1a, 0],
        Service::Peer => [0x0a, 0],
    };
    framed(&entry.repeat(largest_request(lane) / 2)).into()
}

async fn unknown_method(lane: Lane) -> Option<()> {
    let connection = lane.open_h2(DEFAULT_WINDOW).await?;
    loop {
        let path = format!("/potluck.v1.Unknown/{:x}", rand::random::<u64>());
        let body = framed(&[0; 1024]);
        connection.call(&path, &[], body, SECOND).await?;
    }
}

async fn watch_flood(lane: Lane) -> Option<()> {
    const WATCHES: usize = 500;
    let (path, request) = match lane.target.service {
        Service::Index => {
            let request = v1::WatchProvidersRequest {
                file_id: lane.target.file.to_bytes(),
                max_providers: 1_000,
            };
            ("/potluck.v1.IndexService/WatchProviders", request.encode_to_vec())
        }
        Service::Peer => {
            let request = v1::WatchAvailabilityRequest {
                file_id: lane.target.file.to_bytes(),
            };
            (
                "/potluck.v1.PeerService/WatchAvailability",
                request.encode_to_vec(),
            )
        }
    };
    hold_streams(&lane, path, framed(&request).into(), WATCHES).await
}

/// Opens streams and keeps them, each with what was received of its answer.
async fn hold_streams(lane: &Lane, path: &str, request: Bytes, count: usize) -> Option<()> {
    let connection = lane.open_h2(DEFAULT_WINDOW).await?;
    let mut held = Vec::new();
    for _ in 0..count {
        let (response, mut sending) = connection.begin(path, &[]).await?;
        sending.send_data(request.clone(), true).ok()?;
        held.push((response, sending));
    }
    until_closed(&connection).await;
    Some(())
}

async fn diagnostics_flood(lane: Lane) -> Option<()> {
    let (path, request) = match rand::random() {
        true => (HEALTH_WATCH, Vec::new()),
        // Asks for all services.
        false => (REFLECTION, vec![0x3a, 0]),
    };
    hold_streams(&lane, path, framed(&request).into(), 500).await
}

async fn broad_searches(lane: Lane) -> Option<()> {
    let connection = lane.open_h2(DEFAULT_WINDOW).await?;
    loop {
        for query in ["", "x", "s", "bait x"] {
            let request = v1::SearchRequest {
                query: query.to_owned(),
                page_size: 1_000,
                ..Default::default()
            };
            let request = framed(&request.encode_to_vec());
            connection.call(SEARCH, &[], request, SECOND).await?;
        }
    }
}

async fn enroll_flood(lane: Lane) -> Option<()> {
    const AT_ONCE: usize = 8;
    let connection = lane.open_anonymous_h2().await?;
    let signing_request = IdentityKey::generate().ok()?.signing_request().ok()?;
    loop {
        let calls = (0..AT_ONCE).map(|_| {
            let request = v1::EnrollRequest {
                secret: rand::random::<[u8; 32]>().to_vec().into(),
                signing_request: signing_request.clone().into(),
                name: "hostile".to_owned(),
            };
            let request = framed(&request.encode_to_vec());
            connection.call("/potluck.v1.NetworkService/Enroll", &[], request, SECOND)
        });
        join_all(calls).await.into_iter().collect::<Option<()>>()?;
    }
}

async fn calls_of_outsiders(lane: Lane) -> Option<()> {
    const AT_ONCE: usize = 8;
    let connection = lane.open_anonymous_h2().await?;
    loop {
        for path in [SEARCH, REGISTER, REFLECTION] {
            let calls = (0..AT_ONCE).map(|_| connection.call(path, &[], framed(&[]), SECOND));
            join_all(calls).await.into_iter().collect::<Option<()>>()?;
        }
    }
}
