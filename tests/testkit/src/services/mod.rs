//! Real services in the process of the test, on free ports of loopback.

mod index;
mod library;
mod pair;
mod peer;
mod seed;

pub use index::TestIndex;
pub use library::{LibraryPeer, download, peer_client, span};
pub use pair::PeerPair;
pub use peer::TestPeer;
pub use seed::SeededFile;
