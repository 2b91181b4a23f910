//! Finds the runs of zeros in a unit that need no space on the disk, and makes them holes.
//!
//! A run of at least one aligned [`BLOCK`] becomes a hole. The receiver decides that by the verified
//! bytes alone, so a sparse file stays sparse whoever sent it.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt as _};

/// Size and alignment of the smallest hole, in bytes: the block of common file systems.
const BLOCK: u64 = 4096;

/// Zeros to compare with and to write.
const ZEROS: [u8; 2 * BLOCK as usize] = [0; 2 * BLOCK as usize];

/// A part of a unit in a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    /// Bytes to write at this offset.
    Data(u64, &'a [u8]),
    /// Zeros in aligned blocks.
    Hole(Range<u64>),
}

/// Splits consecutive slices, the first of which belongs at `offset`, and passes the pieces in
/// order. Data without long runs of zeros stays in as many pieces as there are slices.
///
/// # Errors
/// The first error of `emit`.
pub(super) fn split<'a>(
    slices: impl Iterator<Item = &'a [u8]>,
    offset: u64,
    mut emit: impl FnMut(Piece<'a>) -> io::Result<()>,
) -> io::Result<()> {
    let mut slice_at = offset;
    // Where the current run of zeros begins. It may span several slices.
    let mut zeros_from = None;
    for slice in slices {
        let (mut data_from, mut pos) = (0, 0);
        while pos < slice.len() {
            let at = slice_at + pos as u64;
            let rest_of_block = (BLOCK - at % BLOCK) as usize;
            let end = slice.len().min(pos + rest_of_block);
            let is_zero = slice[pos..end] == ZEROS[..end - pos];
            match (is_zero, zeros_from) {
                (true, None) => {
                    if data_from < pos {
                        emit(Piece::Data(slice_at + data_from as u64, &slice[data_from..pos]))?;
                    }
                    zeros_from = Some(at);
                }
                (false, Some(start)) => {
                    emit_zeros(start..at, &mut emit)?;
                    (zeros_from, data_from) = (None, pos);
                }
                _ => {}
            }
            pos = end;
        }
        if zeros_from.is_none() && data_from < slice.len() {
            emit(Piece::Data(slice_at + data_from as u64, &slice[data_from..]))?;
        }
        slice_at += slice.len() as u64;
    }
    match zeros_from {
        Some(start) => emit_zeros(start..slice_at, &mut emit),
        None => Ok(()),
    }
}

/// Passes a run of zeros: whole blocks as a hole, the rest as data.
fn emit_zeros<'a>(
    zeros: Range<u64>,
    emit: &mut impl FnMut(Piece<'a>) -> io::Result<()>,
) -> io::Result<()> {
    let first = zeros.start.next_multiple_of(BLOCK);
    let last = zeros.end / BLOCK * BLOCK;
    let mut data = |range: Range<u64>| match range.is_empty() {
        true => Ok(()),
        // Without a whole block, a run is shorter than two blocks.
        false => emit(Piece::Data(
            range.start,
            &ZEROS[..(range.end - range.start) as usize],
        )),
    };
    if first >= last {
        return data(zeros);
    }
    data(zeros.start..first)?;
    data(last..zeros.end)?;
    emit(Piece::Hole(first..last))
}

/// Makes the range of the file read as zeros, without space on the disk if the file system supports
/// that. Extends the file to the end of the range.
///
/// # Errors
/// The file system's error.
pub(super) fn punch(file: &File, range: Range<u64>) -> io::Result<()> {
    if punch_hole(file, &range)? {
        // Not `set_len`, which could cut off a unit that is written meanwhile.
        if file.metadata()?.len() < range.end {
            file.write_all_at(&[0], range.end - 1)?;
        }
        return Ok(());
    }
    for at in range.clone().step_by(ZEROS.len()) {
        let len = (range.end - at).min(ZEROS.len() as u64);
        file.write_all_at(&ZEROS[..len as usize], at)?;
    }
    Ok(())
}

/// False if the file system has no holes.
#[cfg(target_os = "linux")]
fn punch_hole(file: &File, range: &Range<u64>) -> io::Result<bool> {
    use rustix::{fs::FallocateFlags, io::Errno};

    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(file, flags, range.start, range.end - range.start) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(target_os = "linux"))]
fn punch_hole(_file: &File, _range: &Range<u64>) -> io::Result<bool> {
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn zeros_become_holes_across_slices_and_old_bytes_there_are_gone() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 1 << 20], 0).unwrap();
        let zeros = vec![0; 300_000];
        let mut holes = Vec::new();
        split(
            [&[1; 5000][..], &zeros, &zeros, &[2; 10]].into_iter(),
            0,
            |piece| match piece {
                Piece::Data(offset, bytes) => file.write_all_at(bytes, offset),
                Piece::Hole(range) => {
                    holes.push((range.start, range.end));
                    punch(&file, range)
                }
            },
        )
        .unwrap();
        assert_eq!(holes, [(8192, 602_112)]);
        let mut bytes = vec![9; 605_010];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes[..5000].iter().all(|&byte| byte == 1));
        assert!(bytes[5000..605_000].iter().all(|&byte| byte == 0));
        assert!(bytes[605_000..].iter().all(|&byte| byte == 2));
        assert!(
            file.metadata().unwrap().blocks() * 512 < 500_000,
            "the hole has no space"
        );
    }

    #[test]
    fn a_hole_at_the_end_extends_the_file() {
        let file = tempfile::tempfile().unwrap();
        punch(&file, 8192..1 << 20).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 1 << 20);
    }

    proptest! {
        #[test]
        fn the_pieces_cover_the_unit_once(
            runs in prop::collection::vec((0..2_u8, 0..20_000_usize), 0..8),
            cuts in prop::collection::vec(1..30_000_usize, 1..8),
            offset in 0..10_000_u64,
        ) {
            let bytes: Vec<u8> =
                runs.iter().flat_map(|&(byte, len)| std::iter::repeat_n(byte, len)).collect();
            let (mut slices, mut rest, mut cuts) = (Vec::new(), &bytes[..], cuts.iter().cycle());
            while !rest.is_empty() {
                let (slice, after) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
                slices.push(slice);
                rest = after;
            }
            let mut written = vec![None; bytes.len()];
            split(slices.into_iter(), offset, |piece| {
                let (start, content) = match &piece {
                    Piece::Data(start, bytes) => (*start, bytes.to_vec()),
                    Piece::Hole(range) => {
                        assert!(range.start % BLOCK == 0 && range.end % BLOCK == 0);
                        (range.start, vec![0; (range.end - range.start) as usize])
                    }
                };
                for (at, byte) in (start - offset..).zip(content) {
                    assert_eq!(written[at as usize].replace(byte), None);
                }
                Ok(())
            }).unwrap();
            prop_assert_eq!(written, bytes.into_iter().map(Some).collect::<Vec<_>>());
        }
    }
}
