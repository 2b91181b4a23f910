//! `potluck ui`: who gets the page, and what it shows and changes.

mod page;

use std::fs;

use serde_json::json;

use self::page::{Page, ask};
use crate::sandbox::Sandbox;

/// A sandbox with a running peer in the default home, and the page of this peer.
fn page_of_default_peer() -> (Sandbox, crate::sandbox::Peer, Page) {
    let sandbox = Sandbox::new();
    let peer = sandbox.peer_in(&sandbox.default_home(), &[]);
    let page = Page::opened(&sandbox, &[]);
    (sandbox, peer, page)
}

#[test]
fn the_link_opens_the_page_once() {
    let sandbox = Sandbox::new();
    let _peer = sandbox.peer_in(&sandbox.default_home(), &[]);
    let mut page = Page::start(&sandbox, &[]);
    for path in ["/", "/?token=", "/?token=0123456789abcdef0123456789abcdef"] {
        let refused = page.get(path).expect(401);
        assert!(refused.body.contains("potluck ui"), "{refused:?}");
        assert_eq!(refused.header("set-cookie"), "");
    }
    let opened = page.open();
    let cookie = opened.header("set-cookie");
    for attribute in [
        "; HttpOnly",
        "; SameSite=Strict",
        &format!("; Path={}", page.folder),
    ] {
        assert!(cookie.contains(attribute), "{attribute}: {cookie}");
    }
    assert!(page.folder.len() > 32, "nobody guesses {}", page.folder);
    page.get(&page.link_path).expect(401);

    let shown = page.get_in("").expect(200);
    assert_eq!(shown.header("content-type"), "text/html; charset=utf-8");
    for path in ["", "main.js", "events", "api/library", "api/search"] {
        page.get(&format!("{}{path}", page.folder)).expect(401);
    }
    page.get("/main.js").expect(404);

    // After a click on another site, browsers send no cookie: the page is loaded again from here.
    let headers = [("host", &*page.host), ("sec-fetch-site", "cross-site")];
    let clicked = ask(&page.host, &format!("GET {}", page.folder), &headers, "").expect(200);
    assert!(clicked.body.contains("http-equiv=\"refresh\""), "{clicked:?}");
    let path = format!("GET {}api/library", page.folder);
    ask(&page.host, &path, &headers, "").expect(401);
}

#[test]
fn other_hosts_and_pages_are_refused() {
    let (_sandbox, _peer, page) = page_of_default_peer();
    let path = format!("GET {}api/library", page.folder);
    let port = page.host.split_once(':').unwrap().1;
    for host in ["evil.example", &format!("evil.example:{port}"), "127.0.0.1"] {
        let headers = [("host", host), ("cookie", &*page.cookie)];
        ask(&page.host, &path, &headers, "").expect(403);
        ask(&page.host, &format!("GET {}", page.link_path), &headers, "").expect(403);
    }
    let local = format!("localhost:{port}");
    let headers = [("host", &*local), ("cookie", &*page.cookie)];
    ask(&page.host, &path, &headers, "").expect(200);

    let limits = json!({ "upload": "1MiB" });
    let other_port = format!("http://127.0.0.1:{}", if port == "1" { "2" } else { "1" });
    for origin in ["http://evil.example", "null", &other_port] {
        page.post_from("api/limits", &limits, origin).expect(403);
    }
    let path = format!("POST {}api/limits", page.folder);
    let headers = [("host", &*page.host), ("cookie", &*page.cookie)];
    ask(&page.host, &path, &headers, &limits.to_string()).expect(403);
    let before = page.events().until("limits", |_| true);
    assert_eq!(before["upload_bytes_per_second"], 0);
    let changed = page.post("api/limits", &limits).expect(200).object();
    assert_eq!(changed["upload_bytes_per_second"], 1 << 20);
}

