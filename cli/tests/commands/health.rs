//! `potluck health`, as container health checks call it.

use potluck_testkit::{
    background::Background,
    system::program::{Program, Server as Started},
    wait::wait_until_blocking,
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic_health::{ServingStatus, server::health_reporter};

use crate::sandbox::{Sandbox, UNREACHABLE_URL};

#[test]
fn running_services_are_serving() {
    let sandbox = Sandbox::new();
    let peer = sandbox.peer("home", &[]);
    for endpoint in [
        sandbox.index_url(),
        format!("http://{}", peer.address),
        peer.control(),
    ] {
        assert_eq!(sandbox.run(&["health", &endpoint]).expect(0).stdout, "serving\n");
        let object = sandbox.run(&["health", "--json", &endpoint]).expect(0).object();
        assert_eq!(object["serving"], true, "{object}");
        assert_eq!(object["endpoint"], endpoint);
    }
}

#[test]
fn a_monitoring_endpoint_answers_where_the_service_wants_a_certificate() {
    let sandbox = Sandbox::without_index();
    sandbox
        .run(&["network", "create", "kitchen", "--index", "https://127.0.0.1:1"])
        .expect(0);
    let port = free_port();
    let page = |page: &str| format!("http://127.0.0.1:{port}{page}");
    sandbox.run(&["health", &page("/readyz")]).expect(5);
    let mut command = sandbox.command();
    command
        .args(["index", "--listen", "127.0.0.1:0", "--store", "memory", "-q"])
        .args(["--network", "kitchen", "--metrics", &port.to_string()]);
    let mut index = Started::start(&mut command);
    for name in ["/healthz", "/readyz", "/metrics"] {
        wait_until_blocking(name, || sandbox.run(&["health", &page(name)]).code == Some(0));
    }
    let refused = sandbox
        .run(&["health", &index.address.to_string(), "--json"])
        .expect(1);
    assert_eq!(refused.error()["error"], "not_a_member");
    index.terminate();
    let peer = sandbox.peer("home", &["--index", "none", "--metrics", &port.to_string()]);
    let ready = sandbox.run(&["health", &page("/readyz"), "--json"]).expect(0);
    assert_eq!(ready.object()["serving"], true);
    drop(peer);
}

/// A free port of loopback, as an operator would choose one.
pub(crate) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

#[test]
fn addresses_are_accepted_as_people_write_them() {
    let sandbox = Sandbox::new();
    let peer = sandbox.peer("home", &[]);
    let url = sandbox.index_url();
    let port = url.rsplit(':').next().unwrap();
    let socket = peer.home.join("control.sock");
    for address in [port, &format!("localhost:{port}"), socket.to_str().unwrap()] {
        sandbox.run(&["health", address]).expect(0);
    }
    let found = sandbox.run(&["search", "absent", "--index", port, "--json"]);
    assert_eq!(found.expect(3).error()["error"], "not_found");
    sandbox.run(&["ls", "--peer", socket.to_str().unwrap()]).expect(0);
    let refused = sandbox.run(&["health", "localhost"]).expect(2).stderr;
    assert!(refused.contains("give HOST:PORT"), "{refused}");
    let refused = sandbox.run(&["peer", "--listen", "a.example:7"]).expect(2).stderr;
    assert!(refused.contains("or a port alone"), "{refused}");
    // A port alone is one of this machine.
    let mut command = sandbox.command();
    let index = Program::start(command.args(["index", "--listen", "0", "--store", "memory", "-q"]));
    let line = index.line();
    assert!(line.starts_with("listening on 127.0.0.1:"), "{line}");
}

#[test]
fn a_stopping_service_is_not_serving() {
    let sandbox = Sandbox::without_index();
    let background = Background::start();
    let address = background.run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (health, service) = health_reporter();
        health.set_service_status("", ServingStatus::NotServing).await;
        let server = Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        address
    });
    let run = sandbox.run(&["health", &format!("http://{address}")]).expect(5);
    assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("not serving\n", ""));
}

#[test]
fn tells_an_unreachable_service_from_a_usage_error() {
    let sandbox = Sandbox::without_index();
    let error = sandbox
        .run(&["health", "--json", UNREACHABLE_URL])
        .expect(5)
        .error();
    assert_eq!(error["error"], "unreachable");
    sandbox.run(&["health", "ftp://a:1"]).expect(2);
    sandbox.run(&["health"]).expect(2);
}
