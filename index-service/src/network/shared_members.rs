//! The members of a network with several indexes: one log in their store, which each index follows
//! into its own journal.
//!
//! ```text
//! {"potluck_members":1,"network":"3f…","epoch":1,"is_rewritten":false}<TAB>SEAL
//! EVENT<TAB>SEAL
//! …
//! ```
//!
//! A change is appended to the log if nobody appended another meanwhile, and then to the journal. So
//! all indexes decide in the same order. The seal of a line is an HMAC-SHA256 over the line and the seal
//! before it. Its key is derived from the CA's key, so a program that can only write to the store cannot
//! add members.
//!
//! Redis can lose its last lines in a failover. Each index therefore compares the last line that it
//! knows, and appends again what was lost: a revoked member does not come back.
//!
//! Invariants:
//!
//! - The caller has the lock of the journal, and the journal has read all its lines.
//! - When a method returns `Ok`, the members of the journal are the result of the lines of the log.

use std::collections::{HashSet, VecDeque};

use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::{Deserialize, Serialize};

use crate::{
    network::{
        journal::{self, Journal, JournalError},
        membership::{Event, MemberState, Membership},
    },
    store::{
        StoreError,
        shared_log::{LogEnd, SharedLog},
    },
};

/// The version of the log.
const VERSION: u32 = 1;

/// Attempts to append before another index that is faster is given up on.
const ATTEMPTS: usize = 32;

/// Lines that are remembered, to append again what a failover lost: those of many seconds.
const RECENT: usize = 1024;

/// Lines beyond twice the needed ones before the log is rewritten.
const SLACK_LINES: u64 = 1_000;

/// The reason why the members cannot be shared.
#[derive(Debug, thiserror::Error)]
pub enum SharedMembersError {
    /// The store does not answer.
    #[error("the members are in the indexes' common store, which failed: {0}")]
    Store(#[from] StoreError),
    /// The journal of this index.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The store has the members of another network.
    #[error(
        "the Redis Cluster has the members of another private network: give each network a cluster of \
         its own, or correct --store"
    )]
    OtherNetwork,
    /// A line was not written by an index of this network.
    #[error(
        "line {line} of the members in Redis was not written by an index of this network ({reason}): \
         find out who else can write there; without the key `potluck:{{network}}:members`, the next \
         index that starts writes its own members"
    )]
    Damaged {
        /// The number of the line, from 1.
        line: u64,
        /// The reason.
        reason: String,
    },
    /// Other indexes made a change each time.
    #[error("other indexes change the members all the time: try again")]
    Contended,
}

/// The first line.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    potluck_members: u32,
    /// The hash of the CA's key.
    network: String,
    /// Grows each time that the log is begun or rewritten.
    epoch: u64,
    /// Whether it has all that the log before it had. Otherwise the store was empty.
    is_rewritten: bool,
}

/// The log, as far as it was read.
#[derive(Debug)]
pub(crate) struct SharedMembers {
    log: Box<dyn SharedLog>,
    sealer: Sealer,
    network: String,
    position: Position,
}

/// Makes and checks the seals.
struct Sealer(Hmac<sha2::Sha256>);

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer")
    }
}

/// What was read.
#[derive(Debug, Clone, Default)]
struct Position {
    /// The first line.
    header: String,
    epoch: u64,
    is_rewritten: bool,
    end: LogEnd,
    seal: [u8; 32],
    /// The texts of the last events.
    recent: VecDeque<String>,
}

impl Sealer {
    fn seal(&self, before: &[u8; 32], text: &str) -> [u8; 32] {
        let mut mac = self.0.clone();
        mac.update(before);
        mac.update(text.as_bytes());
        mac.finalize().into_bytes().into()
    }

    /// The next line for this text.
    fn append(&self, position: &mut Position, text: &str) -> String {
        position.seal = self.seal(&position.seal, text);
        let line = format!("{text}\t{}", hex::encode(position.seal));
        position.take(text, line.clone());
        line
    }

    /// The text of the next line; `None` if its seal is wrong.
    fn read<'a>(&self, position: &mut Position, line: &'a str) -> Option<&'a str> {
        let (text, seal) = line.split_once('\t')?;
        let expected = self.seal(&position.seal, text);
        if hex::encode(expected) != seal {
            return None;
        }
        position.seal = expected;
        position.take(text, line.to_owned());
        Some(text)
    }
}

