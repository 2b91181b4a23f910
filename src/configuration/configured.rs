//! The options of a service, with where their values come from.

use std::ffi::OsString;

use clap::{Command, FromArgMatches};

use super::{
    arguments::{self, ServiceCommand, add_file},
    settings::{Setting, Settings},
};

/// The options of a service, with where their values come from.
pub struct Configured<O> {
    /// The options.
    pub options: O,
    /// Every value, and where it comes from.
    pub settings: Settings,
    read: Box<dyn Fn() -> Result<(O, Settings), clap::Error> + Send + Sync>,
}

impl<O> std::fmt::Debug for Configured<O> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Configured").finish_non_exhaustive()
    }
}

impl<O: FromArgMatches + 'static> Configured<O> {
    /// Reads the options of `service`, which these words run. `program` is the whole command line.
    ///
    /// # Errors
    /// Whatever is wrong with the command line, a variable, or the file; a request for help.
    pub fn read(
        program: Command,
        service: ServiceCommand,
        words: Vec<OsString>,
    ) -> Result<Self, clap::Error> {
        let read = move || {
            let arguments = add_file(&program, std::slice::from_ref(&service), &words)?;
            let matches = arguments.parse(&program)?;
            let matches = service.matches(&matches).expect("the words run this service");
            let options = O::from_arg_matches(matches)?;
            Ok((options, Settings::of(&service, matches, &arguments)))
        };
        let (options, settings) = read()?;
        Ok(Self {
            options,
            settings,
            read: Box::new(read),
        })
    }
}

impl<O> Configured<O> {
    /// Reads the command line, the environment and the file again. Returns what changed, each value
    /// after the earlier one. If anything is wrong, nothing changes.
    ///
    /// # Errors
    /// What is wrong, in one line.
    pub fn read_again(&mut self) -> Result<Vec<(Setting, Setting)>, String> {
        let (options, settings) = (self.read)().map_err(|error| arguments::summary(&error))?;
        let changes = settings.changes(&self.settings);
        (self.options, self.settings) = (options, settings);
        Ok(changes)
    }
}
