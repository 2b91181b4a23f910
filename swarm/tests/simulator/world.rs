//! A seeded world with virtual time: every downloader runs the real [`Swarm`]; links carry chunks.
//!
//! An uplink serves its flows in turn, one chunk each. A chunk takes its time there, then the
//! delay, then its time in the receiver's downlink, first come, first served. A pair of nodes has a
//! window of bytes in transit, so a full downlink slows its senders and their uplinks serve others:
//! close to fair sharing, and no link idles while it has work.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap},
    rc::Rc,
    time::Duration,
};

use potluck_core::{availability::Availability, bitfield::Bitfield, model::Distance};
use potluck_swarm::{Action, Failure, PeerKey, RequestId, Swarm, Time};
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

use crate::{
    links::Flow,
    node::{Node, Start},
    setup::{Setup, neighbours},
};

#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) have: Vec<u32>,
    pub(crate) fetching: Vec<u32>,
    pub(crate) abandoned: Vec<u32>,
}

#[derive(Debug)]
pub(crate) enum Event {
    Join(usize),
    Leave(usize, bool),
    Stall(usize, bool),
    Refuse(usize, bool),
    Wake(usize),
    Announce(usize),
    UnitRead(usize),
    Readmit(usize, usize),
    Announcement {
        from: usize,
        to: usize,
        visit: u32,
        change: Rc<Change>,
    },
    RequestArrived(usize),
    Cancelled(usize),
    Failed(usize, Failure),
    UplinkFree(usize),
    /// A request of this node may go on.
    Paced(usize),
    AtDownlink(usize, u64),
    Delivered(usize, u64),
}

struct Timed(Reverse<(u64, u64)>, Event);

impl PartialEq for Timed {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}
impl Eq for Timed {}
impl PartialOrd for Timed {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Timed {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}

pub(crate) struct World {
    pub(crate) setup: Setup,
    pub(crate) nodes: Vec<Node>,
    pub(crate) flows: Vec<Flow>,
    pub(crate) flow_of: BTreeMap<(usize, RequestId), usize>,
    /// Bytes in transit between two nodes, including those of cancelled requests.
    pub(crate) in_transit: HashMap<(usize, usize), u64>,
    events: BinaryHeap<Timed>,
    pub(crate) now: u64,
    pub(crate) sequence: u64,
    pub(crate) rng: Xoshiro256PlusPlus,
    pub(crate) event_count: u64,
}

pub(crate) const fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

pub(crate) fn nanos(seconds: f64) -> u64 {
    (seconds * 1e9) as u64
}

impl World {
    pub(crate) fn new(setup: Setup, seed: u64) -> Self {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let count = setup.nodes.len();
        let units = setup.unit_count();
        let mut nodes = Vec::new();
        for (index, spec) in setup.nodes.iter().enumerate() {
            let mut have = match spec.start {
                Start::All => Bitfield::full(units),
                _ => Bitfield::new(units),
            };
            if let Start::Share(share) = spec.start {
                for unit in 0..units {
                    have.set(unit, rng.random_bool(share));
                }
            }
            let swarm = spec.downloads.then(|| {
                let config = setup.config.clone();
                let swarm = Swarm::new(config, setup.units.clone(), have.clone(), rng.random());
                match spec.reads {
                    Some((window, _)) => swarm.in_order(window),
                    None => swarm,
                }
            });
            let neighbours = neighbours(index, &setup, count, &mut rng);
            nodes.push(Node {
                spec: spec.clone(),
                neighbours,
                swarm,
                announced: (have.clone(), Bitfield::new(units)),
                have,
                from_origin: Bitfield::new(units),
                announce_pending: false,
                uploading: Bitfield::new(units),
                online: false,
                stalled: false,
                refuses: false,
                visit: 0,
                uploads: Vec::new(),
                sending: false,
                paced_until: None,
                down_free: 0,
                sent_bytes: 0,
                sent_to_zones: 0,
                sent_to_racks: 0,
                sent_units: vec![0; units as usize],
                wake: None,
                finished: None,
                banned: Vec::new(),
                read_units: 0,
                is_reading: false,
                requests_made: 0,
            });
        }
        // Neighbours know each other.
        for a in 0..count {
            for b in nodes[a].neighbours.clone() {
                if !nodes[b].neighbours.contains(&a) {
                    nodes[b].neighbours.push(a);
                }
            }
        }
        let mut world = Self {
            setup,
            nodes,
            flows: Vec::new(),
            flow_of: BTreeMap::new(),
            in_transit: HashMap::new(),
            events: BinaryHeap::new(),
            now: 0,
            sequence: 0,
            rng,
            event_count: 0,
        };
        for index in 0..count {
            let spec = world.nodes[index].spec.clone();
            world.at(spec.joins, Event::Join(index));
            if let Some((at, lasts)) = spec.stall {
                world.at(at, Event::Stall(index, true));
                world.at(at + lasts, Event::Stall(index, false));
            }
            if let Some((at, lasts)) = spec.refuses {
                world.at(at, Event::Refuse(index, true));
                world.at(at + lasts, Event::Refuse(index, false));
            }
            if let Some(at) = spec.dies {
                world.at(at, Event::Leave(index, true));
            }
            if let Some(every) = spec.flaps {
                let first = every * world.rng.random_range(0.5..1.5);
                world.at(first, Event::Leave(index, false));
            }
        }
        world
    }

