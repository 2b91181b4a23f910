//! Hashing: batches of leaves compared with the reference, pieces, and folding a piece layer.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use potluck_core::{
    FileLayout,
    identity::merkle::{self, Hash, LEAF_SIZE},
};
use sha2::{Digest as _, Sha256};

fn leaves(c: &mut Criterion) {
    let mut group = c.benchmark_group("leaves");
    for kib in [64, 128, 256, 1024] {
        let data = vec![7; kib * 1024];
        group.throughput(Throughput::Bytes(data.len() as u64));
        group.bench_with_input(BenchmarkId::new("several at once", kib), &data, |b, data| {
            b.iter(|| {
                let mut hashes = Vec::new();
                merkle::hash_leaves(black_box(data), &mut hashes);
                hashes
            });
        });
        group.bench_with_input(BenchmarkId::new("sha2", kib), &data, |b, data| {
            b.iter(|| -> Vec<Hash> {
                let leaves = black_box(data).chunks(LEAF_SIZE);
                leaves.map(|leaf| Sha256::digest(leaf).into()).collect()
            });
        });
    }
    group.finish();
}

fn fold(c: &mut Criterion) {
    let mut group = c.benchmark_group("fold");
    for pieces in [256, 1024, 4096] {
        let layout = FileLayout::new(pieces * 128 * 1024).expect("a small file");
        let layer = vec![[7; 32]; pieces as usize];
        group.throughput(Throughput::Elements(pieces));
        group.bench_function(BenchmarkId::from_parameter(pieces), |b| {
            b.iter(|| merkle::fold(black_box(&layer), &layout));
        });
    }
    group.finish();
}

criterion_group!(benches, leaves, fold);
criterion_main!(benches);
