//! PeerService: the service that is open to other peers. Serves only shared content.
//!
//! | module | purpose |
//! |---|---|
//! | `grpc` | the calls: parsing, encoding, admission, timeouts |
//! | `shared` | the state that all calls share |
//! | `data` | reads requested ranges, and streams them |
//! | `piece_hashes` | finds the requested piece hashes, and permits to hold them |
//! | `crowd` | announces available units, and units being sent, to many downloaders of one file |
//! | `scheduling` | decides which connection may send next, and closes those that stall |
//! | `refusal` | the problems of refused calls |
//!
//! Invariants:
//!
//! - The memory for a caller is bounded, however much it asks for and however slowly it reads.
//! - Every stream ends when its receiver stops reading.
//! - Bytes are sent only while the file is unchanged since it was hashed.
//!
//! Non-goal: it does not know where content comes from ([`crate::content::ContentSource`]).

mod crowd;
mod data;
pub(crate) mod grpc;
pub(crate) mod piece_hashes;
mod refusal;
mod scheduling;
mod shared;

pub(crate) use self::grpc::call_kind::{call_kind, name_client};
pub use self::{
    grpc::{raw::RawGrpcService, service::PeerApi},
    scheduling::{
        connection::EvictableConnection,
        scheduler::{ConnectionHandle, SendScheduler},
    },
    shared::UploadCounters,
};
