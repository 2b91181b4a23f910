//! The calls of the peer service, answered as the conduct of the peer says.

use std::{sync::Arc, time::Duration};

use bytes::{BufMut as _, Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream, server::SendResponse};
use http::{HeaderMap, HeaderValue, Request, Response};
use potluck_core::proto::v1::{self, watch_availability_response::Event};
use prost::Message;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{Conduct, Shared};
use crate::frames::framed;

/// Maximum size of the chunks of honest answers, in bytes.
const CHUNK: usize = 64 * 1024;

/// Chunks that an answer has at least, if it has as many bytes. A client with a limited rate may ask
/// for a few bytes only, and order is nothing that one chunk can break.
const MIN_CHUNKS: usize = 4;

pub(super) async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    shared: Arc<Shared>,
) {
    let Ok(mut connection) = h2::server::handshake(stream).await else {
        return;
    };
    let mut calls = JoinSet::new();
    let hang_up = CancellationToken::new();
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept() => accepted,
            () = hang_up.cancelled() => return,
        };
        let Some(Ok((request, respond))) = accepted else {
            return;
        };
        let (shared, hang_up) = (Arc::clone(&shared), hang_up.clone());
        calls.spawn(async move {
            answer(request, respond, &shared, &hang_up).await;
        });
        while calls.try_join_next().is_some() {}
    }
}

/// The stream of an answer.
struct Answer {
    stream: SendStream<Bytes>,
}

impl Answer {
    fn begin(mut respond: SendResponse<Bytes>) -> Option<Self> {
        let response = Response::builder()
            .header("content-type", "application/grpc")
            .body(())
            .ok()?;
        let stream = respond.send_response(response, false).ok()?;
        Some(Self { stream })
    }

    /// Sends bytes as far as the client's windows allow.
    async fn send(&mut self, bytes: impl Into<Bytes>) -> Option<()> {
        let mut bytes = bytes.into();
        while !bytes.is_empty() {
            self.stream.reserve_capacity(bytes.len());
            let capacity = std::future::poll_fn(|cx| self.stream.poll_capacity(cx));
            let capacity = capacity.await?.ok()?;
            let part = bytes.split_to(capacity.min(bytes.len()));
            self.stream.send_data(part, false).ok()?;
        }
        Some(())
    }

    async fn message(&mut self, message: &impl Message) -> Option<()> {
        self.send(framed(&message.encode_to_vec())).await
    }

    /// Ends the call with a status.
    fn end(mut self, status: &'static str) -> Option<()> {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static(status));
        self.stream.send_trailers(trailers).ok()
    }

    /// Keeps the call open and sends nothing.
    async fn hold(mut self) -> Option<()> {
        let _ = std::future::poll_fn(|cx| self.stream.poll_reset(cx)).await;
        Some(())
    }
}

const OK: &str = "0";
const NOT_FOUND: &str = "5";

async fn receive<M: Message + Default>(mut body: RecvStream) -> Option<M> {
    let mut bytes = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data.ok()?;
        let _ = body.flow_control().release_capacity(data.len());
        bytes.put(data);
    }
    M::decode(bytes.get(5..)?).ok()
}

async fn answer(
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
    shared: &Shared,
    hang_up: &CancellationToken,
) -> Option<()> {
    let (head, body) = request.into_parts();
    let call = shared.conduct.call();
    if call.is_none_or(|call| head.uri.path().ends_with(call)) {
        shared.count_attack();
    }
    match shared.conduct {
        Conduct::SilentCalls => {
            // Holds the stream until the client resets it.
            let mut respond = respond;
            let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
            return None;
        }
        Conduct::GarbageMessages => {
            let mut answer = Answer::begin(respond)?;
            let noise: [[u8; 32]; 8] = rand::random();
            answer.send(framed(&noise.concat())).await?;
            return answer.end(OK);
        }
        _ => {}
    }
    let mut answer = Answer::begin(respond)?;
    match head.uri.path() {
        "/potluck.v1.PeerService/Identify" => {
            let identified = v1::IdentifyResponse {
                peer_id: shared.id.to_bytes(),
            };
            answer.message(&identified).await?;
            answer.end(OK)
        }
        "/potluck.v1.PeerService/Describe" => {
            answer.message(&description(shared)).await?;
            answer.end(OK)
        }
        "/potluck.v1.PeerService/GetPieceHashes" => {
            let request: v1::GetPieceHashesRequest = receive(body).await?;
            piece_hashes(answer, shared, &request).await
        }
        "/potluck.v1.PeerService/WatchAvailability" => availability(answer, shared).await,
        "/potluck.v1.PeerService/Download" => {
            let request: v1::DownloadRequest = receive(body).await?;
            download(answer, shared, &request.spans, hang_up).await
        }
        "/potluck.v1.PeerService/ReportBadPieces" => {
            answer.message(&v1::ReportBadPiecesResponse {}).await?;
            answer.end(OK)
        }
        _ => answer.end("12"),
    }
}

