//! The interactive prompt: the shell's commands, with line editing, history, completion and hints.
//!
//! Starts an in-process peer if none is running, and keeps it until the session ends. A failed line
//! does not end the session. Ctrl-C stops the running command; Ctrl-D leaves.

mod assistant;
mod line;
mod reader;

use std::sync::Arc;

use console::style;
use tokio_util::sync::CancellationToken;

use self::{
    line::{LineCommand, ParsedLine, PromptLine},
    reader::{LineReader, ReaderEvent},
};
use crate::{
    commands,
    completion::CandidateFinder,
    context::{CommandContext, PeerHandle},
    error::{CommandError, ExitStatus},
    interrupt::Interrupts,
    output::{OutputFlags, text},
    peer::ConnectedPeer,
};

/// Reads and runs lines until the session ends.
pub(crate) async fn run(
    context: &CommandContext,
    interrupts: &mut Interrupts,
) -> Result<(), CommandError> {
    let mut reader = LineReader::start()?;
    let interrupted = || CommandError::AlreadyReported(ExitStatus::Interrupted);
    let peer = tokio::select! {
        // Cancel-safe: a peer that is starting stops when it is dropped.
        peer = find_peer(context) => peer,
        () = interrupts.next() => return Err(interrupted()),
    };
    let greeted = tokio::select! {
        // Cancel-safe: this only reads and prints.
        () = print_greeting(context, peer.as_deref()) => Ok(()),
        () = interrupts.next() => Err(interrupted()),
    };
    let session = match &peer {
        Some(peer) => context.clone().in_session(Arc::clone(peer)),
        None => context.clone(),
    };
    let runtime = tokio::runtime::Handle::current();
    reader.set_finder(Some(CandidateFinder::new(session.clone(), runtime)));
    let done = match greeted {
        Ok(()) => read_and_run(&session, interrupts, &mut reader).await,
        interrupted => interrupted,
    };
    reader.set_finder(None);
    drop(session);
    if let Some(peer) = peer.and_then(Arc::into_inner) {
        tokio::select! {
            () = peer.close() => {}
            // Do not wait any longer: the leases expire.
            () = interrupts.next() => {}
        }
    }
    done
}

async fn read_and_run(
    session: &CommandContext,
    interrupts: &mut Interrupts,
    reader: &mut LineReader,
) -> Result<(), CommandError> {
    loop {
        let event = tokio::select! {
            event = reader.next() => event,
            // The keyboard's Ctrl-C arrives as a reader event; this is a signal sent by another
            // process.
            () = interrupts.next() => {
                return Err(CommandError::AlreadyReported(ExitStatus::Interrupted));
            }
        };
        let text = match event {
            ReaderEvent::Line(text) => text,
            ReaderEvent::CtrlC => continue,
            ReaderEvent::End => return Ok(()),
            ReaderEvent::Failed(error) => {
                return Err(CommandError::usage(format!(
                    "cannot read from the terminal: {error}"
                )));
            }
        };
        match line::parse(&text) {
            ParsedLine::Empty => {}
            ParsedLine::Message(message) => session.out.print_line(message.trim_end())?,
            ParsedLine::Invalid { error, json } => session
                .out
                .with_flags(OutputFlags {
                    json,
                    ..OutputFlags::default()
                })
                .print_error(&error),
            ParsedLine::Line(line) => match *line {
                PromptLine {
                    command: LineCommand::Quit,
                    ..
                } => return Ok(()),
                line => {
                    let out = session.out.with_flags(line.options.output_flags());
                    match run_line(session, interrupts, line).await {
                        Ok(()) => {}
                        Err(CommandError::BrokenPipe) => return Err(CommandError::BrokenPipe),
                        Err(command_error) => out.print_error(&command_error),
                    }
                }
            },
        }
    }
}

async fn run_line(
    session: &CommandContext,
    interrupts: &mut Interrupts,
    line: PromptLine,
) -> Result<(), CommandError> {
    let LineCommand::Verb(verb) = line.command else {
        return Ok(());
    };
    let stop = CancellationToken::new();
    let context = session.line(&line.options, stop.clone())?;
    interrupts.run(&stop, commands::run_verb(&context, verb)).await
}

/// The session's peer: a running one, or else an in-process one. Reports a failure and returns
/// `None`; the prompt then runs without a peer.
async fn find_peer(context: &CommandContext) -> Option<Arc<ConnectedPeer>> {
    let peer = match context.running_peer().await {
        Ok(Some(peer)) => Ok(peer),
        Ok(None) => context.start_peer(None, false).await,
        Err(error) => Err(error),
    };
    match peer {
        Ok(PeerHandle::Owned(peer)) => Some(Arc::new(*peer)),
        Ok(PeerHandle::Session(peer)) => Some(peer),
        Err(error) => {
            context.out.print_error(&error);
            None
        }
    }
}

async fn print_greeting(context: &CommandContext, peer: Option<&ConnectedPeer>) {
    context.out.note(format_args!(
        "{} {}   {}",
        style("Potluck").bold().for_stderr(),
        env!("CARGO_PKG_VERSION"),
        style("help lists the commands, Tab completes, Ctrl-D quits")
            .dim()
            .for_stderr()
    ));
    if let Some(peer) = peer {
        let listening = peer
            .status
            .listening
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default();
        let description = match (peer.is_in_process(), peer.is_temporary()) {
            (false, _) => format!(
                "already running; downloads go to {}",
                text::path(&peer.status.files_folder)
            ),
            (true, false) => "runs in this prompt; downloads go to the current folder".to_owned(),
            (true, true) => {
                "runs in this prompt, with a temporary library; downloads go to the current folder"
                    .to_owned()
            }
        };
        context.out.note(format_args!(
            "peer   {listening}  {}",
            style(description).dim().for_stderr()
        ));
    }
    let Ok(index) = context.index_for(peer) else {
        context.out.note("index  none");
        return;
    };
    let state = match index.stats().await {
        Ok(stats) => style(format!(
            "{}, {}",
            text::count(stats.peers, "peer"),
            text::count(stats.files, "file")
        ))
        .dim()
        .for_stderr(),
        Err(_) => style("does not answer: start one with `potluck index`".to_owned())
            .red()
            .for_stderr(),
    };
    context
        .out
        .note(format_args!("index  {}  {state}\n", index.endpoint()));
}