impl Position {
    fn take(&mut self, text: &str, line: String) {
        match self.end.len {
            0 => self.header.clone_from(&line),
            _ => self.recent.push_back(text.to_owned()),
        }
        if self.recent.len() > RECENT {
            self.recent.pop_front();
        }
        self.end.len += 1;
        self.end.last = line;
    }
}

impl SharedMembers {
    /// Joins the log of the indexes of a network, or begins it with the members of the journal.
    /// `network` is the hash of the CA's key, and `secret` what only its indexes know.
    ///
    /// # Errors
    /// [`SharedMembersError`].
    pub(crate) fn join(
        log: Box<dyn SharedLog>,
        network: String,
        secret: &[u8; 32],
        journal: &mut Journal,
    ) -> Result<Self, SharedMembersError> {
        let mut shared = Self {
            log,
            sealer: Sealer(Hmac::new_from_slice(secret).expect("a key may have any length")),
            network,
            position: Position::default(),
        };
        shared.recover(journal)?;
        Ok(shared)
    }

    /// Takes over what other indexes changed, and appends what other processes on this machine did.
    ///
    /// # Errors
    /// [`SharedMembersError`].
    pub(crate) fn follow(&mut self, journal: &mut Journal) -> Result<(), SharedMembersError> {
        let part = self.log.read(self.position.end.len.saturating_sub(1))?;
        let is_known = part.first.as_ref() == Some(&self.position.header)
            && part.lines.first() == Some(&self.position.end.last);
        if !is_known || (part.lines.len() > 1 && !journal.unshared().is_empty()) {
            return self.recover(journal);
        }
        let mut position = self.position.clone();
        let events = self.read(&mut position, &part.lines[1..])?;
        if !events.is_empty() {
            journal.append(&events)?;
            journal.mark_shared()?;
        }
        self.position = position;
        let own = journal.unshared().to_vec();
        if own.is_empty() {
            return Ok(());
        }
        match self.append(&own)? {
            true => Ok(journal.mark_shared()?),
            false => self.recover(journal),
        }
    }

    /// Appends an event if nobody else did since [`Self::follow`]; false if somebody did.
    ///
    /// # Errors
    /// [`SharedMembersError`]; the event may have been appended.
    pub(crate) fn add(
        &mut self,
        journal: &mut Journal,
        event: Event,
    ) -> Result<bool, SharedMembersError> {
        let before = self.position.clone();
        if !self.append(std::slice::from_ref(&event))? {
            return Ok(false);
        }
        if let Err(error) = journal.append(&[event]) {
            // The next call reads it from the log.
            self.position = before;
            return Err(error.into());
        }
        journal.mark_shared()?;
        Ok(true)
    }

    /// Rewrites the log if many of its lines are obsolete.
    ///
    /// # Errors
    /// [`SharedMembersError`].
    pub(crate) fn compact(
        &mut self,
        journal: &Journal,
        now: u64,
    ) -> Result<(), SharedMembersError> {
        let mut members = journal.members().clone();
        members.prune(now);
        if self.position.end.len <= 2 * members.snapshot().count() as u64 + SLACK_LINES {
            return Ok(());
        }
        let (lines, position) = self.snapshot(&members, true);
        // Otherwise another index rewrote it, or does so later.
        if self.log.replace(&self.position.end, &lines)? {
            self.position = position;
        }
        Ok(())
    }

    /// Reads all of the log, and appends what it lost and what this machine added. If it has nothing,
    /// writes the members of the journal.
    fn recover(&mut self, journal: &mut Journal) -> Result<(), SharedMembersError> {
        for _ in 0..ATTEMPTS {
            let part = self.log.read(0)?;
            if part.first.is_none() {
                let (lines, position) = self.snapshot(journal.members(), false);
                if self.log.append(&LogEnd::default(), &lines)? {
                    self.position = position;
                    return Ok(journal.mark_shared()?);
                }
                continue;
            }
            let mut position = Position::default();
            let mut members = Membership::default();
            let events = self.read(&mut position, &part.lines)?;
            events.iter().for_each(|event| members.apply(event.clone()));
            let mut missing = self.missing(&position, &events, journal);
            missing.extend(revoked_here(journal.members(), &members));
            let before = std::mem::replace(&mut self.position, position);
            match self.append(&missing) {
                Ok(true) => {}
                Ok(false) => {
                    self.position = before;
                    continue;
                }
                Err(error) => {
                    self.position = before;
                    return Err(error);
                }
            }
            if !missing.is_empty() {
                tracing::warn!(
                    changes = missing.len(),
                    "the common store lacked changes of the members: appended them again"
                );
            }
            missing.into_iter().for_each(|event| members.apply(event));
            journal.replace(&members)?;
            return Ok(journal.mark_shared()?);
        }
        Err(SharedMembersError::Contended)
    }

