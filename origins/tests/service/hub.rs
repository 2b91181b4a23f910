//! Repositories of the stand-in hub: commits, listings, gated content, storage behind a redirect.

use std::{collections::BTreeMap, sync::atomic::Ordering};

use potluck_origins::{
    OriginClient, OriginError, OriginSettings,
    hub::{HubClient, HubHash},
    reference::OriginReference,
    secret::Secret,
};
use potluck_stand_in::{
    StandIn,
    hub::{Repository, TOKEN},
};
use url::Url;

fn hub(server: &StandIn, token: Option<&str>) -> HubClient {
    let client = OriginClient::new(OriginSettings::default()).unwrap();
    let endpoint = Url::parse(&server.url("")).unwrap();
    HubClient::new(client, endpoint, token.map(Secret::bearer))
}

fn reference(text: &str) -> potluck_origins::reference::HubReference {
    match text.parse().unwrap() {
        OriginReference::Hub(reference) => reference,
        other => panic!("{other:?}"),
    }
}

fn repository(is_gated: bool) -> Repository {
    let mut files = BTreeMap::new();
    files.insert("config.json".to_owned(), b"{}".to_vec().into());
    files.insert("a b/weights.safetensors".to_owned(), vec![7; 100_000].into());
    for i in 0..25 {
        files.insert(format!("part-{i:02}.txt"), format!("part {i}").into());
    }
    Repository {
        commit: "c0ffee".repeat(6) + "c0ff",
        is_gated,
        files,
    }
}

async fn read(hub: &HubClient, commit: &potluck_origins::hub::HubCommit, path: &str) -> Vec<u8> {
    let file = commit.files.iter().find(|file| file.path == path).unwrap();
    let source = hub.file(commit, file).unwrap();
    let client = OriginClient::new(OriginSettings::default()).unwrap();
    let mut body = client.open(&source, 0..file.size).await.unwrap();
    let mut bytes = Vec::new();
    while let Some(chunk) = body.next().await.unwrap() {
        bytes.extend_from_slice(&chunk);
    }
    assert!(file.hash.matches(&bytes), "{path}");
    bytes
}

#[tokio::test]
async fn a_repository_is_listed_over_several_pages() {
    let server = StandIn::start().await;
    server.shared.hub.put("models", "org/repo", repository(false));
    server.shared.hub.page_size.store(10, Ordering::Relaxed);
    let hub = hub(&server, None);
    let commit = hub.look_up(&reference("hf://org/repo")).await.unwrap();
    assert_eq!(commit.commit, "c0ffee".repeat(6) + "c0ff");
    assert_eq!(commit.files.len(), 27);
    let hashes = commit
        .files
        .iter()
        .filter(|file| matches!(file.hash, HubHash::Sha256(_)));
    assert_eq!(hashes.count(), 1);
    assert_eq!(
        read(&hub, &commit, "a b/weights.safetensors").await,
        vec![7; 100_000]
    );
    assert_eq!(read(&hub, &commit, "config.json").await, b"{}");
}

#[tokio::test]
async fn one_file_is_found_at_a_commit() {
    let server = StandIn::start().await;
    server.shared.hub.put("datasets", "org/data", repository(false));
    let hub = hub(&server, None);
    let commit = "c0ffee".repeat(6) + "c0ff";
    let text = format!("hf://datasets/org/data@{commit}/part-03.txt");
    let found = hub.look_up(&reference(&text)).await.unwrap();
    assert_eq!((found.files.len(), &*found.files[0].path), (1, "part-03.txt"));
    assert_eq!(read(&hub, &found, "part-03.txt").await, b"part 3");
    for missing in [
        "hf://datasets/org/data/none",
        "hf://datasets/org/data@v1",
        "hf://org/data",
    ] {
        let error = hub.look_up(&reference(missing)).await.unwrap_err();
        assert!(
            matches!(error, OriginError::NotFound { .. }),
            "{missing}: {error:?}"
        );
    }
}

#[tokio::test]
async fn a_gated_repository_wants_a_token_and_storage_never_gets_it() {
    let server = StandIn::start().await;
    server.shared.hub.put("models", "org/gated", repository(true));
    let denied = hub(&server, None)
        .look_up(&reference("hf://org/gated"))
        .await
        .unwrap_err();
    assert!(matches!(denied, OriginError::Denied { .. }), "{denied:?}");
    assert!(denied.to_string().contains("HF_TOKEN"), "{denied}");
    let expired = hub(&server, Some("hf_old"))
        .look_up(&reference("hf://org/gated"))
        .await;
    assert!(matches!(expired, Err(OriginError::Denied { .. })));
    let hub = hub(&server, Some(TOKEN));
    let commit = hub.look_up(&reference("hf://org/gated")).await.unwrap();
    read(&hub, &commit, "a b/weights.safetensors").await;
    let entries = server.shared.log.entries();
    assert!(entries.iter().any(|entry| entry.path.starts_with("/_storage/")));
    for entry in entries
        .iter()
        .filter(|entry| entry.path.starts_with("/_storage/"))
    {
        assert!(!entry.has_credentials, "{entry:?}");
    }
}

#[tokio::test]
async fn a_path_that_leads_out_of_the_repository_is_refused() {
    let server = StandIn::start().await;
    let mut evil = repository(false);
    evil.files
        .insert("../../.ssh/authorized_keys".to_owned(), b"x".to_vec().into());
    server.shared.hub.put("models", "org/evil", evil);
    let error = hub(&server, None)
        .look_up(&reference("hf://org/evil"))
        .await
        .unwrap_err();
    assert!(matches!(error, OriginError::Invalid { .. }), "{error:?}");
}
