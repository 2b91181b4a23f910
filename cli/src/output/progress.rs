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
pub(crate) struct ProgressLines {
    bars: MultiProgress,
    /// One bar whose message is all the lines, so that they change at once.
    bar: Option<ProgressBar>,
    height: usize,
}

impl ProgressLines {
    /// An empty board.
    pub(crate) fn new(bars: &MultiProgress) -> Self {
        Self {
            bars: bars.clone(),
            bar: None,
            height: 0,
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
        let mut lines = render(width.saturating_sub(1));
        self.height = self.height.max(lines.len());
        lines.resize(self.height, String::new());
        let bar = self.bar.get_or_insert_with(|| {
            let style = ProgressStyle::with_template("{msg}").expect("the template is constant");
            self.bars.add(ProgressBar::new_spinner().with_style(style))
        });
        bar.set_message(lines.join("\n"));
        bar.tick();
    }
}

impl Drop for ProgressLines {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
            self.bars.remove(&bar);
        }
    }
}

/// How often something that is not told of by itself is looked at for the board.
pub(crate) const POLL_INTERVAL: Duration = Duration::from_millis(500);
