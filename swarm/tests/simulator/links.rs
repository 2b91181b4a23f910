//! Uplinks, downlinks, and the units that they carry.

use potluck_swarm::{Failure, RequestId};
use rand::RngExt;

use crate::world::{Event, World, nanos, seconds};

const CHUNK: u64 = 64 * 1024;

/// An upload with more than this many bytes left counts as large.
const LARGE: u64 = 1024 * 1024;

#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) id: RequestId,
    pub(crate) unit: u32,
    pub(crate) to_send: u64,
    pub(crate) to_receive: u64,
    pub(crate) corrupt: bool,
    pub(crate) dead: bool,
    pub(crate) has_started: bool,
    pub(crate) served: u64,
    /// When it may send the next chunk, if each request has a rate.
    pub(crate) next_at: u64,
    /// Bytes that are left when it breaks off.
    pub(crate) cut_at: Option<u64>,
}

impl World {
    /// Sends a request to its peer.
    pub(crate) fn request(&mut self, to: usize, id: RequestId, from: usize, unit: u32) {
        assert!(
            !self.nodes[to].banned.contains(&from),
            "a banned peer gets a request"
        );
        assert!(!self.nodes[to].have.get(unit), "unit {unit} is requested again");
        let spec = &self.nodes[from].spec;
        let corrupts = spec.corrupt > 0.0 && seconds(self.now) < spec.corrupts_until;
        let corrupt = corrupts && self.rng.random_bool(spec.corrupt);
        let is_cut = spec.cuts > 0.0 && self.rng.random_bool(spec.cuts);
        self.nodes[to].requests_made += 1;
        let len = self.setup.units[unit as usize];
        let flow = Flow {
            from,
            to,
            id,
            unit,
            to_send: len,
            to_receive: len,
            corrupt,
            dead: false,
            has_started: false,
            served: 0,
            next_at: 0,
            cut_at: is_cut.then_some(len / 2),
        };
        self.flows.push(flow);
        self.flow_of.insert((to, id), self.flows.len() - 1);
        self.after(self.setup.delay, Event::RequestArrived(self.flows.len() - 1));
    }

    /// A request arrived at its peer.
    pub(crate) fn request_arrived(&mut self, flow: usize) {
        let Flow { from, unit, dead, .. } = self.flows[flow];
        if dead {
            return;
        }
        let count = |is: &dyn Fn(&Flow) -> bool| {
            let uploads = self.nodes[from].uploads.iter();
            uploads.filter(|index| is(&self.flows[**index])).count()
        };
        let waiting = count(&|flow| !flow.has_started);
        let large = count(&|flow| flow.to_send >= LARGE);
        let is_large = self.setup.units[unit as usize] >= LARGE;
        let node = &mut self.nodes[from];
        let failure = if !node.online {
            Some(Failure::Disconnected)
        } else if node.refuses || !node.servable().get(unit) {
            Some(Failure::NotAvailable)
        } else if node.uploads.len() >= node.spec.slots
            || waiting >= node.spec.max_waiting
            || is_large && large >= self.setup.max_large && node.sending
        {
            Some(Failure::Busy {
                retry_after: self.setup.retry_after,
            })
        } else {
            None
        };
        if let Some(failure) = failure {
            return self.after(self.setup.delay, Event::Failed(flow, failure));
        }
        node.uploads.push(flow);
        if node.spec.announces_uploads {
            node.uploading.set(unit, true);
            self.announce_soon(from, self.setup.seed_announce_interval);
        }
        self.send_next(from);
    }

