//! Places that callers take and give back, such as connections: so many in all, and no address all of them.
//!
//! Invariants: at most as many are taken as there are; one address takes at most its share of those that others leave, so that
//! whoever comes first from elsewhere finds one for as long as any is free. Callers on this machine are not counted by address: they
//! share its processors and disks whatever is decided here, and a whole crowd may run on one.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Of what others leave, what one address takes at most unless told otherwise, in percent: half is plenty for a crowd behind one
/// address, and two such leave a third of all to the rest.
pub const DEFAULT_SHARE: u8 = 50;

/// What one address takes at most of the places that others leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share(u8);

impl Share {
    /// All of them.
    pub const ALL: Self = Self(100);

    /// In percent; `None` unless it is 1 to 100.
    pub const fn percent(percent: u8) -> Option<Self> {
        match percent {
            1..=100 => Some(Self(percent)),
            _ => None,
        }
    }

    /// Whether whoever has `own` may take one of the `free`.
    const fn allows(self, own: usize, free: usize) -> bool {
        // own / (own + free) is below the share; the first is always allowed.
        own == 0 || own.saturating_mul(100 - self.0 as usize) < free.saturating_mul(self.0 as usize)
    }
}

impl Default for Share {
    fn default() -> Self {
        Self(DEFAULT_SHARE)
    }
}

/// Where a caller is, as far as places are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Source(Option<IpAddr>);

impl Source {
    /// This machine, or wherever nothing is known of the address.
    pub const HERE: Self = Self(None);
}

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Self {
        let address = network(address);
        Self((!address.is_loopback() && address != network(Ipv6Addr::LOCALHOST.into())).then_some(address))
    }
}

/// What counts as one address: itself, or for IPv6 the network of 64 bits that one customer has whole.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// All are taken.
    Full,
    /// The caller's address has its share.
    Share,
}

/// See the module. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Places {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    most: usize,
    share: Share,
    taken: usize,
    /// Of the taken, those of each address that has any.
    by_address: HashMap<IpAddr, usize>,
}

/// A place that is taken; dropping it gives it back.
#[derive(Debug)]
pub struct Place {
    places: Places,
    source: Source,
}

impl Places {
    /// So many, of which one address takes at most its share.
    pub fn new(most: usize, share: Share) -> Self {
        Self {
            inner: Arc::new(Mutex::new(Inner {
                most,
                share,
                taken: 0,
                by_address: HashMap::new(),
            })),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many there are from now on. What is taken stays taken.
    pub fn resize(&self, most: usize) {
        self.inner().most = most;
    }

    /// How many there are.
    pub fn most(&self) -> usize {
        self.inner().most
    }

    /// How many are taken.
    pub fn taken(&self) -> usize {
        self.inner().taken
    }

    /// Takes one.
    ///
    /// # Errors
    /// Why there is none for this caller.
    pub fn take(&self, source: Source) -> Result<Place, Refused> {
        let mut inner = self.inner();
        let free = inner.most.saturating_sub(inner.taken);
        if free == 0 {
            return Err(Refused::Full);
        }
        if let Some(address) = source.0 {
            let own = inner.by_address.get(&address).copied().unwrap_or(0);
            if !inner.share.allows(own, free) {
                return Err(Refused::Share);
            }
            inner.by_address.insert(address, own + 1);
        }
        inner.taken += 1;
        drop(inner);
        Ok(Place {
            places: self.clone(),
            source,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inner = self.places.inner();
        inner.taken -= 1;
        let Some(address) = self.source.0 else { return };
        if let Some(own) = inner.by_address.get_mut(&address) {
            *own -= 1;
            if *own == 0 {
                inner.by_address.remove(&address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn source(text: &str) -> Source {
        Source::from(text.parse::<IpAddr>().unwrap())
    }

    /// Takes as many as there are for this caller, and why no more.
    fn all(places: &Places, source: Source) -> (Vec<Place>, Refused) {
        let mut taken = Vec::new();
        loop {
            match places.take(source) {
                Ok(place) => taken.push(place),
                Err(refused) => return (taken, refused),
            }
        }
    }

    #[test]
    fn one_address_takes_half_and_leaves_the_rest_to_others() {
        let places = Places::new(512, Share::default());
        let (first, refused) = all(&places, source("192.0.2.1"));
        assert_eq!((first.len(), refused), (256, Refused::Share));
        let (second, refused) = all(&places, source("192.0.2.2"));
        assert_eq!((second.len(), refused), (128, Refused::Share));
        drop(first);
        assert!(places.take(source("192.0.2.1")).is_ok(), "it gave them back");
    }

    #[test]
    fn whoever_is_on_this_machine_may_take_all() {
        for here in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            let places = Places::new(5, Share::default());
            let (taken, refused) = all(&places, source(here));
            assert_eq!((taken.len(), refused), (5, Refused::Full), "{here}");
        }
    }

    #[test]
    fn a_network_of_64_bits_counts_as_one_address() {
        let places = Places::new(4, Share::default());
        let _held = all(&places, source("2001:db8::1"));
        assert_eq!(places.take(source("2001:db8::2")).unwrap_err(), Refused::Share);
        assert!(places.take(source("2001:db8:0:1::2")).is_ok());
    }

    #[test]
    fn a_single_place_and_a_whole_share_are_for_anyone() {
        assert_eq!(
            all(&Places::new(1, Share::default()), source("192.0.2.1"))
                .0
                .len(),
            1
        );
        assert_eq!(all(&Places::new(9, Share::ALL), source("192.0.2.1")).0.len(), 9);
    }

    proptest! {
        /// Whatever comes and goes: counts fit what is held, and who has none finds one while any is free.
        #[test]
        fn whoever_has_none_finds_one_while_any_is_free(
            steps in proptest::collection::vec((0u8..6, any::<bool>()), 0..200),
            percent in 1u8..=100,
        ) {
            let places = Places::new(20, Share::percent(percent).unwrap());
            let mut held: Vec<(u8, Place)> = Vec::new();
            for (host, takes) in steps {
                let source = Source::from(IpAddr::from([192, 0, 2, host]));
                match takes {
                    true => match places.take(source) {
                        Ok(place) => held.push((host, place)),
                        Err(Refused::Full) => prop_assert_eq!(held.len(), 20),
                        Err(Refused::Share) => prop_assert!(held.iter().any(|(other, _)| *other == host)),
                    },
                    false => held.retain(|(other, _)| *other != host),
                }
                prop_assert_eq!(places.taken(), held.len());
            }
            drop(held);
            prop_assert!(places.inner().by_address.is_empty());
        }
    }
}
