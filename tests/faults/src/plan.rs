//! What a round does: a list of steps, made from the seed alone.
//!
//! A plan says nothing about what happens: a step that makes no sense when its turn comes, such as
//! pausing a transfer of a peer that has none, is skipped. So any part of a plan is a plan, and a
//! failing plan can be shortened by leaving steps out.

use std::{fmt, time::Duration};

use crate::random::Random;

/// The number of different contents that peers share.
pub(crate) const DISHES: u8 = 8;

/// A machine: 0 is that of the index, the others are those of the peers.
pub(crate) type NodeNumber = usize;

/// Chooses among what exists when the step's turn comes.
pub(crate) type Pick = u64;

/// How a file comes to be shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SharedFrom {
    /// A folder of the user, by the command `share`.
    Shelf,
    /// The peer's files folder.
    FilesFolder,
}

/// How a download is requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GetKind {
    /// The command returns at once.
    Detached,
    /// Into the files folder, and the command returns at once.
    IntoFilesFolder,
    /// The command waits for the end.
    Followed,
    /// Without the running peer.
    Alone,
    /// Only some files, if it is a folder.
    Chosen,
}

/// How a stored file is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Damage {
    /// It ends at this thousandth of its length.
    Truncate(u64),
    /// One bit changes at this thousandth.
    Flip(u64),
    /// 4 KiB of zeros at this thousandth.
    Zero(u64),
    /// 4 KiB of random bytes at this thousandth.
    Scramble(u64),
}

/// What a link does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinkFault {
    /// All packets are dropped. Neither end gets an error.
    Cut,
    /// This many of a hundred packets are lost.
    Loss(u64),
    /// Maximum kilobits per second.
    Rate(u64),
    /// Milliseconds that each packet takes longer.
    Delay(u64),
    /// One of this many packets arrives with a wrong byte at this offset and a matching checksum.
    Corrupt(u64, u64),
}

/// What happens in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Share(NodeNumber, u8, SharedFrom, Pick),
    Unshare(NodeNumber, Pick),
    /// The user writes other bytes into a file that it shares.
    Change(NodeNumber, Pick),
    /// The user removes a file.
    Remove(NodeNumber, Pick),
    /// A download; the last number is a limit in KiB per second, or 0.
    Get(NodeNumber, Pick, GetKind, u64),
    Pause(NodeNumber, Pick),
    Resume(NodeNumber, Pick),
    Cancel(NodeNumber, Pick),
    /// The user interrupts a command.
    Interrupt(NodeNumber, Pick),
    /// Upload and download limits in KiB per second; 0 for no limit.
    Limit(NodeNumber, u64, u64),
    /// `kill -9`.
    Kill(NodeNumber),
    /// SIGTERM.
    Terminate(NodeNumber),
    /// Starts a program that does not run.
    Start(NodeNumber),
    /// SIGSTOP.
    Freeze(NodeNumber),
    /// SIGCONT.
    Thaw(NodeNumber),
    /// `kill -9`, and the state is gone.
    LoseState(NodeNumber),
    /// `kill -9`, and a stored file is damaged.
    DamageState(NodeNumber, Pick, Damage),
    /// The store of the index is copied.
    CopyStore,
    /// `kill -9`, and the store of the index is the copy again.
    PutBackStore,
    /// The disk has this many KiB left.
    FillDisk(NodeNumber, u64),
    FreeDisk(NodeNumber),
    /// The disk fails: most writes to new places get EIO.
    FailDisk(NodeNumber),
    /// `kill -9`, and the disk works again.
    MendDisk(NodeNumber),
    /// The machine loses everything that was not synced.
    PowerCut(NodeNumber),
    Link(NodeNumber, LinkFault),
    MendLink(NodeNumber),
    /// The nodes whose bits are set cannot reach the others.
    Partition(u64),
    MendPartition,
    /// The machine gets another address.
    Move(NodeNumber),
}

/// One step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    /// Its number in the whole plan.
    pub(crate) number: usize,
    /// How long to wait before it.
    pub(crate) pause: Duration,
    /// What happens.
    pub(crate) action: Action,
}

