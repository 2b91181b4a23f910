//! Compiles `proto/` into Rust code and a descriptor set for gRPC reflection. Uses `protox`, so
//! that a build does not need `protoc`.

use std::{env, fs, path::PathBuf};

use prost::Message as _;

const PROTOS: [&str; 6] = [
    "potluck/v1/common.proto",
    "potluck/v1/collection.proto",
    "potluck/v1/index.proto",
    "potluck/v1/peer.proto",
    "potluck/v1/control.proto",
    "potluck/v1/network.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("potluck.descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        // `bytes` fields become slices of the receive buffer instead of copies.
        .bytes(".potluck.v1")
        .compile_fds(descriptors)?;
    Ok(())
}
