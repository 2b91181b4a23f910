//! Following a download at a peer, and reporting its result.

mod board;
mod display;
mod follow;
mod progress;
mod read;
mod report;
mod seed;

pub(crate) use self::{
    board::TransferBoard,
    display::{SingleDisplay, TransferDisplay},
    follow::{WaitLimit, follow, follow_on},
    read::read_to_stdout,
    report::{ReportDetail, report},
    seed::seed,
};
