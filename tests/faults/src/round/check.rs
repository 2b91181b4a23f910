//! What must hold after healing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use rustix::process::Signal;
use serde_json::Value;

use super::{BYSTANDER, BYSTANDER_NAME, Round, faults::is_part};
use crate::{
    dish::Edition,
    model::{Shared, Transfer, Writer},
    plan::NodeNumber,
    world::{COMMAND_LIMIT, LEASE},
};

/// Time in which a peer notices that a connection is dead: its bytes stay unacknowledged. With leases
/// of the default length it is well within one.
const DEAD_CONNECTION: Duration = Duration::from_secs(10);

/// Time for the index to agree with the peers: three leases, which are short here.
const AGREEMENT: Duration = Duration::from_secs(3 * LEASE.as_secs() + DEAD_CONNECTION.as_secs());

/// The longest time without progress of a download that could end.
const STALL: Duration = Duration::from_secs(45);

/// Time for a peer to find what changed on its disk.
const RECONCILING: Duration = Duration::from_secs(30);

/// Maximum resident memory of a server, in MiB. The programs are not optimized here.
const MAX_MEMORY: u64 = 350;

/// Maximum open files of a server that does nothing.
const MAX_FILES: usize = 300;

/// Maximum threads of a server.
const MAX_THREADS: u64 = 150;

