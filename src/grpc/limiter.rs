//! A counting limiter of permits, such as connections or bytes, with a maximum fraction per client
//! address.
//!
//! Invariants:
//! - At most `capacity` permits are in use.
//! - One client takes at most a fraction of the permits that other clients leave free, so that a
//!   new client gets a permit while any is free.
//!
//! A client is an address, or a /64 network for IPv6. On loopback each connection is a client:
//! behind a proxy all clients share that address, and many peers may run on one machine. Clients
//! without an address, such as those of a Unix socket, are limited only by the capacity.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use parking_lot::{Mutex, MutexGuard};

/// Default of [`MaxShare`], in percent. Half is enough for a crowd behind one address, and two such
/// addresses leave a quarter to a third of all permits to other clients.
pub const DEFAULT_MAX_SHARE: u8 = 50;

/// The largest fraction of the permits not used by others that one client may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaxShare(u8);

impl MaxShare {
    /// No limit per client.
    pub const ALL: Self = Self(100);

    /// A share in percent; `None` unless it is 1 to 100.
    pub const fn from_percent(percent: u8) -> Option<Self> {
        match percent {
            1..=100 => Some(Self(percent)),
            _ => None,
        }
    }

    /// Whether a client that holds `own` permits may take `count` of the `free` ones.
    const fn allows(self, own: usize, count: usize, free: usize) -> bool {
        // Before the last permit, own / (own + free) must be below the share. The first request of
        // a client is always allowed.
        let more = count.saturating_sub(1);
        let (own_then, free_then) = (own.saturating_add(more), free.saturating_sub(more));
        own == 0
            || own_then.saturating_mul(100 - self.0 as usize)
                < free_then.saturating_mul(self.0 as usize)
    }
}

impl Default for MaxShare {
    fn default() -> Self {
        Self(DEFAULT_MAX_SHARE)
    }
}

/// The identity by which a client's permits are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClientAddress(Option<Key>);

/// The key of the count per client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    /// An IPv4 address, or a /64 network for IPv6.
    Network(IpAddr),
    /// One connection over loopback.
    Local(SocketAddr),
}

impl ClientAddress {
    /// The owner, or a client without a known address; not limited per client.
    pub const LOCAL: Self = Self(None);
}

impl From<IpAddr> for ClientAddress {
    /// The client at this address. [`ClientAddress::LOCAL`] for loopback, where clients differ
    /// only by port.
    fn from(address: IpAddr) -> Self {
        Self((!is_loopback(address)).then(|| Key::Network(client_network(address))))
    }
}

impl From<SocketAddr> for ClientAddress {
    /// The client at this address, or this single connection if the address is loopback.
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

/// The address range that counts as one client: an IPv4 address, or the /64 network that one IPv6
/// customer usually has.
pub fn client_network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

/// The reason why no permit is available.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitError {
    /// All permits are in use.
    Full,
    /// The client has used its share.
    AddressShare,
}

/// A limiter with a capacity and a maximum share per client. Clones share their state.
#[derive(Debug, Clone)]
pub struct PerAddressLimiter {
    state: Arc<Mutex<LimiterState>>,
}

#[derive(Debug)]
struct LimiterState {
    capacity: usize,
    share: MaxShare,
    in_use: usize,
    /// Permits in use per client; no entry for zero.
    permits_by_source: HashMap<Key, usize>,
}

impl LimiterState {
    /// Counts `count` permits as in use.
    fn take(&mut self, client: ClientAddress, count: usize) -> Result<(), LimitError> {
        let free = self.capacity.saturating_sub(self.in_use);
        if free < count {
            return Err(LimitError::Full);
        }
        if let Some(key) = client.0 {
            let own = self.permits_by_source.get(&key).copied().unwrap_or(0);
            if !self.share.allows(own, count, free) {
                return Err(LimitError::AddressShare);
            }
            self.permits_by_source.insert(key, own + count);
        }
        self.in_use += count;
        Ok(())
    }
}

/// One or more permits. Dropping the value returns them.
#[derive(Debug)]
pub struct Permit {
    limiter: PerAddressLimiter,
    client: ClientAddress,
    count: usize,
}

impl PerAddressLimiter {
    /// A limiter with `max` permits, of which one client holds at most its `share`.
    pub fn new(max: usize, share: MaxShare) -> Self {
        Self {
            state: Arc::new(Mutex::new(LimiterState {
                capacity: max,
                share,
                in_use: 0,
                permits_by_source: HashMap::new(),
            })),
        }
    }

