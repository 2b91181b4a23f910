//! The scripts that change a peer: its entries, their digest, its lease and the stream of its tag,
//! all in one slot.

use std::time::Duration;

use redis::{Cmd, ErrorKind, RedisError, ServerErrorKind, cluster_async::ClusterConnection};

use super::{
    keys::Tag,
    rows::{encode_change, encode_entry, encode_record},
};
use crate::store::Change;

/// Changes that a stream keeps, roughly: those of several seconds in a busy tag. Whoever falls behind
/// reads the state instead.
const MAX_CHANGES: &str = "256";

/// The scripts.
#[derive(Debug)]
pub(super) struct Scripts {
    register: Script,
    unregister: Script,
    forget: Script,
}

/// A script and the SHA-1 by which Redis knows it.
#[derive(Debug)]
struct Script {
    code: String,
    hash: String,
}

impl Script {
    fn new(code: &str) -> Self {
        let code = format!("{}{code}", include_str!("scripts/common.lua"));
        let hash = redis::Script::new(&code).get_hash().to_owned();
        Self { code, hash }
    }
}

impl Default for Scripts {
    fn default() -> Self {
        Self {
            register: Script::new(include_str!("scripts/register.lua")),
            unregister: Script::new(include_str!("scripts/unregister.lua")),
            forget: Script::new(include_str!("scripts/forget.lua")),
        }
    }
}

/// What a script did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Written {
    /// The change has this number in its tag, and this id in the stream. `previous` is the number of
    /// the peer's change before it; 0 if there was none.
    Change {
        number: u64,
        stream_id: String,
        previous: u64,
    },
    /// The peer was not stored.
    Nothing,
    /// The peer has a lease, so that it did not expire.
    Alive,
}

/// A call of a script.
struct Call<'a> {
    script: &'a Script,
    tag: Tag,
    arguments: Vec<Vec<u8>>,
}

impl Scripts {
    /// Makes one change.
    pub(super) async fn run(
        &self,
        connection: &mut ClusterConnection,
        change: &Change,
    ) -> Result<Written, RedisError> {
        let call = self.call(change);
        let answer = call.command("EVALSHA", change).query_async(connection).await;
        let answer: Result<(u64, String, u64), RedisError> = match answer {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                call.command("EVAL", change).query_async(connection).await
            }
            answer => answer,
        };
        Ok(match answer? {
            (0, state, _) if state == "alive" => Written::Alive,
            (0, ..) => Written::Nothing,
            (number, stream_id, previous) => Written::Change {
                number,
                stream_id,
                previous,
            },
        })
    }

    fn call(&self, change: &Change) -> Call<'_> {
        let peer = change.peer();
        let mut entries = Vec::new();
        let (script, more): (_, Vec<Vec<u8>>) = match change {
            Change::Register {
                peer, files, replace, ..
            } => {
                entries = files.iter().map(encode_entry).collect();
                let head = [
                    encode_record(&peer.address, peer.ttl),
                    flag(*replace),
                    milliseconds(peer.ttl).into_bytes(),
                ];
                let pairs = files.iter().zip(&entries);
                let pairs =
                    pairs.flat_map(|(file, entry)| [file.file.id.0.to_vec(), entry.clone()]);
                (&self.register, head.into_iter().chain(pairs).collect())
            }
            Change::Unregister { files, .. } => {
                let files = files.iter().map(|file| file.0.to_vec());
                (&self.unregister, files.collect())
            }
            Change::Forget { .. } => (&self.forget, vec![flag(false)]),
            Change::Expire { .. } => (&self.forget, vec![flag(true)]),
        };
        let head = [
            peer.0.to_vec(),
            encode_change(change, &entries),
            MAX_CHANGES.into(),
        ];
        Call {
            script,
            tag: Tag::of(peer),
            arguments: head.into_iter().chain(more).collect(),
        }
    }
}

impl Call<'_> {
    fn command(&self, name: &str, change: &Change) -> Cmd {
        let (tag, peer) = (self.tag, change.peer());
        let mut command = redis::cmd(name);
        match name {
            "EVALSHA" => command.arg(&self.script.hash),
            _ => command.arg(&self.script.code),
        };
        command
            .arg(5)
            .arg(tag.peers())
            .arg(tag.files(peer))
            .arg(tag.changes())
            .arg(tag.lease(peer))
            .arg(tag.version());
        for argument in &self.arguments {
            command.arg(&argument[..]);
        }
        command
    }
}

fn flag(is_set: bool) -> Vec<u8> {
    if is_set { b"1".to_vec() } else { b"0".to_vec() }
}

/// A lease for `SET … PX`; `0` stands for none.
pub(super) fn milliseconds(ttl: Duration) -> String {
    u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).to_string()
}
