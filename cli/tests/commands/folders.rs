//! Sharing real folders: what is left out, and how that is reported.

use std::{
    fs,
    os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
    process::Command,
};

use crate::sandbox::Sandbox;

/// Length of a sparse file, in bytes.
const LARGE: u64 = 64 * 1024 * 1024;

/// A pipe at this path.
fn make_pipe(path: &Path) {
    let status = Command::new("mkfifo").arg(path).status().unwrap();
    assert!(status.success());
}

/// Lines that name a path below `folder`.
fn named(stderr: &str) -> usize {
    stderr
        .lines()
        .filter(|line| line.starts_with("  ") && !line.contains('…'))
        .count()
}

#[test]
fn share_counts_what_it_skips_and_names_ten_paths() {
    let sandbox = Sandbox::new();
    let peer = sandbox.peer("one", &[]);
    sandbox.file("set/kept", 10, 1);
    for number in 0..12 {
        symlink("/nowhere", sandbox.work().join(format!("set/link {number}"))).unwrap();
    }
    make_pipe(&sandbox.work().join("set/pipe"));
    sandbox.file("set/x.tmp", 10, 1);
    let share = ["share", "set", "--exclude", "*.tmp", "--peer", &peer.control()];
    let plain = sandbox.run(&share).expect(0).stderr;
    assert!(plain.contains("skipped 12 links"), "{plain}");
    assert!(plain.contains("--links follow"), "{plain}");
    assert!(plain.contains("skipped 1 special file"), "{plain}");
    assert!(plain.contains("  pipe: it is a pipe"), "{plain}");
    assert!(plain.contains("left out 1 file or folder by pattern"), "{plain}");
    assert_eq!(named(&plain), 10, "{plain}");
    assert!(plain.contains("… and 3 more; -v names all"), "{plain}");
    let whole = sandbox.run(&[&share[..], &["-v"]].concat()).expect(0).stderr;
    assert_eq!(named(&whole), 14, "{whole}");
    let object = sandbox
        .run(&[&share[..], &["--json"]].concat())
        .expect(0)
        .object();
    let skipped = serde_json::json!({ "links": 12, "special_files": 1, "excluded": 1 });
    assert_eq!(object["skipped"], skipped);
    assert!(object.get("skipped_paths").is_none());
    let object = sandbox
        .run(&[&share[..], &["--json", "-v"]].concat())
        .expect(0)
        .object();
    assert_eq!(object["skipped_paths"].as_array().unwrap().len(), 14);
    // `id` prints what `share` would share.
    let id = sandbox
        .run(&["id", "set", "--exclude", "*.tmp", "--json"])
        .expect(0)
        .object();
    assert_eq!((&id["id"], &id["skipped"]), (&object["id"], &skipped));
}

#[test]
fn a_strict_share_prints_ten_errors() {
    let sandbox = Sandbox::new();
    let peer = sandbox.peer("one", &[]);
    fs::create_dir(sandbox.work().join("set")).unwrap();
    for number in 0..30 {
        symlink("/nowhere", sandbox.work().join(format!("set/link {number}"))).unwrap();
    }
    let share = ["share", "set", "--strict", "--peer", &peer.control()];
    let plain = sandbox.run(&share).expect(1).stderr;
    assert_eq!(
        plain.lines().filter(|line| line.starts_with("error:")).count(),
        10,
        "{plain}"
    );
    assert!(
        plain.contains("20 more errors not shown; -v shows all"),
        "{plain}"
    );
    let whole = sandbox.run(&[&share[..], &["-v"]].concat()).expect(1).stderr;
    assert_eq!(
        whole.lines().filter(|line| line.starts_with("error:")).count(),
        30,
        "{whole}"
    );
}