fn description(shared: &Shared) -> v1::DescribeResponse {
    let tree = &shared.tree;
    let mut file = v1::FileRecord {
        file_id: tree.id().to_bytes(),
        size: tree.size,
        root: tree.root.to_bytes(),
        kind: v1::FileKind::File.into(),
        ..Default::default()
    };
    match shared.conduct {
        Conduct::LyingSize => file.size = 1 << 50,
        Conduct::OtherFile => {
            let other = potluck_core::FileId::derive(file.size + 1, &tree.root);
            file.file_id = other.to_bytes();
            file.size += 1;
        }
        _ => {}
    }
    v1::DescribeResponse {
        file: Some(file),
        name: match shared.conduct {
            Conduct::HugeName => "x".repeat(3 << 20),
            _ => "../../hostile.bin".to_owned(),
        },
        complete: true,
        peer_id: shared.id.to_bytes(),
    }
}

async fn piece_hashes(
    mut answer: Answer,
    shared: &Shared,
    request: &v1::GetPieceHashesRequest,
) -> Option<()> {
    let all = &shared.tree.piece_hashes;
    let first = (request.first_piece as usize).min(all.len());
    let end = match request.count {
        0 => all.len(),
        count => all.len().min(first + count as usize),
    };
    let mut hashes = all[first..end].concat();
    match shared.conduct {
        Conduct::OtherHashes => hashes[3] ^= 1,
        Conduct::FewHashes => hashes.truncate(hashes.len() - 32),
        _ => {}
    }
    let mut run = v1::GetPieceHashesResponse {
        first_piece: request.first_piece,
        hashes: hashes.into(),
    };
    answer.message(&run).await?;
    if shared.conduct == Conduct::EndlessHashes {
        loop {
            run.first_piece = run.first_piece.wrapping_add((run.hashes.len() / 32) as u32);
            answer.message(&run).await?;
        }
    }
    answer.end(OK)
}

async fn availability(mut answer: Answer, shared: &Shared) -> Option<()> {
    let units = (shared.tree.piece_hashes.len() as u32).max(1);
    let event = |event| v1::WatchAvailabilityResponse { event: Some(event) };
    let mut snapshot = v1::AvailabilitySnapshot {
        units,
        complete: true,
        file_id: shared.tree.id().to_bytes(),
        ..Default::default()
    };
    match shared.conduct {
        Conduct::WrongUnitCount => snapshot.units = u32::MAX,
        Conduct::ShortBitfield => {
            snapshot.complete = false;
            snapshot.have = Bytes::from_static(&[0xff; 1]);
            snapshot.fetching = Bytes::from(vec![0xff; 1 << 20]);
        }
        Conduct::SnapshotFlood | Conduct::AvailabilityFlood => {
            snapshot.complete = false;
            snapshot.have = Bytes::from(vec![0; units.div_ceil(8) as usize]);
        }
        _ => {}
    }
    answer.message(&event(Event::Snapshot(snapshot.clone()))).await?;
    match shared.conduct {
        Conduct::SnapshotFlood => loop {
            answer.message(&event(Event::Snapshot(snapshot.clone()))).await?;
        },
        Conduct::AvailabilityFlood => {
            let all: Vec<u32> = (0..units).collect();
            for number in 0_u64.. {
                let change = v1::AvailabilityChange {
                    have: if number % 2 == 0 { all.clone() } else { Vec::new() },
                    fetching: all.clone(),
                    abandoned: all.clone(),
                };
                answer.message(&event(Event::Change(change))).await?;
            }
        }
        Conduct::UnitsOutOfRange => {
            let change = v1::AvailabilityChange {
                have: (0..500_000).map(|unit| u32::MAX - unit % 100).collect(),
                ..Default::default()
            };
            answer.message(&event(Event::Change(change))).await?;
        }
        _ => {}
    }
    answer.hold().await
}

