//! `potluck demo`: the whole run, and that it leaves nothing behind.

mod support;

use std::fs;

use support::{Sandbox, Service, wait_until};

#[test]
fn the_demo_moves_a_file_from_three_peers_and_cleans_up() {
    let sandbox = Sandbox::without_index();
    sandbox.file("film.bin", 20 << 20, 1);
    let objects = sandbox.run(&["demo", "film.bin", "--json"]).expect(0).objects();
    let done = objects.iter().find(|object| object["event"] == "done").unwrap();
    assert_eq!(done["size"], 20 << 20);
    assert_eq!(done["sources"].as_array().unwrap().len(), 3);
    let last = objects.last().unwrap();
    assert_eq!(
        (&last["event"], &last["same_as_original"]),
        (&"verified".into(), &true.into())
    );
    let left: Vec<_> = fs::read_dir(sandbox.dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["work"], "the demo leaves nothing behind");
    sandbox.run(&["demo", "none"]).expect(3);
}

#[test]
fn ctrl_c_ends_the_demo_without_a_trace() {
    let sandbox = Sandbox::without_index();
    let mut command = sandbox.command();
    let mut demo = Service::start(command.args(["demo", "--json"]));
    // The demo is generating its file, or has already done so.
    wait_until("the demo has begun", || {
        fs::read_dir(sandbox.dir.path())
            .unwrap()
            .any(|entry| entry.unwrap().path().join("potluck-demo.bin").exists())
    });
    assert_eq!(demo.interrupt().code(), Some(130));
    let left: Vec<_> = fs::read_dir(sandbox.dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["work"]);
}
