//! Following a download at a peer, and reporting its result.

mod board;
mod display;
mod follow;
mod progress;
mod report;

pub(crate) use self::{
    board::TransferBoard,
    display::{SingleDisplay, TransferDisplay},
    follow::{WaitLimit, follow, follow_on},
    report::{ReportDetail, report},
};
