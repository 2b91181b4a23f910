//! Commands of the peers' owners. They run beside everything else; what they report when they end
//! is what was acknowledged.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use rustix::process::Signal;
use serde_json::Value;

use super::{Round, Skipped};
use crate::{
    dish::Edition,
    model::{Place, Shared, Transfer, Writer},
    plan::{GetKind, NodeNumber, Pick},
    world::program::{Finished, Running},
};

/// A command that has not ended.
#[derive(Debug)]
pub(super) struct Pending {
    running: Running,
    pub(super) node: NodeNumber,
    /// How often the machine had lost state before.
    losses: u32,
    request: Request,
    is_interrupted: bool,
}

/// What a command asked for.
#[derive(Debug, Clone)]
enum Request {
    Share(PathBuf),
    Unshare(PathBuf),
    Get {
        edition: Edition,
        path: PathBuf,
        kind: GetKind,
    },
    /// A change of a transfer.
    Change {
        number: u64,
        verb: &'static str,
    },
    Limits,
}

impl Request {
    fn path(&self) -> Option<&Path> {
        match self {
            Self::Share(path) | Self::Unshare(path) | Self::Get { path, .. } => Some(path),
            Self::Change { .. } | Self::Limits => None,
        }
    }
}

impl Round {
    /// Whether a command that runs uses this path.
    pub(super) fn is_busy(&self, node: NodeNumber, path: &Path) -> bool {
        let mut pending = self.pending.iter();
        pending.any(|pending| pending.node == node && pending.request.path() == Some(path))
    }

    fn start(&mut self, node: NodeNumber, args: &[&str], request: Request) -> anyhow::Result<()> {
        let mut command = self.world.peer_command(node, args);
        self.start_command(node, &mut command, request)
    }

    fn start_command(
        &mut self,
        node: NodeNumber,
        command: &mut std::process::Command,
        request: Request,
    ) -> anyhow::Result<()> {
        self.pending.push(Pending {
            running: self.world.spawn(command)?,
            node,
            losses: self.world.nodes[node].losses,
            request,
            is_interrupted: false,
        });
        Ok(())
    }

    pub(super) fn start_share(&mut self, node: NodeNumber, path: &Path) -> anyhow::Result<()> {
        let text = path.to_str().context("the path is UTF-8")?;
        self.start(
            node,
            &["share", text, "--wait", "3s"],
            Request::Share(path.to_owned()),
        )
    }

    pub(super) fn unshare(
        &mut self,
        node: NodeNumber,
        pick: Pick,
    ) -> anyhow::Result<Result<(), Skipped>> {
        let Some(path) = self.pick_place(node, pick, |place| place.shared != Shared::No) else {
            return Ok(Err(Skipped("nothing is shared")));
        };
        if self.is_busy(node, &path) {
            return Ok(Err(Skipped("a command uses the path")));
        }
        let text = path.to_str().context("the path is UTF-8")?;
        self.start(node, &["unshare", text], Request::Unshare(path.clone()))?;
        Ok(Ok(()))
    }

    pub(super) fn get(
        &mut self,
        node: NodeNumber,
        pick: Pick,
        kind: GetKind,
        limit: u64,
    ) -> anyhow::Result<Result<(), Skipped>> {
        let ids: Vec<(Edition, String)> = self.model.ids.clone().into_iter().collect();
        if ids.is_empty() {
            return Ok(Err(Skipped("nothing was ever shared")));
        }
        // Rather the newest editions: they are shared.
        let (edition, id) = ids[pick as usize % ids.len()].clone();
        let kind = match kind {
            GetKind::Chosen if !edition.is_folder() => GetKind::Detached,
            kind => kind,
        };
        let path = match kind {
            GetKind::IntoFilesFolder => self.world.home(node).join("files").join(edition.name()),
            GetKind::Chosen => {
                let name = format!("{}-{}-chosen", edition.name(), edition.number);
                self.world.on_disk(node, "out").join(name)
            }
            GetKind::Alone => {
                let name = format!("{}-{}-alone", edition.name(), edition.number);
                self.world.on_disk(node, "out").join(name)
            }
            GetKind::Detached | GetKind::Followed => {
                let name = format!("{}-{}", edition.name(), edition.number);
                self.world.on_disk(node, "out").join(name)
            }
        };
        if self.is_busy(node, &path) {
            return Ok(Err(Skipped("a command uses the path")));
        }
        let is_chosen = kind == GetKind::Chosen;
        let target = (edition, is_chosen);
        let peer = self.model.peer(node);
        if kind != GetKind::IntoFilesFolder || !peer.places.contains_key(&path) {
            // A target in the files folder may belong to another edition.
            if peer.targets.get(&path).is_some_and(|known| *known != target) {
                return Ok(Err(Skipped("another download uses the path")));
            }
            peer.targets.insert(path.clone(), target);
        }
        let is_free = !peer.places.contains_key(&path) && !path.exists();
        let is_free = is_free && !self.world.nodes[node].is_failing;
        if pick.is_multiple_of(13) && is_free && kind != GetKind::IntoFilesFolder {
            // Somebody else's file is in the way. Other bytes: the same ones would count as done.
            let dish = if edition.dish == 1 { 2 } else { 1 };
            let other = Edition { dish, number: 0 };
            if other.write(&path).is_ok() {
                let place = Place {
                    edition: other,
                    writer: Writer::User,
                    shared: Shared::No,
                    is_removed: false,
                };
                peer.places.insert(path.clone(), place);
            }
        }
        let text = path.to_str().context("the path is UTF-8")?.to_owned();
        let limit = format!("{limit}KiB");
        let mut args = vec!["get", &id, "--limit", &limit, "--wait", "12s"];
        match kind {
            GetKind::Detached => args.extend(["-o", &text, "--detach"]),
            GetKind::IntoFilesFolder => args.push("--detach"),
            GetKind::Followed | GetKind::Alone => args.extend(["-o", &text]),
            GetKind::Chosen => {
                args.extend(["-o", &text, "--detach", "--include", Edition::CHOSEN]);
            }
        }
        let request = Request::Get { edition, path, kind };
        if kind == GetKind::Alone {
            let mut command = self.world.command(node, &args);
            // The peer of the machine needs its port again.
            command.args(["--json", "--listen", "127.0.0.1:0"]);
            if !self.world.is_tls {
                command.args(["--index", &self.world.index()]);
            }
            self.start_command(node, &mut command, request)?;
        } else {
            self.start(node, &args, request)?;
        }
        Ok(Ok(()))
    }