/// A chunk as a message.
fn chunk(span: u32, offset: u64, data: &[u8]) -> v1::DownloadResponse {
    v1::DownloadResponse {
        span,
        offset,
        data: Bytes::copy_from_slice(data),
    }
}

/// The chunks of an honest answer.
fn chunks(shared: &Shared, spans: &[v1::Span]) -> Vec<v1::DownloadResponse> {
    let mut chunks = Vec::new();
    let total: u64 = spans.iter().map(|span| span.length).sum();
    let size = (total as usize / MIN_CHUNKS).clamp(1, CHUNK);
    for (number, span) in (0..).zip(spans) {
        let bytes = &shared.data[span.offset as usize..][..span.length as usize];
        for (offset, data) in (span.offset..).step_by(size).zip(bytes.chunks(size)) {
            chunks.push(chunk(number, offset, data));
        }
    }
    chunks
}

async fn download(
    mut answer: Answer,
    shared: &Shared,
    spans: &[v1::Span],
    hang_up: &CancellationToken,
) -> Option<()> {
    let mut chunks = chunks(shared, spans);
    let last = chunks.last().cloned()?;
    let half = chunks.len() / 2;
    match shared.conduct {
        Conduct::FlipsBits => {
            for chunk in &mut chunks {
                let mut data = chunk.data.to_vec();
                data[0] ^= 1;
                chunk.data = data.into();
            }
        }
        Conduct::WrongOffset => chunks.iter_mut().for_each(|chunk| chunk.offset ^= 1),
        Conduct::WrongSpan => chunks.iter_mut().for_each(|chunk| chunk.span = u32::MAX),
        Conduct::OverlappingChunks => {
            chunks = chunks
                .iter()
                .flat_map(|chunk| [chunk.clone(), chunk.clone()])
                .collect();
        }
        Conduct::MissingChunk => drop(chunks.remove(half.min(chunks.len().saturating_sub(2)))),
        Conduct::ReversedChunks => chunks.reverse(),
        Conduct::ShortAnswer => chunks.truncate(half),
        Conduct::TooManyBytes => {
            chunks.push(chunk(last.span, last.offset + last.data.len() as u64, &last.data))
        }
        Conduct::ClaimsAndRefuses => return answer.end(NOT_FOUND),
        Conduct::SilentStream => return answer.hold().await,
        Conduct::ByteASecond => {
            answer
                .send(framed(&chunks[0].encode_to_vec())[..20].to_vec())
                .await?;
            for &byte in &framed(&chunks[0].encode_to_vec())[20..] {
                answer.send(vec![byte]).await?;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            return None;
        }
        Conduct::ResetAfterChunk => {
            answer.message(&chunks[0]).await?;
            answer.stream.send_reset(Reason::INTERNAL_ERROR);
            return None;
        }
        Conduct::HangUpAfterChunk => {
            answer.message(&chunks[0]).await?;
            hang_up.cancel();
            return None;
        }
        Conduct::LyingLength => {
            answer.send(vec![0, 0xff, 0xff, 0xff, 0xff]).await?;
            loop {
                answer.send(vec![0; CHUNK]).await?;
            }
        }
        Conduct::CompressedFlag => {
            let mut message = framed(&chunks[0].encode_to_vec());
            message[0] = 1;
            answer.send(message).await?;
            return answer.end(OK);
        }
        Conduct::EmptyChunks => loop {
            answer.message(&chunk(0, spans[0].offset, &[])).await?;
        },
        Conduct::OneByteChunks => {
            for whole in &chunks {
                let mut messages = Vec::new();
                for (offset, byte) in (whole.offset..).zip(whole.data.chunks(1)) {
                    let one = chunk(whole.span, offset, byte);
                    messages.extend(framed(&one.encode_to_vec()));
                }
                answer.send(messages).await?;
            }
            return answer.end(OK);
        }
        _ => {}
    }
    for chunk in &chunks {
        answer.message(chunk).await?;
    }
    if shared.conduct == Conduct::EndlessStream {
        loop {
            answer.message(&last).await?;
        }
    }
    answer.end(OK)
}
