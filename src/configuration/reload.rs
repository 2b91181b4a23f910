//! Reads the settings again when the process gets SIGHUP.

use tokio_util::sync::CancellationToken;

use super::{
    configured::Configured,
    settings::{Setting, SettingValue},
};
use crate::process::{Hangups, logging};

/// The setting that this module applies itself.
const LOG: &str = "log";

/// Reads the settings again at each hangup until `stop`. `apply` gets the new options and the
/// changes, and returns the keys that it applied. The log says what changed, and what needs a
/// restart. If anything is wrong with the new settings, the earlier ones stay.
pub async fn reload_on_hangup<O>(
    mut configured: Configured<O>,
    mut hangups: Hangups,
    stop: CancellationToken,
    mut apply: impl FnMut(&O, &[(Setting, Setting)]) -> Vec<&'static str>,
) where
    O: Send + 'static,
{
    loop {
        // Both arms are cancel-safe.
        tokio::select! {
            () = stop.cancelled() => return,
            () = hangups.next() => {}
        }
        let read = move || {
            let changes = configured.read_again();
            (configured, changes)
        };
        let Ok((read, changes)) = tokio::task::spawn_blocking(read).await else {
            tracing::error!(
                "reading the settings failed because of a defect: restart this program"
            );
            return;
        };
        configured = read;
        let changes = match changes {
            Ok(changes) => changes,
            Err(error) => {
                tracing::error!(%error, "the earlier settings stay in use: correct this and reload");
                continue;
            }
        };
        let mut applied = apply(&configured.options, &changes);
        if let Some((_, new)) = changes.iter().find(|(_, new)| new.key == LOG) {
            let filter = new.value.as_ref().and_then(SettingValue::as_word);
            match logging::set_filter(filter) {
                Ok(()) => applied.push(LOG),
                Err(error) => tracing::error!(%error, "the log stays as it is"),
            }
        }
        report(&changes, &applied);
    }
}

fn report(changes: &[(Setting, Setting)], applied: &[&str]) {
    for (old, new) in changes {
        let show = |setting: &Setting| match &setting.value {
            Some(value) => value.to_string(),
            None => "none".to_owned(),
        };
        let (key, from, to) = (&new.key, show(old), show(new));
        match applied.contains(&key.as_str()) {
            true => tracing::info!(key, from, to, "setting changed"),
            false => tracing::warn!(key, from, to, "setting changed: restart to apply it"),
        }
    }
    if changes.is_empty() {
        tracing::info!("no setting changed");
    }
}
