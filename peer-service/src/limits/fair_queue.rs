//! A token bucket shared by several flows: its bytes go to the flows in proportion to their
//! priorities. Pure.
//!
//! The algorithm is start-time fair queueing (Goyal, Vin and Cheng, 1996). A flow has a virtual
//! time; each dispatched request advances it by the request's bytes divided by the flow's priority.
//! Of the flows with waiting requests, the one with the earliest virtual time is next. A flow is
//! charged when a request is dispatched, not when it is enqueued. So a new priority applies to all
//! waiting requests, and a withdrawn request costs nothing.
//!
//! # Invariants
//!
//! - Over any time `t`, at most `rate * t` bytes are dispatched, plus the burst and the largest
//!   request.
//! - While requests wait, at least `rate * t` bytes are dispatched, less the largest request: other
//!   flows use what one flow does not.
//! - Of two flows that always have waiting requests, neither gets ahead of its share by more than
//!   one request of each.
//! - A flow that was idle starts at the virtual time of the others: it gets no credit for idle
//!   time, and its debt is at most its last request.
//! - Within a flow, the lowest rank goes first; within a rank, first come, first served.
#![deny(
    clippy::disallowed_methods,
    reason = "pure: time, randomness and I/O come in from outside"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::limits::Priority;

/// Maximum time for which an idle bucket saves up tokens: short, so that the limit holds over any
/// span that a person notices.
pub const BURST: Duration = Duration::from_millis(100);

const NANOS: u128 = 1_000_000_000;

/// Virtual time per byte at priority 1: large enough that dividing it by a priority loses no
/// relevant precision.
const VIRTUAL_TIME_PER_BYTE: u128 = 1 << 20;

/// Identifies a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlowId(u64);

/// Identifies a request of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    flow: FlowId,
    rank: u64,
    number: u64,
    bytes: u64,
}

/// The next step.
#[derive(Debug, PartialEq, Eq)]
pub enum Dispatch<T> {
    /// This request may go; it has been charged.
    Go(T),
    /// The next request may go after this time, unless something changes before.
    Wait(Duration),
    /// No request waits.
    Empty,
}

/// The queue of all flows. `T` identifies a request to the caller.
#[derive(Debug)]
pub struct FairQueue<T> {
    /// Bytes per second; 0 for no limit.
    rate: u64,
    /// Tokens as of `at`, in billionths of a byte.
    tokens: u128,
    at: Duration,
    /// Total bytes of the waiting requests.
    waiting: u128,
    /// Virtual start time of the last dispatched request.
    virtual_now: u128,
    flows: BTreeMap<FlowId, FlowState<T>>,
    /// Flows with waiting requests, by virtual time.
    order: BTreeSet<(u128, FlowId)>,
    /// The last number given to a flow or a request.
    last_number: u64,
}

#[derive(Debug)]
struct FlowState<T> {
    priority: Priority,
    /// The flow's virtual time: the start of its next request.
    virtual_start: u128,
    /// By rank, then in order of arrival.
    requests: BTreeMap<(u64, u64), (Ticket, T)>,
}

impl<T> FlowState<T> {
    /// The virtual time that `bytes` bytes take.
    fn cost(&self, bytes: u64) -> u128 {
        u128::from(bytes) * VIRTUAL_TIME_PER_BYTE / u128::from(self.priority.get())
    }
}

impl<T> FairQueue<T> {
    /// A full bucket with this rate in bytes per second; 0 for no limit.
    pub fn new(rate: u64, now: Duration) -> Self {
        let mut queue = Self {
            rate,
            tokens: 0,
            at: now,
            waiting: 0,
            virtual_now: 0,
            flows: BTreeMap::new(),
            order: BTreeSet::new(),
            last_number: 0,
        };
        queue.tokens = queue.burst();
        queue
    }

    fn burst(&self) -> u128 {
        u128::from(self.rate) * BURST.as_nanos()
    }

