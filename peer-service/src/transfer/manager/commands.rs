//! What a transfer's owner may do with it: pause, resume, adjust, cancel.

use potluck_core::Problem;

use super::{
    super::view::{NewTerms, State, View},
    Entry, Transfers, unknown,
};

impl Transfers {
    /// Stops the task of a transfer and waits until it has.
    async fn stop(&self, number: u64, cancel: bool) -> Result<bool, Problem> {
        let task = {
            let mut table = self.table();
            let entry = table.transfers.get_mut(&number).ok_or_else(|| unknown(number))?;
            if cancel && entry.task.is_some() {
                entry.cancel = true;
            }
            entry.task.clone()
        };
        let Some(task) = task else { return Ok(false) };
        task.stop.cancel();
        task.ended.cancelled().await;
        Ok(true)
    }

    /// Pauses a transfer; what has ended stays as it is.
    ///
    /// # Errors
    /// [`Reason::NotFound`](potluck_core::Reason::NotFound).
    pub async fn pause(&self, number: u64) -> Result<View, Problem> {
        self.stop(number, false).await?;
        self.get(number)
    }

    /// Lets a paused or failed transfer go on, whether or not somebody watches it.
    ///
    /// # Errors
    /// [`Reason::NotFound`](potluck_core::Reason::NotFound).
    pub async fn resume(&self, number: u64) -> Result<View, Problem> {
        let ended = {
            let mut table = self.table();
            let entry = table.transfers.get_mut(&number).ok_or_else(|| unknown(number))?;
            entry.spec.detach = true;
            let state = entry.view.borrow().state;
            matches!(state, State::Done | State::Cancelled)
        };
        if !ended {
            self.store(number).await;
            self.begin(number).await;
        }
        self.get(number)
    }

    /// Changes what a transfer is held to, at once and for good; what is done or cancelled stays as it is.
    ///
    /// # Errors
    /// [`Reason::NotFound`](potluck_core::Reason::NotFound).
    pub async fn adjust(&self, number: u64, terms: NewTerms) -> Result<View, Problem> {
        {
            let mut table = self.table();
            let entry = table.transfers.get_mut(&number).ok_or_else(|| unknown(number))?;
            let state = entry.view.borrow().state;
            if !matches!(state, State::Done | State::Cancelled) {
                entry.hold_to(terms);
            }
        }
        self.store(number).await;
        self.get(number)
    }

    /// Ends a transfer and removes what it had fetched; what is done stays done.
    ///
    /// # Errors
    /// [`Reason::NotFound`](potluck_core::Reason::NotFound).
    pub async fn cancel(&self, number: u64) -> Result<View, Problem> {
        let was_at_work = self.stop(number, true).await?;
        let view = self.get(number)?;
        if !was_at_work && matches!(view.state, State::Paused | State::Failed) {
            self.discard(number).await;
            if let Some(entry) = self.table().transfers.get(&number) {
                entry.view.send_modify(|view| {
                    view.state = State::Cancelled;
                    view.error = None;
                });
            }
        }
        self.get(number)
    }
}

impl Entry {
    /// Changes what the transfer is held to; the task at work hears of it.
    pub(super) fn hold_to(&mut self, terms: NewTerms) {
        let terms = terms.of(*self.terms.borrow());
        self.spec.terms = terms.into();
        self.view.send_modify(|view| view.terms = terms);
        self.terms.send_replace(terms);
    }
}
