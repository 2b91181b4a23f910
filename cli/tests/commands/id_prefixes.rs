//! The first digits of an id in place of the whole id: at the index, in the peer's library and in
//! its transfers.

use std::{collections::HashMap, fs};

use potluck_core::{FileId, Root};

use crate::sandbox::Sandbox;

/// Two contents whose ids have the same first 8 digits, with their ids.
fn crowded_contents() -> [(String, String); 2] {
    let mut seen: HashMap<[u8; 4], String> = HashMap::new();
    for n in 0_u64.. {
        let content = format!("content {n}");
        let id = id_of(&content);
        let [a, b, c, d, ..] = *id.as_bytes();
        if let Some(other) = seen.insert([a, b, c, d], content.clone()) {
            let other_id = id_of(&other).to_string();
            return [(content, id.to_string()), (other, other_id)];
        }
    }
    unreachable!("some two of four billion are equal");
}

/// The id of a file of one leaf, whose root is the plain SHA-256.
fn id_of(content: &str) -> FileId {
    use sha2::Digest as _;
    let root = Root(sha2::Sha256::digest(content).into());
    FileId::derive(content.len() as u64, &root)
}

#[test]
fn a_unique_prefix_stands_for_the_id_everywhere() {
    let sandbox = Sandbox::new();
    let seed = sandbox.peer("seed", &[]);
    sandbox.file("src/x.bin", 100_000, 1);
    let shared = sandbox
        .run(&["share", "src/x.bin", "--peer", &seed.control(), "--json"])
        .expect(0)
        .object();
    let id = shared["id"].as_str().unwrap();
    let daemon = sandbox.peer_in(&sandbox.default_home(), &[]);
    for digits in [8, 9, 63] {
        let prefix = &id[..digits];
        let found = sandbox.run(&["query", prefix, "--json"]).expect(0).object();
        assert_eq!(found["files"][0]["id"], id, "{digits}");
        sandbox.run(&["get", prefix]).expect(0);
        for args in [
            &["why", prefix, "--json"][..],
            &["transfers", "pause", prefix, "--json"],
        ] {
            let run = sandbox.run(args);
            // A transfer that is done cannot be paused, but it is found.
            match run.code {
                Some(0) => assert_eq!(run.object()["id"], id),
                _ => assert_eq!(run.expect(1).error()["error"], "already_ended"),
            }
        }
        let verified = sandbox
            .run(&["verify", prefix, "src/x.bin", "--json"])
            .expect(0)
            .object();
        assert_eq!(verified["id"], id);
    }
    assert!(daemon.home.join("files/x.bin").exists());
    let other = id.replacen(&id[..1], if id.starts_with('0') { "1" } else { "0" }, 1);
    sandbox.run(&["verify", &other[..8], "src/x.bin"]).expect(4);
    for args in [
        &["query"][..],
        &["get"],
        &["why"],
        &["transfers", "cancel"],
        &["unshare"],
    ] {
        let run = sandbox.run(&[args, &[&other[..8], "--json"]].concat());
        assert_eq!(run.expect(3).error()["error"], "not_found", "{args:?}");
    }
    sandbox
        .run(&["unshare", &id[..8], "--peer", &seed.control()])
        .expect(0);
    let left = sandbox.run(&["ls", "--peer", &seed.control()]).expect(0).stdout;
    assert_eq!(left, "");
}

#[test]
fn an_ambiguous_prefix_is_listed_and_nothing_is_done() {
    let sandbox = Sandbox::new();
    let seed = sandbox.peer("seed", &[]);
    let contents = crowded_contents();
    for (n, (content, id)) in contents.iter().enumerate() {
        let name = format!("{n}.txt");
        fs::write(sandbox.work().join(&name), content).unwrap();
        let shared = sandbox.run(&["share", &name, "--peer", &seed.control(), "--json"]);
        assert_eq!(shared.expect(0).object()["id"], id.as_str());
    }
    let prefix = &contents[0].1[..8];
    let both = |object: &serde_json::Value| {
        let files = object["files"].as_array().unwrap();
        files.len() == 2
            && contents
                .iter()
                .all(|(_, id)| files.iter().any(|file| file["id"] == **id))
    };
    let found = sandbox.run(&["query", prefix, "--json"]).expect(0).object();
    assert!(both(&found), "{found}");
    let daemon = sandbox.peer_in(&sandbox.default_home(), &[]);
    let run = sandbox.run(&["get", prefix, "--json"]).expect(2);
    assert_eq!(run.error()["error"], "ambiguous_name");
    assert!(both(&run.object()), "{}", run.stdout);
    assert_eq!(sandbox.run(&["transfers", "--json"]).expect(0).stdout, "");
    let plain = sandbox.run(&["get", prefix]).expect(2);
    assert!(plain.stderr.contains("give more digits"), "{}", plain.stderr);
    // The table shows as many digits as tell the ids apart.
    for (_, id) in &contents {
        let row = plain
            .stdout
            .lines()
            .find(|line| id.starts_with(line.split(' ').next().unwrap()));
        let digits = row.unwrap().split(' ').next().unwrap();
        assert!(digits.len() > 8, "{}", plain.stdout);
        sandbox.run(&["get", digits]).expect(0);
    }
    for args in [&["why"][..], &["transfers", "cancel"], &["unshare"]] {
        let run = sandbox.run(&[args, &[prefix, "--json"]].concat()).expect(2);
        assert_eq!(run.error()["error"], "ambiguous_name", "{args:?}");
        assert!(both(&run.object()), "{}", run.stdout);
    }
    assert_eq!(sandbox.run(&["ls", "--json"]).expect(0).objects().len(), 2);
    assert!(daemon.home.join("files/0.txt").exists());
}

