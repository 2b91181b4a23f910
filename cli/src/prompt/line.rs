//! Parses a line typed at the prompt. Pure.

use clap::{
    Command, CommandFactory, FromArgMatches as _, Parser, Subcommand, builder::Resettable,
    error::ErrorKind,
};

use crate::{
    args::Verb,
    error::CommandError,
    options::{GlobalOptions, wants_json},
};

/// Output of `help`.
const HELP: &str = "\
Commands:
  share PATH…              share files and folders in place
  search WORDS             find files by words in their names
  query ID|NAME            show which peers have a file
  get ID|NAME [-o PATH]    download a file or folder
  unshare ID|PATH          stop sharing a file or folder
  list                     list what this peer shares
  check PATH…|--all        check that shared files are undamaged
  transfers                list, pause, resume, cancel or adjust downloads
  why ID|NUMBER            explain the progress of a download
  limits                   show or set rate limits and upload slots
  cache                    list, pin or remove what was fetched for others
  id PATH…                 print the ids of files and folders
  verify ID PATH           check a file or folder against an id
  status                   show whether the index and the peer are up
  health ADDRESS           check whether an index or a peer is serving
  quit                     leave the prompt, as Ctrl-D does

`register` and `unregister` are other names of `share` and `unshare`.
`COMMAND --help` or `help COMMAND` describes a command. Ctrl-C stops a running
command.";

/// A line of the prompt.
#[derive(Debug, Parser)]
#[command(
    name = "",
    no_binary_name = true,
    disable_help_subcommand = true,
    max_term_width = 110
)]
pub(crate) struct PromptLine {
    #[command(flatten)]
    pub(crate) options: GlobalOptions,
    #[command(subcommand)]
    pub(crate) command: LineCommand,
}

/// The commands of the prompt.
#[derive(Debug, Subcommand)]
pub(crate) enum LineCommand {
    #[command(flatten)]
    Verb(Verb),
    /// Leave the prompt
    #[command(alias = "exit", alias = "bye")]
    Quit,
}

/// The result of parsing a line.
#[derive(Debug)]
pub(crate) enum ParsedLine {
    /// An empty line or a comment.
    Empty,
    /// Text to print, such as help.
    Message(String),
    /// A command to run.
    Line(Box<PromptLine>),
    /// An invalid line.
    Invalid {
        /// The error to report.
        error: CommandError,
        /// Whether to report it as JSON.
        json: bool,
    },
}

/// Parses a line: splits it into words as a POSIX shell does, then parses the words as a command
/// line.
pub(crate) fn parse(text: &str) -> ParsedLine {
    let Some(words) = shlex::split(text) else {
        return ParsedLine::Invalid {
            error: CommandError::usage("a quote is not closed: close it, or write \\ before it"),
            json: wants_json(text.split_whitespace()),
        };
    };
    // Allow `potluck` in front of the command, as typed in a shell.
    let words = match words.split_first() {
        Some((first, rest)) if first == "potluck" && !rest.is_empty() => rest,
        _ => &words[..],
    };
    let words = match words {
        [] => return ParsedLine::Empty,
        [help] if matches!(help.as_str(), "help" | "?" | "-h" | "--help") => {
            return ParsedLine::Message(HELP.to_owned());
        }
        // `help get` is `get --help`.
        [help, verb, ..] if help == "help" => &[verb.clone(), "--help".to_owned()],
        words => words,
    };
    match read(words) {
        Ok(line) => ParsedLine::Line(Box::new(line)),
        Err(error) if !error.use_stderr() => ParsedLine::Message(error.render().ansi().to_string()),
        Err(error) => ParsedLine::Invalid {
            error: explain(&error, &words[0]),
            json: wants_json(words),
        },
    }
}