    /// Runs until every downloader is done or the limit is reached. Returns the seconds.
    pub(crate) fn run(&mut self) -> f64 {
        while !self.is_done() && seconds(self.now) < self.setup.limit {
            let Some(Timed(Reverse((at, _)), event)) = self.events.pop() else {
                break;
            };
            self.now = at;
            self.event_count += 1;
            self.handle(event);
        }
        seconds(self.now)
    }

    pub(crate) fn is_done(&self) -> bool {
        // Nodes that die do not count.
        self.nodes
            .iter()
            .all(|node| node.swarm.is_none() || node.finished.is_some() || node.spec.dies.is_some())
    }

    fn at(&mut self, seconds: f64, event: Event) {
        self.push(nanos(seconds), event);
    }

    pub(crate) fn after(&mut self, seconds: f64, event: Event) {
        self.push(self.now + nanos(seconds), event);
    }

    pub(crate) fn push(&mut self, at: u64, event: Event) {
        self.sequence += 1;
        self.events.push(Timed(Reverse((at, self.sequence)), event));
    }

    fn time(&self) -> Time {
        Duration::from_nanos(self.now)
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Join(node) => self.join(node),
            Event::Leave(node, for_good) => self.leave(node, for_good),
            Event::Stall(node, stalled) => {
                self.nodes[node].stalled = stalled;
                self.send_next(node);
            }
            Event::Refuse(node, refuses) => self.nodes[node].refuses = refuses,
            Event::Wake(node) => {
                if self.nodes[node].wake == Some(self.now) {
                    self.nodes[node].wake = None;
                    self.notify_swarm(node, |swarm, now| swarm.handle_timeout(now));
                }
            }
            Event::Readmit(node, peer) => {
                if self.nodes[node].online && self.nodes[peer].online {
                    self.introduce(peer, node);
                }
            }
            Event::Announce(node) => self.announce(node),
            Event::UnitRead(node) => {
                let reader = &mut self.nodes[node];
                (reader.read_units, reader.is_reading) = (reader.read_units + 1, false);
                let (window, _) = reader.spec.reads.expect("it is a reader");
                let end = reader.read_units + window;
                self.notify_swarm(node, |swarm, _| swarm.extend_window(end));
            }
            Event::Announcement {
                from,
                to,
                visit,
                change,
            } => {
                if self.nodes[from].visit == visit {
                    self.notify_swarm(to, |swarm, now| {
                        let Change {
                            have,
                            fetching,
                            abandoned,
                        } = &*change;
                        swarm.availability_changed(key(from), have, fetching, abandoned, now);
                    });
                }
            }
            Event::RequestArrived(flow) => self.request_arrived(flow),
            Event::Cancelled(flow) => self.end_upload(flow),
            Event::Failed(flow, failure) => {
                let Flow { to, id, .. } = self.flows[flow];
                self.end_upload(flow);
                if self.flow_of.remove(&(to, id)).is_some() {
                    self.notify_swarm(to, |swarm, now| swarm.failed(id, failure, now));
                }
            }
            Event::UplinkFree(node) => {
                self.nodes[node].sending = false;
                self.send_next(node);
            }
            Event::Paced(node) => {
                if self.nodes[node].paced_until == Some(self.now) {
                    self.nodes[node].paced_until = None;
                    self.send_next(node);
                }
            }
            Event::AtDownlink(flow, bytes) => {
                let node = &mut self.nodes[self.flows[flow].to];
                let takes = nanos(bytes as f64 / node.spec.down);
                node.down_free = node.down_free.max(self.now) + takes;
                let at = node.down_free;
                self.push(at, Event::Delivered(flow, bytes));
            }
            Event::Delivered(flow, bytes) => self.delivered(flow, bytes),
        }
    }

