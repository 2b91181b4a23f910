//! Serves content under its provisional id after it got its real one.
//!
//! Peers that still download under the provisional id count on the pieces that this peer fetched
//! from the origin. The content's SHA-256 was checked, so all of it may be served under that id
//! now: a wrong piece would still be this peer's fault.

use std::{fs::File, ops::Range, sync::Arc, time::Duration};

use parking_lot::Mutex;
use potluck_core::{
    FileId, Problem, availability::Availability, identity::merkle::Hash, model::FileRecord,
};
use tokio::{sync::watch, time::Instant};

use crate::{announce::set::PartialAnnouncement, content::Content};

/// How long an alias is kept: the peers of a crowd finish within this time of each other.
pub(crate) const ALIAS_TTL: Duration = Duration::from_secs(600);

/// Maximum number of aliases; the oldest is dropped first.
const MAX_ALIASES: usize = 1024;

/// The provisional ids of finished downloads.
#[derive(Debug, Default)]
pub(crate) struct Aliases(Mutex<Vec<Alias>>);

#[derive(Debug)]
struct Alias {
    record: FileRecord,
    real: FileId,
    added: Instant,
    /// Keeps the provisional id at the index.
    _announcement: Option<PartialAnnouncement>,
}

impl Aliases {
    /// Serves `real` also under the provisional record.
    pub(crate) fn add(
        &self,
        record: FileRecord,
        real: FileId,
        announcement: Option<PartialAnnouncement>,
    ) {
        let mut aliases = self.0.lock();
        expire(&mut aliases);
        aliases.retain(|alias| alias.record.id != record.id);
        if aliases.len() == MAX_ALIASES {
            aliases.remove(0);
        }
        aliases.push(Alias {
            record,
            real,
            added: Instant::now(),
            _announcement: announcement,
        });
    }

    /// The record of a provisional id, and the id of its content.
    pub(crate) fn find(&self, id: &FileId) -> Option<(FileRecord, FileId)> {
        let mut aliases = self.0.lock();
        expire(&mut aliases);
        let alias = aliases.iter().find(|alias| alias.record.id == *id)?;
        Some((alias.record, alias.real))
    }

    /// Ends the announcements of old aliases.
    pub(crate) fn remove_expired(&self) {
        expire(&mut self.0.lock());
    }
}

fn expire(aliases: &mut Vec<Alias>) {
    aliases.retain(|alias| alias.added.elapsed() < ALIAS_TTL);
}

/// Content under another id.
#[derive(Debug)]
pub(crate) struct AliasContent {
    pub(crate) record: FileRecord,
    pub(crate) content: Arc<dyn Content>,
}

impl Content for AliasContent {
    fn id(&self) -> FileId {
        self.record.id
    }

    fn size(&self) -> u64 {
        self.record.size
    }

    fn record(&self) -> Result<FileRecord, Problem> {
        Ok(self.record)
    }

    fn name(&self) -> String {
        self.content.name()
    }

    fn piece_hashes(&self) -> Result<Arc<[Hash]>, Problem> {
        self.content.piece_hashes()
    }

    fn availability(&self) -> Availability {
        self.content.availability()
    }

    fn changes(&self) -> Option<watch::Receiver<u64>> {
        self.content.changes()
    }

    fn open(&self, range: Range<u64>) -> Result<Arc<File>, Problem> {
        self.content.open(range)
    }

    fn try_open(&self, range: Range<u64>) -> Option<Arc<File>> {
        self.content.try_open(range)
    }

    fn is_unchanged(&self, file: &File) -> bool {
        self.content.is_unchanged(file)
    }

    fn check_unchanged(&self, file: &File) -> Result<(), Problem> {
        self.content.check_unchanged(file)
    }
}
