//! The log of a process: its filter, its format, and where it goes.
//!
//! Levels: `error` needs somebody, `warn` may, `info` says what starts, ends and changes, `debug`
//! has details of each download and call, `trace` of each piece.

use std::{io::IsTerminal as _, sync::OnceLock};

use tonic::transport::Uri;
use tracing_subscriber::{
    EnvFilter, Layer as _, Registry,
    filter::{LevelFilter, filter_fn},
    fmt::{self, MakeWriter},
    layer::SubscriberExt as _,
    reload,
    util::SubscriberInitExt as _,
};

use crate::process::traces::{self, Traces};

/// Libraries whose warnings remote clients can trigger without limit, such as one line for each
/// invalid HTTP/2 frame; and the client of Redis, whose every attempt to reconnect is a warning.
const NOISY: &[&str] = &["h2", "hyper", "hyper_util", "redis", "tonic", "tower"];

/// The crates of Potluck, to which a level alone applies.
const OWN: &[&str] = &["potluck", "potluck_core", "potluck_index", "potluck_peer"];

/// The filter variable of many Rust programs, which services use, too.
const RUST_LOG: &str = "RUST_LOG";

/// Sets the filter of the log; `None` for the default.
type SetFilter = Box<dyn Fn(Option<&str>) -> Result<(), String> + Send + Sync>;

/// Changes the filter of the log that [`init`] set up.
static SET_FILTER: OnceLock<SetFilter> = OnceLock::new();

/// Options for log and traces.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct LogOptions {
    /// Detail of the log: error, warn, info, debug or trace; or a filter such as
    /// potluck_peer=debug,warn. A service reads RUST_LOG if this is not given
    #[arg(
        long,
        global = true,
        env = "POTLUCK_LOG",
        hide_env_values = true,
        value_name = "LEVEL|FILTER",
        value_parser = parse_filter
    )]
    pub log: Option<String>,

    /// Format of the log, which goes to standard error: `text` for people or `json`, one object a
    /// line
    #[arg(
        long,
        global = true,
        env = "POTLUCK_LOG_FORMAT",
        hide_env_values = true,
        hide_possible_values = true,
        value_name = "FORMAT",
        value_enum,
        default_value_t
    )]
    pub log_format: LogFormat,

    /// Export traces to the OpenTelemetry collector at this URL, such as http://127.0.0.1:4317, over
    /// gRPC. Off, if not given
    #[arg(
        long,
        global = true,
        env = "POTLUCK_OTLP",
        hide_env_values = true,
        value_name = "URL",
        value_parser = traces::parse_url
    )]
    pub otlp: Option<Uri>,
}

/// The format of the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Lines for people, coloured on a terminal.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What a program logs if no filter is given.
#[derive(Debug, Clone, Copy)]
pub struct LogDefaults<'a> {
    /// The name of the program in traces.
    pub program: &'static str,
    /// A level for Potluck's own messages, or `off` for no message of anybody.
    pub level: &'a str,
    /// Whether `RUST_LOG` counts.
    pub reads_rust_log: bool,
}

impl LogDefaults<'_> {
    /// What a service logs: `info`.
    pub const fn of_service(program: &'static str) -> Self {
        Self {
            program,
            level: "info",
            reads_rust_log: true,
        }
    }
}

/// Sets up the log to `writer`, and the export of traces. Must be called in a tokio runtime, once.
/// The caller keeps the result, and shuts it down at the end.
pub fn init<W>(options: &LogOptions, defaults: LogDefaults<'_>, writer: W) -> Traces
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let rust_log = || std::env::var(RUST_LOG).ok().filter(|_| defaults.reads_rust_log);
    let default = rust_log()
        .filter(|text| parse_filter(text).is_ok())
        .unwrap_or_else(|| defaults.level.to_owned());
    let given = options.log.as_deref().unwrap_or(&default);
    let (filter, handle) = reload::Layer::new(filter(given));
    // An internal error would be reported to standard error with a macro that panics on failure.
    let lines = fmt::layer().with_writer(writer).log_internal_errors(false);
    let lines = match options.log_format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).boxed(),
    };
    let traces = match &options.otlp {
        Some(url) => Traces::export(url, defaults.program),
        None => Traces::off(),
    };
    let spans = traces.tracer().map(|tracer| {
        tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_filter(filter_fn(|metadata| {
                metadata.is_span() && metadata.target() == traces::TARGET
            }))
    });
    // Fails only if this process has a log already.
    let _ = Registry::default()
        .with(spans)
        .with(lines.with_filter(filter))
        .try_init();
    let set = move |text: Option<&str>| {
        handle
            .reload(self::filter(text.unwrap_or(&default)))
            .map_err(|error| error.to_string())
    };
    let _ = SET_FILTER.set(Box::new(set));
    traces
}

/// Changes the filter of the log; `None` for the default.
///
/// # Errors
/// The log is gone.
pub fn set_filter(text: Option<&str>) -> Result<(), String> {
    SET_FILTER.get().map_or(Ok(()), |set| set(text))
}

/// The filter that a text asks for. A level alone is for the crates of Potluck; libraries log
/// warnings, and those that remote clients could make log much only errors.
fn filter(text: &str) -> EnvFilter {
    if text.eq_ignore_ascii_case("off") {
        return EnvFilter::new("off");
    }
    let Ok(level) = text.parse::<LevelFilter>() else {
        return EnvFilter::new(text);
    };
    let others = level.min(LevelFilter::WARN);
    let quiet = NOISY.iter().map(|library| format!(",{library}=error"));
    let own = OWN.iter().map(|own| format!(",{own}={level}"));
    let all: String = std::iter::once(others.to_string())
        .chain(quiet)
        .chain(own)
        .collect();
    EnvFilter::new(all)
}

fn parse_filter(text: &str) -> Result<String, String> {
    match EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("give a level such as debug, or a filter: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use std::{io, sync::Arc};

    use parking_lot::Mutex;

    use super::*;

    /// Captures the log.
    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What the filter lets through.
    fn logged(text: &str) -> String {
        let written = Written::default();
        let writer = written.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(filter(text))
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(target: "h2::proto::streams", "a flood");
            tracing::warn!(target: "hyper::proto", "a flood");
            tracing::error!(target: "h2::proto", "a defect");
            tracing::info!(target: "sled::tree", "of a library");
            tracing::info!(target: "potluck_index::server", "ready");
            tracing::debug!(target: "potluck_peer::server", "a detail");
        });
        let written = written.0.lock().clone();
        String::from_utf8(written).unwrap()
    }

    #[test]
    fn warnings_that_remote_clients_can_cause_are_not_logged_by_default() {
        let text = logged("info");
        assert!(!text.contains("a flood"), "{text}");
        assert!(text.contains("a defect") && text.contains("ready"), "{text}");
    }

    #[test]
    fn a_level_is_for_the_programs_own_messages() {
        let text = logged("debug");
        assert!(text.contains("a detail"), "{text}");
        assert!(
            !text.contains("a flood") && !text.contains("of a library"),
            "{text}"
        );
        assert_eq!(logged("off"), "");
        assert!(logged("sled=info").contains("of a library"));
    }

    #[test]
    fn a_filter_must_be_valid() {
        assert!(parse_filter("potluck_peer=debug,warn").is_ok());
        assert!(
            parse_filter("potluck_peer=loud")
                .unwrap_err()
                .contains("give a level")
        );
    }
}