    fn join(&mut self, node: usize) {
        self.nodes[node].online = true;
        self.nodes[node].visit += 1;
        if let Some(every) = self.nodes[node].spec.flaps
            && self.nodes[node].visit > 1
        {
            self.after(every, Event::Leave(node, false));
        }
        for other in self.nodes[node].neighbours.clone() {
            if self.nodes[other].online {
                self.introduce(node, other);
                self.introduce(other, node);
            }
        }
        self.drive(node);
    }

    /// Announces `from` and its availability to `to`.
    fn introduce(&mut self, from: usize, to: usize) {
        if self.nodes[to].swarm.is_none() {
            return;
        }
        let (mut have, fetching) = self.nodes[from].announced.clone();
        let false_claims = self.nodes[from].spec.false_claims;
        if false_claims > 0.0 {
            for unit in 0..self.setup.unit_count() {
                if self.rng.random_bool(false_claims) {
                    have.set(unit, true);
                }
            }
        }
        let fetching = if have.is_full() {
            Bitfield::new(self.setup.unit_count())
        } else {
            fetching
        };
        let delay = self.setup.delay;
        let is_origin = self.nodes[from].spec.is_origin;
        let distance = self.distance(from, to);
        self.notify_swarm(to, |swarm, now| {
            if is_origin {
                swarm.reserve_joined(key(from), now);
                swarm.round_trip(key(from), Duration::from_secs_f64(2.0 * delay));
                return;
            }
            swarm.peer_joined(key(from), now);
            swarm.set_distance(key(from), distance);
            swarm.round_trip(key(from), Duration::from_secs_f64(2.0 * delay));
            swarm.availability(key(from), &Availability { have, fetching }, now);
        });
    }

    /// How near `from` is to `to`, if the swarm uses labels.
    fn distance(&self, from: usize, to: usize) -> Distance {
        match self.setup.uses_labels {
            true => self.nodes[to]
                .spec
                .labels
                .distance_to(&self.nodes[from].spec.labels),
            false => Distance::Rack,
        }
    }

    fn leave(&mut self, node: usize, for_good: bool) {
        self.nodes[node].online = false;
        self.nodes[node].visit += 1;
        for flow in self.nodes[node].uploads.clone() {
            self.after(self.setup.delay, Event::Failed(flow, Failure::Disconnected));
        }
        for other in self.nodes[node].neighbours.clone() {
            if self.nodes[other].online {
                self.notify_swarm(other, |swarm, now| swarm.peer_left(key(node), now));
                self.notify_swarm(node, |swarm, now| swarm.peer_left(key(other), now));
            }
        }
        if let (Some(every), false) = (self.nodes[node].spec.flaps, for_good) {
            self.after(every, Event::Join(node));
        }
    }

    pub(crate) fn notify_swarm(&mut self, node: usize, event: impl FnOnce(&mut Swarm, Time)) {
        let now = self.time();
        if let Some(swarm) = &mut self.nodes[node].swarm {
            event(swarm, now);
            self.drive(node);
        }
    }

