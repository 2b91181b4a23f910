//! An origin that answers rightly, and all kinds that do not.

use std::time::Duration;

use potluck_origins::{OriginClient, OriginError, OriginFile, OriginSettings, reference::FileUrl};
use potluck_stand_in::{StandIn, content::sha256_hex};

const SIZE: usize = 300_000;

fn content() -> Vec<u8> {
    (0..SIZE).map(|i| (i * 7 + i / 251) as u8).collect()
}

async fn stand_in() -> StandIn {
    let server = StandIn::start().await;
    server.shared.files.put("a.bin", content());
    server.shared.files.put("empty", Vec::new());
    server
}

fn client() -> OriginClient {
    OriginClient::new(OriginSettings::default()).unwrap()
}

async fn look_up(server: &StandIn, path: &str) -> Result<OriginFile, OriginError> {
    let file: FileUrl = server.url(path).parse().unwrap();
    client().look_up(&file, None).await
}

async fn read(file: &OriginFile, range: std::ops::Range<u64>) -> Result<Vec<u8>, OriginError> {
    let mut body = client().open(file, range).await?;
    let mut bytes = Vec::new();
    while let Some(chunk) = body.next().await? {
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// The result of reading a range in the middle of a file with this fault.
async fn fault(query: &str) -> Result<Vec<u8>, OriginError> {
    let server = stand_in().await;
    let mut file = look_up(&server, "/files/a.bin").await?;
    file.url.set_query(Some(query));
    read(&file, 1000..200_000).await
}

#[tokio::test]
async fn a_range_is_read() {
    let server = stand_in().await;
    let sum = sha256_hex(&content());
    let file = look_up(&server, &format!("/files/a.bin#sha256={sum}"))
        .await
        .unwrap();
    assert_eq!((file.size, file.has_ranges), (SIZE as u64, true));
    assert_eq!(file.sha256.unwrap().to_string(), sum);
    assert_eq!(read(&file, 5..100_000).await.unwrap(), content()[5..100_000]);
    let end = SIZE as u64;
    assert_eq!(read(&file, end - 1..end).await.unwrap(), content()[SIZE - 1..]);
    assert_eq!(look_up(&server, "/files/empty").await.unwrap().size, 0);
}

#[tokio::test]
async fn an_origin_without_ranges_is_read_from_the_start() {
    let server = stand_in().await;
    let file = look_up(&server, "/files/a.bin?fault=no-ranges").await.unwrap();
    assert_eq!((file.size, file.has_ranges), (SIZE as u64, false));
    assert_eq!(
        read(&file, 70_000..80_000).await.unwrap(),
        content()[70_000..80_000]
    );
}

#[tokio::test]
async fn wrong_answers_are_errors_and_never_wrong_lengths() {
    for wrong in ["other-range", "too-much", "gzip"] {
        let read = fault(&format!("fault={wrong}")).await;
        assert!(
            matches!(read, Err(OriginError::Invalid { .. })),
            "{wrong}: {read:?}"
        );
    }
    for changed in ["other-size", "changes"] {
        let read = fault(&format!("fault={changed}")).await;
        assert!(
            matches!(read, Err(OriginError::Changed { .. })),
            "{changed}: {read:?}"
        );
    }
    let short = fault("fault=too-little").await;
    assert!(matches!(short, Err(OriginError::Unreachable { .. })), "{short:?}");
}

#[tokio::test]
async fn a_busy_origin_says_when_to_come_again() {
    let busy = fault("fault=busy&at=7").await.unwrap_err();
    let OriginError::Busy {
        retry_after, status, ..
    } = &busy
    else {
        panic!("{busy:?}");
    };
    assert_eq!((*retry_after, *status), (Some(Duration::from_secs(7)), 429));
    assert!(busy.is_temporary());
    assert!(fault("fault=broken").await.unwrap_err().is_temporary());
    let denied = fault("fault=denied").await.unwrap_err();
    assert!(matches!(denied, OriginError::Denied { .. }), "{denied:?}");
}

#[tokio::test]
async fn redirects_are_followed_only_to_web_addresses() {
    let server = stand_in().await;
    let to = |target: &str| {
        let query: String = target.bytes().map(|byte| format!("%{byte:02x}")).collect();
        server.url(&format!("/files/a.bin?fault=redirect&at={query}"))
    };
    let look_up = async |url: String| {
        let file: FileUrl = url.parse().unwrap();
        client().look_up(&file, None).await
    };
    // Another host name of this machine.
    let port = server.address.port();
    let other = look_up(to(&format!("http://localhost:{port}/files/a.bin")))
        .await
        .unwrap();
    assert_eq!(read(&other, 10..20).await.unwrap(), content()[10..20]);
    let before = server.shared.log.entries().len();
    assert_eq!(read(&other, 20..30).await.unwrap(), content()[20..30]);
    let after = server.shared.log.entries().len();
    assert_eq!(after - before, 1, "the target of the redirect is remembered");
    for target in ["file:///etc/passwd", "ftp://localhost/a", "http://10.0.0.1/a"] {
        let refused = look_up(to(target)).await;
        assert!(
            matches!(refused, Err(OriginError::Refused(_))),
            "{target}: {refused:?}"
        );
    }
    let circle = look_up(to("?fault=redirect&at=%3ffault=redirect")).await;
    assert!(circle.is_err());
    let without_target = look_up(server.url("/files/a.bin?fault=redirect&at=")).await;
    assert!(without_target.is_err());
}

#[tokio::test]
async fn content_that_changes_between_ranges_is_noticed() {
    let server = stand_in().await;
    let file = look_up(&server, "/files/a.bin").await.unwrap();
    let mut other = content();
    other[0] ^= 1;
    server.shared.files.put("a.bin", other);
    let changed = read(&file, 100..200).await;
    assert!(matches!(changed, Err(OriginError::Changed { .. })), "{changed:?}");
    server.shared.files.put("a.bin", vec![0; 50]);
    let shorter = read(&file, 100..200).await;
    assert!(matches!(shorter, Err(OriginError::Changed { .. })), "{shorter:?}");
}
