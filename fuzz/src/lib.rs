//! Fuzz targets for everything that strangers, damaged disks and people's typing can send.
//!
//! | module | contents |
//! |---|---|
//! | [`targets`] | the targets: plain functions of bytes, each with its seeds |
//! | [`mutator`] | makes new inputs from kept ones |
//! | [`driver`] | runs targets over kept and mutated inputs, for a number of runs or a time |
//! | [`corpus`] | the kept inputs, in `fuzz/corpus/TARGET/` |
//!
//! A target checks properties, not only that nothing panics: what it accepts must survive a round
//! trip, agree with a reference, or be within the limits. It returns whether it accepted the input,
//! so that the driver can tell whether the inputs reach further than the first check.
//!
//! Two engines run the same functions: [`driver`], on any toolchain, and libFuzzer through
//! `cargo fuzz` (`fuzz_targets/`). `fuzz/README.md` has the commands.

pub mod corpus;
pub mod driver;
pub mod mutator;
pub mod targets;

pub use targets::{TARGETS, Target};

#[cfg(feature = "libfuzzer")]
#[doc(hidden)]
pub use libfuzzer_sys;

/// The program of a target for libFuzzer.
#[cfg(feature = "libfuzzer")]
#[macro_export]
macro_rules! fuzz {
    ($name:literal) => {
        $crate::libfuzzer_sys::fuzz_target!(|input: &[u8]| {
            $crate::run_by_name($name, input);
        });
    };
}

/// Runs the target with this name.
///
/// # Panics
/// If there is none, or a property does not hold.
#[cfg(feature = "libfuzzer")]
pub fn run_by_name(name: &str, input: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    (target.expect("a target with this name").run)(input);
}
