//! Metrics of every service: version, readiness, and what its process uses.

use std::{fmt, fs};

use crate::monitoring::{
    metrics::{Gather, Values},
    readiness::Readiness,
};

/// Reads the metrics of the process.
#[derive(Debug)]
pub(super) struct ProcessMetrics {
    pub(super) readiness: Readiness,
}

impl Gather for ProcessMetrics {
    fn gather(&self, values: &mut Values<'_>) -> fmt::Result {
        let help = "The version of the program, with its commit";
        values.gauges("build_info", help, "version", [(crate::VERSION, 1.0)])?;
        let is_ready = f64::from(u8::from(self.readiness.is_ready()));
        values.gauge("ready", "Whether the service can do its work", is_ready)?;
        // Without procfs, these are missing.
        if let Some(resident) = resident_bytes() {
            values.gauge(
                "process_resident_memory_bytes",
                "Memory of the process that is in RAM",
                resident,
            )?;
        }
        if let Some(seconds) = cpu_seconds() {
            let help = "CPU time of the process, user and system";
            values.counter_f64("process_cpu_seconds", help, seconds)?;
        }
        if let Ok(files) = fs::read_dir("/proc/self/fd") {
            let help = "Open file descriptors of the process";
            values.gauge("process_open_fds", help, files.count() as f64)?;
        }
        Ok(())
    }
}

/// `VmRSS` of proc_pid_status(5).
fn resident_bytes() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some((kibibytes * 1024) as f64)
}

/// User and system time. proc_pid_stat(5) counts them in ticks, of which every Linux architecture
/// reports 100 per second.
fn cpu_seconds() -> Option<f64> {
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The program's name, in parentheses, may contain spaces.
    let (_, fields) = stat.rsplit_once(')')?;
    // utime and stime are fields 14 and 15; the first one here is field 3.
    let ticks: Vec<u64> = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map_while(|field| field.parse().ok())
        .collect();
    match ticks[..] {
        [user, system] => Some((user + system) as f64 / TICKS_PER_SECOND),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn a_process_uses_memory_and_time() {
        assert!(resident_bytes().unwrap() > 1e5);
        let started = cpu_seconds().unwrap();
        while cpu_seconds().unwrap() == started {
            std::hint::spin_loop();
        }
    }
}
