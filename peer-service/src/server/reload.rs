//! The settings that a running peer can change.

use potluck_core::configuration::Setting;

use crate::{cache::Cache, limits::Limits, locality::Locality, options::Options};

/// Applies the changed limits, and returns their keys. The others stay as they are: the owner may
/// have changed them with `potluck limits`.
pub(super) fn apply(
    limits: &Limits,
    cache: &Cache,
    locality: &Locality,
    options: &Options,
    changes: &[(Setting, Setting)],
) -> Vec<&'static str> {
    let is_changed = |key: &&str| changes.iter().any(|(_, new)| new.key == *key);
    let keys = [
        "upload-limit",
        "download-limit",
        "upload-slots",
        "cache-size",
        "cache-ttl",
        "label",
    ];
    let labels = options.labels();
    let is_valid = |key: &&str| *key != "label" || labels.is_ok();
    let changed = keys.into_iter().filter(is_changed).filter(is_valid);
    let changed: Vec<_> = changed.collect();
    for key in &changed {
        match *key {
            "upload-limit" => limits.set_upload_rate(options.upload_limit),
            "download-limit" => limits.set_download_rate(options.download_limit),
            "upload-slots" => limits.set_upload_slots(options.upload_slots),
            "label" => locality.set_labels(labels.clone().unwrap_or_default()),
            _ => cache.set_settings(options.cache()),
        }
    }
    changed
}
