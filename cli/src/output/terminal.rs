//! Terminal settings: hides the `^C` echo, which would corrupt the progress, and restores the
//! settings at exit.
//!
//! Only a foreground process changes the settings; the system stops a background process that
//! tries.

use std::io::{IsTerminal as _, stdin};

use rustix::{
    process::getpgrp,
    termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetpgrp, tcsetattr},
};

/// Restores the terminal settings when dropped.
#[derive(Debug)]
pub(crate) struct TerminalSettings {
    original: Option<Termios>,
}

impl TerminalSettings {
    /// Saves the settings and turns off the `^C` echo for Ctrl-C.
    pub(crate) fn hide_control_echo() -> Self {
        if !in_foreground() {
            return Self { original: None };
        }
        let original = tcgetattr(stdin()).ok();
        if let Some(original) = &original {
            let mut changed = original.clone();
            changed.local_modes.remove(LocalModes::ECHOCTL);
            // Ignore a failure: `^C` then appears in the progress, which is harmless.
            let _ = tcsetattr(stdin(), OptionalActions::Now, &changed);
        }
        Self { original }
    }
}

impl Drop for TerminalSettings {
    fn drop(&mut self) {
        if let Some(original) = self.original.take().filter(|_| in_foreground()) {
            // Ignore a failure: the terminal may be gone.
            let _ = tcsetattr(stdin(), OptionalActions::Now, &original);
        }
    }
}

fn in_foreground() -> bool {
    stdin().is_terminal() && tcgetpgrp(stdin()).is_ok_and(|group| group == getpgrp())
}
