//! `potluck limits`: shows or changes the limits of the running peer.

use clap::Args;
use potluck_core::units::parse_rate;

use crate::{
    context::CommandContext, control::model::LimitsUpdate, error::CommandError, output::text,
    views::status,
};

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
    /// The changes that the flags request; `None` if no flag was given.
    fn update(&self) -> Option<LimitsUpdate> {
        let update = LimitsUpdate {
            upload: self.upload,
            download: self.download,
            slots: self.slots,
        };
        (update != LimitsUpdate::default()).then_some(update)
    }
}

/// Applies the given flags, and prints the limits then in force.
pub(crate) async fn run(context: &CommandContext, args: LimitsArgs) -> Result<(), CommandError> {
    let peer = context.require_running_peer().await?;
    let update = args.update();
    let limits = match update {
        None => peer.control.limits().await?,
        Some(update) => peer.control.set_limits(update).await?,
    };
    if context.out.is_json() {
        return context.out.print_object(&status::limits_object(limits));
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
    if update.is_some() {
        context
            .out
            .note("until the peer stops; the flags of `potluck peer` set limits for each start");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use potluck_core::proto::v1;

    use super::*;

    #[test]
    fn only_the_given_limits_change() {
        let requested = |upload: Option<u64>, download: Option<u64>, slots| {
            let args = LimitsArgs {
                upload,
                download,
                slots,
            };
            args.update().map(v1::Limits::from)
        };
        assert_eq!(requested(None, None, None), None);
        let download = v1::Limits {
            download_bytes_per_second: Some(0),
            ..Default::default()
        };
        assert_eq!(requested(None, Some(0), None), Some(download));
        let all = v1::Limits {
            upload_bytes_per_second: Some(7),
            download_bytes_per_second: Some(8),
            upload_slots: Some(9),
        };
        assert_eq!(requested(Some(7), Some(8), Some(9)), Some(all));
    }
}
