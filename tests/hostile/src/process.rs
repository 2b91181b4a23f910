//! What Linux reports about the program under attack.

use std::{
    collections::HashSet,
    fs,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

/// Time between two readings.
const INTERVAL: Duration = Duration::from_millis(20);

/// Resident memory of a process, in KiB; `None` if there is no such process or no `/proc`.
pub fn resident_memory(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// Number of files and sockets that a process has open; `None` if the system does not tell, because
/// the process holds keys and belongs to another user.
pub fn open_files(pid: u32) -> Option<usize> {
    Some(fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count())
}

/// Number of connections that the program at this local address has open.
pub fn connections_at(address: SocketAddr) -> usize {
    open_connections()
        .filter(|(local, _)| *local == address.port())
        .count()
}

/// Number of connections that programs on this machine have open to this address.
pub fn connections_to(address: SocketAddr) -> usize {
    open_connections()
        .filter(|(_, remote)| *remote == address.port())
        .count()
}

/// Number of connections that clients on this machine have closed and the program at this address
/// has not.
pub fn half_closed_connections(address: SocketAddr) -> usize {
    let open: HashSet<_> = open_connections().collect();
    let of_program = open.iter().filter(|(local, _)| *local == address.port());
    of_program
        .filter(|(local, remote)| !open.contains(&(*remote, *local)))
        .count()
}

/// Local and remote port of all connections that a program on this machine has open.
fn open_connections() -> impl Iterator<Item = (u16, u16)> {
    // States of `/proc/net/tcp` (`net/tcp_states.h`): ESTABLISHED, SYN_RECV, and CLOSE_WAIT, in
    // which the program has not closed its end yet.
    const OPEN: [&str; 3] = ["01", "03", "08"];
    let port = |address: &str| u16::from_str_radix(address.rsplit_once(':')?.1, 16).ok();
    let parse = move |line: &str| {
        // Number, local address, remote address, state.
        let fields: Vec<_> = line.split_ascii_whitespace().take(4).collect();
        match fields[..] {
            [_, local, remote, state] if OPEN.contains(&state) => {
                Some((port(local)?, port(remote)?))
            }
            _ => None,
        }
    };
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(fs::read_to_string);
    let tables: Vec<_> = tables.into_iter().flatten().collect();
    let open: Vec<_> = tables
        .iter()
        .flat_map(|table| table.lines())
        .filter_map(parse)
        .collect();
    open.into_iter()
}

/// Waits until the program has closed what its clients closed. Returns how long that took; `None`
/// if it took longer than `limit`.
pub async fn until_closed(
    address: SocketAddr,
    pid: u32,
    files_before: Option<usize>,
    limit: Duration,
) -> Option<Duration> {
    /// Files that a program may open meanwhile for other reasons, such as honest clients.
    const MARGIN: usize = 16;
    let start = Instant::now();
    let most = files_before.map(|files| files + MARGIN);
    while half_closed_connections(address) > 0
        || open_files(pid)
            .zip(most)
            .is_some_and(|(files, most)| files > most)
    {
        if start.elapsed() > limit {
            return None;
        }
        tokio::time::sleep(INTERVAL).await;
    }
    Some(start.elapsed())
}

/// Watches the memory of a process until it is dropped.
#[derive(Debug)]
pub struct MemoryWatch {
    peak: Arc<AtomicU64>,
    stop: CancellationToken,
}

impl MemoryWatch {
    /// Starts to watch.
    pub fn start(pid: u32) -> Self {
        let peak = Arc::new(AtomicU64::new(resident_memory(pid).unwrap_or(0)));
        let stop = CancellationToken::new();
        let (seen, stopped) = (Arc::clone(&peak), stop.clone());
        tokio::spawn(async move {
            while !stopped.is_cancelled() {
                seen.fetch_max(resident_memory(pid).unwrap_or(0), Ordering::Relaxed);
                tokio::time::sleep(INTERVAL).await;
            }
        });
        Self { peak, stop }
    }

    /// The highest memory so far, in KiB.
    pub fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }
}

impl Drop for MemoryWatch {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
