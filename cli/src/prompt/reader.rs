//! Reads lines from the terminal on a thread of its own, one per request.

use std::{
    path::PathBuf,
    sync::{PoisonError, mpsc},
    thread,
};

use rustyline::{CompletionType, Config, Editor, error::ReadlineError, history::FileHistory};
use tokio::sync::mpsc as async_mpsc;

use crate::{
    completion::CandidateFinder,
    error::CommandError,
    prompt::assistant::{Assistant, SessionFinder},
};

/// Maximum number of lines in the history.
const HISTORY: usize = 2000;

const PROMPT: &str = "potluck> ";

/// The result of reading a line.
#[derive(Debug)]
pub(crate) enum ReaderEvent {
    /// A line.
    Line(String),
    /// Ctrl-C: the user discarded the line.
    CtrlC,
    /// Ctrl-D, or the terminal is gone.
    End,
    /// The terminal cannot be read.
    Failed(String),
}

/// Handle of the reader thread.
#[derive(Debug)]
pub(crate) struct LineReader {
    requests: mpsc::SyncSender<()>,
    events: async_mpsc::Receiver<ReaderEvent>,
    is_reading: bool,
    finder: SessionFinder,
}

impl LineReader {
    /// Starts the thread and loads the history of earlier sessions.
    pub(crate) fn start() -> Result<Self, CommandError> {
        let failed = |error: ReadlineError| {
            CommandError::usage(format!("this terminal does not support line editing: {error}"))
        };
        let config = Config::builder()
            .completion_type(CompletionType::List)
            .history_ignore_space(true)
            .max_history_size(HISTORY)
            .map_err(failed)?
            .build();
        let mut editor: Editor<Assistant, FileHistory> =
            Editor::with_config(config).map_err(failed)?;
        let finder = SessionFinder::default();
        editor.set_helper(Some(Assistant::new(SessionFinder::clone(&finder))));
        // The thread reads only on request, so that command output never mixes with a line being
        // edited.
        let (requests, requested) = mpsc::sync_channel(1);
        let (event_sender, events) = async_mpsc::channel(1);
        thread::Builder::new()
            .name("prompt".into())
            .spawn(move || {
                let history = history_file();
                if let Some(path) = &history {
                    // The file does not exist in the first session.
                    let _ = editor.load_history(path);
                }
                while requested.recv().is_ok() {
                    let event = read(&mut editor, history.as_deref());
                    if event_sender.blocking_send(event).is_err() {
                        return;
                    }
                }
            })
            .map_err(|error| CommandError::usage(format!("cannot start the prompt: {error}")))?;
        Ok(Self {
            requests,
            events,
            is_reading: false,
            finder,
        })
    }

    /// Sets where completion finds names and ids: `None` ends its use of the session's peer.
    pub(crate) fn set_finder(&self, finder: Option<CandidateFinder>) {
        *self.finder.lock().unwrap_or_else(PoisonError::into_inner) = finder;
    }

    /// Returns the next line. Cancel-safe: a line that is being typed is returned by the next call.
    pub(crate) async fn next(&mut self) -> ReaderEvent {
        if !self.is_reading {
            if self.requests.try_send(()).is_err() {
                return ReaderEvent::End;
            }
            self.is_reading = true;
        }
        let event = self.events.recv().await.unwrap_or(ReaderEvent::End);
        self.is_reading = false;
        event
    }
}

fn read(
    editor: &mut Editor<Assistant, FileHistory>,
    history: Option<&std::path::Path>,
) -> ReaderEvent {
    // rustyline measures the plain prompt and displays the coloured one.
    let coloured = console::style(PROMPT).cyan().bold().to_string();
    match editor.readline(&(PROMPT, coloured.as_str())) {
        Ok(line) => {
            let new =
                !line.trim().is_empty() && editor.add_history_entry(line.as_str()).unwrap_or(false);
            if let Some(path) = history.filter(|_| new) {
                // Ignore a failure: the session works without a saved history.
                let _ = editor.append_history(path);
            }
            ReaderEvent::Line(line)
        }
        Err(ReadlineError::Interrupted) => ReaderEvent::CtrlC,
        Err(ReadlineError::Eof) => ReaderEvent::End,
        Err(error) => ReaderEvent::Failed(error.to_string()),
    }
}

/// Path of the history file in the user's state folder. Creates the folder.
fn history_file() -> Option<PathBuf> {
    let dirs = directories::ProjectDirs::from("", "", "potluck")?;
    let folder = dirs.state_dir().unwrap_or_else(|| dirs.data_dir());
    std::fs::create_dir_all(folder).ok()?;
    Some(folder.join("history"))
}
