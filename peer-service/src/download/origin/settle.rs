//! What happens once all pieces of provisional content are there.
//!
//! Invariant: content counts as settled only if its SHA-256 over all bytes is right.

use std::{io, sync::Arc};

use potluck_core::{
    FileId, Problem, Reason, Sha256,
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
    /// The bytes are wrong: this is their SHA-256.
    Wrong(Sha256),
}

/// Compares the SHA-256. If it is right, folds the hashes of the pieces.
///
/// # Errors
/// If the part file cannot be read.
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
    Ok(Settled::Wrong(found))
}

/// Forgets pieces that did not come from the origin: those in `wrong`, or all if it is `None`. They
/// are missing again.
///
/// # Errors
/// [`Reason::VerificationFailed`] if all pieces came from the origin: then it sent wrong bytes, with
/// the SHA-256 `found`.
pub(crate) fn doubt(
    download: &ActiveDownload,
    pieces: &ProvisionalPieces,
    wrong: Option<&Bitfield>,
    found: Sha256,
    origin: &OriginSpec,
) -> Result<(), Problem> {
    let doubted = pieces.doubt_peers(wrong);
    if doubted.is_empty() {
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
        file = %download.record.id.short(), pieces = doubted.len(),
        "the bytes do not have the SHA-256: fetches pieces that peers sent from the origin"
    );
    download.update(|units| {
        doubted.iter().for_each(|&unit| _ = units.have.set(unit, false));
        true
    });
    Ok(())
}

/// The hash of each piece. Reads those of an earlier run.
///
/// # Errors
/// If the part file cannot be read, or a piece is missing.
pub(crate) fn hashes(
    download: &ActiveDownload,
    pieces: &ProvisionalPieces,
) -> io::Result<Vec<Hash>> {
    let missing = || io::Error::other("a piece is missing");
    let known = (0..).zip(pieces.hashes());
    known
        .map(|(unit, hash)| match hash {
            Some(hash) => Ok(hash),
            None => {
                let data = download.part_file.read(unit)?;
                download.verifier.unit_hash(unit, &data).ok_or_else(missing)
            }
        })
        .collect()
}

/// The real id, from the hashes of the pieces.
fn fold(download: &ActiveDownload, pieces: &ProvisionalPieces) -> io::Result<FileId> {
    let layer = hashes(download, pieces)?;
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
