//! Decoding and encoding of chunks: the zero-copy codec compared with the generated one.

use std::hint::black_box;

use bytes::{Buf as _, Bytes, BytesMut};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use potluck_core::{
    grpc::download_codec::{ChunkDecoder, ChunkHeader},
    proto::v1::DownloadResponse,
};
use prost::Message as _;

const DATA: usize = 256 * 1024;

fn decode(c: &mut Criterion) {
    let header = ChunkHeader::new(3, 1 << 30, DATA as u32);
    let frame = Bytes::from([header.as_bytes(), &vec![7; DATA]].concat());
    let mut group = c.benchmark_group("decode 256 KiB");
    group.throughput(Throughput::Bytes(DATA as u64));
    group.bench_function("where it lies", |b| {
        let mut decoder = ChunkDecoder::default();
        b.iter(|| {
            decoder.push(black_box(frame.clone()));
            decoder.next_slice()
        });
    });
    group.bench_function("generated", |b| {
        b.iter(|| {
            // A gRPC library collects frames in a buffer and decodes a message from it.
            let mut buffer = BytesMut::with_capacity(frame.len());
            buffer.extend_from_slice(black_box(&frame));
            buffer.advance(5);
            DownloadResponse::decode(buffer.freeze())
        });
    });
    group.finish();
}

fn encode(c: &mut Criterion) {
    let data = Bytes::from(vec![7; DATA]);
    let mut group = c.benchmark_group("encode 256 KiB");
    group.throughput(Throughput::Bytes(DATA as u64));
    group.bench_function("header", |b| {
        b.iter(|| ChunkHeader::new(black_box(3), black_box(1 << 30), DATA as u32));
    });
    group.bench_function("generated", |b| {
        b.iter(|| {
            let message = DownloadResponse {
                span: 3,
                offset: 1 << 30,
                data: black_box(data.clone()),
            };
            message.encode_to_vec()
        });
    });
    group.finish();
}

criterion_group!(benches, decode, encode);
criterion_main!(benches);
