//! `potluck limits`: shows or changes the limits of the running peer.

use clap::Args;
use potluck_core::units::parse_rate;
use serde_json::json;

use crate::{context::CommandContext, control::model::Limits, error::CommandError, output::text};

const EXAMPLES: &str = "\
Examples:
  potluck limits                       show the limits
  potluck limits --upload 10MiB/s      limit uploads to 10 MiB/s
  potluck limits --download 0          remove the limit of downloads

Changes last until the peer stops. A peer starts with the limits of its flags
--upload-limit, --download-limit and --upload-slots, or of the variables
POTLUCK_PEER_UPLOAD_LIMIT, POTLUCK_PEER_DOWNLOAD_LIMIT and
POTLUCK_PEER_UPLOAD_SLOTS. To limit a single download, use `potluck get --limit`
or `potluck transfers adjust`.";

/// Show or set the running peer's rate limits and upload slots
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct LimitsArgs {
    /// Maximum upload rate, such as 10MiB/s; 0 for no limit
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    upload: Option<u64>,

    /// Maximum download rate of all transfers together, such as 10MiB/s; 0 for no limit
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    download: Option<u64>,

    /// Maximum downloads to serve at the same time; 0 for no limit
    #[arg(long, value_name = "N")]
    slots: Option<u32>,
}

impl LimitsArgs {
    /// The current limits with the given flags applied; `None` if no flag was given.
    fn applied_to(&self, now: Limits) -> Option<Limits> {
        let any = self.upload.is_some() || self.download.is_some() || self.slots.is_some();
        any.then(|| Limits {
            upload: self.upload.unwrap_or(now.upload),
            download: self.download.unwrap_or(now.download),
            slots: self.slots.unwrap_or(now.slots),
        })
    }
}

/// Applies the given flags, and prints the limits then in force.
pub(crate) async fn run(context: &CommandContext, args: LimitsArgs) -> Result<(), CommandError> {
    let peer = context.require_running_peer().await?;
    let mut limits = peer.control.limits().await?;
    let requested = args.applied_to(limits);
    if let Some(requested) = requested {
        limits = peer.control.set_limits(requested).await?;
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
    ])?;
    if requested.is_some() {
        context
            .out
            .note("until the peer stops; the flags of `potluck peer` set limits for each start");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_given_limits_change() {
        let now = Limits {
            upload: 1,
            download: 2,
            slots: 3,
        };
        let args = |upload: Option<u64>, download: Option<u64>, slots| LimitsArgs {
            upload,
            download,
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
