//! Adds the settings of a file to a command line.

use std::{
    ffi::OsString,
    io::ErrorKind as IoErrorKind,
    path::{Path, PathBuf},
};

use clap::{
    Arg, ArgAction, ArgMatches, Command, builder::Resettable::Reset, error::ErrorKind,
    parser::ValueSource,
};

use super::file::{self, FileSetting, FileValue};

/// A value of `--config` for no file, not even the default one.
pub const NO_FILE: &str = "none";

/// The folder of the default files.
const DEFAULT_FOLDER: &str = "/etc/potluck";

/// The flags that select a file and print the result: not settings themselves.
const CONFIG: &str = "config";
const PRINT_CONFIG: &str = "print_config";

/// How similar a known key must be to be suggested: 1 is equal.
const SIMILAR: f64 = 0.7;

/// The command of a service, whose options are settings.
#[derive(Debug, Clone)]
pub struct ServiceCommand {
    /// The name of the service and of its default file: `index`, `peer` or `gateway`.
    name: &'static str,
    /// The subcommand that runs the service; `None` if the program does nothing else.
    subcommand: Option<&'static str>,
    /// A command with only the options of the service.
    options: Command,
}

impl ServiceCommand {
    /// The service of a program that does nothing else, with the options `O`.
    pub fn alone<O: clap::Args>(service: &'static str) -> Self {
        Self {
            name: service,
            subcommand: None,
            options: O::augment_args(Command::new(service)),
        }
    }

    /// The service that the subcommand of the same name runs.
    pub fn subcommand<O: clap::Args>(service: &'static str) -> Self {
        Self {
            subcommand: Some(service),
            ..Self::alone::<O>(service)
        }
    }

    /// Adds those options of `O` that `names` lists: the whole program accepts them, and they are
    /// settings of the service.
    #[must_use]
    pub fn with_options_of<O: clap::Args>(mut self, names: &[&str]) -> Self {
        let program = O::augment_args(Command::new(self.name));
        let is_setting = |arg: &&Arg| arg.get_long().is_some_and(|name| names.contains(&name));
        for arg in program.get_arguments().filter(is_setting) {
            self.options = self.options.arg(arg.clone());
        }
        self
    }

    /// The name of the service.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// The file that is read if it exists and no other is named.
    pub fn default_file(&self) -> PathBuf {
        Path::new(DEFAULT_FOLDER).join(self.name).with_extension("toml")
    }

    /// The options that are settings, in the order of the help.
    pub(super) fn keys(&self) -> impl Iterator<Item = &Arg> {
        let is_setting = |arg: &&Arg| {
            let id = arg.get_id();
            let is_other = id == CONFIG || id == PRINT_CONFIG || arg.is_hide_set();
            !is_other && arg.get_long().is_some()
        };
        self.options.get_arguments().filter(is_setting)
    }

    /// The hidden option for the values of `arg` in the environment, if it needs one: the option
    /// takes one value each time, and the variable a list.
    pub(super) fn list_of(&self, arg: &Arg) -> Option<&Arg> {
        let id = format!("{}_list", arg.get_id());
        let mut options = self.options.get_arguments();
        options.find(|other| other.get_id() == id.as_str() && other.is_hide_set())
    }

    /// The matches of the service's options, if the command line runs the service.
    pub(super) fn matches<'m>(&self, matches: &'m ArgMatches) -> Option<&'m ArgMatches> {
        match self.subcommand {
            // A command below it does something else.
            Some(name) => {
                let matches = matches.subcommand_matches(name)?;
                matches.subcommand_name().is_none().then_some(matches)
            }
            None => Some(matches),
        }
    }

    /// The command line `program` with these options of the service.
    fn line(&self, program: &Command, options: Vec<OsString>) -> Vec<OsString> {
        let names = [Some(program.get_name()), self.subcommand];
        names
            .into_iter()
            .flatten()
            .map(OsString::from)
            .chain(options)
            .collect()
    }
}

/// A command line with the settings of a file.
#[derive(Debug)]
pub struct Arguments {
    /// The words, those of the file last.
    pub words: Vec<OsString>,
    /// The file, if one was read.
    pub(super) file: Option<PathBuf>,
    /// The keys whose value is that of the file.
    pub(super) file_keys: Vec<String>,
}

impl Arguments {
    /// Parses the words.
    ///
    /// # Errors
    /// As clap reports them. They name the file if it contributed.
    pub fn parse(&self, program: &Command) -> Result<ArgMatches, clap::Error> {
        program
            .clone()
            .try_get_matches_from(&self.words)
            .map_err(|error| self.explain(error))
    }

    /// Says in an error that the settings of the file count, too.
    pub fn explain(&self, error: clap::Error) -> clap::Error {
        match &self.file {
            Some(file) if error.use_stderr() => failure(
                error.kind(),
                format!("{} (with the settings of {})", summary(&error), file.display()),
            ),
            _ => error,
        }
    }
}

