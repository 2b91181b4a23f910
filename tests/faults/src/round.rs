//! Carries out a plan: one world, its steps, and after each phase healing and a check.

mod check;
mod commands;
mod faults;

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    time::Instant,
};

use self::commands::Pending;
use crate::{
    dish::Edition,
    model::{Model, Place, Shared, Writer},
    plan::{Action, NodeNumber, Pick, Plan, SharedFrom, Step},
    world::{Abilities, World},
};

/// A file that belongs to nobody: it must stay as it is.
const BYSTANDER: &[u8] = b"written by somebody else";

/// The name of such a file.
const BYSTANDER_NAME: &str = "somebody-elses.txt";

/// How a world is made.
#[derive(Debug)]
pub(crate) struct Setting<'a> {
    pub(crate) folder: &'a Path,
    pub(crate) program: &'a Path,
    pub(crate) peers: usize,
    pub(crate) is_tls: bool,
    pub(crate) abilities: Abilities,
    pub(crate) is_verbose: bool,
}

/// A running round.
#[derive(Debug)]
pub(crate) struct Round {
    world: World,
    model: Model,
    pending: Vec<Pending>,
    /// The files of an older store of the index.
    old_store: Vec<(PathBuf, Vec<u8>)>,
    log: File,
    is_verbose: bool,
    started: Instant,
    violations: Vec<String>,
    figures: Figures,
}

/// What a round did.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Figures {
    /// Steps that were carried out, and those that made no sense.
    pub(crate) steps: u32,
    pub(crate) skipped: u32,
    /// Downloads that were done.
    pub(crate) downloads: u32,
    /// Checks that were made.
    pub(crate) checks: u32,
}

impl Figures {
    /// Adds those of another round.
    pub(crate) const fn add(&mut self, other: Self) {
        self.steps += other.steps;
        self.skipped += other.skipped;
        self.downloads += other.downloads;
        self.checks += other.checks;
    }
}

/// Runs a plan. Returns what was violated.
///
/// # Errors
/// The round could not be carried out.
pub(crate) fn run(setting: &Setting<'_>, plan: &Plan) -> anyhow::Result<(Figures, Vec<String>)> {
    fs::create_dir_all(setting.folder)?;
    let log = File::create(setting.folder.join("steps.log"))?;
    let world = World::new(
        setting.folder,
        setting.program,
        setting.peers,
        setting.is_tls,
        setting.abilities,
    )?;
    let mut round = Round {
        world,
        model: Model::default(),
        pending: Vec::new(),
        old_store: Vec::new(),
        log,
        is_verbose: setting.is_verbose,
        started: Instant::now(),
        violations: Vec::new(),
        figures: Figures::default(),
    };
    for node in 1..=setting.peers {
        for folder in ["out", "shelf"] {
            let path = round.world.on_disk(node, folder).join(BYSTANDER_NAME);
            fs::write(&path, BYSTANDER)?;
            File::open(&path)?.sync_all()?;
        }
    }
    let done = round.run(plan);
    if let Err(error) = done {
        round.violation(format!("the round ended early: {error:#}"));
    }
    if !round.violations.is_empty() {
        round.keep_state(setting.folder);
    }
    // Commands end before the servers.
    round.pending.clear();
    Ok((round.figures, round.violations))
}

impl Round {
    fn run(&mut self, plan: &Plan) -> anyhow::Result<()> {
        for (number, steps) in plan.phases.iter().enumerate() {
            self.note(format!("phase {number}"));
            for step in steps {
                std::thread::sleep(step.pause);
                self.poll()?;
                self.step(step)?;
            }
            self.heal()?;
            self.check()?;
            if !self.violations.is_empty() {
                return Ok(());
            }
        }
        self.check_power_cuts()
    }

    fn step(&mut self, step: &Step) -> anyhow::Result<()> {
        self.note(format!("step {}: {}", step.number, step.action));
        let skipped = self.act(step.action)?;
        self.figures.steps += 1;
        if let Err(Skipped(why)) = skipped {
            self.figures.skipped += 1;
            self.note(format!("  skipped: {why}"));
        }
        Ok(())
    }