    /// Executes the actions of a node's swarm and schedules its next timeout.
    fn drive(&mut self, index: usize) {
        let now = self.time();
        if let Some((min, max)) = self.setup.budgets
            && let Some(swarm) = &mut self.nodes[index].swarm
            && self.rng.random_bool(0.1)
        {
            let units = self.rng.random_range(min..=max);
            swarm.set_max_in_flight_bytes(units * self.setup.longest_unit());
        }
        while let Some(action) = self.nodes[index]
            .swarm
            .as_mut()
            .and_then(|swarm| swarm.poll_action(now))
        {
            match action {
                Action::Request { id, peer, unit } => {
                    let node = &self.nodes[index];
                    if let Some((window, _)) = node.spec.reads {
                        assert!(unit < node.read_units + window, "unit {unit} is in the window");
                    }
                    self.request(index, id, peer.0 as usize, unit);
                }
                Action::Cancel { id } => {
                    if let Some(flow) = self.flow_of.remove(&(index, id)) {
                        self.after(self.setup.delay, Event::Cancelled(flow));
                    }
                }
                Action::Ban { peer, .. } => {
                    let peer = peer.0 as usize;
                    assert!(
                        self.nodes[peer].spec.corrupt > 0.0,
                        "node {peer} is banned although it never sent a bad byte"
                    );
                    assert!(
                        !self.nodes[index].banned.contains(&peer),
                        "no peer is banned twice at a time"
                    );
                    self.nodes[index].banned.push(peer);
                }
                // As if the index returned the peer again.
                Action::Forget { peer } => self.after(10.0, Event::Readmit(index, peer.0 as usize)),
                Action::Readmit { peer } => {
                    let peer = peer.0 as usize;
                    assert!(self.nodes[index].banned.contains(&peer), "node {peer} was banned");
                    self.nodes[index].banned.retain(|&other| other != peer);
                    self.after(self.setup.delay, Event::Readmit(index, peer));
                }
                Action::Finished => self.nodes[index].finished = Some(self.now),
            }
        }
        self.read(index);
        let node = &mut self.nodes[index];
        let Some(swarm) = &node.swarm else { return };
        if let Some(at) = swarm.poll_timeout() {
            let at = (at.as_nanos() as u64).max(self.now);
            if node.wake.is_none_or(|wake| wake > at || wake < self.now) {
                node.wake = Some(at);
                self.push(at, Event::Wake(index));
            }
        }
        let node = &mut self.nodes[index];
        if let Some(swarm) = &node.swarm
            && (*swarm.have() != node.announced.0 || *swarm.fetching() != node.announced.1)
        {
            self.announce_soon(index, self.setup.announce_interval);
        }
    }

    /// Begins to read the next unit, if the node is a reader and has it.
    fn read(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let (Some((_, seconds)), Some(swarm)) = (node.spec.reads, &node.swarm) else {
            return;
        };
        if !node.is_reading && swarm.have().get(node.read_units) {
            node.is_reading = true;
            self.after(seconds, Event::UnitRead(index));
        }
    }

    /// Schedules an announcement after this many seconds, to collect more changes.
    pub(crate) fn announce_soon(&mut self, index: usize, seconds: f64) {
        if !std::mem::replace(&mut self.nodes[index].announce_pending, true) {
            self.after(seconds, Event::Announce(index));
        }
    }

    /// A node announces its changes to its neighbours.
    fn announce(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        node.announce_pending = false;
        let (have, fetching) = match &node.swarm {
            Some(swarm) if node.spec.is_provisional => {
                (node.from_origin.clone(), swarm.fetching().clone())
            }
            Some(swarm) => (swarm.have().clone(), swarm.fetching().clone()),
            None => (node.have.clone(), node.uploading.clone()),
        };
        let is_seed = node.swarm.is_none();
        let added = |new: &Bitfield, old: &Bitfield| {
            let is_new = |&unit: &u32| !old.get(unit);
            new.ones().filter(is_new).collect()
        };
        let change = Change {
            have: added(&have, &node.announced.0),
            fetching: added(&fetching, &node.announced.1),
            abandoned: node
                .announced
                .1
                .ones()
                .filter(|&unit| !fetching.get(unit) && (is_seed || !have.get(unit)))
                .collect(),
        };
        node.announced = (have, fetching);
        self.broadcast(index, change);
    }

    pub(crate) fn broadcast(&mut self, from: usize, change: Change) {
        let change = Rc::new(change);
        let visit = self.nodes[from].visit;
        for to in self.nodes[from].neighbours.clone() {
            let receiver = &self.nodes[to];
            let is_downloading = receiver.swarm.is_some() && receiver.finished.is_none();
            if is_downloading && self.nodes[from].online {
                self.after(
                    self.setup.delay,
                    Event::Announcement {
                        from,
                        to,
                        visit,
                        change: Rc::clone(&change),
                    },
                );
            }
        }
    }
}

const fn key(node: usize) -> PeerKey {
    PeerKey(node as u64)
}
