//! What Linux reports about the memory and the files of a process.

use std::{fs, time::Duration};

/// Time without growth after which the requests that were sent have had their effect.
const SETTLED: Duration = Duration::from_secs(1);

/// Time between two readings.
const INTERVAL: Duration = Duration::from_millis(50);

/// The peak memory of a process, in MiB; `None` on a system without `/proc`.
pub fn peak_memory(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib / 1024)
}

/// The peak memory of a process once it has not grown for a second, in MiB.
pub async fn settled_memory(pid: u32) -> Option<u64> {
    let mut peak = peak_memory(pid)?;
    let mut unchanged = Duration::ZERO;
    while unchanged < SETTLED {
        tokio::time::sleep(INTERVAL).await;
        let now = peak_memory(pid)?;
        unchanged = if now > peak {
            Duration::ZERO
        } else {
            unchanged + INTERVAL
        };
        peak = now;
    }
    Some(peak)
}

/// Compares the peak memory of a process with the one at an earlier time.
#[derive(Debug, Clone, Copy)]
pub struct MemoryGrowth {
    pid: u32,
    at_start: u64,
}

impl MemoryGrowth {
    /// Growth from now on.
    pub fn since_now(pid: u32) -> Self {
        let at_start = peak_memory(pid).unwrap_or_default();
        Self { pid, at_start }
    }

    /// Asserts that the process grew by less than this many MiB. Without `/proc`, only prints a
    /// note.
    pub async fn assert_below(self, limit: u64) {
        let Some(peak) = settled_memory(self.pid).await else {
            println!("memory is not checked: this system has no /proc/PID/status");
            return;
        };
        let growth = peak - self.at_start;
        println!("grew by {growth} MiB");
        assert!(growth < limit, "grew by {growth} MiB");
    }
}

/// Bytes that a process has read since its start.
pub fn bytes_read(pid: u32) -> u64 {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
    let line = io.lines().find_map(|line| line.strip_prefix("rchar: "));
    line.unwrap().parse().unwrap()
}

/// Number of file descriptors that a process has open.
pub fn open_files(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}
