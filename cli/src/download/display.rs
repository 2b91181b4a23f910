//! Where the progress of a transfer is drawn.

use indicatif::MultiProgress;

use crate::{
    control::model::Transfer, download::progress::PeerRows, output::progress::ProgressLines,
};

/// Draws the progress of one transfer.
pub(crate) trait TransferDisplay {
    /// Draws the current state.
    fn show(&mut self, transfer: &Transfer);

    /// Clears the transfer, because it is followed no longer. `succeeded`: whether it reached its
    /// goal.
    fn end(&mut self, succeeded: bool);
}

/// One transfer with a line for each peer.
#[derive(Debug)]
pub(crate) struct SingleDisplay {
    bars: MultiProgress,
    lines: ProgressLines,
    rows: PeerRows,
}

impl SingleDisplay {
    /// Draws on `bars`.
    pub(crate) fn new(bars: &MultiProgress) -> Self {
        Self {
            bars: bars.clone(),
            lines: ProgressLines::new(bars),
            rows: PeerRows::default(),
        }
    }
}

impl TransferDisplay for SingleDisplay {
    fn show(&mut self, transfer: &Transfer) {
        self.lines.show(|width| self.rows.render(transfer, width));
    }

    fn end(&mut self, _succeeded: bool) {
        // The dropped lines are cleared.
        self.lines = ProgressLines::new(&self.bars);
    }
}
