//! The swarm's knowledge about peers, requests and units. Nothing here makes a decision.

mod estimate;
mod nearby;
mod peer;
mod preference;
mod rarity;
mod refusals;
mod request;

pub(crate) use self::{
    estimate::Estimate,
    nearby::Nearby,
    peer::{Eligibility, Peer, Pipeline},
    preference::{Phase, Preference},
    rarity::RarityOrder,
    refusals::Refusals,
    request::Request,
};
