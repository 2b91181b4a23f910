//! The progress of several transfers: a line for each that runs, and their total.

use std::{cell::RefCell, rc::Rc};

use indicatif::MultiProgress;

use crate::{
    control::model::Transfer,
    download::{display::TransferDisplay, progress},
    output::{draw, progress::ProgressLines, text},
};

/// Draws several transfers together. Cheap to clone; the clones draw the same lines.
#[derive(Debug, Clone)]
pub(crate) struct TransferBoard {
    lines: Rc<RefCell<ProgressLines>>,
    rows: Rc<RefCell<Rows>>,
}

/// The transfers of a board, in the order of the arguments.
#[derive(Debug, Default)]
struct Rows {
    rows: Vec<Row>,
}

#[derive(Debug, Default)]
enum Row {
    /// Not started.
    #[default]
    Queued,
    /// Runs.
    Shown(Box<Transfer>),
    /// Has reached its goal, with this many bytes.
    Done(u64),
    /// Has failed.
    Failed,
}

/// One transfer of a board.
#[derive(Debug)]
pub(crate) struct BoardRow {
    board: TransferBoard,
    row: usize,
}

impl TransferBoard {
    /// A board for this many transfers.
    pub(crate) fn new(bars: &MultiProgress, transfers: usize) -> Self {
        let rows = std::iter::repeat_with(Row::default).take(transfers).collect();
        Self {
            lines: Rc::new(RefCell::new(ProgressLines::new(bars))),
            rows: Rc::new(RefCell::new(Rows { rows })),
        }
    }

    /// The display of a transfer, by its position.
    pub(crate) fn row(&self, row: usize) -> BoardRow {
        BoardRow {
            board: self.clone(),
            row,
        }
    }

    fn set(&self, row: usize, new: Row) {
        let mut rows = self.rows.borrow_mut();
        if let Some(row) = rows.rows.get_mut(row) {
            *row = new;
        }
        self.lines.borrow_mut().show(|width| rows.render(width));
    }
}

impl TransferDisplay for BoardRow {
    fn show(&mut self, transfer: &Transfer) {
        let transfer = Transfer {
            peers: Vec::new(),
            ..transfer.clone()
        };
        self.board.set(self.row, Row::Shown(Box::new(transfer)));
    }

    fn end(&mut self, succeeded: bool) {
        let done = match self.board.rows.borrow().rows.get(self.row) {
            Some(Row::Shown(transfer)) => transfer.done,
            _ => 0,
        };
        let end = if succeeded { Row::Done(done) } else { Row::Failed };
        self.board.set(self.row, end);
    }
}

impl Rows {
    /// The lines for a terminal of `width` columns.
    fn render(&self, width: usize) -> Vec<String> {
        let shown = || {
            self.rows.iter().filter_map(|row| match row {
                Row::Shown(transfer) => Some(&**transfer),
                Row::Queued | Row::Done(_) | Row::Failed => None,
            })
        };
        let mut lines: Vec<_> = shown().map(|transfer| progress::head(transfer, width)).collect();
        let finished = self.rows.iter().filter_map(|row| match row {
            Row::Done(bytes) => Some(*bytes),
            Row::Queued | Row::Shown(_) | Row::Failed => None,
        });
        let (count, bytes) = finished.fold((0, 0), |(n, sum), bytes| (n + 1, sum + bytes));
        let failed = self.rows.iter().filter(|row| matches!(row, Row::Failed)).count();
        let failed = match failed {
            0 => String::new(),
            failed => format!(", {failed} failed"),
        };
        let done = bytes + shown().map(|transfer| transfer.done).sum::<u64>();
        let total = bytes + shown().filter_map(|transfer| transfer.total).sum::<u64>();
        let facts = format!(
            "{:>10} of {}  {:>12}",
            text::size(done),
            text::size(total),
            text::rate(shown().map(|transfer| transfer.bytes_per_second).sum()),
        );
        let label = format!("{count} of {} done{failed}", self.rows.len());
        lines.push(draw::bar_line(&label, done, total, &facts, width));
        lines
    }
}