#[test]
fn ten_thousand_unreadable_files_take_ten_lines() {
    let sandbox = Sandbox::new();
    sandbox.file("set/kept", 10, 1);
    for number in 0..10_000 {
        let path = sandbox.work().join(format!("set/{number}"));
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    }
    fs::create_dir(sandbox.work().join("set/private")).unwrap();
    fs::write(sandbox.work().join("set/private/file"), "").unwrap();
    let private = fs::Permissions::from_mode(0o000);
    fs::set_permissions(sandbox.work().join("set/private"), private).unwrap();
    let without_capabilities = |args: &[&str]| {
        let command = sandbox.command();
        // The superuser reads everything, so the command runs without that right.
        let mut limited = match rustix::process::geteuid().is_root() {
            true => {
                let mut limited = Command::new("setpriv");
                limited.args(["--bounding-set", "-dac_override,-dac_read_search"]);
                limited.arg(command.get_program());
                limited
            }
            false => Command::new(command.get_program()),
        };
        limited.args(args).current_dir(command.get_current_dir().unwrap());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => limited.env(name, value),
                None => limited.env_remove(name),
            };
        }
        limited.output().unwrap()
    };
    let plain = without_capabilities(&["id", "set"]);
    let stderr = String::from_utf8(plain.stderr).unwrap();
    assert!(plain.status.success(), "{stderr}");
    assert!(
        stderr.contains("skipped 10,001 files or folders without permission"),
        "{stderr}"
    );
    assert_eq!(stderr.lines().count(), 12, "{stderr}");
    let whole = without_capabilities(&["id", "set", "-v"]);
    assert_eq!(named(&String::from_utf8(whole.stderr).unwrap()), 10_001);
    let public = fs::Permissions::from_mode(0o755);
    fs::set_permissions(sandbox.work().join("set/private"), public).unwrap();
}

