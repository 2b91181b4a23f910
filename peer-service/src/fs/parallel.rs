//! Queries the operating system about many files on several threads, because system calls dominate
//! that work.

use std::ops::Range;

/// Minimum items per thread: a few hundred microseconds of `stat` calls, which outweighs the cost
/// of starting a thread.
const MIN_PART: usize = 256;

/// Applies `work` to the range `0..count`, divided among threads. Returns the results in order.
pub(crate) fn map_ranges<T: Send>(
    count: usize,
    threads: usize,
    work: impl Fn(Range<usize>) -> Vec<T> + Sync,
) -> Vec<T> {
    let each = part_len(count, threads);
    let parts = (0..count)
        .step_by(each)
        .map(|from| from..(from + each).min(count));
    run_parallel(parts, work)
}

/// Applies `work` to slices of `things`, divided among threads, and returns its results in order.
/// `work` may change the items in place and return only a few results: one result per file would
/// take a few MiB for a hundred thousand files.
pub(crate) fn map_slices<S: Send, T: Send>(
    things: &mut [S],
    threads: usize,
    work: impl Fn(&mut [S]) -> Vec<T> + Sync,
) -> Vec<T> {
    let each = part_len(things.len(), threads);
    run_parallel(things.chunks_mut(each), work)
}

fn part_len(count: usize, threads: usize) -> usize {
    count.div_ceil(threads.max(1)).max(MIN_PART)
}

/// Runs all parts in parallel, the first on this thread.
pub(crate) fn run_parallel<P: Send, T: Send>(
    mut parts: impl Iterator<Item = P>,
    work: impl Fn(P) -> Vec<T> + Sync,
) -> Vec<T> {
    let Some(first) = parts.next() else {
        return Vec::new();
    };
    std::thread::scope(|scope| {
        let work = &work;
        let others: Vec<_> = parts.map(|part| scope.spawn(move || work(part))).collect();
        let mut all = work(first);
        for other in others {
            match other.join() {
                Ok(more) => all.extend(more),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        all
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_results_of_all_parts_are_returned_in_order() {
        for count in [0, 1, MIN_PART, MIN_PART + 1, 10 * MIN_PART + 3] {
            for threads in [0, 1, 2, 7] {
                assert_eq!(
                    map_ranges(count, threads, |part| part.collect()),
                    (0..count).collect::<Vec<_>>()
                );
                let mut things: Vec<_> = (0..count).collect();
                let returned = map_slices(&mut things, threads, |slice| {
                    slice.iter_mut().map(std::mem::take).collect()
                });
                assert_eq!(returned, (0..count).collect::<Vec<_>>());
                assert_eq!(things, vec![0; count]);
            }
        }
    }
}
