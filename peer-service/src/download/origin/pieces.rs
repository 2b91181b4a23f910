//! Provisional content: for each piece its hash and who sent it. Pure but for the closure that
//! writes.
//!
//! Invariants:
//!
//! - The bytes on disk of a recorded piece have the recorded hash and came from the recorded sender.
//! - Bytes from the origin replace bytes from a peer, never the other way round.
//! - Nothing is recorded of a banned peer.

use std::{
    collections::{HashMap, HashSet},
    io,
    sync::Arc,
};

use parking_lot::Mutex;
use potluck_core::{bitfield::Bitfield, identity::merkle::Hash, model::Address};
use potluck_swarm::PeerKey;

use crate::download::origin::early::EarlyBytes;

/// Who sent a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sender {
    /// The origin.
    Origin,
    /// A peer.
    Peer(PeerKey),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    /// `None`: not computed, because the piece is from an earlier run.
    hash: Option<Hash>,
    /// `None`: an earlier run, which did not store the sender.
    sender: Option<Sender>,
}

/// A peer that sent another piece than the origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// The piece.
    pub(crate) unit: u32,
    /// The peer's address, if it is known.
    pub(crate) address: Option<Address>,
}

/// The pieces of one download.
#[derive(Debug)]
pub(crate) struct ProvisionalPieces {
    /// Locked while a piece is written.
    state: Mutex<State>,
    /// The pieces that came from the origin. Never locked for long: uploads look here.
    from_origin: Mutex<Bitfield>,
    /// What was handed out of pieces from the origin.
    early: Arc<EarlyBytes>,
}

impl Drop for ProvisionalPieces {
    /// The run ended; without a right SHA-256 nobody can tell any more.
    fn drop(&mut self) {
        self.early.set_wrong();
    }
}

#[derive(Debug)]
struct State {
    pieces: Vec<Option<Piece>>,
    banned: HashSet<PeerKey>,
    /// Pieces of peers that are fetched again from the origin.
    doubted: HashMap<u32, Piece>,
    faults: Vec<(u32, PeerKey)>,
    names: HashMap<PeerKey, Address>,
    /// Number of times that recorded pieces were forgotten.
    resets: u64,
}

impl ProvisionalPieces {
    /// No pieces yet.
    pub(crate) fn new(units: u32) -> Self {
        Self {
            state: Mutex::new(State {
                pieces: vec![None; units as usize],
                banned: HashSet::new(),
                doubted: HashMap::new(),
                faults: Vec::new(),
                names: HashMap::new(),
                resets: 0,
            }),
            from_origin: Mutex::new(Bitfield::new(units)),
            early: Arc::default(),
        }
    }

    /// Records a piece and calls `write`, unless the piece is there already.
    ///
    /// # Errors
    /// The error of `write`; the piece then does not count.
    pub(crate) fn write(
        &self,
        unit: u32,
        hash: Hash,
        sender: Sender,
        write: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        let state = &mut *self.state.lock();
        if let Sender::Peer(peer) = sender
            && state.banned.contains(&peer)
        {
            // Its requests were cancelled, so the result does not count.
            return Ok(());
        }
        let Some(slot) = state.pieces.get_mut(unit as usize) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        match *slot {
            Some(piece) if sender == Sender::Origin && piece.hash != Some(hash) => {
                match piece.sender {
                    Some(Sender::Peer(peer)) => state.faults.push((unit, peer)),
                    // It may have been handed out.
                    Some(Sender::Origin) => self.early.set_wrong(),
                    None => {}
                }
                state.resets += 1;
            }
            Some(piece) => {
                if sender == Sender::Origin {
                    *slot = Some(Piece {
                        sender: Some(sender),
                        ..piece
                    });
                    self.from_origin.lock().set(unit, true);
                }
                return Ok(());
            }
            None => {}
        }
        *slot = None;
        write()?;
        *slot = Some(Piece {
            hash: Some(hash),
            sender: Some(sender),
        });
        if sender == Sender::Origin {
            self.from_origin.lock().set(unit, true);
            if let Some(doubted) = state.doubted.remove(&unit)
                && doubted.hash != Some(hash)
                && let Some(Sender::Peer(peer)) = doubted.sender
            {
                state.faults.push((unit, peer));
            }
        }
        Ok(())
    }

