//! `potluck limits`: what the running peer allows itself, and changing it.

use bytesize::ByteSize;
use clap::Args;
use serde_json::json;

use crate::{context::CommandContext, control::model::Limits, error::CommandError, output::text};

const EXAMPLES: &str = "\
Examples:
  potluck limits                     what holds now
  potluck limits --upload 10MiB      send at most 10 MiB a second from now on
  potluck limits --download 0        fetch as fast as it goes

They hold until the peer stops. It starts with those of its own flags, as in
`potluck peer --upload-limit 10MiB`, or of POTLUCK_PEER_UPLOAD_LIMIT,
POTLUCK_PEER_DOWNLOAD_LIMIT and POTLUCK_PEER_UPLOAD_SLOTS. For one transfer
alone: `potluck get --limit` and `potluck transfers adjust`.";

/// Show or change how much the running peer may send and fetch
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct LimitsArgs {
    /// Most bytes a second to send, as in 10MiB; 0: no limit
    #[arg(long, value_name = "RATE")]
    upload: Option<ByteSize>,

    /// Most bytes a second to fetch, all transfers together, as in 10MiB; 0: no limit
    #[arg(long, value_name = "RATE")]
    download: Option<ByteSize>,

    /// Downloads to serve at once; 0: no limit
    #[arg(long, value_name = "N")]
    slots: Option<u32>,
}

impl LimitsArgs {
    /// These limits with what was named in its place; `None` where nothing was.
    fn over(&self, now: Limits) -> Option<Limits> {
        let any = self.upload.is_some() || self.download.is_some() || self.slots.is_some();
        any.then(|| Limits {
            upload: self.upload.map_or(now.upload, |rate| rate.as_u64()),
            download: self.download.map_or(now.download, |rate| rate.as_u64()),
            slots: self.slots.unwrap_or(now.slots),
        })
    }
}

/// Asks, changes what was named, and prints what holds then.
pub(crate) async fn run(context: &CommandContext, args: LimitsArgs) -> Result<(), CommandError> {
    let peer = context.daemon().await?;
    let mut limits = peer.control.limits().await?;
    if let Some(requested) = args.over(limits) {
        limits = peer.control.set_limits(requested).await?;
        context
            .out
            .note("until the peer stops; its flags set them for good");
    }
    if context.out.is_json() {
        return context.out.object(&json!({
            "upload_bytes_per_second": limits.upload,
            "download_bytes_per_second": limits.download,
            "upload_slots": limits.slots,
        }));
    }
    let slots = match limits.slots {
        0 => "no limit".to_owned(),
        slots => format!("{} at once", text::count(slots.into(), "download")),
    };
    context.out.lines([
        format!("upload    {}", text::limit(limits.upload)),
        format!("download  {}", text::limit(limits.download)),
        format!("slots     {slots}"),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_named_changes() {
        let now = Limits {
            upload: 1,
            download: 2,
            slots: 3,
        };
        let args = |upload: Option<u64>, download: Option<u64>, slots| LimitsArgs {
            upload: upload.map(ByteSize::b),
            download: download.map(ByteSize::b),
            slots,
        };
        assert_eq!(args(None, None, None).over(now), None);
        assert_eq!(
            args(None, Some(0), None).over(now),
            Some(Limits { download: 0, ..now })
        );
        let all = Limits {
            upload: 7,
            download: 8,
            slots: 9,
        };
        assert_eq!(args(Some(7), Some(8), Some(9)).over(now), Some(all));
    }
}
