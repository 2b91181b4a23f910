//! The availability of a peer, as it reports it.

use potluck_core::{
    FileId, Problem, Reason,
    availability::{Availability, AvailabilityChange, AvailabilityUpdate},
    bitfield::Bitfield,
    grpc::transport::Endpoint,
    model::Labels,
    proto::v1::{self, watch_availability_response::Event},
};

/// The reason why a peer's availability is unknown.
#[derive(Debug)]
pub(crate) enum WatchError {
    /// The peer reports a different number of units: because of a false record, one of the two
    /// peers takes a collection for a file.
    UnitCountMismatch(Problem),
    /// The call failed, or the peer violated the protocol.
    Failed(Problem),
}

impl From<Problem> for WatchError {
    fn from(problem: Problem) -> Self {
        Self::Failed(problem)
    }
}

/// The problem of a peer that violated the protocol; `did` completes "the peer at ADDRESS ...".
pub(crate) fn protocol_violation(endpoint: &Endpoint, did: &str) -> Problem {
    Problem::new(
        Reason::VerificationFailed,
        format!("the peer at {endpoint} {did}"),
    )
}

/// An event of a peer.
#[derive(Debug)]
pub(crate) struct PeerReport {
    pub(crate) update: AvailabilityUpdate,
    /// Where the peer says that it is; only in a snapshot.
    pub(crate) labels: Option<Labels>,
}

impl PeerReport {
    /// Validates an event, as [`parse_event`].
    ///
    /// # Errors
    /// [`WatchError`].
    pub(crate) fn parse(
        endpoint: &Endpoint,
        mut event: v1::WatchAvailabilityResponse,
        (id, units): (FileId, u32),
        is_first: bool,
    ) -> Result<Self, WatchError> {
        let labels = match &mut event.event {
            Some(Event::Snapshot(snapshot)) => Some(snapshot.labels.take().unwrap_or_default()),
            _ => None,
        };
        let update = parse_event(endpoint, event, (id, units), is_first)?;
        let labels = labels.map(Into::into);
        Ok(Self { update, labels })
    }
}

/// Validates an event. The cost of an event grows with its lists, so no list may be longer than
/// the number of units. A later snapshot replaces everything: the peer has hashed the file
/// again or lost units.
///
/// # Errors
/// [`WatchError`].
pub(crate) fn parse_event(
    endpoint: &Endpoint,
    event: v1::WatchAvailabilityResponse,
    (id, units): (FileId, u32),
    is_first: bool,
) -> Result<AvailabilityUpdate, WatchError> {
    match event.event {
        Some(Event::Snapshot(answer)) => {
            let snapshot = parse_snapshot(endpoint, &answer, id, units)?;
            Ok(AvailabilityUpdate::Snapshot(snapshot))
        }
        Some(Event::Change(_)) if is_first => {
            Err(protocol_violation(endpoint, "sent a change before a snapshot").into())
        }
        Some(Event::Change(change)) => {
            let lists = [&change.have, &change.fetching, &change.abandoned];
            if lists.iter().any(|list| list.len() > units as usize) {
                let problem =
                    protocol_violation(endpoint, "sent a change of more units than there are");
                return Err(problem.into());
            }
            let in_range = |list: Vec<u32>| list.into_iter().filter(|&unit| unit < units).collect();
            Ok(AvailabilityUpdate::Change(AvailabilityChange {
                have: in_range(change.have),
                fetching: in_range(change.fetching),
                abandoned: in_range(change.abandoned),
            }))
        }
        None => Err(protocol_violation(endpoint, "sent an event without content").into()),
    }
}

fn parse_snapshot(
    endpoint: &Endpoint,
    answer: &v1::AvailabilitySnapshot,
    id: FileId,
    units: u32,
) -> Result<Availability, WatchError> {
    if answer.file_id != id.to_bytes() {
        // Not a violation: the peer answers the request it received, which the network may have
        // damaged.
        let message = format!(
            "the peer at {} reported the availability of another file than {}",
            endpoint,
            id.short()
        );
        return Err(Problem::new(Reason::Unreachable, message).into());
    }
    if answer.units != units {
        // Not a violation: either peer may have a false record.
        let message = format!(
            "the peer at {} divides it into {} units, this peer into {units}: one of the two \
             takes a folder for a file",
            endpoint, answer.units
        );
        let problem = Problem::new(Reason::NotFound, message);
        return Err(WatchError::UnitCountMismatch(problem));
    }
    if answer.complete {
        return Ok(Availability {
            have: Bitfield::full(units),
            fetching: Bitfield::new(units),
        });
    }
    let bits = |bytes: &[u8]| match bytes.is_empty() {
        true => Some(Bitfield::new(units)),
        false => Bitfield::from_bytes(units, bytes),
    };
    match (bits(&answer.have), bits(&answer.fetching)) {
        (Some(have), Some(fetching)) => Ok(Availability { have, fetching }),
        _ => Err(protocol_violation(endpoint, "sent a bitfield of the wrong length").into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint() -> Endpoint {
        "127.0.0.1:1".parse().unwrap()
    }

    fn event(event: Event) -> v1::WatchAvailabilityResponse {
        v1::WatchAvailabilityResponse { event: Some(event) }
    }

    const ID: FileId = FileId([7; 32]);

    fn complete(id: FileId, units: u32) -> v1::WatchAvailabilityResponse {
        event(Event::Snapshot(v1::AvailabilitySnapshot {
            units,
            complete: true,
            file_id: id.to_bytes(),
            ..Default::default()
        }))
    }

    fn failure(answer: Result<AvailabilityUpdate, WatchError>) -> Reason {
        match answer {
            Err(WatchError::Failed(problem)) => problem.reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn another_number_of_units_is_no_violation() {
        let answer = parse_event(&endpoint(), complete(ID, 9), (ID, 10), true);
        assert!(
            matches!(&answer, Err(WatchError::UnitCountMismatch(problem)) if problem.reason == Reason::NotFound),
            "{answer:?}"
        );
    }

    /// One flipped bit in the request makes a peer answer about a different file.
    #[test]
    fn an_answer_about_another_file_is_ignored_and_no_violation() {
        let answer = parse_event(&endpoint(), complete(FileId([6; 32]), 10), (ID, 10), true);
        assert_eq!(failure(answer), Reason::Unreachable);
    }

    #[test]
    fn a_change_of_more_units_than_there_are_is_a_violation() {
        let change = |times, first| {
            let have = vec![3; times];
            let change = v1::AvailabilityChange {
                have,
                ..Default::default()
            };
            parse_event(&endpoint(), event(Event::Change(change)), (ID, 10), first)
        };
        assert!(matches!(change(10, false), Ok(AvailabilityUpdate::Change(_))));
        assert_eq!(failure(change(11, false)), Reason::VerificationFailed);
        assert_eq!(failure(change(10, true)), Reason::VerificationFailed);
    }

    #[test]
    fn a_peer_may_send_another_snapshot() {
        for first in [true, false] {
            let answer = parse_event(&endpoint(), complete(ID, 10), (ID, 10), first);
            assert!(
                matches!(answer, Ok(AvailabilityUpdate::Snapshot(_))),
                "{answer:?}"
            );
        }
    }
}