/// The steps of one world, in phases: each ends with healing and with a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The phases.
    pub(crate) phases: Vec<Vec<Step>>,
}

/// The size of a plan.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PlanSize {
    /// Number of peers.
    pub(crate) peers: usize,
    /// Number of phases.
    pub(crate) phases: usize,
    /// Steps in each phase.
    pub(crate) steps: usize,
}

impl Plan {
    /// The plan of a seed.
    pub(crate) fn new(seed: u64, size: PlanSize) -> Self {
        let mut random = Random::new(seed);
        let mut number = 0;
        let mut phases = Vec::new();
        for phase in 0..size.phases {
            let mut steps = Vec::new();
            // Ends of faults, each with the step at which it is due.
            let mut ends: Vec<(usize, Action)> = Vec::new();
            // Something to download, before anything else.
            let first = if phase == 0 { 2 * size.peers } else { 0 };
            for at in 0..first + size.steps {
                let action = if at < first {
                    let from = match random.percent(75) {
                        true => SharedFrom::Shelf,
                        false => SharedFrom::FilesFolder,
                    };
                    let dish = random.below(DISHES.into()) as u8;
                    Action::Share(1 + at % size.peers, dish, from, random.next())
                } else if let Some(due) = ends.iter().position(|(step, _)| *step <= at) {
                    ends.remove(due).1
                } else {
                    let action = action(&mut random, size.peers);
                    if let Some(end) = action.end().filter(|_| random.percent(75)) {
                        ends.push((at + random.range(1, 9) as usize, end));
                    }
                    action
                };
                let pause = match random.below(10) {
                    0..3 => 0,
                    3..6 => random.below(80),
                    6..9 => random.below(600),
                    _ => random.below(2_500),
                };
                steps.push(Step {
                    number,
                    pause: Duration::from_millis(pause),
                    action,
                });
                number += 1;
            }
            phases.push(steps);
        }
        Self { phases }
    }

    /// The same plan with only these steps.
    pub(crate) fn only(mut self, keeps: impl Fn(usize) -> bool) -> Self {
        for phase in &mut self.phases {
            phase.retain(|step| keeps(step.number));
        }
        // A phase without steps would only heal what is whole.
        self.phases.retain(|phase| !phase.is_empty());
        self
    }
}

/// One action, each kind as often as it is worth.
fn action(random: &mut Random, peers: usize) -> Action {
    let peer = random.range(1, peers as u64 + 1) as NodeNumber;
    let node = random.below(peers as u64 + 1) as NodeNumber;
    let pick = random.next();
    match random.below(100) {
        0..9 => {
            let from = match random.percent(70) {
                true => SharedFrom::Shelf,
                false => SharedFrom::FilesFolder,
            };
            Action::Share(peer, random.below(DISHES.into()) as u8, from, pick)
        }
        9..36 => {
            let kind = *random.pick(&[
                GetKind::Detached,
                GetKind::Detached,
                GetKind::IntoFilesFolder,
                GetKind::Followed,
                GetKind::Followed,
                GetKind::Alone,
                GetKind::Chosen,
            ]);
            let limit = match random.percent(60) {
                true => 0,
                false => random.range(100, 6_000),
            };
            Action::Get(peer, pick, kind, limit)
        }
        36..39 => Action::Unshare(peer, pick),
        39..42 => Action::Change(peer, pick),
        42..45 => Action::Remove(peer, pick),
        45..48 => Action::Pause(peer, pick),
        48..51 => Action::Resume(peer, pick),
        51..53 => Action::Cancel(peer, pick),
        53..54 => Action::Interrupt(peer, pick),
        54..56 => {
            let limit = |random: &mut Random| match random.percent(30) {
                true => 0,
                false => random.range(50, 20_000),
            };
            Action::Limit(peer, limit(random), limit(random))
        }
        56..63 => Action::Kill(node),
        63..65 => Action::Terminate(node),
        65..68 => Action::Start(node),
        68..71 => Action::Freeze(node),
        71..73 => Action::Thaw(node),
        73..74 => Action::LoseState(node),
        74..76 => Action::DamageState(node, pick, damage(random)),
        76..80 => Action::FillDisk(node, random.below(300)),
        80..81 => Action::FreeDisk(node),
        81..82 => Action::FailDisk(node),
        82..87 => Action::PowerCut(node),
        87..93 => Action::Link(node, link_fault(random)),
        93..95 => Action::MendLink(node),
        95..97 => Action::Partition(random.below(1 << (peers + 1))),
        97..98 => Action::MendPartition,
        98..99 => Action::Move(peer),
        _ => Action::CopyStore,
    }
}

