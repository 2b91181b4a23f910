//! A fake index and a fake peer with scripted answers, including those that the real services never
//! send.

use std::{path::Path, time::Duration};

use potluck_core::{FileId, Root, proto::v1};
use potluck_testkit::{
    background::Background,
    fakes::{
        control::{ControlScript, FakeControl},
        index::{FakeIndex, FakeIndexState},
    },
};
use tokio_util::sync::CancellationToken;

/// The scripted answers.
#[derive(Debug, Default, Clone)]
pub(crate) struct Script {
    /// The index's answer to every query and search.
    pub(crate) files: Vec<v1::QueryResult>,
    /// Number of empty search pages before the page with the files.
    pub(crate) empty_pages: usize,
    /// The states of every transfer, with the delay before each.
    pub(crate) transfer: Vec<(Duration, v1::Transfer)>,
    /// Whether the stream of a transfer stays open after the last state.
    pub(crate) hangs: bool,
    /// Number of further pages of transfers, each with the transfer under the next number.
    pub(crate) more_transfers: u64,
}

/// The running fakes; dropping this stops them.
#[derive(Debug)]
pub(crate) struct Fakes {
    /// The index's URL.
    pub(crate) index_url: String,
    /// The control service's address, in the form that `--peer` takes.
    pub(crate) peer: String,
    index: FakeIndex,
    control: FakeControl,
    _background: Background,
}

impl Fakes {
    /// Starts both services, with the control socket in `folder`.
    pub(crate) fn start(folder: &Path, script: Script) -> Self {
        let index = FakeIndex::new(FakeIndexState {
            query_results: script.files,
            empty_pages: script.empty_pages,
            version: "\x1b[2Jfake".to_owned(),
            ..FakeIndexState::default()
        });
        let control = FakeControl::new(ControlScript {
            transfer: script.transfer,
            hangs: script.hangs,
            more_transfers: script.more_transfers,
            items: Vec::new(),
        });
        let socket = folder.join("fake.sock");
        let background = Background::start();
        let (address, _) = background.run(async {
            control.serve(&socket);
            let any_port = "127.0.0.1:0".parse().unwrap();
            index.serve(any_port, CancellationToken::new()).await
        });
        Self {
            index_url: format!("http://{address}"),
            peer: format!("unix:{}", socket.display()),
            index,
            control,
            _background: background,
        }
    }

    /// How many search pages the index sent.
    pub(crate) fn searches(&self) -> usize {
        self.index.state().search_calls
    }

    /// How many calls with this name the control service received.
    pub(crate) fn calls(&self, name: &str) -> usize {
        self.control.calls(name)
    }

    /// Whether the control service received a call with this name.
    pub(crate) fn was_called(&self, name: &str) -> bool {
        self.calls(name) > 0
    }
}

/// A valid file record.
pub(crate) fn record(seed: u8, size: u64) -> v1::FileRecord {
    let root = Root([seed; 32]);
    v1::FileRecord {
        file_id: FileId::derive(size, &root).to_bytes(),
        size,
        root: root.to_bytes(),
        sha256: Vec::new().into(),
        kind: v1::FileKind::File.into(),
    }
}

/// A query result of the index.
pub(crate) fn found(seed: u8, names: &[&str]) -> v1::QueryResult {
    v1::QueryResult {
        file: Some(record(seed, 1000)),
        names: names.iter().map(|&name| name.to_owned()).collect(),
        provider_count: 1,
        providers: vec![v1::Provider {
            peer_id: vec![seed; 32].into(),
            address: Some(address(1)),
            complete: true,
        }],
    }
}

/// An address in 192.0.2.0/24, the documentation network of RFC 5737.
pub(crate) fn address(last: u8) -> v1::Address {
    v1::Address {
        host: format!("192.0.2.{last}"),
        port: 12349,
    }
}

/// A transfer of [`record`]`(seed, 1000)` in this state.
pub(crate) fn transfer(seed: u8, state: v1::TransferState, done: u64) -> v1::Transfer {
    v1::Transfer {
        transfer_id: 7,
        file_id: record(seed, 1000).file_id,
        name: "fake.bin".into(),
        kind: v1::FileKind::File.into(),
        path: "/tmp/fake.bin".into(),
        state: state.into(),
        bytes_done: done,
        bytes_total: 1000,
        priority: 10,
        ..v1::Transfer::default()
    }
}
