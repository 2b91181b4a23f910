//! Which pieces of whole files are on their way to someone: what a crowd that cannot know all of itself has to be told, or those who
//! do not know each other ask a seed for the same.
//!
//! Only of files that several watch, and not of collections: nobody else chooses between seeds.

use std::{
    collections::{BTreeMap, HashMap},
    ops::RangeInclusive,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use potluck_core::{FileId, FileLayout};
use tokio::sync::watch;

use super::reader::Job;

/// The boards of all files that are watched here.
#[derive(Debug, Default)]
pub(super) struct Sending {
    boards: Mutex<HashMap<FileId, Weak<Board>>>,
}

/// What is on its way of one file. Held by those who watch it, and by nobody else for long.
#[derive(Debug, Default)]
pub(super) struct Board {
    /// How many calls are for each piece.
    calls: Mutex<BTreeMap<u32, u32>>,
    changes: watch::Sender<()>,
}

/// Notes pieces as on their way until it is dropped.
#[derive(Debug, Default)]
pub(super) struct Notes(Vec<(Weak<Board>, RangeInclusive<u32>)>);

impl Sending {
    /// The board of a file, for one who watches it.
    pub(super) fn board(&self, id: &FileId) -> Arc<Board> {
        let mut boards = lock(&self.boards);
        if let Some(board) = boards.get(id).and_then(Weak::upgrade) {
            return board;
        }
        boards.retain(|_, board| board.strong_count() > 0);
        let board = Arc::<Board>::default();
        boards.insert(*id, Arc::downgrade(&board));
        board
    }

    /// Notes what a call asks for, where others than the caller want to know.
    pub(super) fn note(&self, jobs: &[Job]) -> Notes {
        let boards = lock(&self.boards);
        if boards.is_empty() {
            return Notes::default();
        }
        let notes = jobs.iter().filter_map(|job| {
            let board = boards.get(&job.offer.id())?;
            let several = board.strong_count() > 1;
            let pieces = pieces_of(job).filter(|_| several)?;
            board.upgrade()?.count(&pieces, true);
            Some((Weak::clone(board), pieces))
        });
        Notes(notes.collect())
    }
}

/// The pieces that a span touches.
fn pieces_of(job: &Job) -> Option<RangeInclusive<u32>> {
    let layout = FileLayout::new(job.offer.size())?;
    let first = layout.piece_at(job.range.start)?;
    let last = layout.piece_at(job.range.end.checked_sub(1)?)?;
    Some(first.get()..=last.get())
}

impl Board {
    /// What is on its way, in order.
    pub(super) fn pieces(&self) -> Vec<u32> {
        lock(&self.calls).keys().copied().collect()
    }

    /// Changes each time that [`Self::pieces`] does.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    fn count(&self, pieces: &RangeInclusive<u32>, more: bool) {
        let mut calls = lock(&self.calls);
        for piece in pieces.clone() {
            let count = calls.entry(piece).or_default();
            *count = if more { *count + 1 } else { count.saturating_sub(1) };
            if *count == 0 {
                calls.remove(&piece);
            }
        }
        drop(calls);
        self.changes.send_replace(());
    }
}

impl Drop for Notes {
    fn drop(&mut self) {
        for (board, pieces) in &self.0 {
            if let Some(board) = board.upgrade() {
                board.count(pieces, false);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
