//! Places that callers take and give back, such as connections or bytes: so many in all, and no
//! address all of them.
//!
//! Invariants: at most as many are taken as there are; one source takes at most its share of those
//! that others leave, so that whoever comes first from elsewhere finds one for as long as any is
//! free. A source is an address. On loopback it is one connection: behind a proxy every client
//! comes from there, and a whole crowd may run on one machine. Callers without an address, such as
//! those of a Unix socket, are not counted by source.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use parking_lot::{Mutex, MutexGuard};

/// Of what others leave, what one address takes at most unless told otherwise, in percent: half is plenty for a crowd behind one
/// address, and two such leave a third of all to the rest.
pub const DEFAULT_MAX_SHARE: u8 = 50;

/// What one address takes at most of the places that others leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaxShare(u8);

impl MaxShare {
    /// All of them.
    pub const ALL: Self = Self(100);

    /// In percent; `None` unless it is 1 to 100.
    pub const fn from_percent(percent: u8) -> Option<Self> {
        match percent {
            1..=100 => Some(Self(percent)),
            _ => None,
        }
    }

    /// Whether whoever has `own` may take `count` of the `free`.
    const fn allows(self, own: usize, count: usize, free: usize) -> bool {
        // With all but the last of them, own / (own + free) has to be below the share; the first
        // are always allowed.
        let more = count.saturating_sub(1);
        let (own_then, free_then) = (own.saturating_add(more), free.saturating_sub(more));
        own == 0 || own_then.saturating_mul(100 - self.0 as usize) < free_then.saturating_mul(self.0 as usize)
    }
}

impl Default for MaxShare {
    fn default() -> Self {
        Self(DEFAULT_MAX_SHARE)
    }
}

/// Where a caller is, as far as places are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClientAddress(Option<Key>);

/// What places are counted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    /// An address, or for IPv6 a network.
    Network(IpAddr),
    /// One connection over loopback.
    Local(SocketAddr),
}

impl ClientAddress {
    /// The owner, or wherever nothing is known of the address: not counted.
    pub const LOCAL: Self = Self(None);
}

impl From<IpAddr> for ClientAddress {
    /// Whoever is at this address; [`ClientAddress::LOCAL`] for loopback, where only the port tells callers
    /// apart.
    fn from(address: IpAddr) -> Self {
        Self((!is_loopback(address)).then(|| Key::Network(client_network(address))))
    }
}

impl From<SocketAddr> for ClientAddress {
    /// Whoever calls from this address, or over loopback this one connection.
    fn from(address: SocketAddr) -> Self {
        Self(Some(match is_loopback(address.ip()) {
            true => Key::Local(SocketAddr::new(address.ip().to_canonical(), address.port())),
            false => Key::Network(client_network(address.ip())),
        }))
    }
}

fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// What counts as one address: itself, or for IPv6 the network of 64 bits that one customer has whole.
pub fn client_network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitError {
    /// All are taken.
    Full,
    /// The caller's address has its share.
    AddressShare,
}

/// See the module. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct PerAddressLimiter {
    state: Arc<Mutex<LimiterState>>,
}

#[derive(Debug)]
struct LimiterState {
    capacity: usize,
    share: MaxShare,
    in_use: usize,
    /// Of the taken, those of each source that has any.
    by_source: HashMap<Key, usize>,
}

impl LimiterState {
    /// Counts some more as taken.
    fn take(&mut self, client: ClientAddress, count: usize) -> Result<(), LimitError> {
        let free = self.capacity.saturating_sub(self.in_use);
        if free < count {
            return Err(LimitError::Full);
        }
        if let Some(key) = client.0 {
            let own = self.by_source.get(&key).copied().unwrap_or(0);
            if !self.share.allows(own, count, free) {
                return Err(LimitError::AddressShare);
            }
            self.by_source.insert(key, own + count);
        }
        self.in_use += count;
        Ok(())
    }
}

/// Places that are taken, one as a rule; dropping it gives them back.
#[derive(Debug)]
pub struct Permit {
    limiter: PerAddressLimiter,
    client: ClientAddress,
    count: usize,
}

impl PerAddressLimiter {
    /// So many, of which one address takes at most its share.
    pub fn new(max: usize, share: MaxShare) -> Self {
        Self {
            state: Arc::new(Mutex::new(LimiterState {
                capacity: max,
                share,
                in_use: 0,
                by_source: HashMap::new(),
            })),
        }
    }

    fn state(&self) -> MutexGuard<'_, LimiterState> {
        self.state.lock()
    }

    /// How many there are from now on. What is taken stays taken.
    pub fn set_capacity(&self, max: usize) {
        self.state().capacity = max;
    }

    /// How many there are.
    pub fn capacity(&self) -> usize {
        self.state().capacity
    }

    /// How many are taken.
    pub fn in_use(&self) -> usize {
        self.state().in_use
    }

    /// How many of the taken are this source's; 0 where it is not counted.
    pub fn taken_by(&self, client: ClientAddress) -> usize {
        let key = client.0;
        key.and_then(|key| self.state().by_source.get(&key).copied())
            .unwrap_or(0)
    }

    /// Takes one.
    ///
    /// # Errors
    /// Why there is none for this caller.
    pub fn try_acquire(&self, client: ClientAddress) -> Result<Permit, LimitError> {
        self.take_many(client, 1)
    }

    /// Takes so many at once, such as bytes, or none.
    ///
    /// # Errors
    /// Why there are not so many for this caller.
    pub fn take_many(&self, client: ClientAddress, count: usize) -> Result<Permit, LimitError> {
        self.state().take(client, count)?;
        Ok(Permit {
            limiter: self.clone(),
            client,
            count,
        })
    }
}

