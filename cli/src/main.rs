//! The command line of Potluck: talks to an index and a peer, and can be both.
//!
//! | module | its one job |
//! |---|---|
//! | [`args`] | what the user typed |
//! | [`commands`] | a module a command: what it means, and doing it |
//! | [`prompt`] | the interactive prompt |
//! | [`context`] | what every command is given |
//! | [`peer`] | which peer a command talks to, its own among them |
//! | [`control`] | a peer as its owner sees it |
//! | [`output`] | how results and progress look, and the terminal |
//! | [`error`], [`interrupt`] | how commands end |

mod args;
mod commands;
mod context;
mod control;
mod error;
mod interrupt;
mod output;
mod peer;
mod prompt;

use std::{
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
};

use clap::{CommandFactory as _, Parser as _};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::{
    args::{Cli, Command, Globals, JSON_VARIABLE},
    context::CommandContext,
    error::{CommandError, ExitStatus},
    interrupt::Interrupts,
    output::{LogWriter, Output, terminal},
};

/// Overrides what is logged, in the syntax of `RUST_LOG`.
const LOG_VARIABLE: &str = "POTLUCK_LOG";

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    let out = Output::new(cli.globals.json, cli.globals.quiet);
    potluck_core::process::raise_file_limit();
    match run(cli, &out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(command_error) => {
            out.fail(&command_error);
            command_error.exit().map_or(ExitCode::SUCCESS, Into::into)
        }
    }
}

/// Help, the version, or what is wrong with the command line.
fn refuse(error: &clap::Error) -> ExitCode {
    let wants_json =
        args::asks_json(std::env::args_os()) || args::json_by_variable(std::env::var_os(JSON_VARIABLE));
    if error.use_stderr() && wants_json {
        Output::new(true, false).fail(&CommandError::usage(args::usage_message(error)));
    } else {
        // A closed pipe is no reason to complain: `potluck --help | head`.
        drop(error.print());
    }
    match error.use_stderr() {
        true => ExitStatus::Usage.into(),
        false => ExitCode::SUCCESS,
    }
}

fn run(cli: Cli, out: &Output) -> Result<(), CommandError> {
    let command = match cli.command {
        Some(Command::Completions(args)) => return commands::completions::run(out, &args),
        None if !(std::io::stdin().is_terminal() && std::io::stdout().is_terminal()) => {
            return Err(no_command(out));
        }
        command => command,
    };
    let serves = matches!(command, Some(Command::Index(_) | Command::Peer(_)));
    let _settings = terminal::TerminalSettings::hide_control_echo();
    log_to_stderr(&cli.globals, out, serves);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| {
            CommandError::new(potluck_core::Reason::Internal, format!("cannot start: {error}"))
        })?;
    let done = runtime.block_on(async {
        let listening = potluck_core::process::survive_file_size_limit().and_then(|()| Interrupts::listen());
        let mut interrupts = listening.map_err(|error| {
            CommandError::new(
                potluck_core::Reason::Internal,
                format!("cannot handle signals: {error}"),
            )
        })?;
        let stop = CancellationToken::new();
        let context = CommandContext::new(&cli.globals, out.clone(), stop.clone())?;
        match command {
            Some(command) => interrupts.run(&stop, commands::run(&context, command)).await,
            None => prompt::run(&context, &mut interrupts).await,
        }
    });
    // Whatever still blocks a thread has been told to stop and must not hold up the shell.
    runtime.shutdown_background();
    done
}

/// Plain `potluck` where nobody can type: the help, as a usage error.
fn no_command(out: &Output) -> CommandError {
    if out.is_json() {
        return CommandError::usage("no command given; `potluck --help` lists them");
    }
    // Nobody may be left to read it.
    let _ = writeln!(std::io::stderr(), "{}", Cli::command().render_help());
    CommandError::AlreadyReported(ExitStatus::Usage)
}

/// Logs go to stderr: warnings of a service, nothing of a command, more with each `-v`.
fn log_to_stderr(globals: &Globals, out: &Output, serves: bool) {
    let level = match (globals.verbose, serves) {
        (0, false) => "off",
        (0, true) if globals.quiet => "warn",
        (0, true) => "info",
        (1, false) => "info",
        (1, true) | (2, _) => "debug",
        _ => "trace",
    };
    let filter = std::env::var(LOG_VARIABLE)
        .ok()
        .and_then(|text| EnvFilter::try_new(text).ok())
        .unwrap_or_else(|| {
            let others = potluck_core::process::default_filter("warn");
            EnvFilter::new(format!(
                "{others},potluck_core={level},potluck_index={level},potluck_peer={level},potluck={level}"
            ))
        });
    let filter = if level == "off" && std::env::var_os(LOG_VARIABLE).is_none() {
        EnvFilter::new("off")
    } else {
        filter
    };
    let bars = out.bars().clone();
    // A second subscriber cannot be: this runs once.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || LogWriter(bars.clone()))
        .with_ansi(std::io::stderr().is_terminal())
        // What cannot be told there would be told there as well, by a macro that panics.
        .log_internal_errors(false)
        .try_init();
}
