//! The origin among the providers of a download.
//!
//! Invariant: an origin that is lost is not asked again in this run.

use std::{sync::Arc, time::Duration};

use potluck_core::{Problem, model::Address};
use tokio::time::Instant;

use crate::download::origin::source::OriginSource;

/// Delay before an origin is asked again that failed many times in a row.
const REJOIN_AFTER: Duration = Duration::from_secs(15);

/// What the driver knows of the origin.
#[derive(Debug)]
pub(super) struct OriginState {
    source: Arc<OriginSource>,
    shown: String,
    /// Bytes of the units that it delivered.
    bytes: u64,
    last_error: Option<String>,
    /// When it is asked again, after too many failures.
    rejoin_at: Option<Instant>,
    /// Whether it will not send anything any more.
    is_lost: bool,
}

/// The origin, for the status.
#[derive(Debug)]
pub(crate) struct OriginView<'a> {
    pub(crate) shown: &'a str,
    pub(crate) address: Address,
    pub(crate) bytes: u64,
    pub(crate) last_error: Option<&'a str>,
    pub(crate) is_lost: bool,
}

impl OriginState {
    pub(super) fn new(source: Arc<OriginSource>) -> Self {
        Self {
            shown: source.spec.shown(),
            source,
            bytes: 0,
            last_error: None,
            rejoin_at: None,
            is_lost: false,
        }
    }

    pub(super) fn credit_bytes(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.last_error = None;
    }

    pub(super) fn record_error(&mut self, problem: &Problem) {
        self.last_error = Some(problem.message.clone());
    }

    /// It failed many times in a row: it is asked again later.
    pub(super) fn lose_for_now(&mut self) {
        self.rejoin_at = Some(Instant::now() + REJOIN_AFTER);
    }

    /// Whether it must be asked again now.
    pub(super) fn must_rejoin(&mut self) -> bool {
        let is_due = self.rejoin_at.take_if(|at| *at <= Instant::now()).is_some();
        is_due && !self.is_lost
    }

    /// It will not send anything any more.
    pub(super) fn lose(&mut self, problem: &Problem) {
        if !std::mem::replace(&mut self.is_lost, true) {
            tracing::warn!(origin = self.shown, %problem, "no longer asks the origin");
        }
        self.record_error(problem);
    }

    pub(super) fn view(&self) -> OriginView<'_> {
        OriginView {
            shown: &self.shown,
            address: self.source.spec.address(),
            bytes: self.bytes,
            last_error: self.last_error.as_deref(),
            is_lost: self.is_lost,
        }
    }
}