    fn state(&self) -> MutexGuard<'_, LimiterState> {
        self.state.lock()
    }

    /// Changes the capacity. Permits in use stay valid.
    pub fn set_capacity(&self, max: usize) {
        self.state().capacity = max;
    }

    /// Total number of permits.
    pub fn capacity(&self) -> usize {
        self.state().capacity
    }

    /// Number of permits in use.
    pub fn in_use(&self) -> usize {
        self.state().in_use
    }

    /// Number of permits that this client holds; 0 for a client that is not limited by address.
    pub fn held_by(&self, client: ClientAddress) -> usize {
        let key = client.0;
        key.and_then(|key| self.state().permits_by_source.get(&key).copied())
            .unwrap_or(0)
    }

    /// Takes one permit.
    ///
    /// # Errors
    /// [`LimitError::Full`] if no permit is free, [`LimitError::AddressShare`] if the client has
    /// used its share.
    pub fn try_acquire(&self, client: ClientAddress) -> Result<Permit, LimitError> {
        self.try_acquire_many(client, 1)
    }

    /// Takes `count` permits, such as bytes, or none.
    ///
    /// # Errors
    /// [`LimitError::Full`] if too few permits are free, [`LimitError::AddressShare`] if the
    /// client would exceed its share.
    pub fn try_acquire_many(
        &self,
        client: ClientAddress,
        count: usize,
    ) -> Result<Permit, LimitError> {
        self.state().take(client, count)?;
        Ok(Permit {
            limiter: self.clone(),
            client,
            count,
        })
    }
}

impl Permit {
    /// Takes `count` more permits, or none.
    ///
    /// # Errors
    /// Those of [`PerAddressLimiter::try_acquire_many`]. The permits held so far are kept.
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
        if let Some(own) = state.permits_by_source.get_mut(&key) {
            *own -= self.count;
            if *own == 0 {
                state.permits_by_source.remove(&key);
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

    /// Takes permits until one is refused; returns them and the error.
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
    fn one_address_gets_at_most_half_of_the_free_permits() {
        let limiter = PerAddressLimiter::new(512, MaxShare::default());
        let (first, refused) = all(&limiter, source("192.0.2.1"));
        assert_eq!((first.len(), refused), (256, LimitError::AddressShare));
        let (second, refused) = all(&limiter, source("192.0.2.2"));
        assert_eq!((second.len(), refused), (128, LimitError::AddressShare));
        drop(first);
        assert!(
            limiter.try_acquire(source("192.0.2.1")).is_ok(),
            "dropped permits are free again"
        );
    }

    #[test]
    fn loopback_without_a_port_is_not_limited_per_client() {
        for here in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            let limiter = PerAddressLimiter::new(5, MaxShare::default());
            let (taken, refused) = all(&limiter, source(here));
            assert_eq!((taken.len(), refused), (5, LimitError::Full), "{here}");
        }
    }

    #[test]
    fn each_loopback_connection_counts_as_one_client() {
        for hosts in [
            ["127.0.0.1:1", "127.0.0.1:2"],
            ["[::1]:1", "[::1]:2"],
            ["[::ffff:127.0.0.1]:1", "127.0.0.1:2"],
        ] {
            let limiter = PerAddressLimiter::new(8, MaxShare::default());
            let [one, other] =
                hosts.map(|host| ClientAddress::from(host.parse::<SocketAddr>().unwrap()));
            let (taken, refused) = all(&limiter, one);
            assert_eq!((taken.len(), refused), (4, LimitError::AddressShare), "{hosts:?}");
            assert!(limiter.try_acquire(other).is_ok());
        }
        let far = |text: &str| ClientAddress::from(text.parse::<SocketAddr>().unwrap());
        assert_eq!(
            far("192.0.2.1:1"),
            far("192.0.2.1:2"),
            "the port counts only on loopback"
        );
    }

    #[test]
    fn many_permits_are_taken_together_or_not_at_all() {
        let limiter = PerAddressLimiter::new(100, MaxShare::default());
        let (one, other) = (source("192.0.2.1"), source("192.0.2.2"));
        assert_eq!(limiter.try_acquire_many(one, 101).unwrap_err(), LimitError::Full);
        let mut held = limiter.try_acquire_many(one, 30).unwrap();
        assert_eq!(held.grow(21), Err(LimitError::AddressShare));
        assert_eq!((held.grow(20), limiter.in_use()), (Ok(()), 50));
        assert_eq!(limiter.held_by(one), 50);
        assert_eq!(limiter.try_acquire_many(other, 51).unwrap_err(), LimitError::Full);
        assert!(
            limiter.try_acquire_many(other, 50).is_ok(),
            "the first request is always allowed"
        );
        drop(held);
        assert_eq!((limiter.in_use(), limiter.held_by(one)), (0, 0));
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
    fn any_client_may_take_a_single_permit() {
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
        /// Counts match the permits held, and a client without permits gets one while any is free.
        #[test]
        fn a_client_without_permits_gets_one_while_any_is_free(
            steps in proptest::collection::vec((0u8..6, any::<bool>()), 0..200),
            percent in 1u8..=100,
        ) {
            let limiter = PerAddressLimiter::new(20, MaxShare::from_percent(percent).unwrap());
            let mut held: Vec<(u8, Permit)> = Vec::new();
            for (host, takes) in steps {
                let source = ClientAddress::from(IpAddr::from([192, 0, 2, host]));
                match takes {
                    true => match limiter.try_acquire(source) {
                        Ok(permit) => held.push((host, permit)),
                        Err(LimitError::Full) => prop_assert_eq!(held.len(), 20),
                        Err(LimitError::AddressShare) => prop_assert!(held.iter().any(|(other, _)| *other == host)),
                    },
                    false => held.retain(|(other, _)| *other != host),
                }
                prop_assert_eq!(limiter.in_use(), held.len());
            }
            drop(held);
            prop_assert!(limiter.state().permits_by_source.is_empty());
        }
    }
}
