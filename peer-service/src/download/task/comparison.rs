//! Finds the wrong pieces of provisional content, by the piece layer of a peer that has the content.
//!
//! That peer is not believed: the pieces that differ are fetched again from the origin, and the
//! SHA-256 decides.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use potluck_core::{
    FileId, FileLayout, Problem, Reason,
    bitfield::Bitfield,
    identity::merkle::{self, Hash},
    model::{IndexedFile, QueryKey},
};
use tokio::sync::watch;

use crate::{
    download::{
        engine::active::ActiveDownload,
        origin::{pieces::ProvisionalPieces, settle, spec::OriginSpec},
        peers::{
            bootstrap::BootstrapPool,
            discovery::{PeerCandidate, PeerCandidates},
            rpc::client::PeerClient,
        },
        storage::target,
        task::run_context::RunContext,
    },
    fs::blocking::blocking,
};

/// Files with this SHA-256 to compare with, and providers of each: anybody can claim a SHA-256.
const MAX_FILES: usize = 3;
const PROVIDERS: u32 = 8;

/// Time limit for the piece layer of one file.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The pieces from peers that differ from the content that other peers have under the SHA-256; `None` if
/// no peer has such content, or none of its pieces differs.
///
/// # Errors
/// If the part file cannot be read.
pub(crate) async fn wrong_pieces(
    context: &RunContext,
    download: &Arc<ActiveDownload>,
    pieces: &Arc<ProvisionalPieces>,
    origin: &OriginSpec,
) -> Result<Option<Bitfield>, Problem> {
    let Some(index) = &context.peer.index else {
        return Ok(None);
    };
    let key = QueryKey::Sha256(origin.sha256);
    let found = match index.query(&key, PROVIDERS, None).await {
        Ok(page) => page.files,
        Err(problem) => {
            tracing::debug!(%problem, "could not query the index for the SHA-256");
            return Ok(None);
        }
    };
    let fits = |found: &IndexedFile| found.file.size == origin.size && !found.file.is_provisional();
    let found: Vec<_> = found.into_iter().filter(fits).take(MAX_FILES).collect();
    if found.is_empty() {
        return Ok(None);
    }
    let (part, own) = (Arc::clone(download), Arc::clone(pieces));
    let own = blocking(move || settle::hashes(&part, &own))
        .await?
        .map_err(|error| target::target_problem(&download.part_file.target().path, &error))?;
    for found in found {
        let id = found.file.id;
        let layer = tokio::time::timeout(TIMEOUT, piece_layer(context, found)).await;
        let Ok(Some(layer)) = layer else {
            tracing::debug!(file = %id.short(), "no peer sent a piece layer to compare with");
            continue;
        };
        let mut wrong = Bitfield::new(own.len() as u32);
        for (unit, (own, other)) in (0..).zip(own.iter().zip(&layer)) {
            wrong.set(unit, own != other && !pieces.is_from_origin(unit));
        }
        if wrong.count() > 0 {
            return Ok(Some(wrong));
        }
    }
    Ok(None)
}

/// The piece layer of a file, from one of its providers; `None` if it has only one piece.
async fn piece_layer(context: &RunContext, found: IndexedFile) -> Option<Vec<Hash>> {
    let (id, size) = (found.file.id, found.file.size);
    let layout = FileLayout::new(size).filter(|layout| layout.piece_count() > 1)?;
    let local = &context.peer.local;
    let providers = found.providers.into_iter();
    let list = providers
        .filter(|provider| !local.is_self(Some(&provider.peer), &provider.address))
        .map(|provider| PeerCandidate {
            address: provider.address,
            peer: Some(provider.peer),
        })
        .collect();
    // Kept until the end: without it the pool would only wait.
    let (_list, candidates) = watch::channel(PeerCandidates {
        list: Arc::new(list),
        index_error: None,
        index_answered: true,
    });
    let counters = context.peer.counters.clone();
    let pool = BootstrapPool::new(candidates, local.outgoing.clone(), counters);
    let ask = |client: PeerClient| {
        async move {
            let layer = client.piece_hashes(id, false, 0..layout.piece_count()).await?;
            let verified = move || is_layer_of(id, &layout, &layer).then_some(layer);
            blocking(verified).await?.ok_or_else(|| {
                let message = format!("the piece hashes do not belong to {}", id.short());
                Problem::new(Reason::VerificationFailed, message)
            })
        }
        .boxed()
    };
    Some(pool.ask_any(ask, |_| ()).await)
}

fn is_layer_of(id: FileId, layout: &FileLayout, layer: &[Hash]) -> bool {
    merkle::fold(layer, layout).is_some_and(|root| FileId::derive(layout.size(), &root) == id)
}