    /// Sends the next chunk of the upload whose turn it is.
    pub(crate) fn send_next(&mut self, from: usize) {
        if self.nodes[from].sending || self.nodes[from].stalled || !self.nodes[from].online {
            return;
        }
        let up = self.nodes[from].spec.up;
        let delay = self.setup.delay;
        let room = |to: usize| {
            let window = 4 * CHUNK + (up.min(self.nodes[to].spec.down) * 2.0 * delay) as u64;
            self.in_transit
                .get(&(from, to))
                .is_none_or(|&bytes| bytes < window)
        };
        let streams = self.setup.streams;
        let (flows, now) = (&self.flows, self.now);
        let ready = self.nodes[from]
            .uploads
            .iter()
            .copied()
            .filter(|&index| flows[index].to_send > 0 && room(flows[index].to))
            .take(streams);
        let next = ready
            .clone()
            .filter(|&index| flows[index].next_at <= now)
            .min_by_key(|&index| flows[index].served);
        let Some(index) = next else {
            let at = ready.map(|index| flows[index].next_at).min();
            let before = self.nodes[from].paced_until;
            if let Some(at) = at.filter(|at| before.is_none_or(|before| *at < before)) {
                self.nodes[from].paced_until = Some(at);
                self.push(at, Event::Paced(from));
            }
            return;
        };
        let request_rate = self.nodes[from].spec.request_rate;
        let flow = &mut self.flows[index];
        if flow.cut_at.is_some_and(|left| flow.to_send <= left) {
            flow.to_send = 0;
            self.after(self.setup.delay, Event::Failed(index, Failure::Disconnected));
            return self.send_next(from);
        }
        if request_rate.is_finite() {
            flow.next_at = now + nanos(CHUNK as f64 / request_rate);
        }
        let bytes = CHUNK.min(flow.to_send);
        flow.to_send -= bytes;
        *self.in_transit.entry((from, flow.to)).or_default() += bytes;
        flow.served = self.sequence;
        if !std::mem::replace(&mut flow.has_started, true) {
            self.nodes[from].sent_units[flow.unit as usize] += 1;
        }
        let to = flow.to;
        self.nodes[from].sent_bytes += bytes;
        let (own, other) = (&self.nodes[from].spec.labels, &self.nodes[to].spec.labels);
        let (crosses_zone, crosses_rack) = (own.zone != other.zone, own != other);
        self.nodes[from].sent_to_zones += bytes * u64::from(crosses_zone);
        self.nodes[from].sent_to_racks += bytes * u64::from(crosses_rack);
        self.nodes[from].sending = true;
        let takes = bytes as f64 / up;
        self.after(takes, Event::UplinkFree(from));
        self.after(takes + self.setup.delay, Event::AtDownlink(index, bytes));
    }

    /// A chunk arrived at the downloader.
    pub(crate) fn delivered(&mut self, index: usize, bytes: u64) {
        let flow = &mut self.flows[index];
        flow.to_receive -= bytes;
        let Flow {
            from,
            to,
            id,
            unit,
            to_receive,
            corrupt,
            ..
        } = *flow;
        *self.in_transit.entry((from, to)).or_default() -= bytes;
        self.send_next(from);
        if to_receive == 0 {
            self.end_upload(index);
        }
        if !self.flow_of.contains_key(&(to, id)) {
            return;
        }
        self.notify_swarm(to, |swarm, now| swarm.progressed(id, bytes, now));
        if to_receive > 0 || self.flow_of.remove(&(to, id)).is_none() {
            return;
        }
        if corrupt {
            self.notify_swarm(to, |swarm, now| swarm.corrupt(id, now));
        } else {
            let is_from_origin = self.nodes[from].spec.is_origin;
            self.nodes[to].have.set(unit, true);
            self.nodes[to].from_origin.set(unit, is_from_origin);
            self.notify_swarm(to, |swarm, now| {
                assert!(swarm.verified(id, now), "a unit that was not cancelled is needed")
            });
        }
    }

    pub(crate) fn end_upload(&mut self, index: usize) {
        let flow = &mut self.flows[index];
        if std::mem::replace(&mut flow.dead, true) {
            return;
        }
        let (from, unit) = (flow.from, flow.unit);
        self.nodes[from].uploads.retain(|&other| other != index);
        let sending = self.nodes[from]
            .uploads
            .iter()
            .any(|&other| self.flows[other].unit == unit);
        if self.nodes[from].spec.announces_uploads && !sending {
            self.nodes[from].uploading.set(unit, false);
            self.announce_soon(from, self.setup.seed_announce_interval);
        }
    }
}
