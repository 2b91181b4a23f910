//! Lines of progress at the bottom of the terminal, replaced in place.
//!
//! Invariant: the board only grows while it stands, so that nothing above it jumps; it leaves nothing behind.

use std::time::Duration;

use console::Term;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Width assumed where the terminal does not tell.
const USUAL_WIDTH: usize = 80;

/// Lines that show how something goes. Nothing is drawn where progress is hidden.
#[derive(Debug)]
pub(crate) struct Board {
    bars: MultiProgress,
    lines: Vec<ProgressBar>,
}

impl Board {
    /// An empty board.
    pub(crate) fn new(bars: &MultiProgress) -> Self {
        Self {
            bars: bars.clone(),
            lines: Vec::new(),
        }
    }

    /// Shows what `render` makes for the terminal's width.
    pub(crate) fn show(&mut self, render: impl FnOnce(usize) -> Vec<String>) {
        if self.bars.is_hidden() {
            return;
        }
        // A column is left free: terminals differ in what they do with the last one.
        let width = Term::stderr()
            .size_checked()
            .map_or(USUAL_WIDTH, |(_, columns)| usize::from(columns));
        let texts = render(width.saturating_sub(1));
        while self.lines.len() < texts.len() {
            let style = ProgressStyle::with_template("{msg}").expect("the template is constant");
            self.lines
                .push(self.bars.add(ProgressBar::new_spinner().with_style(style)));
        }
        let mut texts = texts.into_iter();
        for line in &self.lines {
            line.set_message(texts.next().unwrap_or_default());
            line.tick();
        }
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        for line in self.lines.drain(..) {
            line.finish_and_clear();
            self.bars.remove(&line);
        }
    }
}

/// How often something that is not told of by itself is looked at for the board.
pub(crate) const LOOK_INTERVAL: Duration = Duration::from_millis(500);
