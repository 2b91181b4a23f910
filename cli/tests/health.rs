//! `potluck health`, as container health checks call it.

mod support;

use std::net::Ipv4Addr;

use support::{Sandbox, Service};
use tokio::net::TcpListener;

#[test]
fn services_that_are_up_are_serving() {
    let sandbox = Sandbox::new();
    let peer = sandbox.peer("home", &[]);
    let control = format!("unix:{}", peer.home.join("control.sock").display());
    for endpoint in [sandbox.index_url(), format!("http://{}", peer.address), control] {
        assert_eq!(sandbox.run(&["health", &endpoint]).expect(0).stdout, "serving\n");
        let object = sandbox.run(&["health", "--json", &endpoint]).expect(0).object();
        assert_eq!(object["serving"], true, "{object}");
        assert_eq!(object["endpoint"], endpoint);
    }
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
    let index = Service::start(command.args(["index", "--listen", "0", "--store", "memory", "-q"]));
    let line = index.line();
    assert!(line.starts_with("listening on 127.0.0.1:"), "{line}");
}

#[test]
fn a_service_that_is_stopping_is_not_serving() {
    let sandbox = Sandbox::without_index();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let address = runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (health, service) = tonic_health::server::health_reporter();
        health
            .set_service_status("", tonic_health::ServingStatus::NotServing)
            .await;
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(tonic::transport::server::TcpIncoming::from(listener)));
        address
    });
    let run = sandbox.run(&["health", &format!("http://{address}")]).expect(5);
    assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("not serving\n", ""));
}

#[test]
fn a_missing_service_is_unreachable_and_a_missing_address_is_a_usage_error() {
    let sandbox = Sandbox::without_index();
    let error = sandbox
        .run(&["health", "--json", "http://127.0.0.1:1"])
        .expect(5)
        .error();
    assert_eq!(error["error"], "unreachable");
    sandbox.run(&["health", "ftp://a:1"]).expect(2);
    sandbox.run(&["health"]).expect(2);
}
