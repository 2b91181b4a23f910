//! Real services in the process of the test, on free ports of loopback.

mod index;
mod library;
mod own_ca;
mod pair;
mod peer;
mod private_network;
mod seed;

pub use index::TestIndex;
pub use library::{LibraryPeer, download, peer_client, span};
pub use own_ca::OwnCa;
pub use pair::PeerPair;
pub use peer::TestPeer;
pub use private_network::{TestNetwork, member_tls, secured_index};
pub use seed::SeededFile;