    pub(super) fn change_transfer(
        &mut self,
        node: NodeNumber,
        pick: Pick,
        verb: &'static str,
    ) -> anyhow::Result<Result<(), Skipped>> {
        let transfers = &mut self.model.peer(node).transfers;
        let numbers: Vec<u64> = transfers
            .iter()
            .filter(|(_, transfer)| !transfer.has_ended)
            .map(|(number, _)| *number)
            .collect();
        let Some(number) = numbers.get(pick as usize % numbers.len().max(1)).copied() else {
            return Ok(Err(Skipped("there is no transfer")));
        };
        if verb == "cancel"
            && let Some(transfer) = transfers.get_mut(&number)
        {
            transfer.may_be_cancelled = true;
        }
        let args = ["transfers", verb, &number.to_string()];
        self.start(node, &args, Request::Change { number, verb })?;
        Ok(Ok(()))
    }

    pub(super) fn limit(
        &mut self,
        node: NodeNumber,
        up: u64,
        down: u64,
    ) -> anyhow::Result<Result<(), Skipped>> {
        let (up, down) = (format!("{up}KiB"), format!("{down}KiB"));
        let args = ["limits", "--upload", &up, "--download", &down];
        self.start(node, &args, Request::Limits)?;
        Ok(Ok(()))
    }

    pub(super) fn interrupt(&mut self, node: NodeNumber, pick: Pick) -> Result<(), Skipped> {
        let mut own: Vec<&mut Pending> = self
            .pending
            .iter_mut()
            .filter(|pending| pending.node == node)
            .collect();
        let len = own.len().max(1);
        let Some(pending) = own.get_mut(pick as usize % len) else {
            return Err(Skipped("no command runs"));
        };
        pending.running.signal(Signal::INT);
        pending.is_interrupted = true;
        Ok(())
    }

    /// The id of a folder, as the command line computes it.
    pub(super) fn folder_id(&self, edition: Edition) -> anyhow::Result<String> {
        let path = self
            .world
            .scratch()
            .join(format!("{}-{}", edition.name(), edition.number));
        edition.write(&path)?;
        let text = path.to_str().context("the path is UTF-8")?;
        let command = &mut self.world.command(1, &["id", text, "--json"]);
        let finished = self.world.run(command)?;
        ensure!(finished.code == Some(0), "potluck id: {}", finished.errors);
        let object = finished.objects.first().context("potluck id prints an object")?;
        Ok(object["id"].as_str().context("an id")?.to_owned())
    }

    /// Records the servers and commands that have ended.
    pub(super) fn poll(&mut self) -> anyhow::Result<()> {
        for node in 0..self.world.nodes.len() {
            self.poll_server(node)?;
        }
        let mut at = 0;
        while at < self.pending.len() {
            match self.pending[at].running.poll()? {
                None => at += 1,
                Some(finished) => {
                    let pending = self.pending.remove(at);
                    self.apply(&pending, &finished);
                }
            }
        }
        Ok(())
    }