    /// Records a piece of an earlier run.
    pub(crate) fn restore(&self, unit: u32) {
        if let Some(slot) = self.state.lock().pieces.get_mut(unit as usize) {
            *slot = Some(Piece {
                hash: None,
                sender: None,
            });
        }
    }

    /// Remembers the address of a peer, to name it if it is at fault.
    pub(crate) fn name(&self, peer: PeerKey, address: &Address) {
        self.state
            .lock()
            .names
            .entry(peer)
            .or_insert_with(|| address.clone());
    }

    /// Forgets all pieces of a peer, and ignores later ones. Returns them.
    pub(crate) fn ban(&self, peer: PeerKey) -> Vec<u32> {
        let state = &mut *self.state.lock();
        state.banned.insert(peer);
        state
            .forget(|_, piece| piece.sender == Some(Sender::Peer(peer)))
            .into_iter()
            .map(|(unit, _)| unit)
            .collect()
    }

    /// Accepts pieces of a banned peer again.
    pub(crate) fn readmit(&self, peer: PeerKey) {
        self.state.lock().banned.remove(&peer);
    }

    /// Forgets pieces that did not come from the origin, but remembers who sent them: those in
    /// `only`, or all if it is `None`. Returns them.
    pub(crate) fn doubt_peers(&self, only: Option<&Bitfield>) -> Vec<u32> {
        let state = &mut *self.state.lock();
        let is_meant = |unit| only.is_none_or(|only| only.get(unit));
        let doubted =
            state.forget(|unit, piece| piece.sender != Some(Sender::Origin) && is_meant(unit));
        let units = doubted.iter().map(|&(unit, _)| unit).collect();
        state.doubted.extend(doubted);
        units
    }

    /// The peers that sent something else than the origin, each once; empties the list.
    pub(crate) fn take_faults(&self) -> Vec<Fault> {
        let state = &mut *self.state.lock();
        let mut seen = HashSet::new();
        let faults = std::mem::take(&mut state.faults).into_iter();
        faults
            .filter(|(_, peer)| seen.insert(*peer))
            .map(|(unit, peer)| Fault {
                unit,
                address: state.names.get(&peer).cloned(),
            })
            .collect()
    }

    /// Leaves only what came from the origin: this may be served to others.
    pub(crate) fn retain_from_origin(&self, units: &mut Bitfield) {
        let from_origin = self.from_origin.lock().clone();
        for unit in units.clone().ones_not_in(&from_origin) {
            units.set(unit, false);
        }
    }

    /// Whether a piece came from the origin.
    pub(crate) fn is_from_origin(&self, unit: u32) -> bool {
        self.from_origin.lock().get(unit)
    }

    /// What was handed out of pieces from the origin, before the end.
    pub(crate) const fn early(&self) -> &Arc<EarlyBytes> {
        &self.early
    }

    /// Number of times that recorded pieces were forgotten or replaced.
    pub(crate) fn resets(&self) -> u64 {
        self.state.lock().resets
    }

    /// The hash of each piece; `None` for those that are not recorded or not computed.
    pub(crate) fn hashes(&self) -> Vec<Option<Hash>> {
        let pieces = &self.state.lock().pieces;
        pieces
            .iter()
            .map(|piece| piece.and_then(|piece| piece.hash))
            .collect()
    }
}

