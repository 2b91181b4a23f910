//! Files of the hub.

use std::sync::atomic::Ordering;

use potluck_stand_in::{content::sha256_hex, hub::TOKEN};
use potluck_testkit::wait::wait_until;
use reqwest::{StatusCode, header};

use crate::world::{COMMIT, WEIGHTS, World, text};

#[tokio::test(flavor = "multi_thread")]
async fn a_file_comes_from_the_hub_once() {
    let world = World::new(false).await;
    let head = world.ask(reqwest::Method::HEAD, WEIGHTS, &[]).await;
    assert_eq!(head.status(), StatusCode::OK);
    assert_eq!(text(&head, "content-length"), "3000000");
    assert_eq!(text(&head, "x-repo-commit"), COMMIT);
    assert_eq!(text(&head, "etag"), format!("\"{}\"", sha256_hex(&world.weights)));
    for hidden in ["location", "x-xet-hash", "link"] {
        assert!(head.headers().get(hidden).is_none(), "{hidden}");
    }
    assert_eq!(world.sent(), 0, "HEAD downloads nothing");
    let first = world.get(WEIGHTS, &[]).await;
    assert_eq!(text(&first, "x-potluck-source"), "download");
    assert!(first.bytes().await.unwrap() == world.weights);
    let cached = world.peer.running.cache.folder().join(sha256_hex(&world.weights));
    wait_until("the object is in the cache", async || cached.exists()).await;
    let part = world.get(WEIGHTS, &[("range", "bytes=1000000-1999999")]).await;
    assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(text(&part, "content-range"), "bytes 1000000-1999999/3000000");
    assert_eq!(text(&part, "x-potluck-source"), "cache");
    assert!(part.bytes().await.unwrap() == world.weights[1_000_000..2_000_000]);
    assert_eq!(world.sent(), 3_000_000);
    let id = potluck_core::identity::hash::hash_bytes(&world.weights).id();
    world.index.wait_for_providers(id, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_clients_share_one_download() {
    let world = World::new(false).await;
    let clients = (0..8).map(|n| {
        let range = format!("bytes={}-", n * 100_000);
        let world = &world;
        async move {
            let response = world.get(WEIGHTS, &[("range", &range)]).await;
            let body = response.bytes().await.unwrap();
            assert!(body == world.weights[n * 100_000..]);
        }
    });
    futures_util::future::join_all(clients).await;
    assert_eq!(world.sent(), 3_000_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_and_small_files_are_passed_on() {
    let world = World::new(false).await;
    let info = world.get("/api/models/org/repo/revision/main", &[]).await;
    let info: serde_json::Value = serde_json::from_slice(&info.bytes().await.unwrap()).unwrap();
    assert_eq!(info["sha"], COMMIT);
    let tree = format!("/api/models/org/repo/tree/{COMMIT}?recursive=true");
    for source in ["", "metadata"] {
        let response = world.get(&tree, &[]).await;
        assert_eq!(text(&response, "x-potluck-source"), source);
        let entries: serde_json::Value =
            serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
        assert_eq!(entries.as_array().unwrap().len(), 3);
        assert!(!entries.to_string().contains("xetHash"));
    }
    for source in ["origin", "cache"] {
        let small = world.get("/org/repo/resolve/main/config.json", &[]).await;
        assert_eq!(text(&small, "x-potluck-source"), source);
        assert_eq!(small.bytes().await.unwrap(), "{\"a\": 1}");
    }
    let empty = world.get("/org/repo/resolve/main/empty", &[]).await;
    assert_eq!(
        (empty.status(), empty.bytes().await.unwrap().len()),
        (StatusCode::OK, 0)
    );
    let missing = world.get("/org/repo/resolve/main/none", &[]).await;
    assert_eq!(missing.status(), StatusCode::NOT_FOUND);
    assert_eq!(text(&missing, "x-error-code"), "EntryNotFound");
    for hidden in ["/api/models/org/repo/xet-read-token/main", "/../etc/passwd", "/x"] {
        assert_eq!(
            world.get(hidden, &[]).await.status(),
            StatusCode::NOT_FOUND,
            "{hidden}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn gated_content_is_for_clients_with_the_right_only() {
    let world = World::new(true).await;
    let token = format!("Bearer {TOKEN}");
    let own: &[(&str, &str)] = &[("authorization", &token)];
    assert_eq!(world.get(WEIGHTS, &[]).await.status(), StatusCode::UNAUTHORIZED);
    let response = world.get(WEIGHTS, own).await;
    assert!(response.bytes().await.unwrap() == world.weights);
    let cached = world.peer.running.cache.folder().join(sha256_hex(&world.weights));
    wait_until("the object is in the cache", async || cached.exists()).await;
    let again = world.get(WEIGHTS, own).await;
    assert_eq!(text(&again, "x-potluck-source"), "cache");
    for other in [&[][..], &[("authorization", "Bearer hf_other")]] {
        let refused = world.get(WEIGHTS, other).await;
        assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(text(&refused, "x-error-code"), "GatedRepo");
    }
    // Something else is announced, so the registrations have arrived.
    let other = potluck_testkit::content::write_file(world.dir.path(), "other", b"other");
    let other = world.peer.share(&other).await;
    world.index.wait_for_providers(other, 1).await;
    let id = potluck_core::identity::hash::hash_bytes(&world.weights).id();
    assert_eq!(world.index.provider_count(id).await, 0);
}

/// `huggingface_hub` does not check SHA-256 and resumes by range.
#[tokio::test(flavor = "multi_thread")]
async fn after_wrong_bytes_ranges_are_refused_until_all_was_sent() {
    let world = World::new(false).await;
    let sum = sha256_hex(&world.weights);
    let mut wrong = world.weights.clone();
    wrong[10] ^= 1;
    world.hub.shared.files.put(&format!("_storage/{sum}"), wrong);
    let broken = world.get(WEIGHTS, &[]).await;
    assert!(broken.bytes().await.is_err(), "the last piece is never sent");
    let mark = world.peer.running.cache.folder().join(format!("{sum}.tainted"));
    wait_until("the object is marked", async || mark.exists()).await;
    world
        .hub
        .shared
        .files
        .put(&format!("_storage/{sum}"), world.weights.clone());
    let range: &[(&str, &str)] = &[("range", "bytes=2000000-")];
    let whole = world.get(WEIGHTS, range).await;
    assert_eq!(
        whole.status(),
        StatusCode::OK,
        "a range would go on after wrong bytes"
    );
    assert!(whole.bytes().await.unwrap() == world.weights);
    wait_until("the mark is gone", async || !mark.exists()).await;
    let part = world.get(WEIGHTS, range).await;
    assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_hosts_are_refused() {
    let world = World::new(false).await;
    let evil = world
        .get("/api/models/org/repo/revision/main", &[("host", "evil.example")])
        .await;
    assert_eq!(evil.status(), StatusCode::FORBIDDEN);
    let unread = world
        .get(WEIGHTS, &[(header::HOST.as_str(), "127.0.0.1:1")])
        .await;
    assert_eq!(unread.status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_here_is_served_while_the_hub_is_overloaded() {
    let world = World::new(false).await;
    let revision = "/api/models/org/repo/revision/main";
    for path in [WEIGHTS, "/org/repo/resolve/main/config.json", revision] {
        world.get(path, &[]).await.bytes().await.unwrap();
    }
    world.hub.shared.hub.is_down.store(true, Ordering::Relaxed);
    for path in [WEIGHTS, "/org/repo/resolve/main/config.json"] {
        let kept = world.get(path, &[]).await;
        assert_eq!(kept.status(), StatusCode::OK, "{path}");
        assert_eq!(text(&kept, "x-potluck-offline"), "1", "{path}");
    }
    assert!(world.get(WEIGHTS, &[]).await.bytes().await.unwrap() == world.weights);
    assert_eq!(
        text(&world.get(revision, &[]).await, "x-potluck-source"),
        "metadata"
    );
    let other = world.get("/org/repo/resolve/main/empty", &[]).await;
    assert_eq!(other.status(), StatusCode::SERVICE_UNAVAILABLE);
}
