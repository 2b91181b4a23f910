//! Settings of a service: flags, then environment variables, then a TOML file, then defaults.
//!
//! The keys of the file are the long names of the service's flags, read from its
//! [`clap::Command`]: a new flag is a new key by itself. [`arguments::add_file`] adds what the file
//! says, and neither a flag nor a variable does, to the command line as flags. So one parser checks
//! all of them, with the same rules about what needs or excludes what.
//!
//! | module | contents |
//! |---|---|
//! | `file` | the TOML file as settings; pure but for reading the file |
//! | [`arguments`] | adds the settings of a file to a command line |
//! | [`configured`] | the options of a service, which can be read again |
//! | [`settings`] | the result, with where each value comes from; its text for `--print-config` |
//! | [`reload`] | reads everything again when asked to |
//!
//! Non-goal: several files. One service has one file.

pub mod arguments;
pub mod configured;
mod file;
pub mod reload;
pub mod settings;

pub use self::{
    arguments::{ServiceCommand, add_file},
    configured::Configured,
    reload::reload_on_hangup,
    settings::{Setting, Settings, Source},
};

#[cfg(test)]
mod tests;
