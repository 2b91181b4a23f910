//! A bare tonic stream, as a baseline for benchmarks: no scheduling, persistence, limits or guards.
//!
//! `serve` reads a file straight into tonic's encode buffer. `fetch` requests ranges from all
//! sources at the same time, hashes the leaves sixteen at a time, verifies nothing, and writes the
//! file. It uses stream windows of 2 MiB, messages of 256 KiB, ranges of 4 MiB, and two streams per
//! source. `hash` is the baseline for sharing; see `hash.rs`.

use std::{
    fs::{File, OpenOptions},
    net::SocketAddr,
    os::unix::fs::FileExt as _,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use anyhow::{Context as _, Result};
use bytes::{Buf as _, BufMut as _, Bytes};
use clap::{Parser, Subcommand};
use futures_util::{StreamExt as _, future, stream::BoxStream};
use potluck_core::identity::merkle;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Request, Response, Status,
    body::Body,
    client,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::Service,
    server::{self, NamedService, ServerStreamingService},
    transport::{Channel, Endpoint, Server},
};

mod hash;

const MESSAGE: u64 = 256 * 1024;
const RANGE: u64 = 4 * 1024 * 1024;
const STREAMS: usize = 2;
const STREAM_WINDOW: u32 = 2 * 1024 * 1024;
const PATH: &str = "/bare.Bare/Read";

#[derive(Parser)]
#[command(about)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve one file
    Serve {
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: SocketAddr,
        #[arg(long)]
        file: PathBuf,
    },
    /// Download the file from all sources at the same time
    Fetch {
        #[arg(long)]
        out: PathBuf,
        #[arg(long = "source", required = true, num_args = 1..)]
        sources: Vec<SocketAddr>,
        /// Do not hash the received bytes
        #[arg(long)]
        no_hash: bool,
    },
    /// Hash the leaves of all files in a folder
    Hash { folder: PathBuf },
}

/// A range of the file: offset and length, in bytes.
type Range = (u64, u64);

/// A part of the file, read when it is encoded.
struct Chunk {
    file: Arc<File>,
    offset: u64,
    len: u64,
}

#[derive(Default)]
struct ServerCodec;

impl Codec for ServerCodec {
    type Encode = Chunk;
    type Decode = Range;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for ServerCodec {
    type Item = Chunk;
    type Error = Status;

    #[allow(
        unsafe_code,
        reason = "reads into memory that is not filled with zeros first"
    )]
    fn encode(&mut self, chunk: Chunk, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let mut left = chunk.len as usize;
        while left > 0 {
            buffer.reserve(left);
            let room = buffer.chunk_mut();
            let len = room.len().min(left);
            // SAFETY: `read_exact_at` only writes to the slice, and the buffer advances only after
            // the slice is filled.
            let bytes = unsafe { std::slice::from_raw_parts_mut(room.as_mut_ptr(), len) };
            chunk
                .file
                .read_exact_at(bytes, chunk.offset + chunk.len - left as u64)?;
            // SAFETY: `read_exact_at` has filled these bytes.
            unsafe { buffer.advance_mut(len) };
            left -= len;
        }
        Ok(())
    }
}

impl Decoder for ServerCodec {
    type Item = Range;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Range>, Status> {
        Ok(Some((buffer.get_u64(), buffer.get_u64())))
    }
}

#[derive(Default)]
struct ClientCodec;

impl Codec for ClientCodec {
    type Encode = Range;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for ClientCodec {
    type Item = Range;
    type Error = Status;

    fn encode(&mut self, (offset, len): Range, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_u64(offset);
        buffer.put_u64(len);
        Ok(())
    }
}

impl Decoder for ClientCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

#[derive(Clone)]
struct Bare {
    file: Arc<File>,
    size: u64,
}

impl NamedService for Bare {
    const NAME: &'static str = "bare.Bare";
}

impl Service<http::Request<Body>> for Bare {
    type Response = http::Response<Body>;
    type Error = std::convert::Infallible;
    type Future = future::BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let bare = self.clone();
        Box::pin(async move {
            Ok(server::Grpc::new(ServerCodec)
                .server_streaming(bare, request)
                .await)
        })
    }
}

