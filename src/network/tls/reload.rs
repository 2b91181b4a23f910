//! Follows the files of a PKI of one's own, which something else renews.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::{
    PeerId,
    network::{
        own_pki::OwnPki,
        tls::context::{TlsContext, TlsMaterial},
    },
    process::Hangups,
};

/// How often the files are read again: soon enough for certificates that live for hours.
const RELOAD: Duration = Duration::from_secs(60);

/// Reads the files again from time to time and at each hangup until `stop`, and uses what they hold for
/// new connections. If `peer` is given, the certificate must still be for its key, from which its id follows.
pub async fn follow_files(
    tls: TlsContext,
    files: OwnPki,
    peer: Option<PeerId>,
    mut hangups: Hangups,
    stop: CancellationToken,
) {
    let mut last_error = None;
    loop {
        tokio::select! {
            // All arms only wait.
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RELOAD) => {}
            () = hangups.next() => {}
        }
        let (tls, files) = (tls.clone(), files.clone());
        let reload = move || {
            let material = TlsMaterial::own_pki(&files).map_err(|error| error.to_string())?;
            if peer.is_some() && material.peer_id() != peer {
                return Err(
                    "the certificate is for another key, so this peer would have another id: \
                     restart it, or keep the key when the certificate is renewed"
                        .to_owned(),
                );
            }
            tls.replace(material).map_err(|error| error.to_string())
        };
        let error = match tokio::task::spawn_blocking(reload).await {
            Ok(reloaded) => reloaded.err(),
            Err(error) => Some(error.to_string()),
        };
        if error != last_error {
            if let Some(error) = &error {
                tracing::warn!(%error, "the earlier certificate stays in use");
            }
            last_error = error;
        }
    }
}
