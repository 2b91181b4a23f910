//! The faults, and healing.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::Signal;

use super::{Round, Skipped};
use crate::{
    plan::{Action, Damage, NodeNumber, Pick},
    world::disk,
};

/// How long a server may take until it is ready, on a busy machine and with damaged state.
const START_LIMIT: Duration = Duration::from_secs(60);

/// The bytes of a disk that must be free at healing: the kernel keeps a reserve for itself.
const LEFT_UNIT: u64 = 1 << 10;

impl Round {
    /// Carries out a fault.
    pub(super) fn fault(&mut self, action: Action) -> anyhow::Result<Result<(), Skipped>> {
        if let Some(node) = action.rewritten()
            && self.world.nodes[node].is_failing
        {
            return Ok(Err(Skipped("the disk fails")));
        }
        match action {
            Action::Kill(node) => self.world.kill(node),
            Action::Terminate(node) => {
                if let Some(problem) = self.world.terminate(node)
                    && !self.world.nodes[node].is_failing
                {
                    self.violation(problem);
                }
            }
            Action::Start(node) => {
                if self.world.nodes[node].server.is_some() {
                    return Ok(Err(Skipped("it is running")));
                }
                self.world.start(node)?;
            }
            Action::Freeze(node) | Action::Thaw(node) => {
                let Some(server) = &mut self.world.nodes[node].server else {
                    return Ok(Err(Skipped("it is not running")));
                };
                server.signal(match action {
                    Action::Freeze(_) => Signal::STOP,
                    _ => Signal::CONT,
                });
            }
            Action::LoseState(node) => self.lose_state(node)?,
            Action::DamageState(node, pick, damage) => {
                return self.damage_state(node, pick, damage);
            }
            Action::CopyStore => self.copy_store()?,
            Action::PutBackStore => return self.put_back_store(),
            Action::FillDisk(node, left) => {
                if !self.world.nodes[node].disk.is_image() {
                    return Ok(Err(Skipped("disks are folders here")));
                }
                self.world.nodes[node].was_full = true;
                self.world.nodes[node].disk.fill(left * LEFT_UNIT)?;
            }
            Action::FreeDisk(node) => self.world.nodes[node].disk.free(),
            Action::FailDisk(node) => {
                if !self.world.nodes[node].disk.is_image() {
                    return Ok(Err(Skipped("disks are folders here")));
                }
                let machine = &mut self.world.nodes[node];
                machine.is_failing = true;
                machine.has_failed = true;
                machine.was_full = true;
                machine.was_damaged = true;
                machine.disk.fail()?;
            }
            Action::MendDisk(node) => {
                if !self.world.nodes[node].is_failing {
                    return Ok(Err(Skipped("the disk works")));
                }
                self.mend_disk(node)?;
            }
            Action::PowerCut(node) => {
                if !self.world.nodes[node].disk.is_image() {
                    return Ok(Err(Skipped("disks are folders here")));
                }
                self.poll()?;
                self.end_commands_of(node);
                self.world.kill(node);
                self.world.nodes[node].disk.cut_power()?;
                self.world.nodes[node].is_failing = false;
                self.check_files(node);
                self.world.start(node)?;
            }
            _ => return self.network_fault(action),
        }
        Ok(Ok(()))
    }

    fn network_fault(&self, action: Action) -> anyhow::Result<Result<(), Skipped>> {
        let Some(network) = &self.world.network else {
            return Ok(Err(Skipped("all machines have one address here")));
        };
        match action {
            Action::Link(node, fault) => network.fault(node, fault)?,
            Action::MendLink(node) => network.mend(node)?,
            Action::Partition(nodes) => network.partition(nodes)?,
            Action::MendPartition => network.partition(0)?,
            Action::Move(node) => network.move_node(node)?,
            _ => unreachable!("all other actions are carried out elsewhere"),
        }
        Ok(Ok(()))
    }

    /// Takes a failing disk out and puts it back: what it acknowledged is there.
    fn mend_disk(&mut self, node: NodeNumber) -> anyhow::Result<()> {
        self.poll()?;
        self.end_commands_of(node);
        self.world.kill(node);
        self.world.nodes[node].disk.mend()?;
        self.world.nodes[node].is_failing = false;
        self.check_files(node);
        self.world.start(node)
    }

    fn copy_store(&mut self) -> anyhow::Result<()> {
        self.world.kill(0);
        let mut files = Vec::new();
        files_below(&self.world.home(0), &mut files);
        let read = files.into_iter().map(|path| Ok((path.clone(), fs::read(path)?)));
        self.old_store = read.collect::<io::Result<_>>()?;
        self.world.start(0)
    }

