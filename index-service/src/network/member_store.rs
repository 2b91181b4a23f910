//! Where the members are kept: in the journal of this index, and with several indexes also in the log
//! that all share.

use std::path::Path;

use crate::{
    network::{
        journal::{Journal, JournalError},
        membership::{Event, Membership},
        shared_members::{SharedMembers, SharedMembersError},
    },
    store::shared_log::SharedLog,
};

/// Attempts to make a change before another index that is faster is given up on.
const ATTEMPTS: usize = 32;

/// The log of all indexes of a network.
#[derive(Debug)]
pub(crate) struct NetworkLog {
    /// The log.
    pub(crate) log: Box<dyn SharedLog>,
    /// The hash of the CA's key.
    pub(crate) network: String,
    /// What only the indexes know.
    pub(crate) secret: [u8; 32],
}

/// The members of a network.
#[derive(Debug)]
pub(crate) struct MemberStore {
    journal: Journal,
    shared: Option<SharedMembers>,
}

impl MemberStore {
    /// Opens the members in the folder of a network, and joins the log of its indexes, if there is
    /// one.
    ///
    /// # Errors
    /// [`SharedMembersError`].
    pub(crate) fn open(
        folder: &Path,
        log: Option<NetworkLog>,
        now: u64,
    ) -> Result<Self, SharedMembersError> {
        let (mut journal, shared) = match log {
            None => (Journal::open(folder)?, None),
            Some(NetworkLog { log, network, secret }) => {
                let mut journal = Journal::open_shared(folder)?;
                let _lock = journal.take_lock()?;
                let mut shared = SharedMembers::join(log, network, &secret, &mut journal)?;
                shared.compact(&journal, now)?;
                (journal, Some(shared))
            }
        };
        journal.compact(now)?;
        Ok(Self { journal, shared })
    }

    /// The members as last read.
    pub(crate) const fn members(&self) -> &Membership {
        self.journal.members()
    }

    /// Reads what other processes and other indexes changed; true if there was something.
    ///
    /// # Errors
    /// [`SharedMembersError`]; the members are then as before, or have a part of it.
    pub(crate) fn refresh(&mut self) -> Result<bool, SharedMembersError> {
        let Some(shared) = &mut self.shared else {
            return Ok(self.journal.refresh()?);
        };
        let before = self.journal.members().clone();
        let _lock = self.journal.take_lock()?;
        self.journal.refresh()?;
        shared.follow(&mut self.journal)?;
        Ok(before != *self.journal.members())
    }

    /// Rewrites the log of all indexes if many of its lines are obsolete.
    ///
    /// # Errors
    /// [`SharedMembersError`].
    pub(crate) fn compact_log(&mut self, now: u64) -> Result<(), SharedMembersError> {
        match &mut self.shared {
            Some(shared) => shared.compact(&self.journal, now),
            None => Ok(()),
        }
    }

    /// Makes a change, durable before this returns. `decide` sees the latest members, and is called
    /// again if another index changed them meanwhile.
    ///
    /// # Errors
    /// Those of `decide`, after which nothing has changed; [`SharedMembersError`].
    pub(crate) fn change<T, E: From<JournalError> + From<SharedMembersError>>(
        &mut self,
        decide: impl Fn(&Membership) -> Result<(T, Option<Event>), E>,
    ) -> Result<T, E> {
        let Some(shared) = &mut self.shared else {
            return self.journal.change(decide);
        };
        let _lock = self.journal.take_lock()?;
        for _ in 0..ATTEMPTS {
            self.journal.refresh()?;
            shared.follow(&mut self.journal)?;
            let (answer, event) = decide(self.journal.members())?;
            let Some(event) = event else {
                return Ok(answer);
            };
            if shared.add(&mut self.journal, event)? {
                return Ok(answer);
            }
        }
        Err(SharedMembersError::Contended.into())
    }
}
