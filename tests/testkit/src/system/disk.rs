//! Small file systems. They need the right to mount, which takes root on most systems. Where one
//! cannot be mounted, `mount` prints a note and returns `None`, and the test ends without a check.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::{
    content::{MIB, write_file},
    wait::DEADLINE,
};

/// A folder on which a file system is mounted; unmounted when dropped.
#[derive(Debug)]
struct MountPoint(TempDir);

impl MountPoint {
    /// Mounts with this command, to which the folder is appended.
    fn mount(command: &mut Command) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let is_mounted = succeeds(command.arg(dir.path()));
        is_mounted.then(|| Self(dir))
    }
}

impl Drop for MountPoint {
    fn drop(&mut self) {
        // A lazy unmount: files that a failed test left open must not block it.
        succeeds(Command::new("umount").arg("-l").arg(self.0.path()));
    }
}

/// A small tmpfs.
#[derive(Debug)]
pub struct SmallDisk(MountPoint);

impl SmallDisk {
    /// A disk of this many bytes.
    pub fn mount(bytes: usize) -> Option<Self> {
        let options = format!("size={bytes}");
        let disk =
            MountPoint::mount(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]));
        if disk.is_none() {
            println!("skipped: a file system cannot be mounted here (it takes root)");
        }
        disk.map(Self)
    }

    /// The mount point.
    pub fn root(&self) -> &Path {
        self.0.0.path()
    }

    /// The path of this name on the disk.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    /// Changes options of the mount, such as `size=64m` or `ro`.
    pub fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        let mut command = Command::new("mount");
        assert!(succeeds(command.args(["-o", &options]).arg(self.root())));
    }

    /// Occupies this many bytes; returns the file to delete.
    pub fn occupy(&self, bytes: usize) -> PathBuf {
        write_file(self.root(), "ballast", &vec![1; bytes])
    }

    /// Fills the disk to the last page; returns the file to delete.
    pub fn fill(&self) -> PathBuf {
        let path = self.path("filler");
        let mut file = File::create(&path).unwrap();
        for size in [MIB, 4096] {
            while file.write_all(&vec![1; size]).is_ok() {}
        }
        path
    }
}

/// A file system on a disk with less room than it reports, like a thin volume: writes succeed, and
/// their data is lost at the flush.
#[derive(Debug)]
pub struct ThinDisk {
    /// Unmounted before the disk below.
    mount: MountPoint,
    below: SmallDisk,
}

impl ThinDisk {
    /// A disk of `bytes` that reports `reported` bytes.
    pub fn mount(bytes: usize, reported: usize) -> Option<Self> {
        let below = SmallDisk::mount(bytes)?;
        let image = below.path("image");
        File::create(&image).unwrap().set_len(reported as u64).unwrap();
        let options = ["-O", "^has_journal", "-E", "lazy_itable_init=0,nodiscard"];
        let mut mkfs = Command::new("mkfs.ext4");
        let is_formatted = succeeds(mkfs.args(["-q", "-F"]).args(options).arg(&image));
        let mut mount = Command::new("mount");
        let mount = is_formatted
            .then(|| MountPoint::mount(mount.args(["-o", "loop,errors=continue"]).arg(&image)))
            .flatten();
        if mount.is_none() {
            println!("skipped: a file system in a file cannot be made or mounted here");
        }
        mount.map(|mount| Self { mount, below })
    }

    /// The path of this name on the disk.
    pub fn path(&self, name: &str) -> PathBuf {
        self.mount.0.path().join(name)
    }

    /// Grows the disk below to this many bytes.
    pub fn grow(&self, bytes: usize) {
        self.below.remount(&format!("size={bytes}"));
    }
}

/// An exFAT disk, which folds case and supports no modes, links or names with colons.
#[derive(Debug)]
pub struct ExFatDisk {
    /// Unmounted before the device is detached.
    mount: MountPoint,
    _device: LoopDevice,
    _below: SmallDisk,
}

impl ExFatDisk {
    /// A disk of 40 MiB.
    pub fn mount() -> Option<Self> {
        let below = SmallDisk::mount(48 * MIB)?;
        let image = below.path("image");
        File::create(&image).unwrap().set_len(40 * MIB as u64).unwrap();
        let is_formatted = succeeds(Command::new("mkfs.exfat").arg(&image));
        let Some(device) = is_formatted.then(|| LoopDevice::attach(&image)).flatten() else {
            println!(
                "skipped: takes root and mkfs.exfat (Debian packages exfatprogs and exfat-fuse)"
            );
            return None;
        };
        let mut mount = Command::new("mount.exfat-fuse");
        let mount = MountPoint::mount(mount.arg(&device.0));
        let Some(mount) = mount.filter(|mount| appears_in_mounts(mount.0.path())) else {
            println!("skipped: takes root and mount.exfat-fuse (Debian package exfat-fuse)");
            return None;
        };
        Some(Self {
            mount,
            _device: device,
            _below: below,
        })
    }

    /// The mount point.
    pub fn root(&self) -> &Path {
        self.mount.0.path()
    }

    /// The path of this name on the disk.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    /// The names at the top level, sorted.
    pub fn names(&self) -> Vec<String> {
        names_in(self.root())
    }
}

/// A file as a block device; detached when dropped.
#[derive(Debug)]
struct LoopDevice(String);

impl LoopDevice {
    fn attach(image: &Path) -> Option<Self> {
        let output = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(image)
            .output();
        let output = output.ok().filter(|output| output.status.success())?;
        let name = String::from_utf8(output.stdout).unwrap();
        Some(Self(name.trim().to_owned()))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        succeeds(Command::new("losetup").args(["-d", &self.0]));
    }
}

/// Waits until the system lists the mount: exfat-fuse mounts in the background.
fn appears_in_mounts(path: &Path) -> bool {
    let path = path.to_str().unwrap();
    let start = Instant::now();
    while start.elapsed() < DEADLINE {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        if mounts.contains(path) {
            return true;
        }
        thread::sleep(Duration::from_millis(10));
    }
    false
}

/// The names in a folder, sorted.
pub fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Whether a command exits with success. Its output is discarded.
fn succeeds(command: &mut Command) -> bool {
    let command = command.stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
