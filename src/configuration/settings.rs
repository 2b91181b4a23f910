//! The values of all options, where each comes from, and their text for `--print-config`.

use std::{fmt, path::PathBuf};

use clap::{Arg, ArgMatches, parser::ValueSource};

use super::arguments::{Arguments, ServiceCommand, is_list};

/// All settings of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    file: Option<PathBuf>,
    entries: Vec<Setting>,
}

/// One setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The name of the option, without `--`.
    pub key: String,
    /// Its value; `None` if it has none.
    pub value: Option<SettingValue>,
    /// Where the value comes from.
    pub source: Source,
}

/// The value of a setting, in the words of a command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SettingValue {
    /// A switch.
    Switch(bool),
    /// One value.
    One(String),
    /// A list.
    Many(Vec<String>),
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A flag.
    Flag,
    /// This environment variable.
    Environment(String),
    /// A flag and this environment variable, whose lists are joined.
    FlagAndEnvironment(String),
    /// The file.
    File,
    /// The default.
    Default,
}

impl Settings {
    /// The settings in the matches of a service's options.
    pub(super) fn of(
        service: &ServiceCommand,
        matches: &ArgMatches,
        arguments: &Arguments,
    ) -> Self {
        let read = |arg: &Arg| {
            let key = arg.get_long().unwrap_or_default().to_owned();
            let id = arg.get_id().as_str();
            let mut values = raw_values(matches, id);
            let mut source = match arguments.file_keys.contains(&key) {
                true => Source::File,
                false => source_of(matches, arg),
            };
            if let Some(list) = service.list_of(arg)
                && let Source::Environment(name) = source_of(matches, list)
            {
                values.extend(raw_values(matches, list.get_id().as_str()));
                source = match source {
                    Source::Flag => Source::FlagAndEnvironment(name),
                    _ => Source::Environment(name),
                };
            }
            let value = match arg.get_action().takes_values() {
                false => Some(SettingValue::Switch(matches.get_flag(id))),
                true if is_list(arg) => Some(SettingValue::Many(values)),
                true => values.pop().map(SettingValue::One),
            };
            Setting { key, value, source }
        };
        Self {
            file: arguments.file.clone(),
            entries: service.keys().map(read).collect(),
        }
    }

    /// The settings, in the order of the help.
    pub fn entries(&self) -> &[Setting] {
        &self.entries
    }

    /// The settings that differ, each after the one of `earlier`.
    pub(super) fn changes(&self, earlier: &Self) -> Vec<(Setting, Setting)> {
        let pairs = earlier.entries.iter().zip(&self.entries);
        let changed = pairs.filter(|(old, new)| old.value != new.value);
        changed.map(|(old, new)| (old.clone(), new.clone())).collect()
    }
}

fn source_of(matches: &ArgMatches, arg: &Arg) -> Source {
    let variable = || arg.get_env().unwrap_or_default().to_string_lossy().into_owned();
    match matches.value_source(arg.get_id().as_str()) {
        Some(ValueSource::CommandLine) => Source::Flag,
        Some(ValueSource::EnvVariable) => Source::Environment(variable()),
        _ => Source::Default,
    }
}

/// The values of an option as they were written.
fn raw_values(matches: &ArgMatches, id: &str) -> Vec<String> {
    let values = matches.get_raw(id).into_iter().flatten();
    values
        .map(|value| value.to_string_lossy().into_owned())
        .filter(|value| !value.is_empty())
        .collect()
}

/// The settings as a TOML file. A comment says where each value comes from.
impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "# A flag counts before the environment, and the environment before the file."
        )?;
        match &self.file {
            Some(file) => writeln!(f, "# The file is {}\n", file.display())?,
            None => writeln!(f, "# There is no file.\n")?,
        }
        for Setting { key, value, source } in &self.entries {
            match value {
                None => writeln!(f, "# {key} has no value")?,
                Some(value) => {
                    let note = match value.hides_password() {
                        true => "; its password is not shown",
                        false => "",
                    };
                    writeln!(f, "{key} = {value} # {source}{note}")?;
                }
            }
        }
        Ok(())
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("flag"),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::FlagAndEnvironment(name) => write!(f, "flag and environment {name}"),
            Self::File => f.write_str("file"),
            Self::Default => f.write_str("default"),
        }
    }
}

/// The value as TOML, without passwords.
impl fmt::Display for SettingValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Switch(value) => write!(f, "{value}"),
            Self::One(value) => f.write_str(&quoted(value)),
            Self::Many(values) => {
                let values: Vec<String> = values.iter().map(|value| quoted(value)).collect();
                write!(f, "[{}]", values.join(", "))
            }
        }
    }
}

impl SettingValue {
    /// The value as on a command line, with its passwords; a list has no such text.
    pub(super) fn as_word(&self) -> Option<&str> {
        match self {
            Self::One(value) => Some(value),
            Self::Switch(_) | Self::Many(_) => None,
        }
    }

    /// Whether a password was left out of the text.
    fn hides_password(&self) -> bool {
        match self {
            Self::Switch(_) => false,
            Self::One(value) => without_password(value) != *value,
            Self::Many(values) => values.iter().any(|value| without_password(value) != *value),
        }
    }
}

/// A whole number, or text in quotes.
fn quoted(value: &str) -> String {
    let value = without_password(value);
    match value.parse::<i64>() {
        Ok(number) if number.to_string() == value => value,
        _ => toml_edit::Value::from(value).to_string(),
    }
}

/// URLs separated by commas, without what may be a password: `redis://user:…@host`.
fn without_password(value: &str) -> String {
    let hide = |url: &str| {
        let hidden = url.split_once("://").and_then(|(scheme, rest)| {
            let end = rest.find('/').unwrap_or(rest.len());
            let (user, host) = rest[..end].rsplit_once('@')?;
            let (user, _) = user.split_once(':')?;
            Some(format!("{scheme}://{user}:…@{host}{}", &rest[end..]))
        });
        hidden.unwrap_or_else(|| url.to_owned())
    };
    value.split(',').map(hide).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_shown() {
        for (url, shown) in [
            ("redis://:secret@a:1,redis://b:2", "redis://:…@a:1,redis://b:2"),
            ("redis://me:s@cret@a:1/0", "redis://me:…@a:1/0"),
            ("http://a:1/x@y:z", "http://a:1/x@y:z"),
            ("a:1", "a:1"),
        ] {
            assert_eq!(without_password(url), shown);
        }
    }
}
