//! Measures how long an index takes to open a store.
//!
//! Usage: `restart DIR [PEERS FILES]`. With PEERS and FILES, it fills the folder first.

use std::{path::Path, time::Duration, time::Instant};

use anyhow::Context as _;
use potluck_core::{
    FileId, PeerId, Root,
    model::{Address, FileKind, FileRecord, Registration},
};
use potluck_index::internals::{Change, IndexStore as _, PeerRecord, RestoredPeers, SledStore};

/// Files per request, as peers send them.
const BATCH: u64 = 10_000;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let dir = Path::new(arguments.first().context("give a folder")?);
    if let [_, peers, files] = &arguments[..] {
        fill(dir, peers.parse()?, files.parse()?)?;
    }
    let started = Instant::now();
    let (store, ()) = SledStore::open_into(dir, 0, |_| ())?;
    println!("read in {:?}, {:.1} CPU s", started.elapsed(), processor_time());
    drop(store);
    let started = Instant::now();
    let (_store, mut restored) = SledStore::open_into(dir, 0, RestoredPeers::with_room_for)?;
    println!(
        "opened in {:?}, {:.1} CPU s so far, {}",
        started.elapsed(),
        processor_time(),
        memory()?
    );
    while !restored.index_words(u32::MAX) {}
    println!(
        "words indexed after {:?}, {:.1} CPU s so far, {}",
        started.elapsed(),
        processor_time(),
        memory()?
    );
    drop(restored);
    Ok(())
}

/// Processor time of this process in seconds, as the system reports it.
fn processor_time() -> f64 {
    /// Ticks per second in `/proc`.
    const TICKS: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
    let ticks = fields
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<f64>().ok());
    ticks.sum::<f64>() / TICKS
}

/// The memory of this process now and at most, as the system reports it.
fn memory() -> anyhow::Result<String> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let lines = status
        .lines()
        .filter(|line| line.starts_with("VmRSS") || line.starts_with("VmHWM"));
    Ok(lines
        .map(|line| line.replace('\t', " "))
        .collect::<Vec<_>>()
        .join(", "))
}

fn fill(dir: &Path, peers: u64, files: u64) -> anyhow::Result<()> {
    let (mut store, ()) = SledStore::open_into(dir, 0, |_| ())?;
    let started = Instant::now();
    for peer in 0..peers {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&peer.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
        let record = PeerRecord {
            id: PeerId(id),
            address: Address {
                host: format!("10.0.{}.{}", peer / 256 % 256, peer % 256),
                port: 12349,
            },
            ttl: Duration::from_secs(60),
        };
        for from in (0..files).step_by(BATCH as usize) {
            let files = (from..files.min(from + BATCH))
                .map(|n| registration(peer * files + n))
                .collect();
            store.apply(&[Change::Register {
                peer: record.clone(),
                files,
                new: 0,
                replace: false,
            }])?;
        }
    }
    println!("filled in {:?}", started.elapsed());
    Ok(())
}

fn registration(n: u64) -> Registration {
    let mut root = [0; 32];
    for (i, part) in root.chunks_mut(8).enumerate() {
        part.copy_from_slice(
            &(n * 4 + i as u64)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .to_be_bytes(),
        );
    }
    let root = Root(root);
    Registration {
        file: FileRecord {
            id: FileId::derive(1000 + n, &root),
            size: 1000 + n,
            root,
            sha256: None,
            kind: FileKind::File,
        },
        // One word occurs in no other name, one in a thousand names, and two in all names.
        names: vec![format!(
            "model-{}-{:08x}-part-{:05}.safetensors",
            n / 1000,
            n.wrapping_mul(0x9e37_79b9),
            n % 1000
        )],
        is_complete: true,
    }
}