#[test]
fn a_browser_runs_nothing_but_the_files_of_the_page() {
    let (_sandbox, _peer, page) = page_of_default_peer();
    let html = page.get_in("").expect(200).body;
    let files: Vec<_> = html
        .split('"')
        .filter(|word| [".js", ".css", ".svg"].iter().any(|end| word.ends_with(end)))
        .collect();
    assert!(files.len() >= 3, "{html}");
    let answers = files.iter().map(|path| page.get_in(path).expect(200)).chain([
        page.get_in("").expect(200),
        page.get_in("api/library").expect(200),
        page.get_in("api/nothing").expect(404),
        page.get("/").expect(401),
        ask(&page.host, "GET /", &[("host", "evil.example")], "").expect(403),
    ]);
    for answer in answers {
        let policy = answer.header("content-security-policy");
        assert!(
            policy.starts_with("default-src 'none'; script-src 'self';"),
            "{policy}"
        );
        assert!(!policy.contains("unsafe") && !policy.contains('*'), "{policy}");
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
        assert_eq!(answer.header("referrer-policy"), "no-referrer");
        assert_eq!(answer.header("cache-control"), "no-store");
    }
    for sign in [
        " style=",
        " onclick=",
        " onload=",
        "<style",
        "javascript:",
        "http://",
        "https://",
    ] {
        assert!(!html.contains(sign), "{sign}");
    }
    assert_eq!(
        html.matches("<script").count(),
        html.matches("<script type=\"module\" src=").count()
    );
}

#[test]
fn every_module_that_the_page_needs_is_served() {
    let (_sandbox, _peer, page) = page_of_default_peer();
    let mut wanted = vec!["main.js".to_owned()];
    let mut seen = Vec::new();
    while let Some(path) = wanted.pop() {
        let script = page.get_in(&path).expect(200);
        assert_eq!(script.header("content-type"), "text/javascript; charset=utf-8");
        let imports = script.body.split("from \"./").skip(1);
        let imports = imports.map(|rest| rest.split_once('"').unwrap().0.to_owned());
        seen.push(path);
        wanted.extend(imports.filter(|path| !seen.contains(path)));
    }
    assert!(seen.contains(&"map.js".to_owned()), "{seen:?}");
}

#[test]
fn a_download_is_paused_resumed_and_watched_to_its_end() {
    let sandbox = Sandbox::new();
    let seeds = ["a", "b"].map(|name| sandbox.peer(name, &["--upload-limit", "2MiB"]));
    let file = sandbox.file("weights.bin", 12 << 20, 1);
    for seed in &seeds {
        let path = file.to_str().unwrap();
        sandbox.run(&["share", path, "--peer", &seed.control()]).expect(0);
    }
    let _peer = sandbox.peer_in(&sandbox.default_home(), &[]);
    let page = Page::opened(&sandbox, &[]);
    let found = page.get_in("api/search?words=weights").expect(200).object();
    let file = &found["files"][0];
    assert_eq!(
        (&file["names"][0], &file["providers"]),
        (&"weights.bin".into(), &2.into())
    );

    let mut events = page.events();
    let request = json!({ "id": file["id"], "name": "weights.bin" });
    let started = page.post("api/transfers", &request).expect(200).object();
    let number = started["transfer"].as_u64().unwrap();
    let of_transfer = |data: &serde_json::Value| data["transfer"] == number;
    events.until("transfer", |data| {
        of_transfer(data) && data["state"] == "running" && data["bytes"].as_u64() > Some(1 << 20)
    });
    let action = |name: &str| format!("api/transfers/{number}/{name}");
    let paused = page.post(&action("pause"), &json!({})).expect(200).object();
    assert_eq!(paused["state"], "paused");
    events.until("transfer", |data| of_transfer(data) && data["state"] == "paused");
    page.post(&action("resume"), &json!({})).expect(200);
    let running = events.until("transfer", |data| {
        let moving = data["map"]["in_flight"].as_array().unwrap();
        of_transfer(data) && data["state"] == "running" && moving.contains(&1.into())
    });
    assert!(running["resumed_bytes"].as_u64() > Some(0), "{running}");
    let done = events.until("transfer", |data| of_transfer(data) && data["state"] == "done");
    let map = &done["map"];
    let verified = map["verified"].as_array().unwrap();
    assert_eq!(verified.len(), done["units_total"].as_u64().unwrap() as usize);
    assert!(verified.iter().all(|part| *part == 255), "{map}");
    let senders = map["senders"].as_array().unwrap().len() as u64;
    assert!((1..=2).contains(&senders), "{map}");
    let numbers = map["sender"].as_array().unwrap().iter();
    assert!(
        numbers
            .map(|sender| sender.as_u64().unwrap())
            .all(|sender| sender <= senders)
    );
    let saved = fs::read(done["path"].as_str().unwrap()).unwrap();
    assert_eq!(saved, fs::read(sandbox.work().join("weights.bin")).unwrap());

    let refused = page.post(&action("pause"), &json!({})).expect(409).object();
    assert_eq!(refused["error"], "already_ended");
    page.post(&action("burn"), &json!({})).expect(404);
    page.post("api/transfers", &json!({ "id": "no" })).expect(400);
}

