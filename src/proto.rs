//! The generated code for `proto/potluck/v1`. No other module includes it.

/// Messages, clients and servers of the package `potluck.v1`.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::use_self,
    clippy::or_fun_call
)]
pub mod v1 {
    tonic::include_proto!("potluck.v1");
}

/// The compiled descriptors of the package, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/potluck.descriptors.bin"));
