//! What this process knows of each hash tag: how far it has followed the tag's changes. Pure.

use std::collections::HashMap;

use potluck_core::PeerId;

/// How far a tag was followed.
#[derive(Debug, Default)]
pub(super) struct TagState {
    /// The id of the last change in the stream.
    pub(super) stream_id: String,
    /// The number of the last change.
    pub(super) number: u64,
    /// For each stored peer, the number of its last change.
    pub(super) versions: HashMap<PeerId, u64>,
    /// The run of the primary that served the tag last; 0 before the first answer.
    pub(super) run: u64,
    /// Whether the whole state must be compared, because changes may have been missed or lost.
    pub(super) is_uncertain: bool,
    /// Whether the primary did not answer last time.
    pub(super) is_down: bool,
}

/// What to do with a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is known already.
    Known,
    /// It follows the last known change of its peer.
    Next,
    /// Changes of the peer before it are not known: read the peer.
    Gap,
}

impl TagState {
    /// Takes the numbers of a change of a peer: its own and that of the peer's change before it.
    /// `exists` says whether the peer exists after it.
    pub(super) fn take(
        &mut self,
        peer: PeerId,
        number: u64,
        previous: u64,
        exists: bool,
    ) -> Verdict {
        let known = self.versions.get(&peer).copied().unwrap_or(0);
        let verdict = match known {
            known if known >= number => return Verdict::Known,
            known if known == previous => Verdict::Next,
            _ => Verdict::Gap,
        };
        match exists {
            true => self.versions.insert(peer, number),
            false => self.versions.remove(&peer),
        };
        verdict
    }

    /// Takes the position of a change that this process made. Changes of others before it are still
    /// to be read.
    pub(super) fn advance(&mut self, number: u64, stream_id: String) {
        if number == self.number + 1 {
            (self.number, self.stream_id) = (number, stream_id);
        } else if number <= self.number {
            // The numbers went back: a failover lost changes.
            self.is_uncertain = true;
        }
    }

    /// Takes the position of a change in the stream. Changes that are missing before it were trimmed.
    pub(super) fn read(&mut self, number: u64, stream_id: String) {
        self.is_uncertain |= number != self.number + 1;
        (self.number, self.stream_id) = (number, stream_id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u8) -> PeerId {
        PeerId([n; 32])
    }

    #[test]
    fn changes_of_one_peer_follow_each_other() {
        let mut tag = TagState::default();
        assert_eq!(tag.take(peer(1), 1, 0, true), Verdict::Next);
        assert_eq!(tag.take(peer(1), 1, 0, true), Verdict::Known);
        assert_eq!(tag.take(peer(2), 2, 0, true), Verdict::Next);
        assert_eq!(tag.take(peer(1), 4, 3, true), Verdict::Gap);
        assert_eq!(tag.take(peer(1), 3, 1, true), Verdict::Known);
        assert_eq!(tag.take(peer(1), 5, 4, false), Verdict::Next);
        assert_eq!(tag.take(peer(1), 6, 0, true), Verdict::Next);
    }

    #[test]
    fn a_position_that_skips_or_repeats_numbers_is_noticed() {
        let mut tag = TagState::default();
        tag.advance(1, "1-0".to_owned());
        tag.read(2, "2-0".to_owned());
        assert!(!tag.is_uncertain);
        tag.advance(4, "4-0".to_owned());
        assert_eq!((tag.number, &*tag.stream_id), (2, "2-0"), "3 is still to be read");
        assert!(!tag.is_uncertain);
        tag.advance(2, "5-0".to_owned());
        assert!(tag.is_uncertain);
        let mut tag = TagState::default();
        tag.read(9, "9-0".to_owned());
        assert!(tag.is_uncertain);
    }
}
