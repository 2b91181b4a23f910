//! `potluck demo`: the whole run, and that it leaves nothing behind.

use std::fs;

use potluck_testkit::{
    content::MIB,
    system::{disk::names_in, program::Program},
    wait::wait_until_blocking,
};

use crate::sandbox::Sandbox;

#[test]
fn downloads_a_file_from_three_peers_and_cleans_up() {
    let sandbox = Sandbox::without_index();
    sandbox.file("film.bin", 20 * MIB, 1);
    let objects = sandbox
        .run(&["demo", "film.bin", "--fast", "--json"])
        .expect(0)
        .objects();
    let done = objects.iter().find(|object| object["event"] == "done").unwrap();
    assert_eq!(done["size"], 20 * MIB);
    assert_eq!(done["sources"].as_array().unwrap().len(), 3);
    let last = objects.last().unwrap();
    assert_eq!(
        (&last["event"], &last["same_as_original"]),
        (&"verified".into(), &true.into())
    );
    assert_eq!(names_in(sandbox.dir.path()), ["work"]);
    sandbox.run(&["demo", "none"]).expect(3);
}

#[test]
fn ctrl_c_ends_the_demo_and_cleans_up() {
    let sandbox = Sandbox::without_index();
    let mut command = sandbox.command();
    let mut demo = Program::start(command.args(["demo", "--json"]));
    // The demo is generating its file, or is further on.
    wait_until_blocking("the demo has begun", || {
        fs::read_dir(sandbox.dir.path())
            .unwrap()
            .any(|entry| entry.unwrap().path().join("potluck-demo.bin").exists())
    });
    assert_eq!(demo.interrupt().code(), Some(130));
    assert_eq!(names_in(sandbox.dir.path()), ["work"]);
}

#[test]
fn the_next_demo_removes_what_a_killed_one_left() {
    let sandbox = Sandbox::without_index();
    sandbox.file("film.bin", MIB, 1);
    let mut command = sandbox.command();
    let mut demo = Program::start(command.args(["demo", "--json"]));
    wait_until_blocking("the demo has begun", || {
        fs::read_dir(sandbox.dir.path())
            .unwrap()
            .any(|entry| entry.unwrap().path().join("potluck-demo.bin").exists())
    });
    demo.kill();
    assert_eq!(names_in(sandbox.dir.path()).len(), 2);
    sandbox.run(&["demo", "film.bin", "--fast", "--json"]).expect(0);
    assert_eq!(names_in(sandbox.dir.path()), ["work"]);
}
