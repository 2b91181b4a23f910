//! Images of a registry.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use potluck_stand_in::{
    fault::{Fault, FaultQuery},
    registry::{ImageRepository, MANIFEST_TYPE, USER},
};
use potluck_testkit::{content::bytes, wait::wait_until};
use reqwest::{Method, StatusCode};
use serde_json::Value;

use crate::world::{World, text};

/// Where the image of the tests is.
const TAG: &str = "/v2/team/app/manifests/v1";

/// An image at the registry: the digests of its manifest and of its one layer.
struct Image {
    manifest: String,
    layer: String,
    bytes: Bytes,
}

impl Image {
    fn put(world: &World, is_private: bool) -> Self {
        let mut repository = ImageRepository {
            is_private,
            ..ImageRepository::default()
        };
        let layer = Bytes::from(bytes(3_000_000, 6));
        let manifest = repository.put_image("v1", std::slice::from_ref(&layer));
        world.hub.shared.registry.put("team/app", repository);
        let sum = potluck_stand_in::content::sha256_hex(&layer);
        Self {
            manifest,
            layer: format!("sha256:{sum}"),
            bytes: layer,
        }
    }

    fn path(&self) -> String {
        format!("/v2/team/app/blobs/{}", self.layer)
    }
}

fn code(body: &[u8]) -> String {
    let body: Value = serde_json::from_slice(body).unwrap();
    body["errors"][0]["code"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_comes_from_the_registry_once() {
    let world = World::new(false).await;
    let image = Image::put(&world, false);
    world
        .hub
        .shared
        .registry
        .wants_tokens
        .store(true, Ordering::Relaxed);
    let root = world.get("/v2/", &[]).await;
    assert_eq!(root.status(), StatusCode::OK);
    assert_eq!(text(&root, "docker-distribution-api-version"), "registry/2.0");
    let head = world.ask(Method::HEAD, TAG, &[]).await;
    assert_eq!(text(&head, "docker-content-digest"), image.manifest);
    assert_eq!(text(&head, "content-type"), MANIFEST_TYPE);
    for (path, source) in [
        (TAG.to_owned(), "origin"),
        (TAG.to_owned(), "metadata"),
        (format!("/v2/team/app/manifests/{}", image.manifest), "metadata"),
        (format!("{TAG}?ns=registry.example"), "metadata"),
        (TAG.replace("team", "registry.example/team"), "metadata"),
    ] {
        let manifest = world.get(&path, &[("accept", MANIFEST_TYPE)]).await;
        assert_eq!(text(&manifest, "x-potluck-source"), source, "{path}");
        assert_eq!(text(&manifest, "content-type"), MANIFEST_TYPE);
        let manifest: Value = serde_json::from_slice(&manifest.bytes().await.unwrap()).unwrap();
        assert_eq!(manifest["layers"][0]["digest"], image.layer);
    }
    let path = image.path();
    let head = world.ask(Method::HEAD, &path, &[]).await;
    assert_eq!(text(&head, "content-length"), "3000000");
    assert_eq!(text(&head, "docker-content-digest"), image.layer);
    assert_eq!(world.sent_of(&path), 0, "HEAD downloads nothing");
    let first = world.get(&path, &[]).await;
    assert_eq!(text(&first, "x-potluck-source"), "download");
    assert!(first.bytes().await.unwrap() == image.bytes);
    let sum = image.layer.strip_prefix("sha256:").unwrap();
    let cached = world.peer.running.cache.folder().join(sum);
    wait_until("the layer is in the cache", async || cached.exists()).await;
    let part = world.get(&path, &[("range", "bytes=10-19")]).await;
    assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(text(&part, "x-potluck-source"), "cache");
    assert!(part.bytes().await.unwrap() == image.bytes[10..20]);
    assert_eq!(world.sent_of(&path), 3_000_000);
    let id = potluck_core::identity::hash::hash_bytes(&image.bytes).id();
    world.index.wait_for_providers(id, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_gateways_that_ask_at_once_cost_the_registry_one_download() {
    let world = World::new(false).await;
    let second = world.beside().await;
    let image = Image::put(&world, false);
    // Slow, so that both download at the same time.
    world.hub.shared.faults.set(|_| FaultQuery {
        rate: 500_000,
        ..FaultQuery::default()
    });
    let path = image.path();
    let get = async |world: &World| {
        let response = world.get(&path, &[]).await;
        assert!(response.bytes().await.unwrap() == image.bytes);
    };
    futures_util::future::join(get(&world), get(&second)).await;
    let sent = world.sent_of(&path);
    assert!(sent < 3_900_000, "the registry sent {sent} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_expire_while_a_layer_arrives() {
    let world = World::new(false).await;
    let image = Image::put(&world, false);
    let registry = &world.hub.shared.registry;
    registry.wants_tokens.store(true, Ordering::Relaxed);
    registry.token_uses.store(2, Ordering::Relaxed);
    let path = image.path();
    for range in 0..3 {
        let header = format!("bytes={}-", range * 1_000_000);
        let response = world.get(&path, &[("range", &header)]).await;
        assert!(response.bytes().await.unwrap() == image.bytes[range * 1_000_000..]);
    }
    assert!(registry.token_count() > 2, "{} tokens", registry.token_count());
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_behind_a_redirect() {
    let world = World::new(false).await;
    let image = Image::put(&world, false);
    world.hub.shared.registry.redirects.store(true, Ordering::Relaxed);
    let head = world.ask(Method::HEAD, &image.path(), &[]).await;
    assert_eq!(text(&head, "content-length"), "3000000");
    assert_eq!(text(&head, "location"), "");
    let whole = world.get(&image.path(), &[]).await;
    assert!(whole.bytes().await.unwrap() == image.bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn private_images_are_for_clients_with_the_right_only() {
    let world = World::new(false).await;
    let image = Image::put(&world, true);
    let path = image.path();
    for path in [TAG, &path] {
        let refused = world.get(path, &[]).await;
        assert_eq!(refused.status(), StatusCode::UNAUTHORIZED, "{path}");
        assert!(text(&refused, "www-authenticate").starts_with("Basic "));
        assert_eq!(code(&refused.bytes().await.unwrap()), "UNAUTHORIZED");
    }
    let own: &[(&str, &str)] = &[("authorization", USER)];
    assert_eq!(world.get(TAG, own).await.status(), StatusCode::OK);
    assert!(world.get(&path, own).await.bytes().await.unwrap() == image.bytes);
    let sum = image.layer.strip_prefix("sha256:").unwrap();
    let cached = world.peer.running.cache.folder().join(sum);
    wait_until("the layer is in the cache", async || cached.exists()).await;
    assert_eq!(text(&world.get(&path, own).await, "x-potluck-source"), "cache");
    for other in [&[][..], &[("authorization", "Basic b3RoZXI6eA==")]] {
        for path in [TAG, &path] {
            let refused = world.get(path, other).await;
            assert_eq!(refused.status(), StatusCode::UNAUTHORIZED, "{path}");
        }
    }
    // Something else is announced, so the registrations have arrived.
    let other = potluck_testkit::content::write_file(world.dir.path(), "other", b"other");
    let other = world.peer.share(&other).await;
    world.index.wait_for_providers(other, 1).await;
    let id = potluck_core::identity::hash::hash_bytes(&image.bytes).id();
    assert_eq!(world.index.provider_count(id).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_here_is_served_while_the_registry_is_overloaded() {
    let world = World::new(false).await;
    let image = Image::put(&world, false);
    let path = image.path();
    for path in [TAG, &path] {
        world.get(path, &[]).await.bytes().await.unwrap();
    }
    world.hub.shared.registry.is_down.store(true, Ordering::Relaxed);
    for path in [TAG, &path] {
        let kept = world.get(path, &[]).await;
        assert_eq!(kept.status(), StatusCode::OK, "{path}");
        assert_eq!(text(&kept, "x-potluck-offline"), "1", "{path}");
    }
    let other = world.get("/v2/team/app/manifests/v2", &[]).await;
    assert_eq!(other.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(code(&other.bytes().await.unwrap()), "UNKNOWN");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_manifests_and_layers_are_not_passed_on() {
    let world = World::new(false).await;
    let image = Image::put(&world, false);
    world.hub.shared.faults.set(|_| FaultQuery {
        fault: Fault::Damaged,
        at: "40".to_owned(),
        ..FaultQuery::default()
    });
    let manifest = world.get(TAG, &[]).await;
    assert_eq!(manifest.status(), StatusCode::BAD_GATEWAY);
    let layer = world.get(&image.path(), &[]).await;
    assert!(layer.bytes().await.is_err(), "the last piece is never sent");
    world.hub.shared.faults.clear();
    assert_eq!(world.get(TAG, &[]).await.status(), StatusCode::OK);
    let sum = image.layer.strip_prefix("sha256:").unwrap();
    let mark = world.peer.running.cache.folder().join(format!("{sum}.tainted"));
    wait_until("the layer is marked", async || mark.exists()).await;
    let whole = world.get(&image.path(), &[("range", "bytes=5-")]).await;
    assert_eq!(
        whole.status(),
        StatusCode::OK,
        "a range would go on after wrong bytes"
    );
    assert!(whole.bytes().await.unwrap() == image.bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_those_of_registries() {
    let world = World::new(false).await;
    Image::put(&world, false);
    let unknown = format!("/v2/team/app/blobs/sha256:{}", "0".repeat(64));
    for (path, status, wanted) in [
        ("/v2/team/app/manifests/v9", 404, "MANIFEST_UNKNOWN"),
        ("/v2/team/other/manifests/v1", 404, "MANIFEST_UNKNOWN"),
        (&unknown, 404, "BLOB_UNKNOWN"),
        ("/v2/team/app/blobs/sha256:../../etc/passwd", 404, "UNSUPPORTED"),
        ("/v2/team/app/blobs/sha512:00", 400, "DIGEST_INVALID"),
        ("/v2/Team/app/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/team%2F..%2Fapp/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/team/app/manifests/a%2Fb", 400, "MANIFEST_INVALID"),
        ("/v2/_catalog", 404, "UNSUPPORTED"),
        ("/v2/team/app/manifests/v1?ns=other.example", 404, "NAME_UNKNOWN"),
    ] {
        let response = world.get(path, &[]).await;
        assert_eq!(response.status().as_u16(), status, "{path}");
        assert_eq!(text(&response, "content-type"), "application/json", "{path}");
        assert_eq!(code(&response.bytes().await.unwrap()), wanted, "{path}");
    }
    let push = world.ask(Method::POST, "/v2/team/app/blobs/uploads/", &[]).await;
    assert_eq!(push.status(), StatusCode::METHOD_NOT_ALLOWED);
    let tags = world.get("/v2/team/app/tags/list", &[]).await;
    let tags: Value = serde_json::from_slice(&tags.bytes().await.unwrap()).unwrap();
    assert_eq!(tags["tags"], serde_json::json!(["v1"]));
}
