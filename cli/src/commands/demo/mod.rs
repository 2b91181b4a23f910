//! `potluck demo`: runs an index and four peers on this machine, and downloads one file from three
//! of them at once.
//!
//! Services, ports and verification are real. Everything runs in one process and in one temporary
//! folder, which is removed at the end.

mod folder;
mod network;
mod sample;

use std::{
    path::{Path, PathBuf},
    pin::pin,
    time::{Duration, Instant},
};

use clap::Args;
use console::style;
use futures_util::StreamExt as _;
use potluck_core::{FileId, Reason};
use potluck_peer::library::ShareOptions;

use self::{folder::DemoFolder, network::DemoNetwork};
use crate::{
    context::CommandContext,
    control::{
        ControlClient, DownloadRequest,
        model::{Item, ShareEvent},
    },
    download::{self, WaitLimit},
    error::CommandError,
    local_files,
    output::{draw, progress::ProgressLines, text},
};

/// How long the index may take to list all three providers; everything runs on this machine.
const ANNOUNCE_TIMEOUT: Duration = Duration::from_secs(20);

/// Poll interval of the index.
const ANNOUNCE_INTERVAL: Duration = Duration::from_millis(20);

/// Duration of the download unless `--fast` is given: long enough to watch it.
const WATCHABLE: Duration = Duration::from_secs(8);

/// Minimum rate of the download, in bytes per second: a small file should not take long.
const MIN_RATE: u64 = 32 * 1024 * 1024;

const EXAMPLES: &str = "\
Examples:
  potluck demo             use a generated file of 256 MiB
  potluck demo --fast      as fast as this machine can
  potluck demo big.iso     use a file or folder of yours; it is only read";

/// Watch a file arrive from three peers on this machine
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct DemoArgs {
    /// File or folder to share [default: a generated file of 256 MiB]
    file: Option<PathBuf>,

    /// Do not slow the download down to about 8 seconds
    #[arg(long)]
    fast: bool,
}

/// Starts the network, runs the demo, and stops the network even if the demo fails.
pub(crate) async fn run(context: &CommandContext, args: DemoArgs) -> Result<(), CommandError> {
    let original = args.file.as_deref().map(local_files::absolute).transpose()?;
    let bytes = match &original {
        Some(path) => local_files::size(Path::new(path))?,
        None => 2 * sample::SAMPLE_SIZE as u64,
    };
    let network = context
        .stoppable(DemoNetwork::start(DemoFolder::create(bytes)?))
        .await?;
    let done = run_on(context, &network, original.map(PathBuf::from), args.fast).await;
    network.stop().await;
    if done.is_ok() && !context.out.is_json() {
        print_next_steps(context, args.file.as_deref());
    }
    done
}

async fn run_on(
    context: &CommandContext,
    network: &DemoNetwork,
    file: Option<PathBuf>,
    fast: bool,
) -> Result<(), CommandError> {
    print_network(context);
    let original = match file {
        Some(path) => path,
        None => sample::make(context, network.folder()).await?,
    };
    print_step(context, 1, "three peers share the file");
    let item = context
        .stoppable(share_by_all(context, network, &original))
        .await?;
    context.out.note(format_args!(
        "   {}  {}\n   {}",
        style(text::escape(&item.name)).bold().for_stderr(),
        text::size(item.content_size),
        item.record.id
    ));
    context
        .stoppable(wait_until_announced(network, item.record.id))
        .await?;
    let rate = MIN_RATE.max(item.content_size / WATCHABLE.as_secs());
    let limit = (!fast).then_some(rate);
    let note = match limit {
        Some(rate) => format!(
            "\n   at {}, so that you can watch; --fast sets no limit",
            text::rate(rate)
        ),
        None => String::new(),
    };
    print_step(
        context,
        2,
        &format!("a fourth peer downloads it from all three at once{note}"),
    );
    let request = DownloadRequest {
        file: item.record.id,
        name: None,
        target: Some(network.download_folder()),
        sha256: None,
        providers: Vec::new(),
        origin: None,
        detach: false,
        allow_expansion: false,
        include: Vec::new(),
        exclude: Vec::new(),
        seed: None,
        limit,
        priority: None,
    };
    let wait_limit = WaitLimit {
        wait: ANNOUNCE_TIMEOUT,
        error: None,
    };
    let transfer =
        download::follow(context, network.downloader(), &request, wait_limit, None).await?;
    download::report(context, &transfer, false, download::ReportDetail::Peers)?;
    print_step(context, 3, "the copy is compared with the original");
    let same =
        sample::compare(context, &original, Path::new(&transfer.path), item.record.id).await?;
    if !same {
        return Err(CommandError::new(
            Reason::VerificationFailed,
            "the copy differs from the original",
        ));
    }
    if context.out.is_json() {
        return context.out.print_object(&serde_json::json!({
            "event": "verified",
            "id": item.record.id,
            "size": transfer.done,
            "seconds": transfer.elapsed.as_secs_f64(),
            "same_as_original": true,
        }));
    }
    context.out.print_line(format_args!(
        "{}  the copy is identical",
        style("verified").green()
    ))
}