/// Adds the settings of the file of that service of `services` which the words run; returns other
/// command lines as they are.
///
/// # Errors
/// An option or a variable is not valid on its own; the file cannot be read, has a key that is not
/// an option, or a value that the option does not take.
pub fn add_file(
    program: &Command,
    services: &[ServiceCommand],
    words: &[OsString],
) -> Result<Arguments, clap::Error> {
    let lenient = without_relations(program.clone());
    let matches = lenient.clone().try_get_matches_from(words)?;
    let mut arguments = Arguments {
        words: words.to_vec(),
        file: None,
        file_keys: Vec::new(),
    };
    let run = |service: &&ServiceCommand| service.matches(&matches).is_some();
    let Some(service) = services.iter().find(run) else {
        return Ok(arguments);
    };
    let matches = service.matches(&matches).expect("this service runs");
    let Some((path, settings)) = read_file(service, matches)? else {
        return Ok(arguments);
    };
    let complain = |line: usize, message: String| {
        failure(
            ErrorKind::InvalidValue,
            format!("{}, line {line}: {message}", path.display()),
        )
    };
    for setting in &settings {
        let arg = find_key(service, setting).map_err(|message| complain(setting.line, message))?;
        let flags = flags(arg, setting).map_err(|message| complain(setting.line, message))?;
        let line = service.line(program, flags.clone());
        let valid = lenient.clone().try_get_matches_from(line);
        valid.map_err(|error| complain(setting.line, summary(&error)))?;
        let is_given = |arg: &Arg| {
            let source = matches.value_source(arg.get_id().as_str());
            matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable))
        };
        if !is_given(arg) && !service.list_of(arg).is_some_and(is_given) {
            arguments.words.extend(flags);
            arguments.file_keys.push(setting.key.clone());
        }
    }
    arguments.file = Some(path);
    Ok(arguments)
}

/// The command without rules that relate one option to another: a file may hold the other one.
fn without_relations(command: Command) -> Command {
    command
        .mut_args(|arg| arg.requires(Reset).conflicts_with(Reset))
        .mut_subcommands(without_relations)
}

/// The file that the matches name, or the default one if it exists.
fn read_file(
    service: &ServiceCommand,
    matches: &ArgMatches,
) -> Result<Option<(PathBuf, Vec<FileSetting>)>, clap::Error> {
    let named = matches.get_one::<PathBuf>(CONFIG);
    let path = match named {
        Some(path) if path.as_os_str().is_empty() || path == Path::new(NO_FILE) => return Ok(None),
        Some(path) => path.clone(),
        None => {
            let path = service.default_file();
            match path.try_exists() {
                Ok(false) => return Ok(None),
                // A folder that cannot be searched has no settings for this user.
                Err(error) if error.kind() == IoErrorKind::PermissionDenied => return Ok(None),
                _ => path,
            }
        }
    };
    match file::read(&path) {
        Ok(settings) => Ok(Some((path, settings))),
        Err(message) => {
            let hint = match named {
                Some(_) => "",
                None => " (give --config none to start without this file)",
            };
            let message = format!("cannot read settings from {}: {message}{hint}", path.display());
            Err(failure(ErrorKind::Io, message))
        }
    }
}

/// The option that a key names.
fn find_key<'s>(service: &'s ServiceCommand, setting: &FileSetting) -> Result<&'s Arg, String> {
    let key = setting.key.as_str();
    if let Some(arg) = service.keys().find(|arg| arg.get_long() == Some(key)) {
        return Ok(arg);
    }
    let similarity = |name: &&str| strsim::jaro_winkler(name, key);
    let names = service.keys().filter_map(Arg::get_long);
    let nearest = names.max_by(|a, b| similarity(a).total_cmp(&similarity(b)));
    let advice = match nearest.filter(|name| similarity(name) >= SIMILAR) {
        Some(nearest) => format!("did you mean `{nearest}`?"),
        None => "the keys are the names of the options that --help lists, without `--`".to_owned(),
    };
    Err(format!("unknown key `{key}`: {advice}"))
}

/// A setting as flags.
fn flags(arg: &Arg, setting: &FileSetting) -> Result<Vec<OsString>, String> {
    let key = &setting.key;
    let flag = |value: &String| OsString::from(format!("--{key}={value}"));
    let is_switch = !arg.get_action().takes_values();
    match &setting.value {
        FileValue::Bool(value) if is_switch => {
            let flag = value.then(|| OsString::from(format!("--{key}")));
            Ok(flag.into_iter().collect())
        }
        _ if is_switch => Err(format!("`{key}` is true or false")),
        FileValue::Bool(value) => Ok(vec![flag(&value.to_string())]),
        FileValue::One(value) => Ok(vec![flag(value)]),
        FileValue::Many(values) if is_list(arg) => Ok(values.iter().map(flag).collect()),
        FileValue::Many(_) => Err(format!("`{key}` is one value, not a list")),
    }
}

/// Whether an option may be given several times.
pub(super) fn is_list(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Append)
}

fn failure(kind: ErrorKind, message: String) -> clap::Error {
    clap::Error::raw(kind, format!("{message}\n"))
}

/// The first paragraph of an error, in one line and without `error: `.
pub(super) fn summary(error: &clap::Error) -> String {
    let text = error.to_string();
    let lines = text.lines().map(str::trim).take_while(|line| !line.is_empty());
    let line = lines.collect::<Vec<_>>().join(" ");
    line.strip_prefix("error: ").unwrap_or(&line).to_owned()
}
