//! `get` from web servers and hubs.

use std::{collections::BTreeMap, fs};

use potluck_stand_in::{StandIn, content::sha256_hex, hub};
use potluck_testkit::system::program::Finished;

use crate::sandbox::Sandbox;

/// Length of a file, in bytes: several pieces.
const LEN: usize = 1_000_000;

fn content(seed: u8) -> Vec<u8> {
    (0..LEN).map(|at| (at / 7) as u8 ^ seed).collect()
}

/// A hub with one repository.
async fn start_hub() -> StandIn {
    let stand_in = StandIn::start().await;
    let files = [
        ("a.safetensors", content(1)),
        ("deep/b.safetensors", content(2)),
        ("config.json", b"{}".to_vec()),
    ];
    let files: BTreeMap<_, _> = files
        .into_iter()
        .map(|(path, bytes)| (path.to_owned(), bytes.into()))
        .collect();
    let repository = hub::Repository {
        commit: "c".repeat(40),
        is_gated: false,
        files,
    };
    stand_in.shared.hub.put("models", "org/repo", repository);
    stand_in
}

/// Runs `get`, with this server as the hub.
fn get(sandbox: &Sandbox, hub: &StandIn, args: &[&str]) -> Finished {
    let mut command = sandbox.command();
    command.env("HF_ENDPOINT", hub.url("")).arg("get").args(args);
    Finished::run(&mut command)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_or_chosen_files_of_it() {
    let sandbox = Sandbox::new();
    let hub = start_hub().await;
    let saved = |path: &str| fs::read(sandbox.work().join(path)).ok();

    get(&sandbox, &hub, &["hf://org/repo", "--include", "*.safetensors"]).expect(0);
    assert_eq!(saved("repo/a.safetensors"), Some(content(1)));
    assert_eq!(saved("repo/deep/b.safetensors"), Some(content(2)));
    assert_eq!(saved("repo/config.json"), None);

    // What is there already is complete, and stays.
    hub.shared.log.clear();
    let all = get(&sandbox, &hub, &["hf://org/repo"]).expect(0);
    assert!(all.stderr.contains("3 of 3 files done"), "{}", all.stderr);
    assert_eq!(saved("repo/config.json"), Some(b"{}".to_vec()));
    assert!(
        hub.shared.log.bytes() < LEN as u64,
        "{:?}",
        hub.shared.log.entries()
    );

    let none = get(&sandbox, &hub, &["hf://org/repo", "--include", "*.bin"]);
    none.expect(2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_here_already_is_shared_as_content_of_a_hub() {
    let sandbox = Sandbox::new();
    let hub = start_hub().await;
    let mut source = sandbox.peer("source", &[]);
    let copy = sandbox.work().join("copy");
    fs::create_dir_all(copy.join("deep")).unwrap();
    fs::write(copy.join("a.safetensors"), content(1)).unwrap();
    fs::write(copy.join("config.json"), "{}").unwrap();
    let mut other = content(2);
    other[7] ^= 1;
    fs::write(copy.join("deep/b.safetensors"), other).unwrap();
    let share = |args: &[&str]| {
        let mut command = sandbox.command();
        let control = source.control();
        command
            .env("HF_ENDPOINT", hub.url(""))
            .args(["--peer", &control, "--json", "share"])
            .args(args);
        Finished::run(&mut command)
    };

    // One is the same, one differs, and one is small.
    let shared = share(&["copy", "--as", "hf://org/repo"]).expect(4);
    assert!(shared.stderr.contains("deep/b.safetensors"), "{}", shared.stderr);
    let objects = shared.objects();
    assert_eq!(objects.len(), 1, "{objects:?}");
    assert_eq!(objects[0]["registered"], true);
    let origin = format!("hf://org/repo@{}", "c".repeat(40));
    assert_eq!(objects[0]["as"], origin);

    // Another machine now gets it from there.
    let got = get(&sandbox, &hub, &["--json", "hf://org/repo/a.safetensors"])
        .expect(0)
        .objects()
        .pop()
        .unwrap();
    assert_eq!(
        fs::read(sandbox.work().join("a.safetensors")).unwrap(),
        content(1)
    );
    let sources = got["sources"].as_array().unwrap();
    let peer = sources.iter().find(|source| source["origin"].is_null());
    assert!(peer.is_some_and(|peer| peer["bytes"].as_u64() > Some(0)), "{got}");

    // One file; by its checksum; and what cannot be compared.
    fs::write(copy.join("deep/b.safetensors"), content(2)).unwrap();
    share(&[
        "copy/deep/b.safetensors",
        "--as",
        "hf://org/repo/deep/b.safetensors",
    ])
    .expect(0);
    let sum = sha256_hex(&content(2));
    let url = format!("https://example.org/b#sha256={sum}");
    share(&["copy/deep/b.safetensors", "--as", &url]).expect(0);
    share(&["copy/a.safetensors", "--as", &url]).expect(4);
    share(&["copy", "--as", "hf://org/repo/a.safetensors"]).expect(2);
    share(&["copy/a.safetensors", "--as", "https://example.org/b"]).expect(2);
    fs::create_dir(sandbox.work().join("empty")).unwrap();
    share(&["empty", "--as", "hf://org/repo"]).expect(3);
    assert!(source.terminate().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_file_by_its_sha256() {
    let sandbox = Sandbox::new();
    let server = StandIn::start().await;
    server.shared.files.put("image.iso", content(3));
    let url = |sum: &str| format!("{}#sha256={sum}", server.url("/files/image.iso"));

    let right = url(&sha256_hex(&content(3)));
    let done = get(&sandbox, &server, &["--json", &right])
        .expect(0)
        .objects()
        .pop()
        .unwrap();
    assert_eq!(fs::read(sandbox.work().join("image.iso")).unwrap(), content(3));
    assert_eq!(done["sources"][0]["bytes"], LEN);
    assert!(done["sources"][0]["origin"].is_string(), "{done}");

    let wrong = url(&sha256_hex(b"something else"));
    get(&sandbox, &server, &[&wrong, "-o", "wrong.iso"]).expect(4);
    assert!(!sandbox.work().join("wrong.iso").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_url_without_a_sha256_comes_from_its_server_alone() {
    let sandbox = Sandbox::new();
    let server = StandIn::start().await;
    server.shared.files.put("image.iso", content(3));
    let url = server.url("/files/image.iso");
    let peer = sandbox.peer("peer", &[]);
    let control = peer.control();
    let with_peer = ["--peer", &control, "--json", &url, "-o"];

    let done = get(&sandbox, &server, &[&with_peer[..], &["a.iso"]].concat()).expect(0);
    let object = done.objects().pop().unwrap();
    assert_eq!(object["is_vouched_for"], false, "{object}");
    assert_eq!(fs::read(sandbox.work().join("a.iso")).unwrap(), content(3));
    assert_eq!(object["sources"][0]["bytes"], LEN);
    assert_eq!(object["sha256"], sha256_hex(&content(3)));
    let id = object["id"].as_str().unwrap();
    let files = sandbox.eventually(&["--json", "query", id]).object();
    assert_eq!(files["files"][0]["providers"].as_array().unwrap().len(), 1);

    // Nobody is asked for it: the server sends all of it again.
    server.shared.log.clear();
    let again = get(&sandbox, &server, &[&url, "-o", "b.iso"]).expect(0);
    let says = "nothing states the SHA-256";
    assert!(again.stderr.contains(says), "{}", again.stderr);
    assert!(server.shared.log.bytes() >= LEN as u64);
    // Nothing says whether this is the file.
    get(&sandbox, &server, &[&url, "-o", "b.iso"]).expect(1);

    // A part of the same content goes on; one of other content begins anew.
    let part = |bytes: &[u8], validator: &str| {
        let state = format!(r#"{{"url":"{url}","validator":{validator},"size":{LEN}}}"#);
        fs::write(sandbox.work().join("c.iso.url.part"), bytes).unwrap();
        fs::write(sandbox.work().join("c.iso.url.part.state"), state).unwrap();
    };
    let tag = format!("{:?}", format!("\"{}\"", &sha256_hex(&content(3)[..1024])[..16]));
    for (bytes, validator, resumed) in [
        (&content(3)[..500_000], tag.as_str(), 500_000),
        (&content(4)[..500_000], r#""\"other\"""#, 0),
    ] {
        part(bytes, validator);
        let done = get(&sandbox, &server, &["--json", &url, "-o", "c.iso"]).expect(0);
        let object = done.objects().pop().unwrap();
        assert_eq!(object["resumed_bytes"], resumed, "{object}");
        let saved = sandbox.work().join("c.iso");
        assert!(fs::read(&saved).unwrap() == content(3));
        fs::remove_file(saved).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn standard_output_from_an_origin() {
    let sandbox = Sandbox::new();
    let server = start_hub().await;
    server.shared.files.put("text", "line\n".repeat(100_000));
    let plain = server.url("/files/text");
    let sum = sha256_hex("line\n".repeat(100_000).as_bytes());
    let right = format!("{plain}#sha256={sum}");
    let same = get(&sandbox, &server, &[&right, "-o", "-"]).expect(0);
    assert!(same.stdout == "line\n".repeat(100_000));
    assert!(same.stderr.contains("verified, from"), "{}", same.stderr);
    let unknown = get(&sandbox, &server, &[&plain, "-o", "-"]).expect(0);
    assert!(unknown.stdout == "line\n".repeat(100_000));
    assert!(unknown.stderr.contains("not verified"), "{}", unknown.stderr);
    let wrong = format!("{plain}#sha256={}", sha256_hex(b"other"));
    let wrong = get(&sandbox, &server, &[&wrong, "-o", "-"]).expect(4);
    assert!(wrong.stdout.len() < 500_000, "the end is held back");
    get(&sandbox, &server, &["hf://org/repo", "-o", "-"]).expect(2);
}
