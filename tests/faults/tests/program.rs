//! The program itself. Its rounds take longer than a test should: see `.ci/run`.

use std::process::Command;

fn printed(args: &[&str]) -> Vec<String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_faults"));
    let output = command.args(args).arg("--print").output().expect("it starts");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("the plan is text");
    text.lines().map(ToOwned::to_owned).collect()
}

#[test]
fn a_seed_prints_its_plan_and_parts_of_it() {
    let whole = printed(&["--seed", "5"]);
    assert_eq!(whole, printed(&["--seed", "5"]));
    assert_ne!(whole, printed(&["--seed", "6"]));
    // The first line names the phase.
    let part = printed(&["--seed", "5", "--only", "3,8..10"]);
    assert_eq!(part[1..], [&whole[4], &whole[9], &whole[10]].map(Clone::clone));
    let rest = printed(&["--seed", "5", "--without", "0..40"]);
    assert_eq!(rest[1..], whole[42..]);
}
