//! Clients that speak TLS.

use potluck_gateway::TlsFiles;
use potluck_testkit::services::OwnCa;
use reqwest::StatusCode;
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use crate::world::{WEIGHTS, World, client};

#[tokio::test(flavor = "multi_thread")]
async fn clients_verify_the_gateway() {
    let ca = OwnCa::create();
    let files = ca.issue("127.0.0.1");
    let world = World::new(false).await;
    let world = world
        .beside_with_tls(TlsFiles {
            certificate: files.certificate,
            key: files.key,
        })
        .await;
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(files.ca).unwrap())
        .unwrap();
    let secure = world.url.replace("http://", "https://");
    // Connections that never begin a handshake, or begin it wrongly, keep nobody waiting.
    let mut silent = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(world.url.trim_start_matches("http://"))
            .await
            .unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        silent.push(stream);
        silent.push(
            TcpStream::connect(world.url.trim_start_matches("http://"))
                .await
                .unwrap(),
        );
    }
    let response = client(roots)
        .get(format!("{secure}{WEIGHTS}"))
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert!(response.bytes().await.unwrap() == world.weights);
    let stranger = client(RootCertStore::empty());
    assert!(stranger.get(format!("{secure}/v2/")).send().await.is_err());
}