fn print_network(context: &CommandContext) {
    context.out.note(format_args!(
        "{} an index and four peers, all on this machine\n",
        style("Potluck demo:").bold().for_stderr(),
    ));
}

fn print_step(context: &CommandContext, number: u32, what: &str) {
    context.out.note(format_args!(
        "{} {what}",
        style(format!("{number}.")).cyan().bold().for_stderr()
    ));
}

/// Lets all three peers hash and share the same file. Returns the item as the first peer reports
/// it.
async fn share_by_all(
    context: &CommandContext,
    network: &DemoNetwork,
    path: &Path,
) -> Result<Item, CommandError> {
    let mut progress = ProgressLines::new(context.out.bars());
    let began = Instant::now();
    let mut first = None;
    for (i, control) in network.sharers().enumerate() {
        let label = format!("peer {} of 3", i + 1);
        let item = share(control, path, |done, total| {
            progress.show(|width| {
                vec![draw::hashing_line(&label, done, total, began.elapsed(), width)]
            });
        })
        .await?;
        first.get_or_insert(item);
    }
    first.ok_or_else(|| CommandError::new(Reason::Internal, "no peer shared the file"))
}

async fn share(
    control: &ControlClient,
    path: &Path,
    mut on_progress: impl FnMut(u64, u64),
) -> Result<Item, CommandError> {
    let paths = vec![path.to_string_lossy().into_owned()];
    let mut events = pin!(control.share(paths, ShareOptions::default(), 1).await?);
    while let Some(event) = events.next().await {
        match event? {
            ShareEvent::Progress { done, total, .. } => on_progress(done, total),
            ShareEvent::Omitted(_) => {}
            ShareEvent::Shared(item) => return Ok(item),
            ShareEvent::Failed { problem, .. } => return Err(problem.into()),
        }
    }
    Err(CommandError::new(
        Reason::Internal,
        "the peer did not report the file that it should share",
    ))
}

/// Waits until the index lists all three providers.
async fn wait_until_announced(network: &DemoNetwork, id: FileId) -> Result<(), CommandError> {
    let deadline = Instant::now() + ANNOUNCE_TIMEOUT;
    loop {
        let page = network
            .index_client()
            .query(&potluck_core::model::QueryKey::Id(id), 10, None)
            .await?;
        let known = page.files.first().map_or(0, |found| found.provider_count);
        if known >= network.sharers().count() as u64 {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let message = format!(
                "after {ANNOUNCE_TIMEOUT:?} the index lists only {known} of the peers that share"
            );
            return Err(CommandError::new(Reason::TimedOut, message));
        }
        tokio::time::sleep(ANNOUNCE_INTERVAL).await;
    }
}

fn print_next_steps(context: &CommandContext, file: Option<&Path>) {
    let sample = file.map_or_else(|| "FILE".to_owned(), |path| path.to_string_lossy().into_owned());
    context.out.note(format_args!(
        "\nThe demo's index and peers have stopped. To do the same yourself, run each in\n\
         its own terminal:\n  \
         potluck index\n  \
         potluck share {sample}\n  \
         potluck get NAME -o /tmp/copy"
    ));
}