    fn act(&mut self, action: Action) -> anyhow::Result<Result<(), Skipped>> {
        if let Action::Share(node, ..) | Action::Change(node, _) | Action::Remove(node, _) = action
            && self.world.nodes[node].is_failing
        {
            return Ok(Err(Skipped("the user cannot write")));
        }
        match action {
            Action::Share(node, dish, from, pick) => self.share(node, dish, from, pick),
            Action::Unshare(node, pick) => self.unshare(node, pick),
            Action::Change(node, pick) => self.change(node, pick),
            Action::Remove(node, pick) => self.remove(node, pick),
            Action::Get(node, pick, kind, limit) => self.get(node, pick, kind, limit),
            Action::Pause(node, pick) => self.change_transfer(node, pick, "pause"),
            Action::Resume(node, pick) => self.change_transfer(node, pick, "resume"),
            Action::Cancel(node, pick) => self.change_transfer(node, pick, "cancel"),
            Action::Interrupt(node, pick) => Ok(self.interrupt(node, pick)),
            Action::Limit(node, up, down) => self.limit(node, up, down),
            fault => self.fault(fault),
        }
    }

    /// Writes a dish to where a peer shares it, and lets the peer share it.
    fn share(
        &mut self,
        node: NodeNumber,
        dish: u8,
        from: SharedFrom,
        pick: Pick,
    ) -> anyhow::Result<Result<(), Skipped>> {
        let name = Edition { dish, number: 0 }.name();
        let path = match from {
            SharedFrom::Shelf => self.world.on_disk(node, "shelf").join(name),
            SharedFrom::FilesFolder => self.world.home(node).join("files").join(name),
        };
        if self.is_busy(node, &path) {
            return Ok(Err(Skipped("a command uses the path")));
        }
        let place = self.model.peer(node).places.get(&path).cloned();
        let is_present = place.as_ref().is_some_and(|place| !place.is_removed);
        if !is_present {
            if path.exists() || is_part_at(&path) {
                return Ok(Err(Skipped("a download uses the path")));
            }
            // Mostly an edition that others have, so that several peers have the same bytes.
            let editions: Vec<Edition> = self.model.editions_of(dish).into_iter().collect();
            let edition = match editions.get(pick as usize % (editions.len() + 1)) {
                Some(edition) if pick % 100 < 85 => *edition,
                _ if !editions.is_empty() && pick % 100 < 85 => editions[0],
                _ => self.new_edition(dish)?,
            };
            if let Err(error) = edition.write(&path) {
                _ = fs::remove_file(&path);
                _ = fs::remove_dir_all(&path);
                self.note(format!("  the user cannot write it: {error}"));
                return Ok(Err(Skipped("the disk is full")));
            }
            let shared = match from {
                SharedFrom::Shelf => Shared::No,
                // The peer may not have noticed that the file it must not share was gone.
                SharedFrom::FilesFolder => match place.map(|place| place.shared) {
                    Some(Shared::No | Shared::Perhaps) => Shared::Perhaps,
                    Some(Shared::Yes) | None => Shared::Yes,
                },
            };
            let new = Place {
                edition,
                writer: Writer::User,
                shared,
                is_removed: false,
            };
            self.model.peer(node).places.insert(path.clone(), new);
        }
        match from {
            SharedFrom::Shelf => self.start_share(node, &path)?,
            SharedFrom::FilesFolder => {}
        }
        Ok(Ok(()))
    }