    /// Ends the commands of a machine that loses its power. The peer may have carried out each of
    /// them, or not.
    pub(super) fn end_commands_of(&mut self, node: NodeNumber) {
        let (lost, kept) = std::mem::take(&mut self.pending)
            .into_iter()
            .partition(|pending| pending.node == node);
        self.pending = kept;
        let lost: Vec<Pending> = lost;
        for Pending { request, .. } in lost {
            self.note(format!("  peer {node}: {request:?}: lost with the power"));
            if let Request::Share(path) | Request::Unshare(path) = &request {
                self.model.lose_answer(node, path);
            }
        }
    }

    /// The commands that run, with their age.
    pub(super) fn running_commands(&self) -> Vec<String> {
        let describe = |pending: &Pending| {
            format!(
                "peer {}: {:?} since {:.1} s",
                pending.node,
                pending.request,
                pending.running.age().as_secs_f64()
            )
        };
        self.pending.iter().map(describe).collect()
    }

    /// Learns from what a command reported.
    fn apply(&mut self, pending: &Pending, finished: &Finished) {
        let node = pending.node;
        let is_done = finished.code == Some(0);
        let outcome = match finished.code {
            Some(0) => "done".to_owned(),
            Some(code) => format!("exit {code}, {}", finished.error()),
            None => "ended by a signal".to_owned(),
        };
        self.note(format!("  peer {node}: {:?}: {outcome}", pending.request));
        let is_crash = match finished.code {
            Some(code) => !matches!(code, 0..=5 | 130),
            None => !pending.is_interrupted,
        };
        if is_crash || finished.errors.contains("panicked") || finished.error() == "internal" {
            self.violation(format!(
                "a command of peer {node} failed: {:?}: {outcome}: {}",
                pending.request, finished.errors
            ));
        }
        let is_certain = pending.losses == self.world.nodes[node].losses;
        let yes = if is_certain { Shared::Yes } else { Shared::Perhaps };
        let no = if is_certain { Shared::No } else { Shared::Perhaps };
        match &pending.request {
            Request::Share(path) => {
                if let Some(place) = self.model.peer(node).places.get_mut(path) {
                    place.shared = if is_done { yes } else { Shared::Perhaps };
                }
            }
            Request::Unshare(path) => {
                if let Some(place) = self.model.peer(node).places.get_mut(path) {
                    place.shared = if is_done { no } else { Shared::Perhaps };
                }
            }
            Request::Get { edition, path, kind } if is_done => {
                let Some(object) = finished.objects.last() else {
                    return self.violation("a download reported nothing");
                };
                self.learn_download(node, *edition, path, *kind, object, yes);
            }
            Request::Change { number, verb } if is_done && *verb == "cancel" && is_certain => {
                if let Some(transfer) = self.model.peer(node).transfers.get_mut(number) {
                    transfer.has_ended = true;
                }
            }
            Request::Get { .. } | Request::Change { .. } | Request::Limits => {}
        }
    }

    fn learn_download(
        &mut self,
        node: NodeNumber,
        edition: Edition,
        path: &Path,
        kind: GetKind,
        object: &Value,
        shared: Shared,
    ) {
        let is_chosen = kind == GetKind::Chosen;
        if object["event"] == "done" {
            self.figures.downloads += 1;
            let shared = match kind {
                GetKind::Alone | GetKind::Chosen => Shared::No,
                _ => shared,
            };
            self.downloaded(node, edition, path, is_chosen, shared);
        } else if let Some(number) = object["transfer"].as_u64()
            && shared == Shared::Yes
        {
            let transfer = Transfer {
                edition,
                path: path.to_owned(),
                is_chosen,
                has_ended: false,
                may_be_cancelled: false,
            };
            self.model.peer(node).transfers.insert(number, transfer);
        }
    }

    /// A download is done: its target is complete.
    pub(super) fn downloaded(
        &mut self,
        node: NodeNumber,
        edition: Edition,
        path: &Path,
        is_chosen: bool,
        shared: Shared,
    ) {
        let is_there = match is_chosen {
            true => edition.is_chosen_at(path),
            false => edition.is_at(path),
        };
        let places = &mut self.model.peer(node).places;
        match places.get_mut(path) {
            // The user may have removed it or changed it since.
            Some(place) if place.is_removed || place.edition != edition => {
                if is_there {
                    *place = Place {
                        edition,
                        writer: Writer::Peer,
                        shared,
                        is_removed: false,
                    };
                }
            }
            Some(_) => {}
            None => {
                let place = Place {
                    edition,
                    writer: Writer::Peer,
                    shared,
                    is_removed: false,
                };
                places.insert(path.to_owned(), place);
            }
        }
        if !is_there && !self.model.peer(node).places[path].is_removed {
            self.violation(format!(
                "peer {node}: a download is done, but {} is not {edition:?}",
                path.display()
            ));
        }
    }
}
