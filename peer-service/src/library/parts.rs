//! Asking the operating system about many files on several threads: its answers take longer than anything else there.

use std::ops::Range;

/// Least things that a thread is begun for: some hundred microseconds of `stat`.
const LEAST_PART: usize = 256;

/// What `work` gives for so many things, in their order, of which each thread takes a part.
pub(super) fn in_parts<T: Send>(
    count: usize,
    threads: usize,
    work: impl Fn(Range<usize>) -> Vec<T> + Sync,
) -> Vec<T> {
    let each = count.div_ceil(threads.max(1)).max(LEAST_PART);
    let part = |from: usize| from..(from + each).min(count);
    std::thread::scope(|scope| {
        let work = &work;
        let others = (each..count)
            .step_by(each)
            .map(|from| scope.spawn(move || work(part(from))));
        let others: Vec<_> = others.collect();
        let mut all = work(part(0));
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
    fn parts_make_the_whole() {
        for count in [0, 1, LEAST_PART, LEAST_PART + 1, 10 * LEAST_PART + 3] {
            for threads in [0, 1, 2, 7] {
                assert_eq!(
                    in_parts(count, threads, |part| part.collect()),
                    (0..count).collect::<Vec<_>>()
                );
            }
        }
    }
}