#[test]
fn a_prefix_is_found_at_the_peer_if_the_index_is_down() {
    let mut sandbox = Sandbox::new();
    let daemon = sandbox.peer_in(&sandbox.default_home(), &[]);
    sandbox.file("x.bin", 100_000, 1);
    let shared = sandbox.run(&["share", "x.bin", "--json"]).expect(0).object();
    let id = shared["id"].as_str().unwrap().to_owned();
    sandbox.kill_index();
    sandbox.run(&["query", &id[..8]]).expect(5);
    sandbox.run(&["get", &id[..8], "-o", "copy"]).expect(0);
    assert!(sandbox.work().join("copy").exists());
    sandbox.run(&["get", "00000000"]).expect(5);
    drop(daemon);
}

#[test]
fn a_name_of_hex_digits_is_found_as_a_name() {
    let sandbox = Sandbox::new();
    let seed = sandbox.peer("seed", &[]);
    sandbox.file("20261130", 1000, 1);
    sandbox
        .run(&["share", "20261130", "--peer", &seed.control()])
        .expect(0);
    fs::remove_file(sandbox.work().join("20261130")).unwrap();
    sandbox.file("other", 1000, 2);
    let found = sandbox.run(&["query", "20261130", "--json"]).expect(0).object();
    assert_eq!(found["files"][0]["names"][0], "20261130");
    // A path of hex digits can be unshared, too.
    sandbox
        .run(&["unshare", "20261130", "--peer", &seed.control()])
        .expect(0);
}

#[test]
fn tables_show_short_ids_unless_all_digits_are_requested() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.peer_in(&sandbox.default_home(), &[]);
    sandbox.file("model.bin", 1000, 1);
    let shared = sandbox.run(&["share", "model.bin", "--json"]).expect(0).object();
    let id = shared["id"].as_str().unwrap();
    for args in [&["search"][..], &["ls"]] {
        let short = sandbox.run(args).expect(0).stdout;
        let row = short.lines().nth(1).unwrap();
        assert!(row.starts_with(&format!("{}  ", &id[..8])), "{short}");
        assert_eq!(short.lines().count(), 2, "one line a file: {short}");
        let full = sandbox.run(&[args, &["--full-ids"]].concat()).expect(0).stdout;
        assert!(full.contains(id), "{full}");
        let json = sandbox.run(&[args, &["--json"]].concat()).expect(0).stdout;
        assert!(json.contains(id), "{json}");
    }
    drop(daemon);
}

#[test]
fn a_search_lists_the_best_matches_first_and_then_those_with_more_peers() {
    let sandbox = Sandbox::new();
    let (one, two) = (sandbox.peer("one", &[]), sandbox.peer("two", &[]));
    for (n, (name, peers)) in [
        ("modeller-guide.pdf", &[&one, &two][..]),
        ("b-model.bin", &[&one]),
        ("a-model.bin", &[&one]),
        ("z-model.bin", &[&one, &two]),
        ("model", &[&one]),
    ]
    .into_iter()
    .enumerate()
    {
        sandbox.file(name, 1000, n as u64 + 1);
        for peer in peers {
            sandbox.run(&["share", name, "--peer", &peer.control()]).expect(0);
        }
    }
    let table = sandbox.run(&["search", "model"]).expect(0).stdout;
    let names: Vec<&str> = table
        .lines()
        .skip(1)
        .map(|line| line.rsplit(' ').next().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "model",
            "z-model.bin",
            // Equal matches come in the order of their ids.
            "b-model.bin",
            "a-model.bin",
            "modeller-guide.pdf"
        ]
    );
    let best = sandbox.run(&["search", "model", "--limit", "1"]).expect(0);
    assert!(best.stdout.ends_with("  model\n"), "{}", best.stdout);
    assert!(best.stderr.contains("more matches"), "{}", best.stderr);
}