#[test]
fn a_hostile_name_is_data() {
    let sandbox = Sandbox::new();
    let home = sandbox.default_home();
    let _peer = sandbox.peer_in(&home, &[]);
    let name = "<img src=x onerror=alert(1)>\"'&amp;.bin";
    let file = sandbox.file(name, 1000, 2);
    sandbox.run(&["share", file.to_str().unwrap()]).expect(0);
    let page = Page::opened(&sandbox, &[]);
    let items = page.get_in("api/library").expect(200).object();
    assert_eq!(items["items"][0]["name"], name);
    let words = "api/search?words=img%20onerror";
    let found = page.get_in(words).expect(200).object();
    assert_eq!(found["files"][0]["names"][0], name);
}

#[test]
fn without_a_running_peer_the_page_has_its_own() {
    let sandbox = Sandbox::new();
    let mut page = Page::opened(&sandbox, &[]);
    let mut events = page.events();
    let peer = events.until("peer", |peer| peer["registered"] == true);
    assert_eq!(peer["home"], sandbox.default_home().to_str().unwrap());
    let index = events.until("index", |index| index["peers"] == 1);
    assert_eq!(index["reachable"], true);
    let fleet = page.get_in("api/peers").expect(200).object();
    assert_eq!(fleet["peers"][0]["peer"], peer["peer"]);
    assert_eq!(fleet["peers"][0]["version"], env!("CARGO_PKG_VERSION"));
    assert!(
        page.program.interrupt().success(),
        "it stops while a page is open"
    );
    while events.next().is_some() {}
}

#[test]
fn a_peer_that_stops_is_reported_until_it_is_back() {
    let sandbox = Sandbox::new();
    let home = sandbox.default_home();
    let mut peer = sandbox.peer_in(&home, &[]);
    let page = Page::opened(&sandbox, &[]);
    let mut events = page.events();
    events.until("problem", serde_json::Value::is_null);
    peer.terminate();
    let problem = events.until("problem", |problem| !problem.is_null());
    assert_eq!(problem["error"], "unreachable");
    let _peer = sandbox.peer_in(&home, &[]);
    events.until("problem", serde_json::Value::is_null);
}

#[test]
fn the_page_is_never_served_to_other_machines() {
    let sandbox = Sandbox::new();
    for address in ["0.0.0.0:0", "192.0.2.7:80", "[::]:0"] {
        let refused = sandbox
            .run(&["ui", "--listen", address, "--json"])
            .expect(2)
            .error();
        let message = refused["message"].as_str().unwrap();
        assert!(message.contains("loopback"), "{message}");
    }
}
