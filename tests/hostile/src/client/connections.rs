//! Attacks with connections, before any HTTP/2 call.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{ClientAttack, Scope, lane::Lane};
use crate::frames::{self, PREFACE};

pub(super) const ATTACKS: &[ClientAttack] = &[
    ClientAttack {
        name: "connection-flood",
        description: "opens 1,000 TCP connections and sends nothing",
        scope: Scope::Any,
        lanes: 1_000,
        run: |lane| Box::pin(connection_flood(lane)),
    },
    ClientAttack {
        name: "connect-and-drop",
        description: "connects with all handshakes and hangs up, without pause",
        scope: Scope::Any,
        lanes: 8,
        run: |lane| Box::pin(connect_and_drop(lane)),
    },
    ClientAttack {
        name: "half-open-handshake",
        description: "sends the start of a TLS handshake, or of the preface, on 500 connections",
        scope: Scope::Any,
        lanes: 500,
        run: |lane| Box::pin(half_open_handshake(lane)),
    },
    ClientAttack {
        name: "handshake-and-nothing",
        description: "completes the TLS handshake on 200 connections and sends no preface",
        scope: Scope::Tls,
        lanes: 200,
        run: |lane| Box::pin(handshake_and_nothing(lane)),
    },
    ClientAttack {
        name: "preface-and-nothing",
        description: "sends preface and settings on 200 connections, and nothing more",
        scope: Scope::Any,
        lanes: 200,
        run: |lane| Box::pin(preface_and_nothing(lane)),
    },
    ClientAttack {
        name: "key-update-flood",
        description: "asks for new TLS keys without pause and reads nothing",
        scope: Scope::Tls,
        lanes: 4,
        run: |lane| Box::pin(key_update_flood(lane)),
    },
    ClientAttack {
        name: "not-http2",
        description: "sends HTTP/1 requests, and noise where HTTP/2 is expected",
        scope: Scope::Any,
        lanes: 8,
        run: |lane| Box::pin(not_http2(lane)),
    },
];

async fn connection_flood(lane: Lane) -> Option<()> {
    let mut stream = lane.target.connect_briefly().await.ok()?;
    lane.count_connection();
    stream.read_u8().await.ok()?;
    Some(())
}

async fn connect_and_drop(lane: Lane) -> Option<()> {
    loop {
        let mut wire = lane.connect().await?;
        wire.write_all(&frames::opening()).await.ok()?;
        lane.count_sent(1);
    }
}

async fn half_open_handshake(lane: Lane) -> Option<()> {
    let mut stream = lane.target.connect_tcp().await.ok()?;
    lane.count_connection();
    let hello = lane.target.client_hello().unwrap_or_else(|| PREFACE.to_vec());
    // Half of the connections make the server answer with its certificate.
    let is_whole = rand::random() && lane.target.tls.is_some();
    let end = if is_whole { hello.len() } else { hello.len() - 1 };
    stream.write_all(&hello[..end]).await.ok()?;
    while stream.read(&mut [0; 4096]).await.ok()? > 0 {}
    Some(())
}

async fn handshake_and_nothing(lane: Lane) -> Option<()> {
    let mut wire = lane.connect().await?;
    while wire.read(&mut [0; 4096]).await.ok()? > 0 {}
    Some(())
}

async fn preface_and_nothing(lane: Lane) -> Option<()> {
    let mut connection = lane.open_raw().await?;
    connection.closed().await;
    Some(())
}

async fn key_update_flood(lane: Lane) -> Option<()> {
    /// Updates in one write.
    const BATCH: usize = 100;
    let tls = lane.target.tls.as_ref()?;
    let mut stream = lane.target.connect_tls(&tls.member).await.ok()?;
    lane.count_connection();
    stream.write_all(&frames::opening()).await.ok()?;
    loop {
        for _ in 0..BATCH {
            stream.get_mut().1.refresh_traffic_keys().ok()?;
        }
        stream.flush().await.ok()?;
        lane.count_sent(BATCH);
        tokio::task::yield_now().await;
    }
}

async fn not_http2(lane: Lane) -> Option<()> {
    let mut wire = lane.connect().await?;
    let noise = match rand::random() {
        true => b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".repeat(1_000),
        false => vec![0xff; 256 * 1024],
    };
    wire.write_all(&noise).await.ok()?;
    lane.count_sent(1);
    let limit = Duration::from_secs(1);
    let _ = tokio::time::timeout(limit, wire.read(&mut [0; 4096])).await;
    Some(())
}
