//! What happens once all pieces of provisional content are there.
//!
//! Invariant: content counts as settled only if its SHA-256 over all bytes is right.

use std::{io, sync::Arc};

use potluck_core::{
    FileId, Problem, Reason,
    bitfield::Bitfield,
    identity::{hash, merkle::Hash},
};

use crate::{
    download::{
        engine::active::ActiveDownload,
        origin::{pieces::ProvisionalPieces, running_sum::RunningSum, spec::OriginSpec},
        storage::target,
    },
    fs::blocking::blocking,
};

/// The result of the check.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    /// The bytes are right: this is the content's real id.
    Right(FileId),
    /// The bytes are wrong. The pieces that came from peers are missing again.
    Wrong,
}

/// Compares the SHA-256. If it is right, folds the hashes of the pieces; otherwise forgets the
/// pieces that did not come from the origin.
///
/// # Errors
/// [`Reason::VerificationFailed`] if all pieces came from the origin and are wrong; or if the part
/// file cannot be read.
pub(crate) async fn settle(
    download: &Arc<ActiveDownload>,
    pieces: &Arc<ProvisionalPieces>,
    sum: &Arc<RunningSum>,
    origin: &OriginSpec,
) -> Result<Settled, Problem> {
    let path = &download.part_file.target().path;
    let failed = |error: io::Error| target::target_problem(path, &error);
    let (part, all, running) = (Arc::clone(download), Arc::clone(pieces), Arc::clone(sum));
    let found = blocking(move || running.finish(&part, &all))
        .await?
        .map_err(failed)?;
    if found == origin.sha256 {
        pieces.early().set_right();
        let (part, all) = (Arc::clone(download), Arc::clone(pieces));
        let id = blocking(move || fold(&part, &all)).await?.map_err(failed)?;
        return Ok(Settled::Right(id));
    }
    let wrong = pieces.doubt_peers();
    if wrong.is_empty() {
        return Err(Problem::new(
            Reason::VerificationFailed,
            format!(
                "{} sends bytes with the SHA-256 {found}, not {}: check the URL and the hash",
                origin.shown(),
                origin.sha256
            ),
        ));
    }
    tracing::warn!(
        file = %download.record.id.short(), pieces = wrong.len(),
        "the bytes do not have the SHA-256: fetches what peers sent from the origin"
    );
    download.update(|units| {
        wrong.iter().for_each(|&unit| _ = units.have.set(unit, false));
        true
    });
    Ok(Settled::Wrong)
}

/// The real id, from the hashes of the pieces.
fn fold(download: &ActiveDownload, pieces: &ProvisionalPieces) -> io::Result<FileId> {
    let missing = || io::Error::other("a piece is missing");
    let mut layer: Vec<Hash> = Vec::new();
    for (unit, hash) in (0..).zip(pieces.hashes()) {
        layer.push(match hash {
            Some(hash) => hash,
            // A piece of an earlier run.
            None => {
                let data = download.part_file.read(unit)?;
                download.verifier.unit_hash(unit, &data).ok_or_else(missing)?
            }
        });
    }
    match download.verifier.settle(layer) {
        Some(tree) => Ok(tree.id()),
        // A file of one piece.
        None => {
            let (file, size) = (download.part_file.file(0)?, download.part_file.plan().total());
            Ok(hash::hash_file(&file, size, 1, &hash::ignore_progress)?.id())
        }
    }
}

/// Takes over the pieces of an earlier run, which wrote them and did not store who sent them.
pub(crate) fn restore(pieces: &ProvisionalPieces, have: &Bitfield) {
    have.ones().for_each(|unit| pieces.restore(unit));
}
