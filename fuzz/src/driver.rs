//! Runs a target over its kept inputs, and then over mutated ones.
//!
//! Each mutated input follows from the seed and the number of the run, so that a failure can be
//! repeated without the runs before it. A watchdog ends the process if one run hangs.

use std::{
    cell::RefCell,
    fmt,
    panic::{self, AssertUnwindSafe},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rand::{SeedableRng as _, rngs::Xoshiro256PlusPlus};

use crate::{Target, corpus, mutator};

/// Longest time that one run may take. A parser takes microseconds and a store milliseconds, also
/// in debug builds; a busy machine may stop a process for seconds.
const HANG: Duration = Duration::from_secs(60);

/// How long to run a target.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Maximum number of mutated inputs.
    pub runs: u64,
    /// Maximum time.
    pub time: Duration,
    /// Determines the mutated inputs.
    pub seed: u64,
}

impl Budget {
    /// The budget of a test: `runs` mutations with a fixed seed, or, if the variable
    /// `POTLUCK_FUZZ_SECONDS` is set, as many as fit that time. `POTLUCK_FUZZ_SEED` gives another
    /// seed.
    ///
    /// # Panics
    /// If a variable is not a number.
    pub fn of_test(runs: u64) -> Self {
        let seconds = variable("POTLUCK_FUZZ_SECONDS");
        Self {
            runs: seconds.map_or(runs, |_| u64::MAX),
            time: Duration::from_secs(seconds.unwrap_or(600)),
            seed: variable("POTLUCK_FUZZ_SEED").unwrap_or(1),
        }
    }
}

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is not a number: {text}")),
    )
}

/// What the runs of a target gave.
#[derive(Debug, Clone, Copy)]
pub struct Report {
    /// Number of inputs, kept and mutated.
    pub runs: u64,
    /// How many of them the target accepted.
    pub accepted: u64,
    /// The time that it took.
    pub time: Duration,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.time.as_secs_f64();
        write!(
            f,
            "{} runs in {seconds:.1} s, {:.0} a second, {:.1} % accepted",
            self.runs,
            self.runs as f64 / seconds.max(1e-9),
            100.0 * self.accepted as f64 / self.runs.max(1) as f64,
        )
    }
}

/// An input that a target failed on.
#[derive(Debug)]
pub struct Failure {
    /// The name of the target.
    pub target: &'static str,
    /// The input.
    pub input: Vec<u8>,
    /// The message of the panic.
    pub message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            target,
            input,
            message,
        } = self;
        let stored = match corpus::store_failure(target, input) {
            Ok(path) => path.display().to_string(),
            Err(error) => format!("not stored ({error}): {}", hex::encode(input)),
        };
        write!(f, "target {target} failed: {message}\ninput: {stored}")
    }
}

impl std::error::Error for Failure {}

/// Runs a target over its kept inputs and seeds, then over mutated ones.
///
/// # Errors
/// The first input that makes the target panic.
///
/// # Panics
/// If the corpus cannot be read.
pub fn run(target: &'static Target, budget: Budget) -> Result<Report, Box<Failure>> {
    let started = Instant::now();
    let mut kept = corpus::load(target.name).expect("the corpus can be read");
    kept.extend((target.seeds)());
    kept.push(Vec::new());
    let watchdog = Watchdog::start(target.name, budget.seed);
    let _quiet = QuietPanics::start();
    let (mut runs, mut accepted) = (0, 0);
    for input in &kept {
        watchdog.begin(runs);
        accepted += u64::from(run_one(target, input)?);
        runs += 1;
    }
    for run in 0..budget.runs {
        // Reading the clock each time would cost more than some targets.
        if run.is_multiple_of(64) && started.elapsed() >= budget.time {
            break;
        }
        let seed = budget.seed.wrapping_add(run.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let input = mutator::mutate(&kept, target.words, &mut rng);
        watchdog.begin(runs);
        accepted += u64::from(run_one(target, &input)?);
        runs += 1;
    }
    Ok(Report {
        runs,
        accepted,
        time: started.elapsed(),
    })
}

/// Runs a target once.
///
/// # Errors
/// The target panicked.
pub fn run_one(target: &'static Target, input: &[u8]) -> Result<bool, Box<Failure>> {
    panic::catch_unwind(AssertUnwindSafe(|| (target.run)(input))).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Box::new(Failure {
            target: target.name,
            input: input.to_vec(),
            message: LAST_PANIC
                .take()
                .unwrap_or_else(|| text.unwrap_or("a panic without a message").to_owned()),
        })
    })
}

thread_local! {
    /// The message and place of the last panic of this thread.
    static LAST_PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Keeps panics from the terminal while it lives: damaged stores panic inside sled and redb, which
/// the program catches.
struct QuietPanics;

impl QuietPanics {
    fn start() -> Self {
        panic::set_hook(Box::new(|info| LAST_PANIC.set(Some(info.to_string()))));
        Self
    }
}

impl Drop for QuietPanics {
    fn drop(&mut self) {
        // A hook cannot be changed by a thread that panics.
        if !thread::panicking() {
            drop(panic::take_hook());
        }
    }
}

/// Ends the process if one run takes longer than [`HANG`].
struct Watchdog {
    run: Arc<AtomicU64>,
    is_done: Arc<AtomicBool>,
}

impl Watchdog {
    fn start(target: &'static str, seed: u64) -> Self {
        let run = Arc::new(AtomicU64::new(0));
        let is_done = Arc::new(AtomicBool::new(false));
        let (seen, stop) = (Arc::clone(&run), Arc::clone(&is_done));
        thread::spawn(move || {
            let (mut last, mut since) = (0, Instant::now());
            while !stop.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(200));
                let current = seen.load(Ordering::Relaxed);
                if current != last {
                    (last, since) = (current, Instant::now());
                } else if since.elapsed() > HANG {
                    eprintln!("target {target}: run {current} with seed {seed} hangs");
                    std::process::exit(1);
                }
            }
        });
        Self { run, is_done }
    }

    fn begin(&self, run: u64) {
        self.run.store(run, Ordering::Relaxed);
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.is_done.store(true, Ordering::Relaxed);
    }
}