    /// The user writes another edition over a file that it owns.
    fn change(&mut self, node: NodeNumber, pick: Pick) -> anyhow::Result<Result<(), Skipped>> {
        let Some(path) = self.pick_place(node, pick, |place| {
            !place.is_removed && place.writer == Writer::User && place.edition.dish != 0
        }) else {
            return Ok(Err(Skipped("there is no file")));
        };
        if self.is_busy(node, &path) {
            return Ok(Err(Skipped("a command uses the path")));
        }
        let dish = self.model.peer(node).places[&path].edition.dish;
        let edition = self.new_edition(dish)?;
        let written = edition.write(&path);
        let place = self
            .model
            .peer(node)
            .places
            .get_mut(&path)
            .expect("it was picked");
        match written {
            Ok(()) => place.edition = edition,
            Err(error) => {
                // Half of it may be there; the user removes it.
                _ = fs::remove_file(&path);
                _ = fs::remove_dir_all(&path);
                place.is_removed = true;
                self.note(format!("  the user cannot write it: {error}"));
            }
        }
        Ok(Ok(()))
    }

    /// The user removes a file.
    fn remove(&mut self, node: NodeNumber, pick: Pick) -> anyhow::Result<Result<(), Skipped>> {
        let Some(path) = self.pick_place(node, pick, |place| !place.is_removed) else {
            return Ok(Err(Skipped("there is no file")));
        };
        if self.is_busy(node, &path) {
            return Ok(Err(Skipped("a command uses the path")));
        }
        let place = self
            .model
            .peer(node)
            .places
            .get_mut(&path)
            .expect("it was picked");
        place.is_removed = true;
        match path.is_dir() {
            true => fs::remove_dir_all(&path)?,
            false => fs::remove_file(&path)?,
        }
        File::open(path.parent().expect("it is in a folder"))?.sync_all()?;
        Ok(Ok(()))
    }

    /// Makes an edition and learns its id.
    fn new_edition(&mut self, dish: u8) -> anyhow::Result<Edition> {
        let edition = self.model.new_edition(dish);
        let id = match edition.is_folder() {
            false => {
                let bytes = edition.files().into_values().next().unwrap_or_default();
                potluck_core::identity::hash::hash_bytes(&bytes).id().to_string()
            }
            true => self.folder_id(edition)?,
        };
        self.model.ids.insert(edition, id);
        Ok(edition)
    }

    fn pick_place(
        &mut self,
        node: NodeNumber,
        pick: Pick,
        is_meant: impl Fn(&Place) -> bool,
    ) -> Option<PathBuf> {
        let places = self.model.peer(node).places.iter();
        let meant: Vec<_> = places.filter(|(_, place)| is_meant(place)).collect();
        let (path, _) = meant.get(pick as usize % meant.len().max(1))?;
        Some((*path).clone())
    }

    /// Notes what happens.
    fn note(&mut self, text: impl AsRef<str>) {
        let line = format!("{:8.3} {}", self.started.elapsed().as_secs_f64(), text.as_ref());
        if self.is_verbose {
            println!("{line}");
        }
        _ = writeln!(self.log, "{line}");
    }

    /// Notes that something does not hold.
    fn violation(&mut self, text: impl Into<String>) {
        let text = text.into();
        self.note(format!("VIOLATED: {text}"));
        self.violations.push(text);
    }

    /// Keeps the state of all machines, to look into.
    fn keep_state(&self, folder: &Path) {
        let mut listing = String::new();
        for node in &self.world.nodes {
            let kept = folder.join(format!("kept/{}", node.number));
            _ = fs::create_dir_all(&kept);
            for name in ["home/state", "data"] {
                let from = node.disk.root().join(name);
                if from.exists() {
                    let (from, to) = (from.display(), kept.display());
                    _ = crate::world::network::run(&format!("cp -a {from} {to}"));
                }
            }
            if let Ok(output) = std::process::Command::new("ls")
                .args(["-laR", "--time-style=full-iso"])
                .arg(node.disk.root())
                .output()
            {
                _ = writeln!(listing, "{}", String::from_utf8_lossy(&output.stdout));
            }
        }
        _ = fs::write(folder.join("kept/listing"), listing);
    }
}

/// Why a step was not carried out.
#[derive(Debug)]
struct Skipped(&'static str);

/// Whether an unfinished download has this target.
fn is_part_at(path: &Path) -> bool {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    Path::new(&part).exists()
}
