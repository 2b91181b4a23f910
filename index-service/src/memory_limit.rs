//! How much memory this process may use, as Linux reports it.

use std::fs;

/// The machine's memory or the limit of the container, whichever is less, in bytes. `None` if the
/// system does not say.
pub(crate) fn memory_limit() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo").ok();
    let container = fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let machine = machine.as_deref().and_then(total_of);
    let container = container.as_deref().and_then(|text| text.trim().parse().ok());
    machine.into_iter().chain(container).min()
}

/// The total in `/proc/meminfo`, in bytes.
fn total_of(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_in_bytes() {
        let text = "MemTotal:       24649216 kB\nMemFree:        18000000 kB\n";
        assert_eq!(total_of(text), Some(24_649_216 * 1024));
        assert_eq!(total_of("MemFree: 1 kB\n"), None);
        assert_eq!(total_of("MemTotal: many kB\n"), None);
    }
}
