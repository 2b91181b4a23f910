//! A network with two indexes that share a Redis Cluster.

use potluck_testkit::{system::redis_cluster::RedisCluster, wait::wait_until_blocking};

use super::{Host, Machine, last_word, serve};

#[test]
fn two_indexes_share_members_codes_and_revocations() {
    // Says so if there is no redis-server.
    let Some(cluster) = RedisCluster::start(1) else {
        return;
    };
    let store = ["--store", &cluster.url()];
    let first = Host::start_with(&store);
    // The second index is made from a copy of the folder.
    let machine = Machine::new();
    let copy = machine.path("copy").display().to_string();
    first
        .machine
        .run(&["network", "backup", "--dir", "kitchen", &copy])
        .expect(0);
    machine
        .run(&["network", "restore", "--dir", "kitchen", &copy])
        .expect(0);
    let mut second = serve(&machine, "127.0.0.1:0", &store);
    let both = format!("{},https://{}", first.url, second.address);
    for host in [&first.machine, &machine] {
        host.run(&["network", "set-index", &both, "--dir", "kitchen"])
            .expect(0);
    }

    // A code of one index admits at the other, although the first in its list is away.
    let code = first.invite("admin");
    let code_of_second = last_word(
        &machine
            .run(&["network", "invite", "--dir", "kitchen", "--role", "publisher"])
            .expect(0),
    );
    let (admin, publisher) = (Machine::new(), Machine::new());
    admin
        .run(&["network", "join", &code, "--name", "admin"])
        .expect(0);
    let join = ["network", "join", &code_of_second, "--name", "publisher"];
    publisher.eventually(&join);
    wait_until_blocking("the second index knows both members", || {
        let args = ["network", "members", "--dir", "kitchen", "--json"];
        machine.run(&args).expect(0).objects().len() == 2
    });

    // Files that one shares are found through either index.
    publisher.file("model.bin", 50_000);
    let _peer = publisher.peer(&["--share", "model.bin"]);
    for index in both.split(',') {
        admin.eventually(&["search", "model", "--index", index]);
    }

    // A revocation at the first index counts at the second.
    admin
        .run(&["network", "revoke", "publisher", "--index", &first.url])
        .expect(0);
    let at_second = format!("https://{}", second.address);
    wait_until_blocking("the second index refuses the member", || {
        let search = ["search", "model", "--index", &at_second, "--json"];
        let finished = publisher.run(&search);
        finished.code != Some(0) && finished.error()["error"] == "revoked"
    });

    // One index is enough for a new member.
    drop(first);
    let code = last_word(&admin.run(&["network", "invite", "--role", "reader"]).expect(0));
    let reader = Machine::new();
    reader
        .run(&["network", "join", &code, "--name", "reader"])
        .expect(0);
    // Nothing, since the only publisher is out.
    reader.run(&["search", "model"]).expect(3);
    assert!(second.terminate().success());
}
