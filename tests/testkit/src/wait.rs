//! Waiting with a deadline.

use std::{
    thread,
    time::{Duration, Instant},
};

/// Maximum time for any step of a test; ample even on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Time between two checks of a condition.
const INTERVAL: Duration = Duration::from_millis(10);

/// Waits until `condition` holds. Panics with `condition_name` if the deadline passes first.
pub async fn wait_until(condition_name: &str, mut condition: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !condition().await {
        assert!(
            start.elapsed() < DEADLINE,
            "not within {DEADLINE:?}: {condition_name}"
        );
        tokio::time::sleep(INTERVAL).await;
    }
}

/// [`wait_until`] for tests without a runtime.
#[track_caller]
pub fn wait_until_blocking(condition_name: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(
            start.elapsed() < DEADLINE,
            "not within {DEADLINE:?}: {condition_name}"
        );
        thread::sleep(INTERVAL);
    }
}

/// The output of `future`. Panics with `future_name` if the deadline passes first.
pub async fn in_time<T>(future_name: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(output) => output,
        Err(_) => panic!("not within {DEADLINE:?}: {future_name}"),
    }
}
