//! Requests for a transfer, and waiting for its state.

use std::path::Path;

use potluck_core::{FileId, model::Address, proto::v1};
use tonic::Streaming;

use crate::wait::in_time;

/// The states of one transfer, as the control service streams them. The transfer goes on while they
/// are kept.
pub type TransferEvents = Streaming<v1::StartTransferResponse>;

/// A request for this file or collection at this path, from the providers that the index knows.
pub fn transfer_request(id: FileId, target: &Path) -> v1::StartTransferRequest {
    v1::StartTransferRequest {
        file_id: id.to_bytes(),
        target: target.to_str().unwrap().to_owned(),
        ..Default::default()
    }
}

/// A request for this file or collection at this path, from these providers.
pub fn transfer_request_from<'a>(
    id: FileId,
    target: &Path,
    providers: impl IntoIterator<Item = &'a Address>,
) -> v1::StartTransferRequest {
    v1::StartTransferRequest {
        providers: providers.into_iter().map(Into::into).collect(),
        ..transfer_request(id, target)
    }
}

/// The next state of the transfer.
pub async fn next_state(events: &mut TransferEvents) -> v1::Transfer {
    let event = events.message().await.unwrap();
    event.expect("the transfer goes on").transfer.unwrap()
}

/// The first state that fits. Panics with `state_name` if the transfer ends before.
pub async fn until(
    state_name: &str,
    events: &mut TransferEvents,
    fits: impl Fn(&v1::Transfer) -> bool,
) -> v1::Transfer {
    let mut last = None;
    let follow = async {
        while let Some(event) = events.message().await.unwrap() {
            let transfer = event.transfer.unwrap();
            if fits(&transfer) {
                return transfer;
            }
            last = Some(transfer);
        }
        panic!("{state_name}: the transfer ended as {last:#?}");
    };
    in_time(state_name, follow).await
}

/// The state in which at least this many units are verified.
pub async fn until_units_done(events: &mut TransferEvents, units: u32) -> v1::Transfer {
    let has_units = |transfer: &v1::Transfer| transfer.units_done >= units;
    until(&format!("{units} units are verified"), events, has_units).await
}

/// The state at the end of the stream. Panics if the deadline passes first.
pub async fn until_end(events: &mut TransferEvents) -> v1::Transfer {
    in_time("the transfer ends", last_state(events)).await
}

/// The state at the end of the stream, without a deadline.
pub(crate) async fn last_state(events: &mut TransferEvents) -> v1::Transfer {
    let mut last = None;
    while let Some(event) = events.message().await.unwrap() {
        last = event.transfer;
    }
    last.expect("a transfer reports at least one state")
}

/// Whether the transfer is done.
pub fn is_done(transfer: &v1::Transfer) -> bool {
    transfer.state() == v1::TransferState::Done
}

/// Whether the transfer waits.
pub fn is_waiting(transfer: &v1::Transfer) -> bool {
    transfer.state() == v1::TransferState::Waiting
}

/// Whether the transfer waits for room on the disk.
pub fn waits_for_room(transfer: &v1::Transfer) -> bool {
    let error = transfer.error.as_ref();
    is_waiting(transfer) && error.is_some_and(|error| error.reason == "DISK_FULL")
}

/// Asserts that a transfer is done.
#[track_caller]
pub fn assert_done(transfer: &v1::Transfer) {
    assert_eq!(transfer.state(), v1::TransferState::Done, "{transfer:#?}");
}

/// Asserts that a transfer failed; returns the reason.
#[track_caller]
pub fn failure_reason(transfer: &v1::Transfer) -> &str {
    assert_eq!(transfer.state(), v1::TransferState::Failed, "{transfer:#?}");
    &transfer.error.as_ref().unwrap().reason
}
