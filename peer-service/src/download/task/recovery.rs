//! Recovers units that are already on this machine: from an earlier run, and from the library.
//!
//! Invariant: a unit counts as present only if it verified in this run, or if a resume state lists
//! it and a sample of that state's units verified.

use std::{
    io,
    os::unix::fs::FileExt as _,
    sync::atomic::{AtomicU32, Ordering},
};

use bytes::Bytes;
use parking_lot::Mutex;
use potluck_core::{bitfield::Bitfield, collection::plan::Plan, read_buffer::ReadBuffer};
use rand::seq::IteratorRandom as _;

use crate::{
    content::ContentSource as _,
    download::{
        engine::{chunk_list::ChunkList, verifier::UnitVerifier},
        storage::part_file::{FoundPart, PartFile},
    },
    library::Library,
};

/// Units verified before a resume state is trusted: damage to the whole file (a truncated copy, a
/// lost disk cache) very likely hits one of them.
const SAMPLE: usize = 8;

/// Returns the valid units of the part file, or those found before the run was stopped. Units of
/// which the download needs nothing count as valid. Calls `on_unit` with the length of each.
/// Blocks: reads and hashes.
pub(crate) fn recover(
    part: &PartFile,
    verifier: &UnitVerifier,
    found: FoundPart,
    threads: usize,
    is_wanted: &(dyn Fn() -> bool + Sync),
    on_unit: &(dyn Fn(u64) + Sync),
) -> Bitfield {
    let units = part.plan().unit_count();
    let is_new = found == FoundPart::Created;
    let mut have = recover_listed(part, verifier, found, threads, is_wanted, on_unit);
    if part.may_have_unlisted() {
        for unit in (0..units).take_while(|_| is_wanted()) {
            let len = part.plan().unit_len(unit);
            let is_here = || !is_new && restore_unlisted(part, verifier, unit);
            if !have.get(unit) && (len == 0 || is_here()) {
                have.set(unit, true);
                on_unit(len);
            }
        }
    }
    have
}

/// Whether the part has a unit that its resume state never lists. Its bytes are written again: they
/// may be in memory only, since a flush that failed does not fail again.
fn restore_unlisted(part: &PartFile, verifier: &UnitVerifier, unit: u32) -> bool {
    let data = part.read(unit).ok().filter(|data| verifier.verify(unit, data));
    data.is_some_and(|data| part.write(unit, &data).is_ok())
}

fn recover_listed(
    part: &PartFile,
    verifier: &UnitVerifier,
    found: FoundPart,
    threads: usize,
    is_wanted: &(dyn Fn() -> bool + Sync),
    on_unit: &(dyn Fn(u64) + Sync),
) -> Bitfield {
    let units = part.plan().unit_count();
    match found {
        FoundPart::Created => Bitfield::new(units),
        FoundPart::Resume(have) => {
            let sample = have.ones().sample(&mut rand::rng(), SAMPLE);
            if sample.iter().all(|&unit| is_valid(part, verifier, unit)) {
                have.ones().for_each(|unit| on_unit(part.plan().unit_len(unit)));
                return have;
            }
            tracing::warn!(
                part = %part.target().part().display(),
                "the resume state does not match the data: verifies everything again"
            );
            // Also invalidates the state on disk, because the next sample might miss the damage.
            if let Err(problem) = part.invalidate_resume_state() {
                tracing::warn!(%problem, "could not invalidate the resume state");
            }
            verify_all(part, verifier, threads, is_wanted, on_unit)
        }
        FoundPart::Unverified => verify_all(part, verifier, threads, is_wanted, on_unit),
    }
}

fn is_valid(part: &PartFile, verifier: &UnitVerifier, unit: u32) -> bool {
    part.read(unit).is_ok_and(|data| verifier.verify(unit, &data))
}

/// Verifies every unit and returns those that pass.
fn verify_all(
    part: &PartFile,
    verifier: &UnitVerifier,
    threads: usize,
    is_wanted: &(dyn Fn() -> bool + Sync),
    on_unit: &(dyn Fn(u64) + Sync),
) -> Bitfield {
    let units = part.plan().unit_count();
    let next = AtomicU32::new(0);
    let have = Mutex::new(Bitfield::new(units));
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while is_wanted() {
                    let unit = next.fetch_add(1, Ordering::Relaxed);
                    if unit >= units {
                        return;
                    }
                    if is_valid(part, verifier, unit) {
                        have.lock().set(unit, true);
                        on_unit(part.plan().unit_len(unit));
                    }
                }
            });
        }
    });
    have.into_inner()
}

/// Copies missing units from the library and verifies them like data from a peer. Blocks.
///
/// # Errors
/// If a unit cannot be written.
pub(crate) fn copy_local(
    library: &Library,
    part: &PartFile,
    verifier: &UnitVerifier,
    have: &mut Bitfield,
    is_wanted: &dyn Fn() -> bool,
    on_unit: &(dyn Fn(u64) + Sync),
) -> io::Result<()> {
    for unit in 0..have.len() {
        if !is_wanted() {
            return Ok(());
        }
        if have.get(unit) {
            continue;
        }
        if let Some(data) = local_unit(library, part.plan(), unit)
            && verifier.verify(unit, &data)
        {
            part.write(unit, &data)?;
            have.set(unit, true);
            on_unit(data.len() as u64);
        }
    }
    Ok(())
}

/// The bytes of a unit from the library, if it has all of them. Not verified.
pub(crate) fn local_unit(library: &Library, plan: &Plan, unit: u32) -> Option<ChunkList> {
    let mut contents = Vec::new();
    for span in plan.spans(unit) {
        contents.push((library.find(&span.id)?, span));
    }
    let mut data = ReadBuffer::new(plan.unit_len(unit) as usize);
    let mut rest = &mut data[..];
    for (content, span) in contents {
        let (bytes, after) = rest.split_at_mut(span.len as usize);
        let file = content.open(span.offset..span.offset + span.len).ok()?;
        file.read_exact_at(bytes, span.offset).ok()?;
        rest = after;
    }
    Some(Bytes::from_owner(data).into())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use potluck_core::identity::hash::hash_bytes;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::download::storage::target::DownloadTarget;

    #[test]
    fn a_wrong_resume_state_is_invalidated() {
        let folder = tempfile::tempdir().unwrap();
        let tree = hash_bytes(&[7; 1 << 20]);
        let target = DownloadTarget {
            path: folder.path().join("out"),
        };
        let plan = Arc::new(Plan::of_file(tree.id(), tree.size).unwrap());
        let open = || {
            PartFile::open(
                tree.id(),
                target.clone(),
                Arc::clone(&plan),
                None,
                &CancellationToken::new(),
            )
            .unwrap()
        };
        let verifier = UnitVerifier::new(Arc::clone(&plan));
        assert!(verifier.add_layer(0, tree.piece_hashes.clone()));
        let all = Bitfield::full(plan.unit_count());
        // Marks every unit as present although none was written.
        open().0.checkpoint(&all).unwrap();
        let (part, found) = open();
        assert_eq!(found, FoundPart::Resume(all));
        let have = recover(&part, &verifier, found, 1, &|| true, &|_| {});
        assert_eq!(have.count(), 0);
        assert!(!part.has_valid_resume_state());
        drop(part);
        assert_eq!(open().1, FoundPart::Unverified);
    }
}