impl State {
    fn forget(&mut self, is_meant: impl Fn(u32, &Piece) -> bool) -> Vec<(u32, Piece)> {
        let mut forgotten = Vec::new();
        for (unit, slot) in (0..).zip(&mut self.pieces) {
            if let Some(piece) = slot.take_if(|piece| is_meant(unit, piece)) {
                forgotten.push((unit, piece));
            }
        }
        self.resets += u64::from(!forgotten.is_empty());
        forgotten
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::download::origin::early::EarlyState;

    const A: Sender = Sender::Peer(PeerKey(1));
    const B: Sender = Sender::Peer(PeerKey(2));

    fn pieces() -> ProvisionalPieces {
        ProvisionalPieces::new(4)
    }

    /// Whether the piece was written.
    fn write(pieces: &ProvisionalPieces, unit: u32, hash: u8, sender: Sender) -> bool {
        let wrote = Cell::new(false);
        let write = || {
            wrote.set(true);
            Ok(())
        };
        pieces.write(unit, [hash; 32], sender, write).is_ok() && wrote.get()
    }

    #[test]
    fn only_what_came_from_the_origin_is_served() {
        let pieces = pieces();
        assert!(write(&pieces, 0, 1, Sender::Origin));
        assert!(write(&pieces, 1, 1, A));
        pieces.restore(2);
        let mut units = Bitfield::full(4);
        pieces.retain_from_origin(&mut units);
        assert_eq!(units.ones().collect::<Vec<_>>(), [0]);
        // The same bytes from the origin.
        assert!(!write(&pieces, 1, 1, Sender::Origin));
        assert!(pieces.is_from_origin(1) && !pieces.is_from_origin(2));
    }

    #[test]
    fn a_ban_forgets_all_pieces_of_a_peer() {
        let pieces = pieces();
        write(&pieces, 0, 1, A);
        write(&pieces, 1, 1, B);
        write(&pieces, 2, 1, A);
        assert_eq!(pieces.ban(PeerKey(1)), [0, 2]);
        assert!(!write(&pieces, 3, 1, A), "late bytes of a banned peer");
        assert_eq!(pieces.hashes()[1], Some([1; 32]));
        assert!(write(&pieces, 0, 1, B), "others may send it");
    }

    #[test]
    fn a_peer_that_differs_from_the_origin_is_at_fault() {
        let pieces = pieces();
        let address = Address {
            host: "192.0.2.1".into(),
            port: 7,
        };
        pieces.name(PeerKey(1), &address);
        write(&pieces, 0, 9, A);
        write(&pieces, 1, 1, B);
        write(&pieces, 2, 1, Sender::Origin);
        let mut only = Bitfield::new(4);
        only.set(0, true);
        only.set(2, true);
        assert_eq!(pieces.doubt_peers(Some(&only)), [0]);
        assert_eq!(pieces.doubt_peers(None), [1]);
        assert!(write(&pieces, 0, 1, Sender::Origin));
        assert!(write(&pieces, 1, 1, Sender::Origin));
        let fault = Fault {
            unit: 0,
            address: Some(address),
        };
        assert_eq!(pieces.take_faults(), [fault]);
        assert!(pieces.take_faults().is_empty());
        assert!(pieces.doubt_peers(None).is_empty());
    }

    #[test]
    fn bytes_from_the_origin_replace_those_of_a_peer() {
        let pieces = pieces();
        write(&pieces, 0, 9, A);
        assert!(write(&pieces, 0, 1, Sender::Origin));
        assert!(!write(&pieces, 0, 9, B));
        assert_eq!((pieces.hashes()[0], pieces.resets()), (Some([1; 32]), 1));
        assert_eq!(pieces.take_faults().len(), 1);
    }

    #[test]
    fn an_origin_that_contradicts_itself_spoils_what_was_handed_out() {
        let pieces = pieces();
        write(&pieces, 0, 9, A);
        write(&pieces, 0, 1, Sender::Origin);
        assert_eq!(pieces.early().state(), EarlyState::Pending);
        write(&pieces, 0, 2, Sender::Origin);
        assert_eq!(pieces.early().state(), EarlyState::Wrong);
        let ended = ProvisionalPieces::new(1);
        let early = Arc::clone(ended.early());
        drop(ended);
        assert_eq!(early.state(), EarlyState::Wrong);
    }

    #[test]
    fn a_failed_write_records_nothing() {
        let pieces = pieces();
        let failed = pieces.write(0, [1; 32], Sender::Origin, || {
            Err(io::ErrorKind::StorageFull.into())
        });
        assert!(failed.is_err());
        assert_eq!(pieces.hashes()[0], None);
    }
}
