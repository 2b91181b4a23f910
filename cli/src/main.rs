//! The `potluck` command-line tool: talks to an index and to a peer, and can run either.
//!
//! | module | responsibility |
//! |---|---|
//! | [`args`] | the command line: maps each verb to its module |
//! | [`prompt`] | the interactive prompt |
//! | [`commands`] | the commands, one module each; none uses another |
//! | [`completion`] | completion of a line, in shells and at the prompt |
//! | [`download`] | following a download, and reporting its result |
//! | [`lookup`] | finding files at the index |
//! | [`views`] | domain values as tables, text and JSON |
//! | [`local_files`] | local paths and their ids |
//! | [`network`] | the private network that commands use |
//! | [`context`] | the index, peer, output and stop token that every command receives |
//! | [`peer`] | finding a running peer, or starting one in this process |
//! | [`control`] | client of a peer's control service |
//! | [`options`], [`arguments`] | the options of every command, and argument types |
//! | [`output`] | results, progress, tables, and terminal settings |
//! | [`error`], [`interrupt`] | exit codes, error messages, and signals |
//!
//! Each module uses only modules below it.

mod args;
mod arguments;
mod commands;
mod completion;
mod context;
mod control;
mod download;
mod error;
mod interrupt;
mod local_files;
mod lookup;
mod network;
mod options;
mod output;
mod peer;
mod prompt;
mod views;

use std::{
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
};

use clap::{CommandFactory as _, Parser as _};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::{
    args::{Cli, Command},
    context::CommandContext,
    error::{CommandError, ExitStatus},
    interrupt::Interrupts,
    options::{GlobalOptions, JSON_VARIABLE},
    output::{LogWriter, Output, OutputFlags, terminal},
};

/// Overrides the log filter, in the syntax of `RUST_LOG`.
const LOG_VARIABLE: &str = "POTLUCK_LOG";

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return report_parse_error(&error),
    };
    let out = Output::new(cli.options.output_flags());
    potluck_core::process::raise_file_limit();
    match run(cli, &out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(command_error) => {
            out.print_error(&command_error);
            command_error.exit().map_or(ExitCode::SUCCESS, Into::into)
        }
    }
}

/// Prints help, the version, or a usage error.
fn report_parse_error(error: &clap::Error) -> ExitCode {
    let is_json = options::wants_json(std::env::args_os())
        || options::variable_wants_json(std::env::var_os(JSON_VARIABLE));
    if error.use_stderr() && is_json {
        Output::new(OutputFlags {
            json: true,
            ..OutputFlags::default()
        })
        .print_error(&CommandError::usage(args::usage_message(error)));
    } else {
        // Ignore a closed pipe, as in `potluck --help | head`.
        drop(error.print());
    }
    match error.use_stderr() {
        true => ExitStatus::Usage.into(),
        false => ExitCode::SUCCESS,
    }
}

fn run(cli: Cli, out: &Output) -> Result<(), CommandError> {
    let command = match cli.command {
        Some(Command::Completions(args)) => {
            return commands::completions::run(out, &args, &mut Cli::command());
        }
        None if !(std::io::stdin().is_terminal() && std::io::stdout().is_terminal()) => {
            return Err(missing_command(out));
        }
        command => command,
    };
    let is_service = matches!(command, Some(Command::Index(_) | Command::Peer(_)));
    let _settings = terminal::TerminalSettings::hide_control_echo();
    log_to_stderr(&cli.options, out, is_service);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| {
            CommandError::new(potluck_core::Reason::Internal, format!("cannot start: {error}"))
        })?;
    let done = runtime.block_on(async {
        let listening =
            potluck_core::process::survive_file_size_limit().and_then(|()| Interrupts::listen());
        let mut interrupts = listening.map_err(|error| {
            CommandError::new(
                potluck_core::Reason::Internal,
                format!("cannot handle signals: {error}"),
            )
        })?;
        let stop = CancellationToken::new();
        let context = CommandContext::new(&cli.options, out.clone(), stop.clone())?;
        match command {
            Some(command) => interrupts.run(&stop, commands::run(&context, command)).await,
            None => prompt::run(&context, &mut interrupts).await,
        }
    });
    // Blocking tasks were already asked to stop; do not make the shell wait for them.
    runtime.shutdown_background();
    done
}

/// Handles `potluck` without a command and without a terminal: prints the help and fails with a
/// usage error.
fn missing_command(out: &Output) -> CommandError {
    if out.is_json() {
        return CommandError::usage("no command given: `potluck --help` lists the commands");
    }
    // Ignore a failed write: stderr may be closed.
    let _ = writeln!(std::io::stderr(), "{}", Cli::command().render_help());
    CommandError::AlreadyReported(ExitStatus::Usage)
}

/// Logs to stderr. The default level is `info` for a service and `off` for a command; each `-v`
/// raises it.
fn log_to_stderr(options: &GlobalOptions, out: &Output, is_service: bool) {
    let level = match (options.verbose, is_service) {
        (0, false) => "off",
        (0, true) if options.quiet => "warn",
        (0, true) => "info",
        (1, false) => "info",
        (1, true) | (2, _) => "debug",
        _ => "trace",
    };
    let variable = std::env::var(LOG_VARIABLE).ok();
    let for_services = || std::env::var(EnvFilter::DEFAULT_ENV).ok().filter(|_| is_service);
    let filter = variable
        .or_else(for_services)
        .and_then(|text| EnvFilter::try_new(text).ok())
        .unwrap_or_else(|| {
            let others = potluck_core::process::default_filter("warn");
            EnvFilter::new(format!(
                "{others},potluck_core={level},potluck_index={level},potluck_peer={level},\
                 potluck={level}"
            ))
        });
    let filter = if level == "off" && std::env::var_os(LOG_VARIABLE).is_none() {
        EnvFilter::new("off")
    } else {
        filter
    };
    let bars = out.bars().clone();
    // `try_init` fails only if a subscriber exists, and this function runs once.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || LogWriter(bars.clone()))
        .with_ansi(std::io::stderr().is_terminal())
        // Without this, a failed write to stderr is reported with `eprintln!`, which then panics.
        .log_internal_errors(false)
        .try_init();
}
