//! Hosts with the totals of their peers. All addresses of one client network count as one host (see
//! [`host_key`]).
//!
//! Invariant: a host exists exactly as long as it has a peer, live or hidden.

use std::{
    collections::HashMap,
    ops::{Index, IndexMut},
};

use slab::Slab;

use crate::address::host_key;

/// The totals of one host.
#[derive(Debug)]
pub(crate) struct Host {
    key: String,
    /// Number of peers, live or hidden.
    peers: u64,
    /// Number of live peers.
    pub(crate) live_peers: u64,
    /// Bytes charged to its peers.
    pub(crate) charge: u64,
}

/// The hosts, indexed by key.
#[derive(Debug, Default)]
pub(crate) struct Hosts {
    hosts: Slab<Host>,
    slots: HashMap<String, u32>,
}

impl Hosts {
    /// The host of an address, if it has peers.
    pub(crate) fn get(&self, address: &str) -> Option<&Host> {
        let slot = self.slots.get(&host_key(address))?;
        self.hosts.get(*slot as usize)
    }

    /// Adds a peer to the host of an address, and returns the host's slot.
    pub(crate) fn add_peer(&mut self, address: &str) -> u32 {
        let hosts = &mut self.hosts;
        let slot = *self.slots.entry(host_key(address)).or_insert_with_key(|key| {
            hosts.insert(Host {
                key: key.clone(),
                peers: 0,
                live_peers: 0,
                charge: 0,
            }) as u32
        });
        self[slot].peers += 1;
        slot
    }

    /// Removes a peer from a host.
    pub(crate) fn remove_peer(&mut self, slot: u32) {
        let host = &mut self[slot];
        host.peers -= 1;
        if host.peers == 0 {
            let host = self.hosts.remove(slot as usize);
            self.slots.remove(&host.key);
        }
    }

    /// Number of hosts.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.hosts.len()
    }
}

impl Index<u32> for Hosts {
    type Output = Host;

    fn index(&self, slot: u32) -> &Host {
        &self.hosts[slot as usize]
    }
}

impl IndexMut<u32> for Hosts {
    fn index_mut(&mut self, slot: u32) -> &mut Host {
        &mut self.hosts[slot as usize]
    }
}
