//! What must be true of the peers: what their owners asked for, and what was acknowledged.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use crate::{dish::Edition, plan::NodeNumber};

/// Whether a peer shares something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shared {
    /// It was acknowledged, or follows from a rule.
    Yes,
    /// It was acknowledged that it does not.
    No,
    /// A command was interrupted, or state was lost.
    Perhaps,
}

/// Who wrote the bytes at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writer {
    /// The user: nobody else may change them.
    User,
    /// A download.
    Peer,
}

/// A path of a peer that holds a dish.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) edition: Edition,
    pub(crate) writer: Writer,
    pub(crate) shared: Shared,
    /// Whether the user removed it.
    pub(crate) is_removed: bool,
}

/// A download whose start was acknowledged.
#[derive(Debug, Clone)]
pub(crate) struct Transfer {
    pub(crate) edition: Edition,
    pub(crate) path: PathBuf,
    pub(crate) is_chosen: bool,
    /// Whether it is known to have ended.
    pub(crate) has_ended: bool,
    /// Whether its owner may have cancelled it.
    pub(crate) may_be_cancelled: bool,
}

/// A peer as its owner knows it.
#[derive(Debug, Default)]
pub(crate) struct Peer {
    pub(crate) places: BTreeMap<PathBuf, Place>,
    pub(crate) transfers: BTreeMap<u64, Transfer>,
    /// Targets of downloads, acknowledged or not.
    pub(crate) targets: BTreeMap<PathBuf, (Edition, bool)>,
}

/// Everything that is known.
#[derive(Debug, Default)]
pub(crate) struct Model {
    pub(crate) peers: BTreeMap<NodeNumber, Peer>,
    /// The ids of all editions that exist.
    pub(crate) ids: BTreeMap<Edition, String>,
    /// The number of editions of each dish.
    pub(crate) editions: BTreeMap<u8, u32>,
}

impl Model {
    /// A peer.
    pub(crate) fn peer(&mut self, node: NodeNumber) -> &mut Peer {
        self.peers.entry(node).or_default()
    }

    /// An edition of a dish that nobody has.
    pub(crate) fn new_edition(&mut self, dish: u8) -> Edition {
        let count = self.editions.entry(dish).or_insert(0);
        // The empty file has one edition.
        let number = if dish == 0 { 0 } else { *count };
        *count += 1;
        Edition { dish, number }
    }

    /// The answer of a command is lost that changes whether this path is shared: both are possible.
    pub(crate) fn lose_answer(&mut self, node: NodeNumber, path: &Path) {
        if let Some(place) = self.peer(node).places.get_mut(path) {
            place.shared = Shared::Perhaps;
        }
    }

    /// All editions of a dish.
    pub(crate) fn editions_of(&self, dish: u8) -> BTreeSet<Edition> {
        let editions = self.ids.keys().filter(|edition| edition.dish == dish);
        editions.copied().collect()
    }

    /// The state of this peer is lost or damaged: nothing that it knew is certain. Only its files
    /// folder is shared again by itself.
    pub(crate) fn forget(&mut self, node: NodeNumber, files_folder: &Path) {
        let peer = self.peer(node);
        for (path, place) in &mut peer.places {
            let is_kept = path.starts_with(files_folder) && place.shared == Shared::Yes;
            if !is_kept {
                place.shared = Shared::Perhaps;
            }
        }
        peer.transfers.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_whose_answer_is_lost_may_have_happened() {
        let mut model = Model::default();
        let path = Path::new("shelf/dish");
        let place = Place {
            edition: Edition { dish: 1, number: 0 },
            writer: Writer::User,
            shared: Shared::No,
            is_removed: false,
        };
        model.peer(1).places.insert(path.to_owned(), place);
        model.lose_answer(1, path);
        assert_eq!(model.peer(1).places[path].shared, Shared::Perhaps);
        // A download's target may not be there yet.
        model.lose_answer(1, Path::new("out/dish"));
        assert_eq!(model.peer(1).places.len(), 1);
    }
}
