//! `potluck limits`: shows or changes the limits of the running peer.

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

/// Show or change the rate limits and upload slots of the running peer
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct LimitsArgs {
    /// Maximum upload rate in bytes per second, e.g. 10MiB; 0: no limit
    #[arg(long, value_name = "RATE")]
    upload: Option<ByteSize>,

    /// Maximum download rate in bytes per second, over all transfers, e.g. 10MiB; 0: no limit
    #[arg(long, value_name = "RATE")]
    download: Option<ByteSize>,

    /// Downloads to serve at the same time; 0: no limit
    #[arg(long, value_name = "N")]
    slots: Option<u32>,
}

impl LimitsArgs {
    /// The current limits with the given flags applied; `None` if no flag was given.
    fn applied_to(&self, now: Limits) -> Option<Limits> {
        let any = self.upload.is_some() || self.download.is_some() || self.slots.is_some();
        any.then(|| Limits {
            upload: self.upload.map_or(now.upload, |rate| rate.as_u64()),
            download: self.download.map_or(now.download, |rate| rate.as_u64()),
            slots: self.slots.unwrap_or(now.slots),
        })
    }
}

/// Applies the given flags, and prints the limits then in force.
pub(crate) async fn run(context: &CommandContext, args: LimitsArgs) -> Result<(), CommandError> {
    let peer = context.require_running_peer().await?;
    let mut limits = peer.control.limits().await?;
    if let Some(requested) = args.applied_to(limits) {
        limits = peer.control.set_limits(requested).await?;
        context
            .out
            .note("until the peer stops; its flags set them for good");
    }
    if context.out.is_json() {
        return context.out.print_object(&json!({
            "upload_bytes_per_second": limits.upload,
            "download_bytes_per_second": limits.download,
            "upload_slots": limits.slots,
        }));
    }
    let slots = match limits.slots {
        0 => "no limit".to_owned(),
        slots => format!("{} at once", text::count(slots.into(), "download")),
    };
    context.out.print_lines([
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
        assert_eq!(args(None, None, None).applied_to(now), None);
        assert_eq!(
            args(None, Some(0), None).applied_to(now),
            Some(Limits { download: 0, ..now })
        );
        let all = Limits {
            upload: 7,
            download: 8,
            slots: 9,
        };
        assert_eq!(args(Some(7), Some(8), Some(9)).applied_to(now), Some(all));
    }
}