fn damage(random: &mut Random) -> Damage {
    let at = random.below(1_000);
    match random.below(4) {
        0 => Damage::Truncate(at),
        1 => Damage::Flip(at),
        2 => Damage::Zero(at),
        _ => Damage::Scramble(at),
    }
}

fn link_fault(random: &mut Random) -> LinkFault {
    match random.below(6) {
        0 => LinkFault::Cut,
        1 => LinkFault::Loss(random.range(1, 25)),
        2 => LinkFault::Rate(random.range(200, 20_000)),
        3 => LinkFault::Delay(random.range(20, 400)),
        _ => LinkFault::Corrupt(random.range(5, 200), random.range(20, 1_300)),
    }
}

impl Action {
    /// What ends this fault. Without it, healing does.
    const fn end(self) -> Option<Self> {
        match self {
            Self::Kill(node) | Self::Terminate(node) => Some(Self::Start(node)),
            Self::Freeze(node) => Some(Self::Thaw(node)),
            Self::FillDisk(node, _) => Some(Self::FreeDisk(node)),
            Self::FailDisk(node) => Some(Self::MendDisk(node)),
            Self::Link(node, _) => Some(Self::MendLink(node)),
            Self::Partition(_) => Some(Self::MendPartition),
            Self::CopyStore => Some(Self::PutBackStore),
            _ => None,
        }
    }
}

