//! Periodic work of the library: closes idle handles, stores changes that could not be stored
//! before, and checks all items by `stat`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use crate::{
    fs::blocking::blocking_until_shutdown,
    library::{
        catalog_store::{CatalogStore, handles::OPEN_FILE_IDLE},
        reconcile::Reconciler,
    },
};

/// Interval of the check of all items by `stat`. Without it, a removed file would stay announced
/// until a peer requests it.
const CHECK_INTERVAL: Duration = Duration::from_secs(300);

/// Maintains the library until shutdown.
pub(crate) async fn run(
    catalog: Arc<CatalogStore>,
    reconciler: Arc<Reconciler>,
    shutdown: CancellationToken,
) {
    let mut checked = tokio::time::Instant::now();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(OPEN_FILE_IDLE / 2) => {}
        }
        catalog.handles().close_idle(Instant::now());
        if catalog.has_unsaved() {
            let catalog = catalog.clone();
            let save = move || catalog.save_unsaved();
            if blocking_until_shutdown(&shutdown, save).await.is_none() {
                return;
            }
        }
        if checked.elapsed() >= CHECK_INTERVAL {
            let reconciler = reconciler.clone();
            let check = move || reconciler.check_all();
            if blocking_until_shutdown(&shutdown, check).await.is_none() {
                return;
            }
            checked = tokio::time::Instant::now();
        }
    }
}
