//! What a transfer's owner may do with it: pause, resume, adjust, cancel.

use potluck_core::Problem;

use super::{
    super::{
        run::Ended,
        view::{NewTerms, State, View},
    },
    Again, Entry, Task, Transfers, unknown,
};

impl Transfers {
    /// Stops the task of a transfer, if there is one, and waits until it has.
    async fn stop(&self, number: u64, cancel: bool) -> Result<(), Problem> {
        let task = {
            let mut table = self.table();
            let entry = table.transfers.get_mut(&number).ok_or_else(|| unknown(number))?;
            if cancel && entry.task.is_some() {
                entry.cancel = true;
            }
            entry.task.clone()
        };
        if let Some(task) = task {
            task.stop.cancel();
            task.ended.cancelled().await;
        }
        Ok(())
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
            entry.has_ended()
        };
        if !ended {
            self.store(number).await;
            self.begin(number, Again::UnlessEnded).await;
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
            if !entry.has_ended() {
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
        self.stop(number, true).await?;
        if let Some(task) = self.claim(number) {
            let (transfers, ended) = (self.clone(), task.ended.clone());
            // To its end, even if nobody waits for it any more.
            let work = async move { transfers.conclude(number, task, Ended::Stopped, true).await };
            self.inner.context.tracker.spawn(work);
            ended.cancelled().await;
        }
        self.get(number)
    }

    /// Takes the place of the task of a transfer that rests, so that none begins meanwhile.
    fn claim(&self, number: u64) -> Option<Task> {
        let mut table = self.table();
        let entry = table.transfers.get_mut(&number)?;
        if entry.task.is_some() || entry.has_ended() {
            return None;
        }
        let task = Task::under(&self.inner.shutdown);
        task.stop.cancel();
        entry.task = Some(task.clone());
        Some(task)
    }
}

impl Entry {
    /// Whether it is done or cancelled.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.view.borrow().state, State::Done | State::Cancelled)
    }

    /// Changes what the transfer is held to; the task at work hears of it.
    pub(super) fn hold_to(&mut self, terms: NewTerms) {
        let terms = terms.of(*self.terms.borrow());
        self.spec.terms = terms.into();
        self.view.send_modify(|view| view.terms = terms);
        self.terms.send_replace(terms);
    }
}