impl Action {
    /// The machine whose stored files this rewrites.
    pub(crate) const fn rewritten(self) -> Option<NodeNumber> {
        match self {
            Self::LoseState(node) | Self::DamageState(node, ..) | Self::FillDisk(node, _) => {
                Some(node)
            }
            Self::CopyStore | Self::PutBackStore => Some(0),
            _ => None,
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |node: &NodeNumber| match node {
            0 => "index".to_owned(),
            node => format!("peer {node}"),
        };
        match self {
            Self::Share(node, dish, SharedFrom::Shelf, _) => {
                write!(f, "{} shares dish {dish}", name(node))
            }
            Self::Share(node, dish, SharedFrom::FilesFolder, _) => {
                write!(f, "{}: dish {dish} is put into the files folder", name(node))
            }
            Self::Unshare(node, _) => write!(f, "{} unshares an item", name(node)),
            Self::Change(node, _) => write!(f, "{}: the user changes a file", name(node)),
            Self::Remove(node, _) => write!(f, "{}: the user removes a file", name(node)),
            Self::Get(node, _, kind, limit) => {
                let kind = match kind {
                    GetKind::Detached => "detached",
                    GetKind::IntoFilesFolder => "detached, into the files folder",
                    GetKind::Followed => "followed",
                    GetKind::Alone => "without its peer",
                    GetKind::Chosen => "chosen files",
                };
                write!(f, "{} gets a dish, {kind}, limit {limit} KiB/s", name(node))
            }
            Self::Pause(node, _) => write!(f, "{} pauses a transfer", name(node)),
            Self::Resume(node, _) => write!(f, "{} resumes a transfer", name(node)),
            Self::Cancel(node, _) => write!(f, "{} cancels a transfer", name(node)),
            Self::Interrupt(node, _) => write!(f, "{}: a command is interrupted", name(node)),
            Self::Limit(node, up, down) => {
                write!(
                    f,
                    "{} limits uploads to {up}, downloads to {down} KiB/s",
                    name(node)
                )
            }
            Self::Kill(node) => write!(f, "{} is killed", name(node)),
            Self::Terminate(node) => write!(f, "{} receives SIGTERM", name(node)),
            Self::Start(node) => write!(f, "{} is started", name(node)),
            Self::Freeze(node) => write!(f, "{} is frozen", name(node)),
            Self::Thaw(node) => write!(f, "{} goes on", name(node)),
            Self::LoseState(node) => write!(f, "{} is killed and loses its state", name(node)),
            Self::DamageState(node, _, damage) => {
                write!(f, "{} is killed and its state damaged: {damage:?}", name(node))
            }
            Self::CopyStore => write!(f, "the store of the index is copied"),
            Self::PutBackStore => write!(f, "the index is killed and has its old store"),
            Self::FillDisk(node, left) => {
                write!(f, "{}: the disk is filled up to {left} KiB", name(node))
            }
            Self::FreeDisk(node) => write!(f, "{}: the disk has room again", name(node)),
            Self::FailDisk(node) => write!(f, "{}: the disk fails", name(node)),
            Self::MendDisk(node) => write!(f, "{} is killed, and its disk works again", name(node)),
            Self::PowerCut(node) => write!(f, "{}: the power is cut", name(node)),
            Self::Link(node, fault) => write!(f, "{}: the link has {fault:?}", name(node)),
            Self::MendLink(node) => write!(f, "{}: the link is mended", name(node)),
            Self::Partition(nodes) => write!(f, "a partition around the nodes {nodes:b}"),
            Self::MendPartition => write!(f, "the partition ends"),
            Self::Move(node) => write!(f, "{} gets another address", name(node)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: PlanSize = PlanSize {
        peers: 4,
        phases: 3,
        steps: 30,
    };

    fn text(plan: &Plan) -> Vec<String> {
        let steps = plan.phases.iter().flatten();
        steps
            .map(|step| format!("{} {}", step.number, step.action))
            .collect()
    }

    #[test]
    fn the_same_seed_makes_the_same_plan() {
        for seed in 0..50 {
            assert_eq!(Plan::new(seed, SIZE), Plan::new(seed, SIZE));
            assert_ne!(Plan::new(seed, SIZE), Plan::new(seed + 1, SIZE));
        }
    }

    /// If this changes, seeds that were noted down mean something else.
    #[test]
    fn a_seed_keeps_its_plan() {
        let plan = text(&Plan::new(7, SIZE));
        assert_eq!(
            plan[..8],
            [
                "0 peer 1: dish 4 is put into the files folder",
                "1 peer 2 shares dish 6",
                "2 peer 3: dish 4 is put into the files folder",
                "3 peer 4: dish 7 is put into the files folder",
                "4 peer 1 shares dish 5",
                "5 peer 2 shares dish 2",
                "6 peer 3 shares dish 4",
                "7 peer 4 shares dish 0",
            ]
        );
    }

    #[test]
    fn a_shortened_plan_keeps_the_other_steps() {
        let whole = Plan::new(3, SIZE);
        let all: Vec<Step> = whole.phases.iter().flatten().copied().collect();
        let part = whole.clone().only(|number| (5..9).contains(&number));
        let left: Vec<Step> = part.phases.iter().flatten().copied().collect();
        assert_eq!(left, all[5..9]);
        assert_eq!(part.phases.len(), 1);
        assert_eq!(whole.clone().only(|_| true), whole);
    }

    #[test]
    fn every_kind_of_action_occurs() {
        let mut kinds = std::collections::BTreeSet::new();
        for seed in 0..60 {
            for step in Plan::new(seed, SIZE).phases.iter().flatten() {
                let text = format!("{:?}", step.action);
                kinds.insert(text.split(['(', ' ']).next().unwrap().to_owned());
            }
        }
        assert_eq!(kinds.len(), 29, "{kinds:?}");
    }

    #[test]
    fn peers_and_not_the_index_share_and_download() {
        for seed in 0..60 {
            for step in Plan::new(seed, SIZE).phases.iter().flatten() {
                if let Action::Share(node, dish, ..) = step.action {
                    assert!((1..=SIZE.peers).contains(&node) && dish < DISHES);
                }
                if let Action::Get(node, ..) | Action::Move(node) = step.action {
                    assert!((1..=SIZE.peers).contains(&node));
                }
            }
        }
    }
}
