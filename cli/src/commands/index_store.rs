//! `potluck index check | compact | backup | restore | export`: looks after the stored registrations
//! of an index that is not running.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use potluck_core::Reason;
use potluck_index::{
    FolderError, MaintenanceError, StoreSummary, StoredRegistrations, data_dir, restore,
};
use serde_json::{Value, json};

use crate::{context::CommandContext, error::CommandError, output::text};

/// Work on the stored registrations.
#[derive(Debug, Subcommand)]
pub(crate) enum IndexMaintenance {
    /// Read all stored registrations and report damage; exit code 4 if there is any
    Check(FolderArgs),
    /// Rewrite the stored registrations to give space back to the disk
    Compact(FolderArgs),
    /// Write the stored registrations to a new file
    Backup(BackupArgs),
    /// Fill the data folder with a backup
    Restore(RestoreArgs),
    /// Print all stored registrations, one JSON object a line
    Export(FolderArgs),
}

/// The folder to work on.
#[derive(Debug, Args)]
pub(crate) struct FolderArgs {
    /// Folder with the stored registrations [default: potluck/index in the user's data folder]
    #[arg(
        long,
        env = "POTLUCK_INDEX_DATA_DIR",
        hide_env_values = true,
        value_name = "DIR"
    )]
    data_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct BackupArgs {
    /// The file to write; it must not exist
    #[arg(value_name = "FILE")]
    file: PathBuf,

    #[command(flatten)]
    folder: FolderArgs,
}

#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// The backup
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Restore although registrations are stored already; these are kept under another name
    #[arg(long)]
    replace: bool,

    #[command(flatten)]
    folder: FolderArgs,
}

impl FolderArgs {
    fn path(&self) -> Result<PathBuf, CommandError> {
        data_dir(self.data_dir.clone())
            .map_err(|error| CommandError::new(Reason::InvalidArgument, error.to_string()))
    }
}

impl IndexMaintenance {
    /// Does the work and prints the result.
    pub(crate) async fn run(self, context: &CommandContext) -> Result<(), CommandError> {
        let out = context.out.clone();
        // Reads and writes files, which would block the runtime.
        let work = tokio::task::spawn_blocking(move || match self {
            Self::Check(folder) => {
                let found = StoredRegistrations::open(&folder.path()?)
                    .map_err(failed)?
                    .summary();
                out.print_result("checked", &found, &[])
            }
            Self::Compact(folder) => {
                let stored = StoredRegistrations::open(&folder.path()?).map_err(failed)?;
                let before = stored.summary().bytes;
                let now = stored.compact().map_err(failed)?;
                out.print_result("compacted", &now, &[("bytes_before", json!(before))])
            }
            Self::Backup(args) => {
                let mut stored = StoredRegistrations::open(&args.folder.path()?).map_err(failed)?;
                let saved = stored.back_up(&args.file).map_err(failed)?;
                let file = json!(args.file.display().to_string());
                out.print_result("saved", &saved, &[("file", file)])
            }
            Self::Restore(args) => {
                let folder = args.folder.path()?;
                let (now, replaced) = restore(&folder, &args.file, args.replace).map_err(failed)?;
                let replaced = replaced.map(|path| path.display().to_string());
                out.print_result("restored", &now, &[("replaced", json!(replaced))])
            }
            Self::Export(folder) => {
                let mut stored = StoredRegistrations::open(&folder.path()?).map_err(failed)?;
                let mut lines = std::io::BufWriter::new(std::io::stdout().lock());
                let mut write = |line: &potluck_index::ExportedRegistration| {
                    serde_json::to_writer(&mut lines, line)?;
                    std::io::Write::write_all(&mut lines, b"\n")
                };
                let exported = stored.export(|registration| write(&registration));
                let exported = exported.and_then(|()| {
                    std::io::Write::flush(&mut lines).map_err(|source| MaintenanceError::Io {
                        path: "standard output".into(),
                        source,
                    })
                });
                exported.map_err(failed)
            }
        });
        match work.await {
            Ok(done) => done,
            Err(panic) => Err(CommandError::new(
                Reason::Internal,
                format!("the work on the registrations failed: {panic}"),
            )),
        }
    }
}

impl crate::output::Output {
    /// Prints what is stored after some work, with more fields.
    fn print_result(
        &self,
        done: &str,
        summary: &StoreSummary,
        more: &[(&str, Value)],
    ) -> Result<(), CommandError> {
        if self.is_json() {
            let mut object = json!({
                "cluster_id": summary.cluster_id.to_string(),
                "peers": summary.peers,
                "registrations": summary.registrations,
                "bytes": summary.bytes,
            });
            for (name, value) in more {
                object[*name] = value.clone();
            }
            return self.print_object(&object);
        }
        let mut line = format!(
            "{done}: {}, {}, {} on disk",
            text::count(summary.peers, "peer"),
            text::count(summary.registrations, "registration"),
            text::size(summary.bytes)
        );
        for (name, value) in more {
            match (*name, value) {
                ("bytes_before", Value::Number(before)) => {
                    let before = text::size(before.as_u64().unwrap_or_default());
                    line = format!("{line} (before: {before})");
                }
                ("file", Value::String(file)) => line = format!("{line}, in {file}"),
                ("replaced", Value::String(path)) => {
                    line = format!("{line}; the old registrations are in {path}");
                }
                _ => {}
            }
        }
        self.print_line(line)
    }
}

fn failed(error: MaintenanceError) -> CommandError {
    let reason = match &error {
        MaintenanceError::Io { source, .. } if source.kind() == std::io::ErrorKind::BrokenPipe => {
            return CommandError::BrokenPipe;
        }
        MaintenanceError::Folder(FolderError::InUse { .. }) => Reason::HomeLocked,
        MaintenanceError::Empty(_) => Reason::NotFound,
        MaintenanceError::Damaged { .. } | MaintenanceError::Backup { .. } => {
            Reason::VerificationFailed
        }
        MaintenanceError::Exists(_) | MaintenanceError::FileExists(_) => Reason::TargetExists,
        MaintenanceError::Io { source, .. } => {
            Reason::of_exhaustion(source).unwrap_or(Reason::StoreUnavailable)
        }
        MaintenanceError::Folder(_) => Reason::StoreUnavailable,
    };
    CommandError::new(reason, error.to_string())
}
