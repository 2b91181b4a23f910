//! Progress lines at the bottom of the terminal, redrawn in place.
//!
//! Invariants: the number of lines never shrinks, so that the text above does not move. The lines
//! are cleared when [`ProgressLines`] is dropped.

use std::time::Duration;

use console::Term;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Width if the terminal does not report one, in columns.
const USUAL_WIDTH: usize = 80;

/// The progress lines of one operation. Draws nothing if progress is hidden.
#[derive(Debug)]
pub(crate) struct ProgressLines {
    bars: MultiProgress,
    /// One bar whose message holds all the lines, so that they are redrawn together.
    bar: Option<ProgressBar>,
    height: usize,
}

impl ProgressLines {
    /// Without any lines yet.
    pub(crate) fn new(bars: &MultiProgress) -> Self {
        Self {
            bars: bars.clone(),
            bar: None,
            height: 0,
        }
    }

    /// Draws the lines that `render` makes for the terminal's width.
    pub(crate) fn show(&mut self, render: impl FnOnce(usize) -> Vec<String>) {
        if self.bars.is_hidden() {
            return;
        }
        // The last column stays free: terminals differ in when they wrap.
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

/// Poll interval for state that is not streamed.
pub(crate) const POLL_INTERVAL: Duration = Duration::from_millis(500);
