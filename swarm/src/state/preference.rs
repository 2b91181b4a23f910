//! Whether distant peers are held back now. `scheduler/distance.rs` decides.

use std::time::Duration;

use crate::{config::STARVED, types::Time};

/// What is being found out; rates are in bytes per second. Each phase ends with a measurement.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) enum Phase {
    /// Distant peers are held back.
    #[default]
    Near,
    /// Every peer is asked, for a moment.
    Trial { before: f64 },
    /// Distant peers are held back again, to see whether the trial made the difference.
    Confirm { before: f64, trial: f64 },
    /// Every peer is asked, since near peers are slower.
    Open,
    /// Distant peers are held back for a moment, to see whether near peers are fast by now.
    Check { open: f64 },
}

/// Whether distant peers are asked for what nearer peers provide.
#[derive(Debug, Default)]
pub(crate) struct Preference {
    pub(crate) phase: Phase,
    /// When the phase, or its time before the measurement, ends. `None` while nobody was held back.
    pub(crate) until: Option<Time>,
    /// The start of the measurement, and the bytes received until then.
    pub(crate) measured_from: Option<(Time, u64)>,
    /// When something was last known to arrive, and the bytes received until then.
    pub(crate) last_arrival: (Time, u64),
    /// Time in the current phase before the next trial or check; doubles with each that changed
    /// nothing.
    pub(crate) interval: Duration,
    /// When a unit may be requested that other near peers may request, too.
    pub(crate) hold: Option<Time>,
    /// Whether a peer was held back since all were asked last.
    pub(crate) has_held_back: bool,
}

impl Preference {
    /// Whether distant peers are asked for everything.
    pub(crate) const fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Trial { .. } | Phase::Open)
    }

    /// When to act next.
    pub(crate) fn deadline(&self) -> Option<Time> {
        let until = self.until?;
        Some(match self.is_open() {
            true => until,
            false => until.min(self.last_arrival.0 + STARVED),
        })
    }
}