    fn advance(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.at).as_nanos();
        self.at = self.at.max(now);
        let max = self.waiting * NANOS + self.burst();
        self.tokens = (self.tokens + u128::from(self.rate) * passed).min(max);
    }

    /// Changes the rate from `now` on, in bytes per second; 0 for no limit. Bytes sent without a
    /// limit leave no debt.
    pub fn set_rate(&mut self, rate: u64, now: Duration) {
        self.advance(now);
        self.rate = rate;
    }

    /// Adds a flow.
    pub fn join(&mut self, priority: Priority) -> FlowId {
        let id = FlowId(self.next_number());
        let flow = FlowState {
            priority,
            virtual_start: self.virtual_now,
            requests: BTreeMap::new(),
        };
        self.flows.insert(id, flow);
        id
    }

    fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// Removes a flow and drops its waiting requests.
    pub fn leave(&mut self, id: FlowId) {
        if let Some(flow) = self.flows.remove(&id) {
            self.order.remove(&(flow.virtual_start, id));
            let bytes = |(ticket, _): &(Ticket, T)| u128::from(ticket.bytes);
            self.waiting -= flow.requests.values().map(bytes).sum::<u128>();
        }
    }

    /// Changes a flow's priority, also for its waiting requests.
    pub fn set_priority(&mut self, id: FlowId, priority: Priority) {
        if let Some(flow) = self.flows.get_mut(&id) {
            flow.priority = priority;
        }
    }

    /// Adds a request to its flow's queue; `None` if the flow has left.
    pub fn enqueue(&mut self, id: FlowId, bytes: u64, payload: T, now: Duration) -> Option<Ticket> {
        self.enqueue_ranked(id, 0, bytes, payload, now)
    }

    /// Adds a request like [`FairQueue::enqueue`], ahead of the flow's waiting requests of a higher
    /// rank and behind those of a lower one.
    pub fn enqueue_ranked(
        &mut self,
        id: FlowId,
        rank: u64,
        bytes: u64,
        payload: T,
        now: Duration,
    ) -> Option<Ticket> {
        // Cap the tokens saved while idle before `waiting` grows: the saved burst must not depend
        // on the size of this request.
        self.advance(now);
        let number = self.next_number();
        let flow = self.flows.get_mut(&id)?;
        if flow.requests.is_empty() {
            flow.virtual_start = flow.virtual_start.max(self.virtual_now);
            self.order.insert((flow.virtual_start, id));
        }
        let ticket = Ticket {
            flow: id,
            rank,
            number,
            bytes,
        };
        flow.requests.insert((rank, number), (ticket, payload));
        self.waiting += u128::from(bytes);
        Some(ticket)
    }

    /// Dispatches the next request if it may go. Call this until it returns something other than
    /// [`Dispatch::Go`].
    pub fn next(&mut self, now: Duration) -> Dispatch<T> {
        self.advance(now);
        let Some(&(start, id)) = self.order.first() else {
            return Dispatch::Empty;
        };
        let flow = self
            .flows
            .get_mut(&id)
            .expect("`order` lists only existing flows");
        let first = flow
            .requests
            .first_entry()
            .expect("flows in `order` have waiting requests");
        if self.rate > 0 {
            let needed = u128::from(first.get().0.bytes) * NANOS;
            let Some(left) = self.tokens.checked_sub(needed) else {
                let nanos = (needed - self.tokens).div_ceil(u128::from(self.rate));
                return Dispatch::Wait(Duration::from_nanos(
                    u64::try_from(nanos).unwrap_or(u64::MAX),
                ));
            };
            self.tokens = left;
        }
        let (ticket, payload) = first.remove();
        self.waiting -= u128::from(ticket.bytes);
        self.virtual_now = start;
        flow.virtual_start += flow.cost(ticket.bytes);
        self.order.pop_first();
        if !flow.requests.is_empty() {
            self.order.insert((flow.virtual_start, id));
        }
        Dispatch::Go(payload)
    }

    /// Withdraws a request. If it was already dispatched, its charge is refunded.
    pub fn withdraw(&mut self, ticket: Ticket) {
        let Some(flow) = self.flows.get_mut(&ticket.flow) else {
            return;
        };
        if flow.requests.remove(&(ticket.rank, ticket.number)).is_some() {
            self.waiting -= u128::from(ticket.bytes);
            if flow.requests.is_empty() {
                self.order.remove(&(flow.virtual_start, ticket.flow));
            }
        } else if self.rate > 0 {
            self.tokens += u128::from(ticket.bytes) * NANOS;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: Duration = Duration::ZERO;

    fn priority(number: u32) -> Priority {
        Priority::new(number).unwrap()
    }

    /// Runs flows with these priorities, each of which always has a waiting request; the sizes
    /// repeat in order. Returns the bytes that each flow got by `end`.
    fn backlogged(rate: u64, flows: &[(u32, Vec<u64>)], end: Duration) -> Vec<u64> {
        let mut queue = FairQueue::new(rate, START);
        let ids: Vec<_> = flows.iter().map(|(of, _)| queue.join(priority(*of))).collect();
        let mut requested = vec![0; flows.len()];
        let mut got = vec![0; flows.len()];
        let mut enqueue = |queue: &mut FairQueue<(usize, u64)>, flow: usize, now: Duration| {
            let sizes = &flows[flow].1;
            let bytes = sizes[requested[flow] % sizes.len()];
            requested[flow] += 1;
            queue.enqueue(ids[flow], bytes, (flow, bytes), now).unwrap();
        };
        (0..flows.len()).for_each(|flow| (0..2).for_each(|_| enqueue(&mut queue, flow, START)));
        let largest = *flows.iter().flat_map(|(_, sizes)| sizes).max().unwrap();
        let mut now = START;
        let mut sent = 0u128;
        loop {
            match queue.next(now) {
                Dispatch::Go((flow, bytes)) => {
                    got[flow] += bytes;
                    sent += u128::from(bytes);
                    enqueue(&mut queue, flow, now);
                    let max = u128::from(rate) * (now + BURST).as_nanos();
                    assert!(sent * NANOS <= max, "{sent} bytes by {now:?}");
                }
                Dispatch::Wait(wait) if now + wait > end => return got,
                Dispatch::Wait(wait) => {
                    now += wait;
                    let min =
                        (u128::from(rate) * now.as_nanos() / NANOS).saturating_sub(largest.into());
                    assert!(sent >= min, "{sent} bytes by {now:?}, at least {min} expected");
                }
                Dispatch::Empty => panic!("each flow always has a waiting request"),
            }
        }
    }

    fn flows() -> impl Strategy<Value = Vec<(u32, Vec<u64>)>> {
        let sizes = proptest::collection::vec(1u64..300_000, 1..5);
        proptest::collection::vec((1u32..=100, sizes), 1..8)
    }

    proptest! {
        /// For flows that always wait: the rate is not exceeded, nothing is left unused, and no two
        /// flows are further apart than one request of each.
        #[test]
        fn flows_share_by_priority(
            rate in 10_000u64..100_000_000,
            flows in flows(),
            millis in 1u64..20_000,
        ) {
            let got = backlogged(rate, &flows, Duration::from_millis(millis));
            let shares: Vec<(f64, f64)> = flows.iter().zip(got).map(|((of, sizes), got)| {
                let of = f64::from(*of);
                (got as f64 / of, *sizes.iter().max().unwrap() as f64 / of)
            }).collect();
            for (one, most) in &shares {
                for (other, its_most) in &shares {
                    prop_assert!((one - other).abs() <= most + its_most + 1.0, "{:?}", shares);
                }
            }
        }

        /// For any order of requests and withdrawals: the rate is never exceeded, and in the end
        /// every request was dispatched or withdrawn.
        #[test]
        fn the_rate_is_never_exceeded(
            rate in 1_000u64..10_000_000,
            events in proptest::collection::vec((0usize..4, 0u64..1 << 20, 0u64..500, 0u8..10), 1..80),
        ) {
            let mut queue = FairQueue::new(rate, START);
            let ids = [1, 10, 20, 100].map(|of| queue.join(priority(of)));
            let (mut now, mut sent, mut log) = (START, 0i128, vec![(START, 0i128)]);
            let mut enqueued: Vec<(Ticket, bool)> = Vec::new();
            // Dispatches every request that may go until that time, each at its time.
            let mut run = |queue: &mut FairQueue<u64>, enqueued: &mut Vec<(Ticket, bool)>, sent: &mut i128, until: Duration| {
                loop {
                    match queue.next(now) {
                        Dispatch::Go(number) => {
                            let it = enqueued.iter_mut().find(|(ticket, _)| ticket.number == number);
                            let (ticket, is_dispatched) = it.expect("a withdrawn request is not dispatched");
                            assert!(!std::mem::replace(is_dispatched, true), "no request is dispatched twice");
                            *sent += i128::from(ticket.bytes);
                            log.push((now, *sent));
                        }
                        Dispatch::Wait(wait) if now + wait <= until => now += wait,
                        Dispatch::Wait(_) | Dispatch::Empty => break,
                    }
                }
                now = now.max(until);
                log.push((now, *sent));
                now
            };
            let mut at = START;
            for (flow, bytes, pause, what) in events {
                match what {
                    0 => queue.set_priority(ids[flow], priority(1 + (bytes % 100) as u32)),
                    1 if !enqueued.is_empty() => {
                        let (ticket, is_dispatched) = enqueued.remove(bytes as usize % enqueued.len());
                        queue.withdraw(ticket);
                        sent -= i128::from(is_dispatched) * i128::from(ticket.bytes);
                    }
                    _ => {
                        let ticket = queue.enqueue(ids[flow], bytes, queue.last_number + 1, at).unwrap();
                        enqueued.push((ticket, false));
                    }
                }
                at = run(&mut queue, &mut enqueued, &mut sent, at + Duration::from_millis(pause));
            }
            run(&mut queue, &mut enqueued, &mut sent, Duration::from_secs(1 << 40));
            prop_assert!(enqueued.iter().all(|(_, is_dispatched)| *is_dispatched));
            prop_assert!(queue.waiting == 0 && queue.order.is_empty());
            let most = |from: Duration, to: Duration| {
                ((to - from + BURST).as_nanos() * u128::from(rate)).div_ceil(NANOS) as i128 + (1 << 20)
            };
            for (i, (from, before)) in log.iter().enumerate() {
                for (to, after) in &log[i..] {
                    prop_assert!(after - before <= most(*from, *to), "{:?} to {:?}", from, to);
                }
            }
        }
    }

    /// Dispatches all requests that may go until that time, in order.
    fn run(queue: &mut FairQueue<&'static str>, now: Duration) -> Vec<&'static str> {
        std::iter::from_fn(|| match queue.next(now) {
            Dispatch::Go(payload) => Some(payload),
            _ => None,
        })
        .collect()
    }

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn an_idle_bucket_saves_at_most_a_burst() {
        let mut queue = FairQueue::new(1000, START);
        let flow = queue.join(Priority::default());
        let hour = secs(3600);
        queue.enqueue(flow, 100, (), hour).unwrap();
        assert_eq!(queue.next(hour), Dispatch::Go(()));
        queue.enqueue(flow, 1000, (), hour).unwrap();
        assert_eq!(queue.next(hour), Dispatch::Wait(secs(1)));
    }

    #[test]
    fn an_idle_flow_neither_saves_nor_loses_anything() {
        let mut queue = FairQueue::new(1000, START);
        let (busy, idle) = (queue.join(priority(10)), queue.join(priority(10)));
        // One flow has the whole rate while the other is idle.
        (0..50).for_each(|_| _ = queue.enqueue(busy, 1000, "busy", START));
        assert_eq!(run(&mut queue, secs(20)).len(), 20);
        // Then each gets half, immediately: the new flow does not wait for twenty seconds.
        (0..50).for_each(|_| _ = queue.enqueue(idle, 1000, "idle", secs(20)));
        let both = run(&mut queue, secs(30));
        let idles = both.iter().filter(|payload| **payload == "idle").count();
        assert_eq!((both.len(), idles), (10, 5), "{both:?}");
    }

    #[test]
    fn a_new_priority_applies_to_waiting_requests() {
        let mut queue = FairQueue::new(1000, START);
        let (one, two) = (queue.join(priority(10)), queue.join(priority(10)));
        (0..100).for_each(|_| _ = queue.enqueue(one, 1000, "one", START));
        (0..100).for_each(|_| _ = queue.enqueue(two, 1000, "two", START));
        assert_eq!(run(&mut queue, secs(10)).len(), 10);
        queue.set_priority(one, priority(40));
        let then = run(&mut queue, secs(60));
        assert_eq!(
            then.iter().filter(|payload| **payload == "one").count(),
            40,
            "{then:?}"
        );
    }

    #[test]
    fn the_lowest_rank_of_a_flow_goes_first() {
        let mut queue = FairQueue::new(1000, START);
        let flow = queue.join(Priority::default());
        let enqueue = |queue: &mut FairQueue<_>, rank, payload, at| {
            queue.enqueue_ranked(flow, rank, 1000, payload, at).unwrap()
        };
        enqueue(&mut queue, 7, "later", START);
        enqueue(&mut queue, 7, "later still", START);
        enqueue(&mut queue, 3, "first", START);
        let withdrawn = enqueue(&mut queue, 2, "withdrawn", START);
        assert_eq!(run(&mut queue, Duration::from_millis(800)), [""; 0]);
        queue.withdraw(withdrawn);
        assert_eq!(run(&mut queue, secs(1)), ["first"]);
        // No request of a lower rank waits at that moment.
        assert_eq!(run(&mut queue, secs(2)), ["later"]);
        enqueue(&mut queue, 3, "first again", secs(2));
        assert_eq!(run(&mut queue, secs(4)), ["first again", "later still"]);
        assert_eq!(queue.waiting, 0);
    }

    #[test]
    fn without_a_rate_all_requests_go_immediately() {
        let mut queue = FairQueue::new(0, START);
        let flow = queue.join(Priority::default());
        (0..100).for_each(|_| _ = queue.enqueue(flow, u64::MAX, "it", START));
        assert_eq!(run(&mut queue, START).len(), 100);
        queue.set_rate(1000, START);
        queue.enqueue(flow, 1000, "it", START).unwrap();
        assert_eq!(run(&mut queue, secs(1)), ["it"]);
    }

    #[test]
    fn a_flow_that_left_blocks_no_other() {
        let mut queue = FairQueue::new(1000, START);
        let (leaving, staying) = (queue.join(priority(100)), queue.join(priority(1)));
        let ticket = queue.enqueue(leaving, 1 << 40, "leaving", START).unwrap();
        queue.enqueue(staying, 1000, "staying", START).unwrap();
        queue.leave(leaving);
        queue.withdraw(ticket);
        assert_eq!(run(&mut queue, secs(1)), ["staying"]);
        assert_eq!(queue.enqueue(leaving, 1, "gone", START), None);
    }
}
