//! A network that damages data: a proxy that flips one bit of an id that passes through.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use potluck_core::{FileId, model::Address};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, tcp},
};

/// The damage in one direction of a proxy.
#[derive(Debug, Clone)]
struct Damage {
    id: FileId,
    /// Which occurrence of the id is damaged, counted from 0 over all connections.
    nth: usize,
    passed: Arc<AtomicUsize>,
}

/// The direction of the damaged bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Requests,
    Answers,
}

/// Starts a proxy in front of `to`. It flips one bit of the `nth` occurrence of the id in this
/// direction and damages nothing else.
pub(crate) async fn damaging(to: &Address, id: FileId, way: Way, nth: usize) -> Address {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().into();
    let to = (to.host.clone(), to.port);
    let damage = Damage {
        id,
        nth,
        passed: Arc::default(),
    };
    tokio::spawn(async move {
        while let Ok((inbound, _)) = listener.accept().await {
            let Ok(outbound) = TcpStream::connect(to.clone()).await else {
                continue;
            };
            let ((from, back), (answers, requests)) = (inbound.into_split(), outbound.into_split());
            let on = |which| (which == way).then(|| damage.clone());
            tokio::spawn(carry(from, requests, on(Way::Requests)));
            tokio::spawn(carry(answers, back, on(Way::Answers)));
        }
    });
    address
}

async fn carry(mut from: tcp::OwnedReadHalf, mut to: tcp::OwnedWriteHalf, damage: Option<Damage>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(len @ 1..) = from.read(&mut buffer).await {
        let bytes = &mut buffer[..len];
        if let Some(damage) = &damage {
            damage.apply(bytes);
        }
        if to.write_all(bytes).await.is_err() {
            return;
        }
    }
}

impl Damage {
    /// Misses an id that is split between two reads; on loopback, small messages arrive whole.
    fn apply(&self, bytes: &mut [u8]) {
        let id = self.id.to_bytes();
        let mut at = 0;
        while let Some(found) = bytes[at..].windows(id.len()).position(|window| window == id) {
            at += found + id.len();
            if self.passed.fetch_add(1, Ordering::Relaxed) == self.nth {
                bytes[at - 1] ^= 1;
            }
        }
    }
}
