//! Whether a service is ready.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// Whether a service can do its work; at first it cannot. Clones share their state.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<AtomicBool>);

impl Readiness {
    /// Sets whether the service can do its work.
    pub fn set(&self, is_ready: bool) {
        self.0.store(is_ready, Ordering::Relaxed);
    }

    /// Whether the service can do its work.
    pub fn is_ready(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
