//! Runs each target over its kept inputs, and over some mutations of them with a fixed seed. The
//! variables `POTLUCK_FUZZ_SECONDS` (for each target) and `POTLUCK_FUZZ_SEED` make it run longer,
//! with other mutations.

use std::{fs, path::Path};

use potluck_fuzz::{
    TARGETS, corpus,
    driver::{self, Budget},
};

/// Mutations of each parser: some tenths of a second.
const PARSER_RUNS: u64 = 3_000;

/// Mutations of each store.
const STORE_RUNS: u64 = 30;

/// Maximum number of kept inputs of a target.
const MAX_KEPT: usize = 300;

/// Maximum size of a kept input, in bytes.
const MAX_KEPT_LEN: usize = 16 * 1024;

fn check(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name);
    let target = target.expect("a target with the name of the test");
    let runs = if target.is_store { STORE_RUNS } else { PARSER_RUNS };
    let report = driver::run(target, Budget::of_test(runs));
    let report = report.unwrap_or_else(|failure| panic!("{failure}"));
    println!("{name}: {report}");
    assert!(report.accepted > 0, "no input of {name} is accepted");
    assert!(report.accepted < report.runs, "every input of {name} is accepted");
}

macro_rules! targets {
    ($($name:ident)*) => {
        const TESTED: &[&str] = &[$(stringify!($name)),*];

        $(#[test]
        fn $name() {
            check(stringify!($name));
        })*
    };
}

targets! {
    manifest piece_layer leaves chunks index_answers index_requests peer_requests availability resume_state
    item_rows downloads index_rows page_token join_code certificate signing_request status
    ignore_rules path_filter typed names index_store peer_store members
}

#[test]
fn every_target_has_a_test_a_program_and_a_small_corpus() {
    let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    assert_eq!(TESTED, names);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    for name in names {
        assert!(manifest.contains(&format!("fuzz_targets/{name}.rs")), "{name}");
        let program = fs::read_to_string(root.join(format!("fuzz_targets/{name}.rs"))).unwrap();
        assert!(program.contains(&format!("fuzz!(\"{name}\")")), "{name}");
        let kept = corpus::load(name).unwrap();
        assert!(
            (1..=MAX_KEPT).contains(&kept.len()),
            "{name} keeps {} inputs",
            kept.len()
        );
        assert!(kept.iter().all(|input| input.len() <= MAX_KEPT_LEN), "{name}");
    }
}
