//! Compiles `proto/` into Rust code and a descriptor set for gRPC reflection. Uses `protox`, so
//! that a build does not need `protoc`.

use std::{env, fs, path::PathBuf, process::Command};

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
    println!("cargo:rustc-env=POTLUCK_COMMIT={}", commit());
    Ok(())
}

/// The commit for `--version`: that of the environment, or of Git in a release build. Other builds
/// name none, so that a commit does not rebuild everything.
fn commit() -> String {
    println!("cargo:rerun-if-env-changed=POTLUCK_COMMIT");
    if let Ok(commit) = env::var("POTLUCK_COMMIT") {
        return commit;
    }
    let git = |words: &[&str]| {
        let output = Command::new("git").args(words).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    if env::var("PROFILE").is_ok_and(|profile| profile != "release") {
        return "debug".to_owned();
    }
    for file in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(&["rev-parse", "--git-path", file]) {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    git(&["rev-parse", "--short=9", "HEAD"]).unwrap_or_else(|| "unknown".to_owned())
}
