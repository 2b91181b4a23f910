//! A network between two real services: it damages bytes, or is slow.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use potluck_core::{FileId, model::Address};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream, tcp},
    sync::Mutex,
    time::Instant,
};

/// The damage that a proxy does to requests.
#[derive(Debug, Clone)]
struct Damage {
    id: FileId,
    /// Which occurrence of the id is damaged, counted from 0 over all connections.
    nth: usize,
    passed: Arc<AtomicUsize>,
}

/// Starts a proxy in front of `server`. It flips one bit of the `nth` occurrence of the id in the
/// requests and damages nothing else.
pub async fn damage_nth_id(server: &Address, id: FileId, nth: usize) -> Address {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().into();
    let server = (server.host.clone(), server.port);
    let damage = Damage {
        id,
        nth,
        passed: Arc::default(),
    };
    tokio::spawn(async move {
        while let Ok((inbound, _)) = listener.accept().await {
            let Ok(outbound) = TcpStream::connect(server.clone()).await else {
                continue;
            };
            let ((requests, to_client), (answers, to_server)) =
                (inbound.into_split(), outbound.into_split());
            tokio::spawn(carry(requests, to_server, Some(damage.clone())));
            tokio::spawn(carry(answers, to_client, None));
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

/// Approximate number of bytes queued in front of a slow link, as in a router.
const QUEUE: u32 = 32 * 1024;

/// Bytes that a slow link carries in one step.
const STEP: usize = 1024;

/// Starts a link in front of a server that limits all its answers to this rate in total. Returns
/// the address of its near end.
pub async fn slow_link(server: &Address, bytes_per_second: u64) -> Address {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().into();
    let server: SocketAddr = server.to_string().parse().unwrap();
    let free_at = Arc::new(Mutex::new(Instant::now()));
    let step_time = Duration::from_secs(1) * STEP as u32 / bytes_per_second as u32;
    tokio::spawn(async move {
        while let Ok((inbound, _)) = listener.accept().await {
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_recv_buffer_size(QUEUE).unwrap();
            let outbound = socket.connect(server).await.unwrap();
            inbound.set_nodelay(true).unwrap();
            outbound.set_nodelay(true).unwrap();
            tokio::spawn(carry_slowly(inbound, outbound, Arc::clone(&free_at), step_time));
        }
    });
    address
}

async fn carry_slowly(
    inbound: TcpStream,
    outbound: TcpStream,
    free_at: Arc<Mutex<Instant>>,
    step_time: Duration,
) {
    let (mut requests, mut to_client) = inbound.into_split();
    let (mut answers, mut to_server) = outbound.into_split();
    let carry_requests = async { tokio::io::copy(&mut requests, &mut to_server).await };
    let carry_answers = async {
        let mut bytes = [0; STEP];
        loop {
            let len = answers.read(&mut bytes).await?;
            if len == 0 {
                return to_client.shutdown().await;
            }
            let mut free_at = free_at.lock().await;
            let at = Instant::now().max(*free_at) + step_time * len as u32 / STEP as u32;
            *free_at = at;
            tokio::time::sleep_until(at).await;
            drop(free_at);
            to_client.write_all(&bytes[..len]).await?;
        }
    };
    // Both ends are closed as soon as one is.
    tokio::select! {
        _ = carry_requests => {}
        _ = carry_answers => {}
    }
}
