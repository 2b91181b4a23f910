//! Piece layers: from the library or from peers, verified against the ids of their files.

use std::{ops::Range, sync::Arc};

use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use potluck_core::{FileId, Problem, Reason, collection::plan::Plan, identity::merkle::Hash};

use crate::{
    content::ContentSource as _,
    download::{
        context::DownloadContext,
        engine::verifier::UnitVerifier,
        peers::{bootstrap::BootstrapPool, rpc::client::PeerClient},
    },
    fs::blocking::blocking,
};

/// Maximum calls at a time. Most downloads need one; the layers of a very large collection come
/// from several peers.
const MAX_CALLS: usize = 8;

/// Maximum hashes of a call for several files: 2 MiB, and enough for 8 GiB in pieces of 128 KiB.
const MAX_HASHES: u32 = 1 << 16;

/// Adds every piece layer that the verifier still needs, from the library or from peers. `id` is
/// the file, or the manifest of the collection.
///
/// # Errors
/// [`Reason::VerificationFailed`] if an id claims to be an empty file and is not; otherwise only
/// local failures. Failures of peers are retried until a peer has the layers.
pub(crate) async fn fetch(
    context: &DownloadContext,
    id: FileId,
    verifier: &Arc<UnitVerifier>,
    pool: &BootstrapPool,
    waiting: &(impl Fn(Problem) + Send + Sync),
) -> Result<(), Problem> {
    if let Some(id) = verifier.invalid_empty_file() {
        return Err(Problem::new(
            Reason::VerificationFailed,
            format!("{id} claims to be an empty file and is not: no peer can have it"),
        ));
    }
    let (library, local) = (context.library.clone(), Arc::clone(verifier));
    let missing = blocking(move || {
        for file in local.missing_layers() {
            let known = local.plan().file(file).and_then(|file| library.find(&file.id));
            if let Some(layer) = known.and_then(|content| content.piece_hashes().ok()) {
                local.add_layer(file, layer.to_vec());
            }
        }
        local.missing_layers()
    });
    let calls = group(verifier.plan(), &missing.await?);
    futures_util::stream::iter(calls)
        .map(|files| fetch_group(id, verifier, files, pool, waiting))
        .buffer_unordered(MAX_CALLS)
        .try_collect::<()>()
        .await
}

/// Divides files into groups whose pieces follow each other, one group a call.
fn group(plan: &Plan, files: &[usize]) -> Vec<Vec<usize>> {
    let mut groups: Vec<(Range<u32>, Vec<usize>)> = Vec::new();
    for &file in files {
        let pieces = plan.pieces_of(file);
        match groups.last_mut() {
            Some((all, group))
                if all.end == pieces.start && pieces.end - all.start <= MAX_HASHES =>
            {
                all.end = pieces.end;
                group.push(file);
            }
            _ => groups.push((pieces, vec![file])),
        }
    }
    groups.into_iter().map(|(_, group)| group).collect()
}

/// Adds the piece layers of files whose pieces follow each other, from a peer.
async fn fetch_group(
    id: FileId,
    verifier: &Arc<UnitVerifier>,
    files: Vec<usize>,
    pool: &BootstrapPool,
    waiting: &(impl Fn(Problem) + Send + Sync),
) -> Result<(), Problem> {
    let plan = verifier.plan();
    let (Some(&first), Some(&last)) = (files.first(), files.last()) else {
        return Ok(());
    };
    let pieces = plan.pieces_of(first).start..plan.pieces_of(last).end;
    let of_large_files = plan.manifest().is_some();
    let files: Arc<[usize]> = files.into();
    let op = |client: PeerClient| {
        let (verifier, files, pieces) = (Arc::clone(verifier), Arc::clone(&files), pieces.clone());
        async move {
            let hashes = client.piece_hashes(id, of_large_files, pieces).await?;
            // Folding a few thousand hashes takes one or two milliseconds; the largest layers take
            // longer.
            blocking(move || add_layers(&verifier, &files, &hashes)).await?
        }
        .boxed()
    };
    pool.ask_any(op, waiting).await;
    Ok(())
}

/// Adds the piece layers of files, one after the other.
fn add_layers(
    verifier: &UnitVerifier,
    files: &[usize],
    mut hashes: &[Hash],
) -> Result<(), Problem> {
    for &file in files {
        let layer = hashes.split_off(..verifier.plan().pieces_of(file).len());
        if !layer.is_some_and(|layer| verifier.add_layer(file, layer.to_vec())) {
            let id = verifier.plan().file(file).map(|file| file.id.short());
            return Err(Problem::new(
                Reason::VerificationFailed,
                format!("the piece hashes do not belong to {}", id.unwrap_or_default()),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use potluck_core::{
        collection::{
            manifest::{EntryContent, Manifest, ManifestEntry},
            path::RelPath,
        },
        identity::hash::hash_bytes,
    };

    use super::*;

    #[test]
    fn files_whose_pieces_follow_each_other_share_a_call() {
        const GIB: u64 = 1 << 30;
        // Pieces of 256 KiB; units of 8 MiB. One small file has no layer to fetch.
        let sizes = [GIB, 1000, GIB, 15 * GIB, GIB, GIB];
        let paths = ["0", "1", "2", "3", "4", "5"];
        let entries = paths.iter().zip(sizes).map(|(path, size)| ManifestEntry {
            path: RelPath::parse(path).unwrap(),
            content: EntryContent::File {
                id: FileId([path.as_bytes()[0]; 32]),
                size,
                executable: false,
            },
        });
        let plan = Plan::of_collection(&Arc::new(Manifest::new(entries).unwrap()));
        assert_eq!(group(&plan, &[0, 2, 3, 4, 5]), [vec![0, 2, 3, 4, 5]]);
        assert_eq!(group(&plan, &[0, 3, 4]), [vec![0], vec![3, 4]]);
        assert!(group(&plan, &[]).is_empty());
    }

    #[test]
    fn each_layer_must_belong_to_its_file() {
        let files: Vec<Vec<u8>> = (1..4).map(|n| vec![n; 200_000 * usize::from(n)]).collect();
        let trees: Vec<_> = files.iter().map(|file| hash_bytes(file)).collect();
        let paths = ["0", "1", "2"];
        let entries = paths.iter().zip(&trees).map(|(path, tree)| ManifestEntry {
            path: RelPath::parse(path).unwrap(),
            content: EntryContent::File {
                id: tree.id(),
                size: tree.size,
                executable: false,
            },
        });
        let plan = Plan::of_collection(&Arc::new(Manifest::new(entries).unwrap()));
        let verifier = UnitVerifier::new(Arc::new(plan));
        let layers: Vec<Hash> = trees.iter().flat_map(|tree| tree.piece_hashes.clone()).collect();
        assert_eq!(layers.len(), 2 + 4 + 5);
        let mut wrong = layers.clone();
        wrong[7][0] ^= 1;
        for hashes in [&wrong[..], &layers[..10], &layers[1..]] {
            let refused = add_layers(&verifier, &[0, 1, 2], hashes).unwrap_err();
            assert_eq!(refused.reason, Reason::VerificationFailed);
        }
        assert_eq!(verifier.missing_layers(), [2], "the others are right");
        assert!(add_layers(&verifier, &[0, 1, 2], &layers).is_ok());
        assert!(verifier.missing_layers().is_empty());
        assert_eq!(verifier.layer(2).unwrap()[..], trees[2].piece_hashes[..]);
    }
}
