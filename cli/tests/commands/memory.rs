//! Bounds the memory that answers of an index can make a command use.

use std::{
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use potluck_core::{FileId, Root, proto::v1};
use potluck_testkit::{
    network::raw_server::always_answering, system::memory::peak_memory, wait::DEADLINE,
};
use prost::Message as _;

use crate::sandbox::Sandbox;

/// Maximum memory of a command in MiB, for any answer of the index. A debug build maps 25 MiB of code.
const MAX_MEMORY: u64 = 50;

/// Runs a command against an index that always sends `answer`. Returns the exit code, the peak
/// memory in MiB, and the text on stderr.
async fn run(arguments: &[&str], answer: &[u8]) -> (Option<i32>, Option<u64>, String) {
    let address = always_answering(answer).await;
    let sandbox = Sandbox::without_index();
    let mut child = sandbox
        .command()
        .args(["--index", &format!("http://{address}")])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let printed = thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()).unwrap());
    let start = Instant::now();
    let mut peak = None;
    let code = loop {
        // The system reports a peak that only grows, so the last sample is close to the final peak.
        peak = peak_memory(child.id()).max(peak);
        if let Some(status) = child.try_wait().unwrap() {
            break status.code();
        }
        if start.elapsed() > DEADLINE {
            child.kill().unwrap();
            panic!("the command did not exit");
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    println!(
        "{arguments:?}: {peak:?} MiB, {} bytes printed",
        printed.join().unwrap()
    );
    let messages = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
    (code, peak, messages)
}

fn assert_small(peak: Option<u64>) {
    match peak {
        Some(peak) => assert!(peak < MAX_MEMORY, "{peak} MiB"),
        None => println!("memory is not checked: this system has no /proc/PID/status"),
    }
}

/// Each file takes two bytes on the wire, and would take two hundred in memory.
#[tokio::test(flavor = "multi_thread")]
async fn rejects_answers_of_empty_items_before_it_decodes_them() {
    for bytes in [4, 2] {
        let empty = [0x0a, 0].repeat((bytes << 19) - 100);
        for arguments in [&["search", "x"][..], &["query", "x"], &["query", "x", "--json"]] {
            let (code, peak, messages) = run(arguments, &empty).await;
            assert!(code.is_some_and(|code| code > 0), "{code:?}");
            assert!(
                messages.contains("sent more than") || messages.contains("too large"),
                "{messages}"
            );
            assert_small(peak);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_answers_take_little_memory() {
    let file = |n: u64| {
        let root = Root([1; 32]);
        v1::FileRecord {
            file_id: FileId::derive(n, &root).to_bytes(),
            size: n,
            root: root.to_bytes(),
            ..Default::default()
        }
    };
    // Characters that the JSON output escapes: six bytes for two.
    let names = vec!["\u{e9}".repeat(120); 7];
    let query = v1::QueryResponse {
        files: (1..=1000)
            .map(|n| v1::QueryResult {
                file: Some(file(n)),
                names: names.clone(),
                provider_count: 3,
                ..Default::default()
            })
            .collect(),
        key: "x".into(),
        ..Default::default()
    };
    let provider = v1::Provider {
        peer_id: vec![1; 32].into(),
        address: Some(v1::Address {
            host: "192.0.2.1".to_owned(),
            port: 1,
        }),
        complete: true,
    };
    let crowded = v1::QueryResponse {
        files: (1..=40)
            .map(|n| v1::QueryResult {
                file: Some(file(n)),
                names: vec!["a".to_owned()],
                provider_count: 1000,
                providers: vec![provider.clone(); 900],
            })
            .collect(),
        // Every page claims that more follow.
        next_page_token: "more".to_owned(),
        key: "x".into(),
    };
    for answer in [query.encode_to_vec(), crowded.encode_to_vec()] {
        assert!((1 << 20..2 << 20).contains(&answer.len()), "{}", answer.len());
        for arguments in [&["query", "x"][..], &["query", "x", "--json"]] {
            let (code, peak, messages) = run(arguments, &answer).await;
            assert_eq!(code, Some(0), "{messages}");
            assert_small(peak);
        }
    }
    let search = v1::SearchResponse {
        files: query
            .files
            .into_iter()
            .map(|found| v1::SearchResult {
                file: found.file,
                names: found.names,
                provider_count: 3,
            })
            .collect(),
        ..Default::default()
    };
    for arguments in [&["search", "x"][..], &["search", "x", "--json"]] {
        let (code, peak, messages) = run(arguments, &search.encode_to_vec()).await;
        assert_eq!(code, Some(0), "{messages}");
        assert_small(peak);
    }
}
