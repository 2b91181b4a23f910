//! The terminal's own settings: without the `^C` that would tear the progress, and as they were at the end.
//!
//! Touched only from the foreground: the system stops a background process that tries.

use std::io::{IsTerminal as _, stdin};

use rustix::{
    process::getpgrp,
    termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetpgrp, tcsetattr},
};

/// Gives the terminal back its settings when dropped.
#[derive(Debug)]
pub(crate) struct TerminalSettings {
    original: Option<Termios>,
}

impl TerminalSettings {
    /// Remembers the settings, and stops the terminal from writing `^C` for Ctrl-C.
    pub(crate) fn hide_control_echo() -> Self {
        if !in_foreground() {
            return Self { original: None };
        }
        let original = tcgetattr(stdin()).ok();
        if let Some(original) = &original {
            let mut hushed = original.clone();
            hushed.local_modes.remove(LocalModes::ECHOCTL);
            // Without it the progress is torn a little, and no more.
            let _ = tcsetattr(stdin(), OptionalActions::Now, &hushed);
        }
        Self { original }
    }
}

impl Drop for TerminalSettings {
    fn drop(&mut self) {
        if let Some(original) = self.original.take().filter(|_| in_foreground()) {
            // Nothing can be done about a terminal that is gone.
            let _ = tcsetattr(stdin(), OptionalActions::Now, &original);
        }
    }
}

fn in_foreground() -> bool {
    stdin().is_terminal() && tcgetpgrp(stdin()).is_ok_and(|group| group == getpgrp())
}