#[test]
fn special_mode_bits_never_arrive_and_execute_bits_do() {
    let sandbox = Sandbox::new();
    let peer = sandbox.peer("one", &[]);
    for (name, mode, seed) in [
        ("setuid", 0o4755, 1),
        ("setgid", 0o2755, 2),
        ("sticky", 0o1644, 3),
    ] {
        let path = sandbox.file(&format!("set/{name}"), 10, seed);
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::create_dir(sandbox.work().join("set/folder")).unwrap();
    fs::set_permissions(
        sandbox.work().join("set/folder"),
        fs::Permissions::from_mode(0o7755),
    )
    .unwrap();
    let share = ["share", "set", "set/setuid", "--json", "--peer", &peer.control()];
    let ids = sandbox.run(&share).expect(0).objects();
    for object in &ids {
        let id = object["id"].as_str().unwrap();
        sandbox.eventually(&["query", id]);
        sandbox.run(&["get", id, "-o", "copies/"]).expect(0);
    }
    let mode = |name: &str| {
        let metadata = fs::metadata(sandbox.work().join("copies").join(name)).unwrap();
        metadata.permissions().mode() & 0o7100
    };
    assert_eq!(mode("set/setuid"), 0o100);
    assert_eq!(mode("set/setgid"), 0o100);
    assert_eq!(mode("set/sticky"), 0);
    assert_eq!(mode("set/folder"), 0o100);
    assert_eq!(mode("setuid"), 0, "a single file has no mode");
}

/// Runs a program; `None`, with a note, if it is not installed.
fn output_of(program: &Path, args: &[&str], folder: impl AsRef<Path>) -> Option<String> {
    let output = Command::new(program)
        .args(args)
        .current_dir(folder)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_SYSTEM", "/dev/null")
        .env("GIT_AUTHOR_NAME", "a")
        .env("GIT_AUTHOR_EMAIL", "a@example")
        .env("GIT_COMMITTER_NAME", "a")
        .env("GIT_COMMITTER_EMAIL", "a@example")
        .output();
    match output {
        Ok(output) => {
            let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
            let (out, err) = (text(&output.stdout), text(&output.stderr));
            assert!(
                output.status.success(),
                "{} {args:?}: {out}{err}",
                program.display()
            );
            Some(out + &err)
        }
        Err(error) => {
            eprintln!("skipped: {} cannot run: {error}", program.display());
            None
        }
    }
}

/// Shares a folder and gets it from another peer; returns the share's object.
fn share_and_get(sandbox: &Sandbox, name: &str, options: &[&str]) -> serde_json::Value {
    let peer = sandbox.peer("one", &[]);
    let share = ["share", name, "--json", "--peer", &peer.control()];
    let object = sandbox.run(&[&share[..], options].concat()).expect(0).object();
    let id = object["id"].as_str().unwrap();
    sandbox.eventually(&["query", id]);
    sandbox.run(&["get", id, "-o", "copies/"]).expect(0);
    object
}

#[test]
fn a_git_checkout_arrives_whole() {
    let sandbox = Sandbox::new();
    let repository = sandbox.work().join("checkout");
    fs::create_dir(&repository).unwrap();
    let git = |args: &[&str], folder: &Path| output_of(Path::new("git"), args, folder);
    if git(&["init", "--quiet"], &repository).is_none() {
        return;
    }
    sandbox.file("checkout/src/file", 100_000, 1);
    let tool = sandbox.file("checkout/tool", 100, 2);
    fs::set_permissions(tool, fs::Permissions::from_mode(0o755)).unwrap();
    symlink("src/file", repository.join("link")).unwrap();
    git(&["add", "."], &repository);
    git(&["commit", "--quiet", "-m", "first"], &repository);
    git(&["gc", "--quiet"], &repository);
    let object = share_and_get(&sandbox, "checkout", &[]);
    assert_eq!(object["skipped"], serde_json::json!({}));
    let copy = sandbox.work().join("copies/checkout");
    let args = ["-r", "--no-dereference", "checkout", "copies/checkout"];
    output_of(Path::new("diff"), &args, sandbox.work());
    // Only now, because these may write to the copy.
    git(&["fsck", "--strict", "--no-progress"], &copy);
    assert_eq!(git(&["status", "--porcelain"], &copy).unwrap(), "");
}

#[test]
fn a_python_venv_runs_where_it_arrives() {
    let sandbox = Sandbox::new();
    let python = Path::new("python3");
    let make = ["-m", "venv", "--without-pip", "--symlinks", "venv"];
    if output_of(python, &["-c", "import venv"], sandbox.work()).is_none() {
        return;
    }
    output_of(python, &make, sandbox.work());
    let found = output_of(
        Path::new("find"),
        &["venv", "-name", "site-packages"],
        sandbox.work(),
    );
    let package = found.unwrap().lines().next().unwrap().to_owned() + "/dish";
    fs::create_dir_all(sandbox.work().join(&package)).unwrap();
    fs::write(
        sandbox.work().join(&package).join("__init__.py"),
        "NAME = 'soup'\n",
    )
    .unwrap();
    // The interpreter is an absolute link, so its content is shared instead.
    let object = share_and_get(&sandbox, "venv", &["--links", "follow"]);
    assert_eq!(object["skipped"], serde_json::json!({}));
    let copy = sandbox.work().join("copies/venv");
    output_of(Path::new("diff"), &["-r", "venv", "copies/venv"], sandbox.work());
    let run = ["-c", "import dish, sys; print(dish.NAME, sys.prefix)"];
    let printed = output_of(&copy.join("bin/python"), &run, sandbox.work()).unwrap();
    assert_eq!(printed.trim(), format!("soup {}", copy.display()));
}

#[test]
fn sparse_files_arrive_sparse() {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.work().join("set")).unwrap();
    for name in ["disk.img", "set/disk.img"] {
        let file = fs::File::create(sandbox.work().join(name)).unwrap();
        file.set_len(LARGE).unwrap();
        file.write_all_at(name.as_bytes(), LARGE / 2).unwrap();
    }
    let peer = sandbox.peer("one", &[]);
    for name in ["disk.img", "set"] {
        let share = ["share", name, "--json", "--peer", &peer.control()];
        let id = sandbox.run(&share).expect(0).object()["id"]
            .as_str()
            .unwrap()
            .to_owned();
        sandbox.eventually(&["query", &id]);
        let target = format!("copies/{name}");
        sandbox.run(&["get", &id, "-o", &target]).expect(0);
        sandbox.run(&["verify", &id, &target]).expect(0);
    }
    for name in ["disk.img", "set/disk.img"] {
        let copy = fs::metadata(sandbox.work().join("copies").join(name)).unwrap();
        assert_eq!(copy.len(), LARGE);
        assert!(
            copy.blocks() * 512 < LARGE / 8,
            "{name} takes {} blocks",
            copy.blocks()
        );
    }
}
