use std::{ffi::OsString, fs, path::PathBuf, time::Duration};

use clap::{CommandFactory as _, Parser};

use super::{Configured, ServiceCommand, Source};
use crate::units::parse_duration;

#[derive(Debug, clap::Args)]
struct Options {
    #[arg(long)]
    config: Option<PathBuf>,
    #[arg(long)]
    print_config: bool,
    #[arg(long, default_value = "60s", value_parser = parse_duration)]
    ttl: Duration,
    #[arg(long, default_value_t = 7)]
    max_files: u64,
    /// An unusual name, so that other tests set no such variable.
    #[arg(long, env = "POTLUCK_TEST_PATH_OF_CARGO")]
    from_environment: Option<String>,
    #[arg(long)]
    plaintext: bool,
    #[arg(long)]
    share: Vec<PathBuf>,
    #[arg(long, requires = "key", conflicts_with = "plaintext")]
    cert: Option<PathBuf>,
    #[arg(long, requires = "cert")]
    key: Option<PathBuf>,
    #[arg(long)]
    store: Option<String>,
}

#[derive(Debug, Parser)]
#[command(name = "service")]
struct Program {
    #[command(flatten)]
    options: Options,
}

struct Setup {
    _folder: tempfile::TempDir,
    file: PathBuf,
}

fn file(text: &str) -> Setup {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("index.toml");
    fs::write(&file, text).unwrap();
    Setup {
        _folder: folder,
        file,
    }
}

impl Setup {
    fn read(&self, flags: &[&str]) -> Result<Configured<Options>, String> {
        let mut words: Vec<OsString> = vec!["service".into(), "--config".into()];
        words.push(self.file.clone().into());
        words.extend(flags.iter().map(OsString::from));
        let service = ServiceCommand::alone::<Options>("index");
        Configured::read(Program::command(), service, words).map_err(|error| error.to_string())
    }

    #[track_caller]
    fn refuses(&self, flags: &[&str], message: &str) {
        let error = self.read(flags).unwrap_err();
        assert!(error.contains(message), "{error}");
    }
}

fn source(configured: &Configured<Options>, key: &str) -> Source {
    let mut entries = configured.settings.entries().iter();
    entries.find(|entry| entry.key == key).unwrap().source.clone()
}

#[test]
fn a_flag_counts_before_the_file_and_the_file_before_the_default() {
    let setup = file("ttl = \"5m\"\nplaintext = true\nshare = [\"/a\", \"/b c\"]\n");
    let configured = setup.read(&["--ttl", "2m"]).unwrap();
    let options = &configured.options;
    assert_eq!(options.ttl, Duration::from_secs(120));
    assert!(options.plaintext);
    assert_eq!(options.share, [PathBuf::from("/a"), PathBuf::from("/b c")]);
    assert_eq!(options.max_files, 7);
    assert_eq!(source(&configured, "ttl"), Source::Flag);
    assert_eq!(source(&configured, "share"), Source::File);
    assert_eq!(source(&configured, "max-files"), Source::Default);
}

#[test]
fn an_unknown_key_is_an_error_that_names_the_nearest_one_and_the_line() {
    let setup = file("ttl = 60\nmax_files = 3\n");
    setup.refuses(
        &[],
        "index.toml, line 2: unknown key `max_files`: did you mean `max-files`?",
    );
    file("zzz = 1").refuses(&[], "the keys are the names of the options");
    file("config = \"x\"").refuses(&[], "unknown key `config`");
    file("[index]\nttl = 1").refuses(&[], "`index` is not text");
}

#[test]
fn values_are_checked_by_the_parsers_of_the_flags() {
    file("\n\nttl = \"soon\"").refuses(&[], "line 3: invalid value 'soon' for '--ttl <TTL>'");
    file("plaintext = 1").refuses(&[], "`plaintext` is true or false");
    file("ttl = [\"1s\"]").refuses(&[], "`ttl` is one value, not a list");
    file("ttl = ").refuses(&[], "cannot read settings");
    // An error of the file counts even where a flag overrides the value.
    file("ttl = \"soon\"").refuses(&["--ttl", "1s"], "invalid value 'soon'");
}

#[test]
fn flags_and_file_together_obey_the_rules_between_options() {
    let setup = file("cert = \"/c\"");
    setup.refuses(&[], "--key");
    assert!(setup.read(&["--key", "/k"]).is_ok());
    setup.refuses(&["--key", "/k", "--plaintext"], "with the settings of");
}

#[test]
fn a_file_that_is_named_must_exist() {
    let mut setup = file("");
    setup.file = "/nowhere/potluck.toml".into();
    setup.refuses(&[], "cannot read settings from /nowhere/potluck.toml");
    setup.file = "none".into();
    assert!(setup.read(&[]).is_ok());
}

#[test]
fn the_printed_settings_are_a_file_with_the_same_settings() {
    let text = "ttl = \"5m\"\nshare = [\"/a \\\"b\\\"\"]\nmax-files = 12\nstore = \"x://u:pw@h/\"";
    let printed = file(text).read(&["--plaintext"]).unwrap().settings.to_string();
    for line in [
        "ttl = \"5m\" # file",
        "plaintext = true # flag",
        "max-files = 12 # file",
        "# from-environment has no value",
        "store = \"x://u:…@h/\" # file; its password is not shown",
    ] {
        assert!(printed.contains(&format!("\n{line}\n")), "{printed}");
    }
    let again = file(&printed).read(&[]).unwrap();
    assert_eq!(again.options.share, [PathBuf::from("/a \"b\"")]);
    assert!(again.options.plaintext);
}

#[test]
fn reading_again_finds_changes_and_keeps_the_settings_if_the_file_is_wrong() {
    let setup = file("ttl = \"5m\"");
    let mut configured = setup.read(&["--max-files", "1"]).unwrap();
    assert_eq!(configured.read_again(), Ok(Vec::new()));
    fs::write(&setup.file, "ttl = \"6m\"\nmax-files = 2").unwrap();
    let changes = configured.read_again().unwrap();
    let keys: Vec<_> = changes.iter().map(|(_, new)| new.key.as_str()).collect();
    assert_eq!(keys, ["ttl"]);
    fs::write(&setup.file, "tll = \"7m\"").unwrap();
    assert!(
        configured
            .read_again()
            .unwrap_err()
            .contains("did you mean `ttl`")
    );
    assert_eq!(configured.options.ttl, Duration::from_secs(360));
}
