//! `potluck-fuzz`: runs fuzz targets without another tool.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, bail};
use clap::Parser;
use potluck_fuzz::{
    TARGETS, Target, corpus,
    driver::{self, Budget},
};

/// Runs fuzz targets over their kept inputs and over mutations of them.
#[derive(Debug, Parser)]
struct Options {
    /// Targets to run; all if none is given
    targets: Vec<String>,
    /// Stop a target after this many mutated inputs
    #[arg(long, value_name = "N")]
    runs: Option<u64>,
    /// Stop after this many seconds, for all targets together
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<u64>,
    /// Seed of the mutations; random if it is not given
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Run one input only
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Only store the targets' own seeds in their corpora
    #[arg(long)]
    write_seeds: bool,
    /// Only list the targets
    #[arg(long)]
    list: bool,
}

/// Seconds for all targets if neither `--runs` nor `--seconds` is given.
const DEFAULT_SECONDS: u64 = 60;

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let targets = chosen(&options.targets)?;
    if options.list {
        targets.iter().for_each(|target| println!("{}", target.name));
        return Ok(());
    }
    if options.write_seeds {
        for target in targets {
            corpus::store(target.name, &(target.seeds)())?;
        }
        return Ok(());
    }
    if let Some(path) = options.input {
        let [target] = targets[..] else {
            bail!("name the one target that the input belongs to");
        };
        let input = std::fs::read(&path).with_context(|| path.display().to_string())?;
        let accepted = driver::run_one(target, &input)?;
        println!("{}", if accepted { "accepted" } else { "refused" });
        return Ok(());
    }
    let seconds = match (options.seconds, options.runs) {
        (Some(seconds), _) => seconds,
        (None, Some(_)) => u64::MAX / 1_000,
        (None, None) => DEFAULT_SECONDS,
    };
    let budget = Budget {
        runs: options.runs.unwrap_or(u64::MAX),
        time: Duration::from_secs(seconds) / targets.len() as u32,
        seed: options.seed.unwrap_or_else(rand::random),
    };
    println!("seed {}", budget.seed);
    for target in targets {
        let report = driver::run(target, budget)?;
        println!("{}: {report}", target.name);
    }
    Ok(())
}

fn chosen(names: &[String]) -> anyhow::Result<Vec<&'static Target>> {
    if names.is_empty() {
        return Ok(TARGETS.iter().collect());
    }
    let find = |name: &String| {
        let target = TARGETS.iter().find(|target| target.name == name);
        target.with_context(|| format!("no target `{name}`: `--list` lists them"))
    };
    names.iter().map(find).collect()
}