impl Permit {
    /// Takes so many more, or none.
    ///
    /// # Errors
    /// As [`PerAddressLimiter::take_many`]; what it has it keeps.
    pub fn grow(&mut self, count: usize) -> Result<(), LimitError> {
        self.limiter.state().take(self.client, count)?;
        self.count += count;
        Ok(())
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.limiter.state();
        state.in_use -= self.count;
        let Some(key) = self.client.0 else { return };
        if let Some(own) = state.by_source.get_mut(&key) {
            *own -= self.count;
            if *own == 0 {
                state.by_source.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn source(text: &str) -> ClientAddress {
        ClientAddress::from(text.parse::<IpAddr>().unwrap())
    }

    /// Takes as many as there are for this caller, and why no more.
    fn all(limiter: &PerAddressLimiter, client: ClientAddress) -> (Vec<Permit>, LimitError) {
        let mut taken = Vec::new();
        loop {
            match limiter.try_acquire(client) {
                Ok(permit) => taken.push(permit),
                Err(refused) => return (taken, refused),
            }
        }
    }

    #[test]
    fn one_address_takes_half_and_leaves_the_rest_to_others() {
        let limiter = PerAddressLimiter::new(512, MaxShare::default());
        let (first, refused) = all(&limiter, source("192.0.2.1"));
        assert_eq!((first.len(), refused), (256, LimitError::AddressShare));
        let (second, refused) = all(&limiter, source("192.0.2.2"));
        assert_eq!((second.len(), refused), (128, LimitError::AddressShare));
        drop(first);
        assert!(
            limiter.try_acquire(source("192.0.2.1")).is_ok(),
            "it gave them back"
        );
    }

    #[test]
    fn whoever_has_no_port_on_this_machine_may_take_all() {
        for here in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            let limiter = PerAddressLimiter::new(5, MaxShare::default());
            let (taken, refused) = all(&limiter, source(here));
            assert_eq!((taken.len(), refused), (5, LimitError::Full), "{here}");
        }
    }

    #[test]
    fn a_connection_over_loopback_leaves_places_to_the_others() {
        for hosts in [
            ["127.0.0.1:1", "127.0.0.1:2"],
            ["[::1]:1", "[::1]:2"],
            ["[::ffff:127.0.0.1]:1", "127.0.0.1:2"],
        ] {
            let limiter = PerAddressLimiter::new(8, MaxShare::default());
            let [one, other] = hosts.map(|host| ClientAddress::from(host.parse::<SocketAddr>().unwrap()));
            let (taken, refused) = all(&limiter, one);
            assert_eq!((taken.len(), refused), (4, LimitError::AddressShare), "{hosts:?}");
            assert!(limiter.try_acquire(other).is_ok());
        }
        let far = |text: &str| ClientAddress::from(text.parse::<SocketAddr>().unwrap());
        assert_eq!(
            far("192.0.2.1:1"),
            far("192.0.2.1:2"),
            "elsewhere the port says nothing"
        );
    }

    #[test]
    fn many_are_taken_at_once_or_none() {
        let limiter = PerAddressLimiter::new(100, MaxShare::default());
        let (one, other) = (source("192.0.2.1"), source("192.0.2.2"));
        assert_eq!(limiter.take_many(one, 101).unwrap_err(), LimitError::Full);
        let mut held = limiter.take_many(one, 30).unwrap();
        assert_eq!(held.grow(21), Err(LimitError::AddressShare));
        assert_eq!((held.grow(20), limiter.in_use()), (Ok(()), 50));
        assert_eq!(limiter.taken_by(one), 50);
        assert_eq!(limiter.take_many(other, 51).unwrap_err(), LimitError::Full);
        assert!(limiter.take_many(other, 50).is_ok(), "the first are for anyone");
        drop(held);
        assert_eq!((limiter.in_use(), limiter.taken_by(one)), (0, 0));
    }

    #[test]
    fn a_network_of_64_bits_counts_as_one_address() {
        let limiter = PerAddressLimiter::new(4, MaxShare::default());
        let _held = all(&limiter, source("2001:db8::1"));
        assert_eq!(
            limiter.try_acquire(source("2001:db8::2")).unwrap_err(),
            LimitError::AddressShare
        );
        assert!(limiter.try_acquire(source("2001:db8:0:1::2")).is_ok());
    }

    #[test]
    fn a_single_place_and_a_whole_share_are_for_anyone() {
        assert_eq!(
            all(
                &PerAddressLimiter::new(1, MaxShare::default()),
                source("192.0.2.1")
            )
            .0
            .len(),
            1
        );
        assert_eq!(
            all(&PerAddressLimiter::new(9, MaxShare::ALL), source("192.0.2.1"))
                .0
                .len(),
            9
        );
    }

    proptest! {
        /// Whatever comes and goes: counts fit what is held, and who has none finds one while any is free.
        #[test]
        fn whoever_has_none_finds_one_while_any_is_free(
            steps in proptest::collection::vec((0u8..6, any::<bool>()), 0..200),
            percent in 1u8..=100,
        ) {
            let places = PerAddressLimiter::new(20, MaxShare::from_percent(percent).unwrap());
            let mut held: Vec<(u8, Permit)> = Vec::new();
            for (host, takes) in steps {
                let source = ClientAddress::from(IpAddr::from([192, 0, 2, host]));
                match takes {
                    true => match places.try_acquire(source) {
                        Ok(place) => held.push((host, place)),
                        Err(LimitError::Full) => prop_assert_eq!(held.len(), 20),
                        Err(LimitError::AddressShare) => prop_assert!(held.iter().any(|(other, _)| *other == host)),
                    },
                    false => held.retain(|(other, _)| *other != host),
                }
                prop_assert_eq!(places.in_use(), held.len());
            }
            drop(held);
            prop_assert!(places.state().by_source.is_empty());
        }
    }
}
