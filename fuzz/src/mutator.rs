//! Makes new inputs from kept ones, as AFL's "havoc" stage does: a few random edits of one input,
//! or of two spliced together. Deterministic: the same numbers give the same input.
//!
//! Non-goal: coverage. `cargo fuzz` finds inputs that reach new code; the corpus keeps them.

use rand::{Rng as _, RngExt as _, rngs::Xoshiro256PlusPlus};

/// Maximum length of an input, in bytes: enough for every structure several times over. Long inputs
/// are slow and rarely find more.
pub const MAX_LEN: usize = 8 * 1024;

/// Numbers at which programs err: limits of types, powers of two, and their neighbours.
const NUMBERS: [u64; 20] = [
    0,
    1,
    2,
    7,
    8,
    16,
    31,
    32,
    33,
    64,
    127,
    128,
    255,
    256,
    1 << 14,
    u16::MAX as u64,
    i32::MAX as u64,
    u32::MAX as u64,
    i64::MAX as u64,
    u64::MAX,
];

/// A new input from `corpus`, which is not empty. `words` are pieces of text or bytes that the
/// format knows.
pub fn mutate(corpus: &[Vec<u8>], words: &[&[u8]], rng: &mut Xoshiro256PlusPlus) -> Vec<u8> {
    let mut input = pick(corpus, rng).clone();
    if rng.random_ratio(1, 6) {
        let other = pick(corpus, rng);
        input = splice(&input, other, rng);
    }
    // Few edits keep most of a structure; many leave it.
    let edits = 1 << rng.random_range(0..4);
    for _ in 0..edits {
        edit(&mut input, words, rng);
    }
    input.truncate(MAX_LEN);
    input
}

fn pick<'a, T>(of: &'a [T], rng: &mut Xoshiro256PlusPlus) -> &'a T {
    &of[rng.random_range(0..of.len())]
}

fn splice(first: &[u8], second: &[u8], rng: &mut Xoshiro256PlusPlus) -> Vec<u8> {
    let (_, tail) = second.split_at(rng.random_range(0..=second.len()));
    let (head, _) = first.split_at(rng.random_range(0..=first.len()));
    [head, tail].concat()
}

fn edit(input: &mut Vec<u8>, words: &[&[u8]], rng: &mut Xoshiro256PlusPlus) {
    if input.is_empty() {
        input.push(rng.random());
        return;
    }
    let at = rng.random_range(0..input.len());
    // Short runs more often than long ones.
    let most = 1 << rng.random_range(0..7);
    let run = rng.random_range(1..=most.min(input.len() - at).max(1));
    match rng.random_range(0..13) {
        0 => input[at] ^= 1 << rng.random_range(0..8),
        1 => input[at] = rng.random(),
        2 => input[at] = input[at].wrapping_add(rng.random_range(1..=16)),
        3 => input[at] = input[at].wrapping_sub(rng.random_range(1..=16)),
        4 => drop(input.drain(at..at + run)),
        5 => insert(input, at, &vec![rng.random(); run]),
        6 => {
            let copy = input[at..at + run].to_vec();
            insert(input, rng.random_range(0..=input.len()), &copy);
        }
        7 => {
            let copy = input[at..at + run].to_vec();
            overwrite(input, rng.random_range(0..input.len()), &copy);
        }
        8 => input[at..at + run].fill(rng.random()),
        9 => {
            let mut bytes = pick(&NUMBERS, rng).to_le_bytes();
            let len = 1 << rng.random_range(0..4);
            if rng.random() {
                bytes[..len].reverse();
            }
            overwrite(input, at, &bytes[..len]);
        }
        10 => input.truncate(at),
        11 | 12 if !words.is_empty() => {
            let word = pick(words, rng);
            match rng.random() {
                true => insert(input, at, word),
                false => overwrite(input, at, word),
            }
        }
        _ => {
            let mut bytes = vec![0; run];
            rng.fill_bytes(&mut bytes);
            overwrite(input, at, &bytes);
        }
    }
}

fn insert(input: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if input.len() + bytes.len() <= MAX_LEN {
        input.splice(at..at, bytes.iter().copied());
    }
}

fn overwrite(input: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    let end = input.len().min(at + bytes.len());
    input.splice(at..end, bytes.iter().copied());
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_inputs_and_another_seed_others() {
        let corpus = [b"a kept input".to_vec(), Vec::new(), vec![0; MAX_LEN]];
        let inputs = |seed| {
            let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
            let inputs: Vec<_> = (0..1000).map(|_| mutate(&corpus, &[b"word"], &mut rng)).collect();
            inputs
        };
        assert_eq!(inputs(1), inputs(1));
        assert_ne!(inputs(1), inputs(2));
        assert!(inputs(1).iter().all(|input| input.len() <= MAX_LEN));
        assert!(
            inputs(1)
                .iter()
                .any(|input| input.windows(4).any(|at| at == b"word"))
        );
    }
}
