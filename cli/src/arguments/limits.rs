//! Parses the limits of a transfer.

use clap::builder::RangedU64ValueParser;

/// The value parser for a priority.
pub(crate) fn priority() -> RangedU64ValueParser<u32> {
    RangedU64ValueParser::new().range(1..=100)
}
