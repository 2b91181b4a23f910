//! Access to the control service over TCP.

use potluck_core::{Problem, Reason, proto::v1};
use potluck_peer::{Config, options::ControlAt};
use potluck_testkit::services::TestPeer;
use tonic::{Code, Request};

#[tokio::test(flavor = "multi_thread")]
async fn requires_the_token_over_tcp() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        control: ControlAt::Tcp("127.0.0.1:0".parse().unwrap()),
        ..Config::new(dir.path().join("peer"))
    };
    let peer = TestPeer::with_config(config).await;
    let token = peer.running.control_token.clone().unwrap();
    let mut client = peer.control.client.clone();
    let mut get_status = async |authorization: Option<String>| {
        let mut request = Request::new(v1::GetStatusRequest {});
        if let Some(text) = authorization {
            request
                .metadata_mut()
                .insert("authorization", text.parse().unwrap());
        }
        client.get_status(request).await
    };
    let mut wrong_token = token.clone().into_bytes();
    wrong_token[10] ^= 1;
    let wrong_token = String::from_utf8(wrong_token).unwrap();
    let refused = [
        None,
        Some(format!("Bearer {wrong_token}")),
        Some(format!("Bearer {}", &token[..token.len() - 1])),
        Some("Bearer ".to_owned()),
        Some(token.clone()),
    ];
    for authorization in refused {
        let status = get_status(authorization.clone()).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "{authorization:?}");
        let problem = Problem::from(status);
        assert_eq!(problem.reason, Reason::Unauthenticated);
        assert!(problem.message.contains("control-token"), "{problem}");
        assert!(!problem.message.contains(&token));
    }
    let status = get_status(Some(format!("Bearer {token}")))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(status.peer_id, peer.running.peer_id.to_bytes());
    peer.stop().await;
}
