//! The interactive prompt.

use crate::{context::Context, fail::Fail, interrupt::Interrupts};

/// Reads and runs lines until the end.
pub(crate) async fn run(_context: &Context, _interrupts: &mut Interrupts) -> Result<(), Fail> {
    Err(Fail::usage("not built yet"))
}