    /// Nothing tells the index that its store is old: the peers must notice.
    fn put_back_store(&mut self) -> anyhow::Result<Result<(), Skipped>> {
        if self.old_store.is_empty() {
            return Ok(Err(Skipped("there is no copy")));
        }
        self.world.kill(0);
        let home = self.world.home(0);
        _ = fs::remove_dir_all(&home);
        for (path, bytes) in &self.old_store {
            fs::create_dir_all(path.parent().unwrap_or(&home))?;
            if let Err(error) = fs::write(path, bytes) {
                self.note(format!("  the copy is not whole: {error}"));
                self.world.nodes[0].was_damaged = true;
                break;
            }
        }
        self.world.nodes[0].losses += 1;
        self.world.start(0)?;
        Ok(Ok(()))
    }

    fn lose_state(&mut self, node: NodeNumber) -> anyhow::Result<()> {
        self.world.kill(node);
        let state = match node {
            0 => self.world.home(0),
            node => self.world.home(node).join("state"),
        };
        if state.exists() {
            fs::remove_dir_all(&state)?;
        }
        self.world.nodes[node].losses += 1;
        if node > 0 {
            self.model.forget(node, &self.world.home(node).join("files"));
        }
        self.world.start(node)
    }

    fn damage_state(
        &mut self,
        node: NodeNumber,
        pick: Pick,
        damage: Damage,
    ) -> anyhow::Result<Result<(), Skipped>> {
        self.world.kill(node);
        let files = self.stored_files(node);
        let Some(file) = files.get(pick as usize % files.len().max(1)) else {
            self.world.start(node)?;
            return Ok(Err(Skipped("nothing is stored")));
        };
        self.note(format!("  damages {}", file.display()));
        disk::damage(file, damage)?;
        // The state beside a part file speaks of that part only.
        if node > 0 && !is_part(file) {
            self.world.nodes[node].losses += 1;
            self.model.forget(node, &self.world.home(node).join("files"));
        }
        self.world.nodes[node].was_damaged = true;
        self.world.start(node)?;
        Ok(Ok(()))
    }

    /// The files that may be damaged: not those that only name the peer, for which it says what to
    /// do and ends.
    fn stored_files(&self, node: NodeNumber) -> Vec<PathBuf> {
        let mut files = Vec::new();
        if node == 0 {
            files_below(&self.world.home(0).join("sled"), &mut files);
        } else {
            let home = self.world.home(node);
            files_below(&home.join("state"), &mut files);
            files.retain(|file| {
                let name = file.file_name().unwrap_or_default().to_string_lossy();
                !["token", "machine", "lock", "peer."]
                    .iter()
                    .any(|own| name.starts_with(own))
            });
            let mut parts = Vec::new();
            files_below(&home.join("files"), &mut parts);
            files_below(&self.world.on_disk(node, "out"), &mut parts);
            parts.retain(|file| is_part(file));
            files.append(&mut parts);
        }
        files.sort();
        files
    }

    /// Ends all faults.
    pub(super) fn heal(&mut self) -> anyhow::Result<()> {
        self.poll()?;
        self.note("healing");
        for node in 0..self.world.nodes.len() {
            if let Some(network) = &self.world.network {
                network.mend(node)?;
            }
            self.world.nodes[node].disk.free();
            if self.world.nodes[node].is_failing {
                self.mend_disk(node)?;
            }
            if let Some(server) = &mut self.world.nodes[node].server
                && server.is_frozen()
            {
                server.signal(Signal::CONT);
            }
        }
        if let Some(network) = &self.world.network {
            network.partition(0)?;
        }
        for node in 0..self.world.nodes.len() {
            self.poll_server(node)?;
            if self.world.nodes[node].server.is_none() {
                self.world.start(node)?;
            }
            self.world.wait_ready(node, START_LIMIT)?;
            self.world.nodes[node].was_full = false;
        }
        Ok(())
    }

    /// Notices servers that ended by themselves.
    pub(super) fn poll_server(&mut self, number: NodeNumber) -> anyhow::Result<()> {
        let node = &mut self.world.nodes[number];
        let Some(server) = &mut node.server else {
            return Ok(());
        };
        let Some(status) = server.ended()? else {
            return Ok(());
        };
        node.server = None;
        // A full disk may keep it from starting; then it says so. So may the lack of an index, if it
        // lost the key of a private network.
        let is_refusal = match status.code() {
            Some(1 | 2) => node.was_full,
            Some(5) => self.world.is_tls && node.losses > 0,
            _ => false,
        };
        let lines = self.world.last_lines(number);
        match is_refusal {
            true => self.note(format!("  server {number} ended: {lines}")),
            false => {
                self.violation(format!("server {number} ended by itself with {status}: {lines}"));
            }
        }
        Ok(())
    }
}

/// Whether a file belongs to an unfinished download.
pub(super) fn is_part(path: &Path) -> bool {
    path.components().any(|part| {
        let name = part.as_os_str().to_string_lossy();
        name.ends_with(".part") || name.ends_with(".part.state")
    })
}

fn files_below(folder: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        match path.is_dir() {
            true => files_below(&path, files),
            false => files.push(path),
        }
    }
}