impl ServerStreamingService<Range> for Bare {
    type Response = Chunk;
    type ResponseStream = BoxStream<'static, Result<Chunk, Status>>;
    type Future = future::Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Range>) -> Self::Future {
        let (offset, len) = request.into_inner();
        let end = offset.saturating_add(len).min(self.size);
        let file = self.file.clone();
        let chunks = (offset..end).step_by(MESSAGE as usize).map(move |offset| {
            Ok(Chunk {
                file: file.clone(),
                offset,
                len: MESSAGE.min(end - offset),
            })
        });
        let mut response = Response::new(futures_util::stream::iter(chunks).boxed());
        response.metadata_mut().insert("size", self.size.into());
        future::ready(Ok(response))
    }
}

async fn serve(listen: SocketAddr, path: PathBuf) -> Result<()> {
    let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    let size = file.metadata()?.len();
    let listener = TcpListener::bind(listen).await?;
    println!("listening on {}", listener.local_addr()?);
    let connections = TcpListenerStream::new(listener).map(|stream| {
        let stream = stream?;
        stream.set_nodelay(true)?;
        Ok::<_, std::io::Error>(stream)
    });
    let bare = Bare {
        file: Arc::new(file),
        size,
    };
    Server::builder()
        .add_service(bare)
        .serve_with_incoming(connections)
        .await?;
    Ok(())
}

async fn read(channel: &Channel, range: Range) -> Result<Response<tonic::Streaming<Bytes>>> {
    let mut client =
        client::Grpc::new(channel.clone()).max_decoding_message_size(2 * MESSAGE as usize);
    client.ready().await?;
    let path = http::uri::PathAndQuery::from_static(PATH);
    Ok(client
        .server_streaming(Request::new(range), path, ClientCodec)
        .await?)
}

async fn fetch(out: PathBuf, sources: Vec<SocketAddr>, hash: bool) -> Result<()> {
    let connect = |source| async move {
        Endpoint::from_shared(format!("http://{source}"))?
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(4 * STREAM_WINDOW)
            .max_frame_size(MESSAGE as u32 + 16)
            .tcp_nodelay(true)
            .connect()
            .await
    };
    let channels = future::try_join_all(sources.into_iter().map(connect)).await?;
    let head = read(&channels[0], (0, 0)).await?;
    let size = head
        .metadata()
        .get("size")
        .context("the source does not report the file's size")?;
    let size: u64 = size.to_str()?.parse()?;
    let file = Arc::new(
        OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .open(out)?,
    );
    file.set_len(size)?;
    let next = Arc::new(AtomicU64::new(0));
    let mut streams = JoinSet::new();
    for channel in channels {
        for _ in 0..STREAMS {
            let (channel, file, next) = (channel.clone(), file.clone(), next.clone());
            streams.spawn(async move {
                let mut hashes = Vec::new();
                loop {
                    let start = next.fetch_add(RANGE, Ordering::Relaxed);
                    if start >= size {
                        return anyhow::Ok(());
                    }
                    let mut messages = read(&channel, (start, RANGE)).await?.into_inner();
                    let mut offset = start;
                    while let Some(bytes) = messages.message().await? {
                        if hash {
                            hashes.clear();
                            merkle::hash_leaves(&bytes, &mut hashes);
                        }
                        file.write_all_at(&bytes, offset)?;
                        offset += bytes.len() as u64;
                    }
                    anyhow::ensure!(
                        offset == (start + RANGE).min(size),
                        "a source sent too little"
                    );
                }
            });
        }
    }
    while let Some(done) = streams.join_next().await {
        done??;
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    match Options::parse().command {
        Command::Hash { folder } => hash::run(&folder),
        Command::Serve { listen, file } => serve(listen, file).await,
        Command::Fetch {
            out,
            sources,
            no_hash,
        } => fetch(out, sources, !no_hash).await,
    }
}