fn read(words: &[String]) -> Result<PromptLine, clap::Error> {
    let mut command = command();
    let matches = command.try_get_matches_from_mut(words)?;
    PromptLine::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

/// The clap command for a line. Arguments do not read the environment: the session has done so, and
/// its value would override the flags that the program was started with.
pub(crate) fn command() -> Command {
    without_environment(PromptLine::command())
}

fn without_environment(command: Command) -> Command {
    let command = command.mut_args(|arg| arg.env(Resettable::Reset));
    command.mut_subcommands(without_environment)
}

fn explain(error: &clap::Error, word: &str) -> CommandError {
    let is_verb = verbs().any(|verb| verb == word);
    if !is_verb
        && matches!(
            error.kind(),
            ErrorKind::InvalidSubcommand | ErrorKind::UnknownArgument
        )
    {
        let unknown = CommandError::usage(format!("unknown command `{word}`"));
        return match nearest_verb(word) {
            Some(verb) => unknown.hint(format!("did you mean `{verb}`? `help` lists the commands")),
            None => unknown.hint("`help` lists the commands"),
        };
    }
    let command_error = CommandError::usage(crate::args::usage_message(error));
    command_error.hint(format!("`{word} --help` describes the command"))
}

/// The command that was most likely meant by an unknown word.
fn nearest_verb(word: &str) -> Option<String> {
    let word = word.to_lowercase();
    let distance = |verb: &String| edit_distance(&word, verb);
    // One wrong letter in three is a typing error; more is another word.
    let is_near = |verb: &String| {
        let is_start = word.len() >= 2 && verb.starts_with(&word);
        is_start || distance(verb) <= verb.len().max(word.len()) / 3
    };
    verbs().filter(is_near).min_by_key(distance)
}

/// Number of characters to insert, delete, replace or swap with their neighbour to get from one
/// text to the other (optimal string alignment).
fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

/// Every command name, alias included, that can begin a line.
pub(crate) fn verbs() -> impl Iterator<Item = String> {
    let own = PromptLine::command()
        .get_subcommands()
        .flat_map(|verb| std::iter::once(verb.get_name()).chain(verb.get_visible_aliases()))
        .map(ToOwned::to_owned)
        .collect::<Vec<_>>();
    own.into_iter().chain(["help".to_owned()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_parsed_like_a_command_line() {
        let ParsedLine::Line(line) = parse("get 'a b.bin' -o /tmp") else {
            panic!("not understood")
        };
        assert!(matches!(line.command, LineCommand::Verb(Verb::Get(_))));
        let ParsedLine::Line(line) = parse("list --json") else {
            panic!("not understood")
        };
        assert!(matches!(line.command, LineCommand::Verb(Verb::Ls(_))) && line.options.json);
        assert!(matches!(parse("potluck status"), ParsedLine::Line(_)));
        assert!(matches!(parse("exit"), ParsedLine::Line(_)));
        assert!(matches!(parse("   "), ParsedLine::Empty));
    }

    /// The fuzz target of the prompt: any text is parsed without a panic, and a line means the same
    /// when each of its words is quoted.
    fn parses_the_same_when_quoted(input: &[u8]) -> bool {
        let text = String::from_utf8_lossy(input);
        let quoted = shlex::split(&text).map(|words| {
            let words = words.iter().map(String::as_str);
            shlex::try_join(words).unwrap_or_default()
        });
        match (parse(&text), quoted.as_deref().map(parse)) {
            (ParsedLine::Empty, Some(ParsedLine::Empty)) => false,
            (ParsedLine::Message(first), Some(ParsedLine::Message(second))) => {
                assert_eq!(first, second);
                false
            }
            (ParsedLine::Line(first), Some(ParsedLine::Line(second))) => {
                assert_eq!(format!("{first:?}"), format!("{second:?}"));
                true
            }
            (ParsedLine::Invalid { error, .. }, second) => {
                let has_message =
                    matches!(&error, CommandError::Failed { message, .. } if !message.is_empty());
                assert!(has_message, "{error:?}");
                // A text with a NUL byte cannot be quoted.
                let is_invalid = matches!(second, None | Some(ParsedLine::Invalid { .. }));
                assert!(is_invalid || text.contains('\0'));
                false
            }
            (_, second) => {
                assert!(text.contains('\0'), "{text:?} becomes {second:?}");
                false
            }
        }
    }

    fn lines() -> Vec<Vec<u8>> {
        let lines = [
            "get 'a b.bin' -o /tmp --include '*.json'",
            "share a b --exclude \"*.tmp\" --links follow",
            "search model v2 --json",
            "limits --upload 10MiB/s",
            "transfers adjust 3 --priority 7",
            "potluck why 3f9a1234",
            "help get # comment",
        ];
        lines.map(|line| line.as_bytes().to_vec()).into()
    }

    #[test]
    fn any_text_is_parsed() {
        use potluck_fuzz::driver::{Budget, run};
        static TARGET: potluck_fuzz::Target = potluck_fuzz::Target {
            name: "prompt_line",
            run: parses_the_same_when_quoted,
            seeds: lines,
            words: &[
                b"'", b"\"", b"\\", b"--", b" ", b"#", b"get", b"-o", b"--json", b"=", b"\n",
            ],
            is_store: false,
        };
        let report = run(&TARGET, Budget::of_test(200));
        let report = report.unwrap_or_else(|failure| panic!("{failure}"));
        println!("prompt_line: {report}");
        assert!(report.accepted > 0);
    }

    #[test]
    fn an_invalid_line_is_an_error_and_help_is_a_message() {
        for wrong in ["frobnicate", "get", "share 'x", "id --nonsense", "-x"] {
            assert!(
                matches!(parse(wrong), ParsedLine::Invalid { json: false, .. }),
                "{wrong}"
            );
        }
        for help in ["help", "?", "get --help", "help get"] {
            assert!(matches!(parse(help), ParsedLine::Message(_)), "{help}");
        }
    }

    #[test]
    fn an_unknown_word_suggests_the_nearest_verb() {
        for (word, verb) in [
            ("serach", Some("search")),
            ("shrae", Some("share")),
            ("Get", Some("get")),
            ("trans", Some("transfers")),
            ("stauts", Some("status")),
            ("frobnicate", None),
            ("x", None),
        ] {
            assert_eq!(nearest_verb(word).as_deref(), verb, "{word}");
        }
        for word in ["register x", "unregister x"] {
            assert!(matches!(parse(word), ParsedLine::Line(_)), "{word}");
        }
    }

    #[test]
    fn an_error_is_json_if_the_line_has_the_flag() {
        for wrong in ["get --json", "--json frobnicate", "share --json 'x"] {
            assert!(
                matches!(parse(wrong), ParsedLine::Invalid { json: true, .. }),
                "{wrong}"
            );
        }
    }

    #[test]
    fn a_line_does_not_read_the_environment() {
        let mut command = command();
        command.build();
        for verb in std::iter::once(&command).chain(command.get_subcommands()) {
            let variable = verb.get_arguments().find(|arg| arg.get_env().is_some());
            assert!(variable.is_none(), "{} {variable:?}", verb.get_name());
        }
    }

    #[test]
    fn the_help_names_every_verb() {
        for verb in verbs().filter(|verb| !matches!(verb.as_str(), "ls" | "help")) {
            assert!(HELP.contains(&verb), "{verb}");
        }
    }
}