    /// The events that are not in the log: what was read of it before and is gone, and what this
    /// machine added.
    fn missing(&self, found: &Position, events: &[Event], journal: &Journal) -> Vec<Event> {
        let present: HashSet<String> = events.iter().map(journal::encode).collect();
        // A rewritten log has other lines for the same members.
        let is_rewritten = found.epoch > self.position.epoch && found.is_rewritten;
        let recent = self.position.recent.iter().filter(|_| !is_rewritten);
        let lost = recent.filter_map(|text| journal::decode(text).ok());
        let mut seen = HashSet::new();
        lost.chain(journal.unshared().iter().cloned())
            .filter(|event| {
                let text = journal::encode(event);
                !present.contains(&text) && seen.insert(text)
            })
            .collect()
    }

    /// Appends events to what was read; false if the log has another end.
    fn append(&mut self, events: &[Event]) -> Result<bool, SharedMembersError> {
        if events.is_empty() {
            return Ok(true);
        }
        let mut position = self.position.clone();
        let mut line = |event| self.sealer.append(&mut position, &journal::encode(event));
        let lines: Vec<String> = events.iter().map(&mut line).collect();
        let is_appended = self.log.append(&self.position.end, &lines)?;
        if is_appended {
            self.position = position;
        }
        Ok(is_appended)
    }

    /// The lines of a new log with these members.
    fn snapshot(&self, members: &Membership, is_rewritten: bool) -> (Vec<String>, Position) {
        let header = Header {
            potluck_members: VERSION,
            network: self.network.clone(),
            epoch: self.position.epoch + 1,
            is_rewritten,
        };
        let mut position = Position {
            epoch: header.epoch,
            is_rewritten,
            ..Position::default()
        };
        let header = serde_json::to_string(&header).expect("a header has only text and numbers");
        let events = members.snapshot().map(|event| journal::encode(&event));
        let texts = std::iter::once(header).chain(events);
        let lines = texts
            .map(|text| self.sealer.append(&mut position, &text))
            .collect();
        (lines, position)
    }

    /// Reads lines that follow a position, and returns their events.
    fn read(
        &self,
        position: &mut Position,
        lines: &[String],
    ) -> Result<Vec<Event>, SharedMembersError> {
        let mut events = Vec::with_capacity(lines.len());
        for line in lines {
            let number = position.end.len + 1;
            let damaged = |reason: String| SharedMembersError::Damaged { line: number, reason };
            if number == 1 {
                (position.epoch, position.is_rewritten) = self.check_header(line)?;
            }
            let text = self.sealer.read(position, line);
            let text = text.ok_or_else(|| damaged("its seal is wrong".to_owned()))?;
            if number > 1 {
                events.push(journal::decode(text).map_err(damaged)?);
            }
        }
        Ok(events)
    }

    /// The epoch of a log of this network, and whether it was rewritten. This comes before the seal is
    /// checked, because another network has another key.
    fn check_header(&self, line: &str) -> Result<(u64, bool), SharedMembersError> {
        let text = line.split('\t').next().unwrap_or_default();
        let header: Header =
            serde_json::from_str(text).map_err(|error| SharedMembersError::Damaged {
                line: 1,
                reason: error.to_string(),
            })?;
        if header.network != self.network {
            return Err(SharedMembersError::OtherNetwork);
        }
        if header.potluck_members != VERSION {
            return Err(SharedMembersError::Damaged {
                line: 1,
                reason: format!(
                    "it has version {} of the format: update potluck",
                    header.potluck_members
                ),
            });
        }
        Ok((header.epoch, header.is_rewritten))
    }
}

/// Revocations that the journal has and the log lacks: an older copy of the log, which an index reads when
/// it starts. A revocation is for ever.
fn revoked_here(own: &Membership, found: &Membership) -> Vec<Event> {
    let is_active = |id| found.active(id).is_ok();
    let revoked = own
        .members(None)
        .filter(|(id, entry)| entry.state != MemberState::Active && is_active(id));
    revoked
        .map(|(id, entry)| Event::Revoked {
            member: *id,
            left: entry.state == MemberState::Left,
            at: own.revocations_number(),
        })
        .collect()
}

#[cfg(test)]
mod tests;
