//! `faults`: runs an index and peers as real programs, lets random things happen to them, heals,
//! and checks what must hold. See tests/faults/README.md.

mod dish;
mod model;
mod plan;
mod random;
mod round;
mod world;

use std::{
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use clap::Parser;

use crate::{
    plan::{Plan, PlanSize},
    round::{Figures, Setting},
    world::{Abilities, disk},
};

/// Set in the program that runs in namespaces of its own.
const INSIDE: &str = "FAULTS_INSIDE";

/// Run the programs of Potluck under random faults, and check what must hold
#[derive(Debug, Parser)]
struct Args {
    /// Seed of the first round; each further round takes the next one
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// Number of rounds
    #[arg(long, default_value_t = 1)]
    rounds: u64,

    /// Start no further round after this many seconds
    #[arg(long)]
    seconds: Option<u64>,

    /// Run the rounds in a private network
    #[arg(long)]
    tls: bool,

    /// Number of peers
    #[arg(long, default_value_t = 4)]
    peers: usize,

    /// Phases of a round, each with healing and a check at its end
    #[arg(long, default_value_t = 2)]
    phases: usize,

    /// Steps of each phase
    #[arg(long, default_value_t = 30)]
    steps: usize,

    /// Only these steps of the plan, such as 3,8..12
    #[arg(long, value_name = "LIST")]
    only: Option<String>,

    /// Leave these steps of the plan out
    #[arg(long, value_name = "LIST")]
    without: Option<String>,

    /// Print the plan and end
    #[arg(long)]
    print: bool,

    /// The program `potluck` [default: the one beside this program]
    #[arg(long)]
    program: Option<PathBuf>,

    /// Folder for the logs of rounds in which something was violated
    #[arg(long, default_value = "/tmp/potluck-faults")]
    folder: PathBuf,

    /// Go on after a round in which something was violated
    #[arg(long)]
    keep_going: bool,

    /// Print each step
    #[arg(short, long)]
    verbose: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> anyhow::Result<bool> {
    let plan = |seed| -> anyhow::Result<Plan> {
        let size = PlanSize {
            peers: args.peers,
            phases: args.phases,
            steps: args.steps,
        };
        let only = args.only.as_deref().map(parse_list).transpose()?;
        let without = args.without.as_deref().map(parse_list).transpose()?;
        let keeps = |number| {
            only.as_ref().is_none_or(|list| list.contains(&number))
                && without.as_ref().is_none_or(|list| !list.contains(&number))
        };
        Ok(Plan::new(seed, size).only(keeps))
    };
    if args.print {
        for (number, steps) in plan(args.seed)?.phases.iter().enumerate() {
            println!("phase {number}");
            for step in steps {
                println!(
                    "{:4} after {:4} ms: {}",
                    step.number,
                    step.pause.as_millis(),
                    step.action
                );
            }
        }
        return Ok(true);
    }
    ensure!((1..=32).contains(&args.peers), "the number of peers is 1 to 32");
    let abilities = match std::env::var_os(INSIDE) {
        Some(_) => Abilities {
            network: true,
            disks: disk::can_mount(),
        },
        None => {
            let error = enter_namespaces();
            println!(
                "skipped: faults of links and disks, because namespaces cannot be made here (it \
                 takes root): {error:#}"
            );
            Abilities {
                network: false,
                disks: false,
            }
        }
    };
    if abilities.network && !abilities.disks {
        println!(
            "skipped: full disks and power cuts, because mkfs.ext4 or loop devices are missing"
        );
    }
    let program = match &args.program {
        Some(program) => program.clone(),
        None => std::env::current_exe()?.with_file_name("potluck"),
    };
    let program = program.canonicalize().with_context(|| {
        format!(
            "{} is missing: build it with cargo build --workspace",
            program.display()
        )
    })?;
    let started = Instant::now();
    let mut total = Figures::default();
    let mut failed = Vec::new();
    let mut count = 0;
    for seed in args.seed..args.seed + args.rounds {
        if args
            .seconds
            .is_some_and(|limit| started.elapsed() > Duration::from_secs(limit))
        {
            break;
        }
        count += 1;
        let (figures, violations) = run_round(args, seed, &plan(seed)?, &program, abilities)?;
        total.add(figures);
        if !violations.is_empty() {
            failed.push(seed);
            if !args.keep_going {
                break;
            }
        }
    }
    println!(
        "{count} rounds in {} s: {} steps, {} skipped, {} downloads done, {} checks; failed: {failed:?}",
        started.elapsed().as_secs(),
        total.steps,
        total.skipped,
        total.downloads,
        total.checks,
    );
    Ok(failed.is_empty())
}

fn run_round(
    args: &Args,
    seed: u64,
    plan: &Plan,
    program: &Path,
    abilities: Abilities,
) -> anyhow::Result<(Figures, Vec<String>)> {
    let started = Instant::now();
    let network = if args.tls { "tls" } else { "plain" };
    let folder = args.folder.join(format!("{seed}-{network}"));
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    std::fs::create_dir_all(&folder)?;
    let setting = Setting {
        folder: &folder,
        program,
        peers: args.peers,
        is_tls: args.tls,
        abilities,
        is_verbose: args.verbose,
    };
    // Each round has its own namespaces.
    let (figures, violations) = round::run(&setting, plan)?;
    println!(
        "seed {seed}, {network}: {} steps, {} downloads, {:.0} s: {}",
        figures.steps,
        figures.downloads,
        started.elapsed().as_secs_f64(),
        if violations.is_empty() { "good" } else { "VIOLATED" }
    );
    if violations.is_empty() {
        std::fs::remove_dir_all(&folder)?;
    } else {
        for violation in &violations {
            println!("  {violation}");
        }
        println!(
            "  steps and logs are in {}; repeat with --seed {seed}{}",
            folder.display(),
            if args.tls { " --tls" } else { "" }
        );
    }
    Ok((figures, violations))
}

/// Replaces this program by itself in namespaces of its own, so that all links and mounts vanish
/// with it. Returns only if that fails.
fn enter_namespaces() -> anyhow::Error {
    let this = match std::env::current_exe() {
        Ok(this) => this,
        Err(error) => return error.into(),
    };
    let namespaces = ["--mount", "--net", "--propagation", "private"];
    let trial = Command::new("unshare").args(namespaces).arg("true").output();
    match trial {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return anyhow::anyhow!(text);
        }
        Err(error) => return anyhow::Error::new(error).context("unshare"),
    }
    let mut command = Command::new("unshare");
    command.args(namespaces).arg("--").arg(this);
    command.args(std::env::args_os().skip(1)).env(INSIDE, "1");
    command.exec().into()
}

/// A list of numbers and ranges, such as 3,8..12.
fn parse_list(text: &str) -> anyhow::Result<Vec<usize>> {
    let mut numbers = Vec::new();
    for part in text.split(',') {
        let part = part.trim();
        match part.split_once("..") {
            Some((from, to)) => numbers.extend(from.parse::<usize>()?..to.parse()?),
            None => numbers.push(part.parse()?),
        }
    }
    Ok(numbers)
}
