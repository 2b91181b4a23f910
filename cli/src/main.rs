//! The `potluck` command-line tool: talks to an index and to a peer, and can run either.
//!
//! | module | responsibility |
//! |---|---|
//! | [`args`] | the command line: maps each verb to its module |
//! | [`prompt`] | the interactive prompt |
//! | [`commands`] | the commands, one module each; none uses another |
//! | [`completion`] | completion of a line, in shells and at the prompt |
//! | [`download`] | following a download, and reporting its result |
//! | [`ui`] | the page in a browser |
//! | [`lookup`] | finding files at the index |
//! | [`origin`] | finding files at an origin |
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
mod origin;
mod output;
mod peer;
mod prompt;
mod ui;
mod views;

use std::{
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
};

use clap::{CommandFactory as _, FromArgMatches as _};
use potluck_core::{
    configuration::{self, ServiceCommand},
    process::{
        logging::{self, LogDefaults},
        traces::{self, Traces},
    },
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, Span};

use crate::{
    args::{Cli, Command, Verb},
    context::CommandContext,
    error::{CommandError, ExitStatus},
    interrupt::Interrupts,
    options::{GlobalOptions, JSON_VARIABLE},
    output::{LogWriter, Output, OutputFlags, terminal},
};

fn main() -> ExitCode {
    let Parsed { cli, verb } = match parse() {
        Ok(parsed) => parsed,
        Err(error) => return report_parse_error(&error),
    };
    let out = Output::new(cli.options.output_flags());
    potluck_core::process::raise_file_limit();
    match run(cli, &verb, &out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(command_error) => {
            out.print_error(&command_error);
            command_error.exit().map_or(ExitCode::SUCCESS, Into::into)
        }
    }
}

/// Parses the command line, with the settings of a service's file.
fn parse() -> Result<Parsed, clap::Error> {
    let (program, words) = (Cli::command(), std::env::args_os().collect::<Vec<_>>());
    let services = commands::serve::services();
    let is_service = |service: &ServiceCommand| words.iter().any(|word| word == service.name());
    let matches = match services.iter().any(is_service) {
        true => configuration::add_file(&program, &services, &words)?.parse(&program)?,
        false => program.try_get_matches_from(words)?,
    };
    Ok(Parsed {
        cli: Cli::from_arg_matches(&matches)?,
        verb: matches.subcommand_name().unwrap_or_default().to_owned(),
    })
}

/// A command line.
struct Parsed {
    cli: Cli,
    /// The name of the command; empty without one.
    verb: String,
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

fn run(cli: Cli, verb: &str, out: &Output) -> Result<(), CommandError> {
    let command = match cli.command {
        Some(Command::Completions(args)) => {
            return commands::completions::run(out, &args, &mut Cli::command());
        }
        None if !(std::io::stdin().is_terminal() && std::io::stdout().is_terminal()) => {
            return Err(missing_command(out));
        }
        command => command,
    };
    let is_service = matches!(
        command,
        Some(Command::Index(_) | Command::Peer(_) | Command::Gateway(_))
    );
    let _settings = terminal::TerminalSettings::hide_control_echo();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| {
            CommandError::new(potluck_core::Reason::Internal, format!("cannot start: {error}"))
        })?;
    let done = runtime.block_on(async {
        let traces = start_log(&cli.options, out, is_service, verb);
        let span = match command {
            // These run until they are stopped, and what they start has traces of its own.
            None | Some(Command::Index(_) | Command::Peer(_) | Command::Verb(Verb::Ui(_))) => {
                Span::none()
            }
            Some(_) => {
                tracing::debug_span!(target: traces::TARGET, "command", otel.name = verb)
            }
        };
        let done = run_command(&cli.options, command, out, is_service)
            .instrument(span)
            .await;
        traces.shut_down().await;
        done
    });
    // Blocking tasks were already asked to stop; do not make the shell wait for them.
    runtime.shutdown_background();
    done
}

async fn run_command(
    options: &GlobalOptions,
    command: Option<Command>,
    out: &Output,
    is_service: bool,
) -> Result<(), CommandError> {
    let listening = potluck_core::process::survive_file_size_limit()
        .and_then(|()| Interrupts::listen(is_service));
    let (mut interrupts, hangups) = listening.map_err(|error| {
        CommandError::new(
            potluck_core::Reason::Internal,
            format!("cannot handle signals: {error}"),
        )
    })?;
    let stop = CancellationToken::new();
    let context = CommandContext::new(options, out.clone(), stop.clone())?;
    match command {
        Some(command) => {
            interrupts
                .run(&stop, commands::run(&context, command, hangups))
                .await
        }
        None => prompt::run(&context, &mut interrupts).await,
    }
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

/// Logs to stderr, and exports traces if asked to. The default level is `info` for a service and
/// `off` for a command; each `-v` raises it.
fn start_log(options: &GlobalOptions, out: &Output, is_service: bool, verb: &str) -> Traces {
    let level = match (options.verbose, is_service) {
        (0, false) => "off",
        (0, true) if options.quiet => "warn",
        (0, true) => "info",
        (1, false) => "info",
        (1, true) | (2, _) => "debug",
        _ => "trace",
    };
    let defaults = LogDefaults {
        program: match (is_service, verb) {
            (true, "index") => "potluck-index",
            (true, _) => "potluck-peer",
            (false, _) => "potluck",
        },
        level,
        reads_rust_log: is_service,
    };
    let bars = out.bars().clone();
    logging::init(&options.log, defaults, move || LogWriter(bars.clone()))
}