impl Round {
    /// Checks everything.
    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        let healed = Instant::now();
        self.figures.checks += 1;
        self.check_registered()?;
        self.end_commands()?;
        self.end_transfers()?;
        for node in 1..self.world.nodes.len() {
            self.check_files(node);
            self.check_library(node)?;
        }
        self.check_index()?;
        self.note(format!(
            "  agreed {:.1} s after healing",
            healed.elapsed().as_secs_f64()
        ));
        for node in 0..self.world.nodes.len() {
            self.poll_server(node)?;
            self.check_log(node);
            self.check_growth(node);
        }
        Ok(())
    }

    /// Runs a command of a peer's owner, which must succeed.
    fn ask(&self, node: NodeNumber, args: &[&str]) -> anyhow::Result<Vec<Value>> {
        let finished = self.world.run(&mut self.world.peer_command(node, args))?;
        ensure!(
            finished.code == Some(0),
            "peer {node}: {args:?} failed: {}",
            finished.errors
        );
        Ok(finished.objects)
    }

    /// Runs a command of a peer's owner, which may come too late.
    fn try_ask(&self, node: NodeNumber, args: &[&str]) -> anyhow::Result<()> {
        self.world.run(&mut self.world.peer_command(node, args)).map(drop)
    }

    /// Every peer has its lease again.
    fn check_registered(&mut self) -> anyhow::Result<()> {
        for node in 1..self.world.nodes.len() {
            let problem = eventually(AGREEMENT, || {
                let command = &mut self.world.peer_command(node, &["status"]);
                let finished = self.world.run(command)?;
                let is_registered = finished
                    .objects
                    .first()
                    .is_some_and(|status| status["peer"]["registered"] == true);
                Ok((!is_registered).then(|| format!("{finished:?}")))
            })?;
            if let Some(status) = problem {
                self.violation(format!(
                    "peer {node} is not registered after {AGREEMENT:?}: {status}"
                ));
            }
            // Limits last until the peer stops.
            self.ask(node, &["limits", "--upload", "0", "--download", "0"])?;
            // Outside of its files folder, a peer looks for changes every five minutes, and whenever
            // it reads a file, as this does. The exit code reports what changed.
            self.try_ask(node, &["check", "--all", "--rate", "0"])?;
        }
        Ok(())
    }

    /// Every command ends.
    fn end_commands(&mut self) -> anyhow::Result<()> {
        let started = Instant::now();
        let mut waited_for = self.running_commands().len();
        let mut since = started;
        while !self.running_commands().is_empty() {
            self.poll()?;
            let left = self.running_commands().len();
            if left != waited_for {
                (waited_for, since) = (left, Instant::now());
            }
            if since.elapsed() > 2 * STALL {
                let commands = self.running_commands().join("\n");
                self.violation(format!("commands do not end:\n{commands}"));
                self.pending.clear();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Every transfer ends: it is done if somebody has the bytes, and can be cancelled otherwise.
    fn end_transfers(&mut self) -> anyhow::Result<()> {
        for node in 1..self.world.nodes.len() {
            for transfer in self.ask(node, &["transfers"])? {
                if transfer["state"] == "paused" {
                    let number = transfer["transfer"].to_string();
                    self.try_ask(node, &["transfers", "resume", &number])?;
                }
            }
        }
        let mut progress: BTreeMap<(NodeNumber, u64), (u64, Instant)> = BTreeMap::new();
        loop {
            let mut is_any_left = false;
            let providers = self.provided()?;
            for node in 1..self.world.nodes.len() {
                for transfer in self.ask(node, &["transfers"])? {
                    let state = transfer["state"].as_str().unwrap_or_default().to_owned();
                    let number = transfer["transfer"].as_u64().context("a number")?;
                    if matches!(&*state, "done" | "failed" | "cancelled") {
                        self.ended(node, number, &state, &transfer);
                        continue;
                    }
                    let bytes = transfer["bytes"].as_u64().unwrap_or(0)
                        + transfer["unverified_bytes"].as_u64().unwrap_or(0);
                    let known = progress
                        .entry((node, number))
                        .or_insert_with(|| (bytes, Instant::now()));
                    if known.0 != bytes {
                        *known = (bytes, Instant::now());
                    }
                    let id = transfer["id"].as_str().unwrap_or_default();
                    let is_provided = providers
                        .iter()
                        .any(|(other, ids)| *other != node && ids.contains(id));
                    if !is_provided {
                        // Nobody has it: its owner gives up.
                        if let Some(known) = self.model.peer(node).transfers.get_mut(&number) {
                            known.may_be_cancelled = true;
                        }
                        self.try_ask(node, &["transfers", "cancel", &number.to_string()])?;
                        is_any_left = true;
                    } else if known.1.elapsed() > STALL {
                        let why = self.ask(node, &["why", &number.to_string()])?;
                        self.violation(format!(
                            "peer {node}: a transfer makes no progress for {STALL:?} though another \
                             peer has the bytes: {why:?}"
                        ));
                        self.try_ask(node, &["transfers", "cancel", &number.to_string()])?;
                    } else {
                        is_any_left = true;
                    }
                }
                self.find_lost_transfers(node)?;
            }
            if !is_any_left {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// A transfer has ended.
    fn ended(&mut self, node: NodeNumber, number: u64, state: &str, transfer: &Value) {
        let Some(known) = self.model.peer(node).transfers.get(&number).cloned() else {
            return;
        };
        if known.has_ended {
            return;
        }
        self.note(format!(
            "  peer {node}: transfer {number} of {:?} is {state}: {}",
            known.edition, transfer["message"]
        ));
        match state {
            "done" => {
                self.figures.downloads += 1;
                let path = transfer["path"].as_str().unwrap_or_default();
                if Path::new(path) != known.path {
                    self.violation(format!(
                        "peer {node}: transfer {number} went to {path} instead of {}",
                        known.path.display()
                    ));
                }
                let shared = match known.is_chosen || !transfer["sharing_error"].is_null() {
                    true => Shared::No,
                    false => Shared::Yes,
                };
                self.downloaded(node, known.edition, &known.path, known.is_chosen, shared);
            }
            "cancelled" if !known.may_be_cancelled => {
                self.violation(format!("peer {node}: transfer {number} is cancelled by nobody"));
            }
            "failed" => {
                let error = transfer["error"].as_str().unwrap_or_default();
                let is_excused = error == "target_exists" || self.world.nodes[node].has_failed;
                if !is_excused {
                    self.violation(format!(
                        "peer {node}: transfer {number} of {:?} to {} failed: {error}: {}",
                        known.edition,
                        known.path.display(),
                        transfer["message"]
                    ));
                }
            }
            _ => {}
        }
        if let Some(known) = self.model.peer(node).transfers.get_mut(&number) {
            known.has_ended = true;
        }
    }

    /// Transfers that were acknowledged and are not listed must have ended before a restart.
    fn find_lost_transfers(&mut self, node: NodeNumber) -> anyhow::Result<()> {
        let listed: BTreeSet<u64> = self
            .ask(node, &["transfers"])?
            .iter()
            .filter_map(|transfer| transfer["transfer"].as_u64())
            .collect();
        let transfers = self.model.peer(node).transfers.clone();
        for (number, transfer) in transfers {
            if transfer.has_ended || listed.contains(&number) {
                continue;
            }
            let Transfer {
                edition,
                path,
                is_chosen,
                ..
            } = &transfer;
            let is_there = match is_chosen {
                true => edition.is_chosen_at(path),
                false => edition.is_at(path),
            };
            let place = self.model.peer(node).places.get(path).cloned();
            // The user may have put something else there, or removed what was done.
            let is_excused = transfer.may_be_cancelled || place.is_some();
            if is_there {
                let shared = if *is_chosen { Shared::No } else { Shared::Yes };
                self.downloaded(node, *edition, path, *is_chosen, shared);
            } else if !is_excused {
                self.violation(format!(
                    "peer {node}: transfer {number} of {edition:?} to {} was acknowledged and is lost",
                    path.display()
                ));
            }
            if let Some(known) = self.model.peer(node).transfers.get_mut(&number) {
                known.has_ended = true;
            }
        }
        Ok(())
    }

    /// The ids that each peer offers to others.
    fn provided(&self) -> anyhow::Result<BTreeMap<NodeNumber, BTreeSet<String>>> {
        let mut provided = BTreeMap::new();
        for node in 1..self.world.nodes.len() {
            let peer = self.model.peers.get(&node);
            let mut ids = BTreeSet::new();
            for item in self.ask(node, &["ls"])? {
                let path = Path::new(item["path"].as_str().unwrap_or_default());
                let place = peer.and_then(|peer| peer.places.get(path));
                // What was shared by a command stays in the list while its path is gone.
                let is_removed = place.is_some_and(|place| place.is_removed);
                if is_offered(&item) && !is_removed {
                    ids.extend(item["id"].as_str().map(ToOwned::to_owned));
                }
            }
            provided.insert(node, ids);
        }
        Ok(provided)
    }

    /// Whether a peer shares what it must, and nothing else.
    fn check_library(&mut self, node: NodeNumber) -> anyhow::Result<()> {
        self.adopt_downloads(node)?;
        let problems = eventually(RECONCILING, || {
            let items = self.ask(node, &["ls"])?;
            let problems = self.library_problems(node, &items);
            Ok((!problems.is_empty()).then_some(problems))
        })?;
        for problem in problems.unwrap_or_default() {
            self.violation(format!("peer {node}: {problem}"));
        }
        Ok(())
    }

    /// Downloads that were done while nobody listened.
    fn adopt_downloads(&mut self, node: NodeNumber) -> anyhow::Result<()> {
        for (path, (edition, is_chosen)) in self.model.peer(node).targets.clone() {
            let is_unknown = match self.model.peer(node).places.get(&path) {
                None => true,
                Some(place) => place.is_removed && place.writer == Writer::Peer,
            };
            if is_unknown && path.exists() && !path.to_string_lossy().ends_with("-alone") {
                self.downloaded(node, edition, &path, is_chosen, Shared::Perhaps);
            }
        }
        // A download into the files folder has the name of a dish, in any edition.
        let files = self.world.home(node).join("files");
        for entry in fs::read_dir(&files)?.flatten() {
            let path = entry.path();
            if is_part(&path) || self.model.peer(node).places.contains_key(&path) {
                continue;
            }
            if let Some(edition) = self.edition_at(&path) {
                self.downloaded(node, edition, &path, false, Shared::Perhaps);
            }
        }
        Ok(())
    }

    fn library_problems(&self, node: NodeNumber, items: &[Value]) -> Vec<String> {
        let mut problems = Vec::new();
        let mut listed = BTreeMap::new();
        for item in items {
            let path = item["path"].as_str().unwrap_or_default();
            listed.insert(Path::new(path), item);
        }
        let Some(peer) = self.model.peers.get(&node) else {
            return problems;
        };
        for (path, place) in &peer.places {
            let at = path.display();
            let item = listed.remove(path.as_path());
            let (must, may) = match (place.is_removed, place.shared) {
                (false, Shared::Yes) => (true, true),
                (_, Shared::Perhaps) | (true, Shared::Yes) => (false, true),
                (_, Shared::No) => (false, false),
            };
            match item {
                None if must => {
                    problems.push(format!("{at} was acknowledged as shared and is not: {place:?}"));
                }
                Some(item) if !may => {
                    problems.push(format!("{at} was unshared and is shared: {item}"));
                }
                Some(item) if !place.is_removed => {
                    let id = &self.model.ids[&place.edition];
                    if item["id"] != **id {
                        problems.push(format!(
                            "{at} is shared as {}, but has the bytes of {id}: {place:?}",
                            item["id"]
                        ));
                    }
                    if !is_offered(item) {
                        problems.push(format!("{at} is damaged: {item}"));
                    }
                }
                _ => {}
            }
        }
        for (path, item) in listed {
            problems.push(format!("{} is shared by nobody: {item}", path.display()));
        }
        problems
    }

    /// The index has what the peers share, and nothing else.
    fn check_index(&mut self) -> anyhow::Result<()> {
        let started = Instant::now();
        let problems = eventually(AGREEMENT, || {
            let problems = self.index_problems()?;
            Ok((!problems.is_empty()).then_some(problems))
        })?;
        for problem in problems.unwrap_or_default() {
            self.violation(format!(
                "the index differs from the peers {:.1} s after healing: {problem}",
                started.elapsed().as_secs_f64()
            ));
        }
        Ok(())
    }

    fn index_problems(&self) -> anyhow::Result<Vec<String>> {
        let mut wanted: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (node, ids) in self.provided()? {
            for id in ids {
                wanted
                    .entry(id)
                    .or_default()
                    .insert(self.world.peer_address(node));
            }
        }
        self.compare_index(wanted)
    }

    /// How the answers of the index differ from these addresses of each id.
    fn compare_index(
        &self,
        mut wanted: BTreeMap<String, BTreeSet<String>>,
    ) -> anyhow::Result<Vec<String>> {
        let mut problems = Vec::new();
        for (edition, id) in &self.model.ids {
            let mut command = self.world.command(1, &["query", id, "--json"]);
            if !self.world.is_tls {
                command.args(["--index", &self.world.index()]);
            }
            let finished = self.world.run(&mut command)?;
            let mut found = BTreeSet::new();
            match finished.code {
                Some(3) => {}
                Some(0) => {
                    let object = finished.objects.first().context("no answer")?;
                    let files = object["files"].as_array().into_iter().flatten();
                    let providers =
                        files.flat_map(|file| file["providers"].as_array().into_iter().flatten());
                    for provider in providers {
                        let address = provider["address"].as_str().unwrap_or_default();
                        let is_partial = provider["complete"] != true;
                        let partial = if is_partial { " (partial)" } else { "" };
                        found.insert(format!("{address}{partial}"));
                    }
                }
                _ => {
                    problems.push(format!("the index cannot be queried: {}", finished.errors));
                    continue;
                }
            }
            let wanted = wanted.remove(id).unwrap_or_default();
            if found != wanted {
                problems.push(format!(
                    "{edition:?} is at {wanted:?}, and the index has {found:?}"
                ));
            }
        }
        for (id, peers) in wanted {
            problems.push(format!("{id} of {peers:?} is an unknown id"));
        }
        Ok(problems)
    }

    /// What the index and each peer have acknowledged survives a power cut: without help of the
    /// others, which are frozen meanwhile.
    pub(super) fn check_power_cuts(&mut self) -> anyhow::Result<()> {
        if !self.world.nodes.iter().all(|node| node.disk.is_image()) {
            return Ok(());
        }
        self.note("the power is cut everywhere");
        let provided = self.provided()?;
        let mut wanted: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (node, ids) in &provided {
            for id in ids {
                let addresses = wanted.entry(id.clone()).or_default();
                addresses.insert(self.world.peer_address(*node));
            }
        }
        self.signal_peers(Signal::STOP);
        self.cut_power(0)?;
        let ready = Instant::now();
        let problems = self.compare_index(wanted)?;
        // Stored peers have one lease to come back.
        let is_in_time = ready.elapsed() < LEASE;
        self.signal_peers(Signal::CONT);
        match is_in_time {
            true => {
                for problem in problems {
                    self.violation(format!("after a power cut of the index: {problem}"));
                }
            }
            false => self.note("  the machine was too busy to ask in time"),
        }
        for node in 1..self.world.nodes.len() {
            self.cut_power(node)?;
            self.check_files(node);
            self.check_library(node)?;
        }
        self.check_index()
    }

    fn signal_peers(&mut self, signal: Signal) {
        for node in &mut self.world.nodes[1..] {
            if let Some(server) = &mut node.server {
                server.signal(signal);
            }
        }
    }

    fn cut_power(&mut self, node: NodeNumber) -> anyhow::Result<()> {
        self.world.kill(node);
        self.world.nodes[node].disk.cut_power()?;
        self.world.start(node)?;
        self.world.wait_ready(node, COMMAND_LIMIT)
    }

    /// Every file with a final name is complete and right, and nobody touched the files of others.
    pub(super) fn check_files(&mut self, node: NodeNumber) {
        if node == 0 {
            return;
        }
        let mut problems = Vec::new();
        let peer = self.model.peers.entry(node).or_default();
        for (path, place) in &peer.places {
            if !place.is_removed && place.writer == Writer::User && !place.edition.is_at(path) {
                problems.push(format!("the user's file {} was changed", path.display()));
            }
        }
        for folder in [
            self.world.home(node).join("files"),
            self.world.on_disk(node, "out"),
        ] {
            let Ok(entries) = fs::read_dir(&folder) else {
                continue;
            };
            for entry in entries.flatten() {
                let path = entry.path();
                let is_user_file = self
                    .model
                    .peers
                    .get(&node)
                    .and_then(|peer| peer.places.get(&path))
                    .is_some_and(|place| place.writer == Writer::User);
                if is_part(&path) || is_user_file || entry.file_name() == BYSTANDER_NAME {
                    continue;
                }
                let is_right =
                    match self.model.peers.get(&node).and_then(|it| it.targets.get(&path)) {
                        Some((edition, true)) => edition.is_chosen_at(&path),
                        Some((edition, false)) if folder.ends_with("out") => edition.is_at(&path),
                        _ => self.edition_at(&path).is_some(),
                    };
                if !is_right {
                    problems.push(format!("{} has its name and is not right", path.display()));
                }
            }
        }
        for folder in ["out", "shelf"] {
            let path = self.world.on_disk(node, folder).join(BYSTANDER_NAME);
            if fs::read(&path).ok().as_deref() != Some(BYSTANDER) {
                problems.push(format!("{} was changed", path.display()));
            }
        }
        for problem in problems {
            self.violation(format!("peer {node}: {problem}"));
        }
    }

    /// The edition whose bytes are at a path with the name of its dish.
    fn edition_at(&self, path: &Path) -> Option<Edition> {
        let name = path.file_name()?.to_str()?;
        let mut editions = self.model.ids.keys().filter(|edition| edition.name() == name);
        editions.find(|edition| edition.is_at(path)).copied()
    }

    /// No server panicked.
    fn check_log(&mut self, node: NodeNumber) {
        let Ok(bytes) = fs::read(self.world.log(node)) else {
            return;
        };
        let text = String::from_utf8_lossy(&bytes);
        // Both databases panic on some damage; the programs catch that.
        let may_panic = self.world.nodes[node].was_damaged;
        let is_caught =
            |line: &str| may_panic && (line.contains("/sled-") || line.contains("/redb-"));
        let panics: Vec<String> = text
            .lines()
            .filter(|line| line.contains("panicked at") && !is_caught(line))
            .map(ToOwned::to_owned)
            .collect();
        for panic in panics {
            self.violation(format!("server {node} panicked: {panic}"));
        }
    }

    /// No server has grown.
    fn check_growth(&mut self, node: NodeNumber) {
        let Some(server) = &self.world.nodes[node].server else {
            return;
        };
        let pid = server.id();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let value = |name: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.split_whitespace().next());
            number.and_then(|number| number.parse().ok()).unwrap_or(0)
        };
        let (memory, threads) = (value("VmRSS:") / 1024, value("Threads:"));
        let files = fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
        self.note(format!(
            "  server {node}: {memory} MiB, {threads} threads, {files} open files"
        ));
        if memory > MAX_MEMORY || threads > MAX_THREADS || files > MAX_FILES {
            self.violation(format!(
                "server {node} has grown to {memory} MiB, {threads} threads, {files} open files"
            ));
        }
    }
}

/// Whether an item of `ls` is offered to others.
fn is_offered(item: &Value) -> bool {
    item["damaged_paths"].as_array().is_none_or(Vec::is_empty)
}

/// Repeats a look until it finds no problem, or returns the last one.
fn eventually<T>(
    limit: Duration,
    mut look: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<Option<T>> {
    let started = Instant::now();
    loop {
        let problem = look()?;
        if problem.is_none() || started.elapsed() > limit {
            return Ok(problem);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
