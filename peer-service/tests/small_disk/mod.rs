//! Small file systems in memory, and the state of a transfer that waits for room on one.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use potluck_core::proto::v1;
use tonic::Streaming;

use super::common::{PATIENCE, file};

pub(crate) const MIB: usize = 1024 * 1024;

/// A small tmpfs; unmounted when dropped.
pub(crate) struct Disk {
    dir: tempfile::TempDir,
}

impl Disk {
    /// `None`, with a note on the output, if mounting is not allowed.
    pub(crate) fn mount(bytes: usize) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let disk = Self { dir };
        match disk.run("mount", &["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"]) {
            true => Some(disk),
            false => {
                println!("skipped: a file system cannot be mounted here (it takes root)");
                std::mem::forget(disk);
                None
            }
        }
    }

    fn run(&self, program: &str, arguments: &[&str]) -> bool {
        run(program, |command| command.args(arguments).arg(self.dir.path()))
    }

    /// The mount point.
    pub(crate) fn root(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn remount(&self, options: &str) {
        assert!(self.run("mount", &["-o", &format!("remount,{options}")]));
    }

    /// Uses up this many bytes.
    pub(crate) fn ballast(&self, bytes: usize) -> PathBuf {
        file(self.dir.path(), "ballast", &vec![1; bytes])
    }

    /// Uses up all free space, to the last page.
    pub(crate) fn fill(&self) -> PathBuf {
        let path = self.path("filler");
        let mut file = File::create(&path).unwrap();
        for size in [MIB, 4096] {
            while file.write_all(&vec![1; size]).is_ok() {}
        }
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A lazy unmount: files that a failed test left open must not block it.
        self.run("umount", &["-l"]);
    }
}

/// A file system on a disk with less room than it reports, like a thin volume: writes succeed, and
/// their data is lost at the flush.
pub(crate) struct Thin {
    /// The mount point; dropped before the disk below.
    dir: tempfile::TempDir,
    under: Disk,
}

impl Thin {
    /// A disk of `bytes` that reports `says` bytes. `None`, with a note on the output, if that is
    /// not possible.
    pub(crate) fn mount(bytes: usize, says: usize) -> Option<Self> {
        let under = Disk::mount(bytes)?;
        let image = under.path("image");
        File::create(&image).unwrap().set_len(says as u64).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let options = [
            "-q",
            "-F",
            "-O",
            "^has_journal",
            "-E",
            "lazy_itable_init=0,nodiscard",
        ];
        let made = run("mkfs.ext4", |command| command.args(options).arg(&image));
        let mounted = made
            && run("mount", |command| {
                command
                    .args(["-o", "loop,errors=continue"])
                    .arg(&image)
                    .arg(dir.path())
            });
        if mounted {
            return Some(Self { dir, under });
        }
        println!("skipped: a file system in a file cannot be made or mounted here");
        std::mem::forget(dir);
        None
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Grows the disk below to this many bytes.
    pub(crate) fn grow(&self, bytes: usize) {
        self.under.remount(&format!("size={bytes}"));
    }
}

impl Drop for Thin {
    fn drop(&mut self) {
        run("umount", |command| command.arg("-l").arg(self.dir.path()));
    }
}

/// An exFAT disk, which folds case and supports no modes, links or names with colons. Unmounted
/// when dropped.
pub(crate) struct ExFat {
    dir: tempfile::TempDir,
    device: String,
    _under: Disk,
}

impl ExFat {
    /// `None`, with a note on the output, if that is not possible.
    pub(crate) fn mount() -> Option<Self> {
        let under = Disk::mount(48 * MIB)?;
        let image = under.path("image");
        File::create(&image).unwrap().set_len(40 * MIB as u64).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let made = run("mkfs.exfat", |command| command.arg(&image).stdout(Stdio::null()));
        let device = made.then(|| {
            Command::new("losetup")
                .args(["--find", "--show"])
                .arg(&image)
                .output()
        });
        let device = device
            .and_then(Result::ok)
            .filter(|output| output.status.success());
        let Some(device) = device else {
            println!("skipped: takes root and mkfs.exfat (Debian packages exfatprogs and exfat-fuse)");
            return None;
        };
        let disk = Self {
            dir,
            device: String::from_utf8(device.stdout).unwrap().trim().to_owned(),
            _under: under,
        };
        let mounted = run("mount.exfat-fuse", |command| {
            command.arg(&disk.device).arg(disk.root()).stdout(Stdio::null())
        });
        // exfat-fuse mounts in the background.
        let is_there = || {
            let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
            mounts.contains(disk.root().to_str().unwrap())
        };
        let deadline = std::time::Instant::now() + PATIENCE;
        while mounted && !is_there() && std::time::Instant::now() < deadline {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        if is_there() {
            return Some(disk);
        }
        println!("skipped: takes root and mount.exfat-fuse (Debian package exfat-fuse)");
        None
    }

    /// The mount point.
    pub(crate) fn root(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The names at the top level, sorted.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path()).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

impl Drop for ExFat {
    fn drop(&mut self) {
        run("umount", |command| command.arg("-l").arg(self.dir.path()));
        run("losetup", |command| command.args(["-d", &self.device]));
    }
}

/// Whether a program exited with success.
fn run(program: &str, with: impl FnOnce(&mut Command) -> &mut Command) -> bool {
    let mut command = Command::new(program);
    let status = with(&mut command).stderr(std::process::Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// The first transfer state that fits.
pub(crate) async fn until(
    what: &str,
    events: &mut Streaming<v1::StartTransferResponse>,
    fits: impl Fn(&v1::Transfer) -> bool,
) -> v1::Transfer {
    let mut last = None;
    let follow = async {
        while let Some(event) = events.message().await.unwrap() {
            let transfer = event.transfer.unwrap();
            if fits(&transfer) {
                return transfer;
            }
            last = Some(transfer);
        }
        panic!("{what}: ended as {last:#?}");
    };
    tokio::time::timeout(PATIENCE, follow).await.expect(what)
}

pub(crate) fn waits_for_room(transfer: &v1::Transfer) -> bool {
    transfer.state() == v1::TransferState::Waiting
        && transfer
            .error
            .as_ref()
            .is_some_and(|error| error.reason == "DISK_FULL")
}

pub(crate) fn done(transfer: &v1::Transfer) -> bool {
    transfer.state() == v1::TransferState::Done
}
