//! The stand-in as a program, for clients in other languages and for measurements.
//!
//! `potluck-stand-in --listen 127.0.0.1:0 --files DIR --repository models/ORG/NAME=DIR` prints
//! `listening on ADDR` when it is ready.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, sync::Arc};

use anyhow::Context as _;
use clap::Parser;
use potluck_stand_in::{Shared, content::sha256_hex, hub::Repository, serve};

/// A web server that answers as origins do
#[derive(Debug, Parser)]
struct Args {
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Serves the files of this folder under /files/
    #[arg(long)]
    files: Option<PathBuf>,
    /// A repository of the hub, as in models/ORG/NAME=DIR; gated if the folder has a file `.gated`
    #[arg(long)]
    repository: Vec<String>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let shared = Arc::<Shared>::default();
    if let Some(folder) = &args.files {
        for (name, bytes) in read_folder(folder)? {
            shared.files.put(&name, bytes);
        }
    }
    for text in &args.repository {
        let (name, folder) = text.split_once('=').context("give KIND/ORG/NAME=DIR")?;
        let (kind, name) = name.split_once('/').context("give KIND/ORG/NAME=DIR")?;
        let mut files = read_folder(folder.as_ref())?;
        let repository = Repository {
            is_gated: files.remove(".gated").is_some(),
            commit: sha256_hex(text.as_bytes())[..40].to_owned(),
            files: files
                .into_iter()
                .map(|(path, bytes)| (path, bytes.into()))
                .collect(),
        };
        shared.hub.put(kind, name, repository);
    }
    let listener = tokio::net::TcpListener::bind(args.listen).await?;
    println!("listening on {}", listener.local_addr()?);
    serve(listener, shared).await?;
    Ok(())
}

/// The files below a folder, by their paths in it.
fn read_folder(root: &std::path::Path) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path
                .strip_prefix(root)?
                .to_str()
                .context("a name is not UTF-8")?
                .to_owned();
            files.insert(name, std::fs::read(&path)?);
        }
    }
    Ok(files)
}
