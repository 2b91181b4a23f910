//! Hints to the downloaders of one file about each other's progress.

pub(crate) mod availability;
pub(crate) mod in_flight_sends;
