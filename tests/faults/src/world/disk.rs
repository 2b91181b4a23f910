//! The disk of a machine: a file system in an image, so that it can fill up and lose its power.
//!
//! The image is a file on another file system, which is in an image as well. The outer one plays the
//! disk with its volatile cache: what the inner file system writes stays in the memory of the
//! kernel until the inner one flushes, which syncs the inner image.
//!
//! A power cut: all programs of the machine are killed, then the outer image is copied as it is, and
//! the copy is mounted instead. So data that a program did not sync is lost, and so is data that was
//! written to the disk but not flushed. What the kernel writes back by itself after half a minute
//! survives, as on a real machine.
//!
//! A failing disk: the outer file system is full. Then the inner one gets EIO for every write to a
//! place that it never wrote before, and soon refuses all writes, until it is mounted again.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::Context as _;
use rustix::fs::{FallocateFlags, fallocate, statvfs};

use super::network::run;

/// The size of a disk. A round writes less than half of it.
const SIZE: u64 = 256 << 20;

/// The size of the image with the cache.
const OUTER_SIZE: u64 = SIZE + (32 << 20);

/// The name of the disk's image in the outer file system.
const INNER: &str = "inner";

/// Options of the file system: it writes to the disk only when told to. By default, ext4 syncs a
/// file that is renamed over another, which would hide a missing sync.
const MOUNT_OPTIONS: &str = "loop,commit=600,noauto_da_alloc,noinit_itable,nodiscard";

/// The name of the file that fills a disk.
const BALLAST: &str = ".ballast";

/// A disk.
#[derive(Debug)]
pub(crate) struct Disk {
    root: PathBuf,
    /// `None` for an ordinary folder, which can neither fill up nor lose its power.
    image: Option<PathBuf>,
}

impl Disk {
    /// Makes a disk that is mounted at `root`. `images` is a folder for the images.
    pub(crate) fn new(root: &Path, images: Option<&Path>) -> anyhow::Result<Self> {
        fs::create_dir_all(root)?;
        let Some(images) = images else {
            return Ok(Self {
                root: root.to_owned(),
                image: None,
            });
        };
        let template = images.join("template");
        if !template.exists() {
            make_template(&template)?;
        }
        let name = root.file_name().context("a disk has a name")?;
        let image = images.join(name).with_extension("image");
        copy_image(&template, &image)?;
        let disk = Self {
            root: root.to_owned(),
            image: Some(image),
        };
        disk.mount()?;
        Ok(disk)
    }

    /// The mount point.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Whether it can fill up and lose its power.
    pub(crate) const fn is_image(&self) -> bool {
        self.image.is_some()
    }

    /// Syncs everything.
    pub(crate) fn sync(&self) -> anyhow::Result<()> {
        run(&format!("sync -f {}", self.root.display()))
    }

    /// Drops what was not synced. No program may have a file of the disk open.
    pub(crate) fn cut_power(&mut self) -> anyhow::Result<()> {
        let Some(image) = self.image.clone() else {
            return Ok(());
        };
        let survivor = image.with_extension("survivor");
        copy_image(&image, &survivor)?;
        // This writes what was not synced into the old image, which goes away.
        self.unmount();
        fs::remove_file(&image)?;
        fs::rename(&survivor, &image)?;
        self.mount()
    }

    /// Lets writes fail with EIO.
    pub(crate) fn fail(&self) -> anyhow::Result<()> {
        let Some(image) = &self.image else {
            return Ok(());
        };
        fill(&image.with_extension("outer"), 0)
    }

    /// Ends [`Disk::fail`]. No program may have a file of the disk open.
    pub(crate) fn mend(&self) -> anyhow::Result<()> {
        self.unmount();
        self.mount()
    }

    /// Fills the disk until this many bytes are left.
    pub(crate) fn fill(&self, left: u64) -> anyhow::Result<()> {
        match self.image {
            Some(_) => fill(&self.root, left),
            None => Ok(()),
        }
    }

    /// Gives the disk room again.
    pub(crate) fn free(&self) {
        _ = fs::remove_file(self.root.join(BALLAST));
    }

    fn mount(&self) -> anyhow::Result<()> {
        let Some(image) = &self.image else {
            return Ok(());
        };
        let outer = image.with_extension("outer");
        mount(image, &outer)?;
        _ = fs::remove_file(outer.join(BALLAST));
        mount(&outer.join(INNER), &self.root)
    }

    fn unmount(&self) {
        let Some(image) = &self.image else { return };
        for root in [&self.root, &image.with_extension("outer")] {
            let root = root.display();
            // A lazy one where something is still open.
            if run(&format!("umount {root}")).is_err() {
                _ = run(&format!("umount -l {root}"));
            }
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.unmount();
    }
}

/// Fills the file system at `root` until this many bytes are left.
fn fill(root: &Path, left: u64) -> anyhow::Result<()> {
    let mut ballast = File::options()
        .create(true)
        .append(true)
        .open(root.join(BALLAST))?;
    let space = statvfs(root)?;
    let free = space.f_bavail * space.f_frsize;
    let len = ballast.metadata()?.len();
    if let Some(more) = free.checked_sub(left).filter(|more| *more > 0) {
        // Programs on the disk may be faster.
        _ = fallocate(&ballast, FallocateFlags::empty(), len, more);
    }
    if left == 0 {
        while ballast.write_all(&[1; 4096]).is_ok() {}
    }
    Ok(())
}

/// Makes an image with an image.
fn make_template(template: &Path) -> anyhow::Result<()> {
    make_file_system(template, OUTER_SIZE)?;
    let outer = template.with_extension("outer");
    mount(template, &outer)?;
    make_file_system(&outer.join(INNER), SIZE)?;
    run(&format!("umount {}", outer.display()))
}

fn make_file_system(image: &Path, size: u64) -> anyhow::Result<()> {
    File::create(image)?.set_len(size)?;
    run(&format!(
        "mkfs.ext4 -q -F -b 4096 -m 0 -J size=8 -E lazy_itable_init=1,nodiscard {}",
        image.display()
    ))
}

fn mount(image: &Path, at: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(at)?;
    run(&format!(
        "mount -o {MOUNT_OPTIONS} {} {}",
        image.display(),
        at.display()
    ))
}

fn copy_image(from: &Path, to: &Path) -> anyhow::Result<()> {
    run(&format!("cp --sparse=always {} {}", from.display(), to.display()))
}

/// Damages a file in place.
pub(crate) fn damage(path: &Path, damage: crate::plan::Damage) -> anyhow::Result<()> {
    use crate::plan::Damage;
    let file = File::options().read(true).write(true).open(path)?;
    let len = file.metadata()?.len();
    let (Damage::Truncate(at) | Damage::Flip(at) | Damage::Zero(at) | Damage::Scramble(at)) =
        damage;
    let at = len * at / 1_000;
    let size = (len - at).min(4096) as usize;
    match damage {
        Damage::Truncate(_) => file.set_len(at)?,
        Damage::Flip(_) if len > 0 => {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at)?;
            file.write_all_at(&[byte[0] ^ 4], at)?;
        }
        Damage::Flip(_) => {}
        Damage::Zero(_) => file.write_all_at(&vec![0; size], at)?,
        Damage::Scramble(_) => {
            file.write_all_at(&crate::random::Random::new(at).bytes(size), at)?;
        }
    }
    file.sync_all()?;
    Ok(())
}

/// Whether file systems can be made and mounted here.
pub(crate) fn can_mount() -> bool {
    let has_mkfs = Command::new("mkfs.ext4")
        .arg("-V")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    has_mkfs.is_ok_and(|status| status.success()) && Path::new("/dev/loop-control").exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_power_cut_drops_what_was_not_synced() {
        let dir = tempfile::tempdir().unwrap();
        let images = dir.path().join("images");
        fs::create_dir(&images).unwrap();
        if !can_mount() || run("mount --version").is_err() {
            println!("skipped: takes root, mkfs.ext4 and loop devices");
            return;
        }
        let mut disk = match Disk::new(&dir.path().join("0"), Some(&images)) {
            Ok(disk) => disk,
            Err(error) => {
                println!("skipped: {error:#}");
                return;
            }
        };
        let path = |name: &str| dir.path().join("0").join(name);
        let write = |name: &str, bytes: &[u8]| {
            let mut file = File::create(path(name)).unwrap();
            file.write_all(bytes).unwrap();
            file
        };
        for name in ["synced", "overwritten", "direct", "new"] {
            write(name, &[1; 8192]).sync_all().unwrap();
        }
        File::open(disk.root()).unwrap().sync_all().unwrap();
        write("unsynced", b"never synced");
        fs::rename(path("new"), path("renamed")).unwrap();
        let file = File::options().write(true).open(path("overwritten")).unwrap();
        file.write_all_at(&[2; 8192], 0).unwrap();
        drop(file);
        // This reaches the disk, and stays in its cache.
        let direct = path("direct");
        run(&format!(
            "dd if=/dev/zero of={} bs=4096 count=2 oflag=direct conv=notrunc",
            direct.display()
        ))
        .unwrap();
        assert_eq!(fs::read(&direct).unwrap(), [0; 8192]);
        disk.cut_power().unwrap();
        for name in ["synced", "overwritten", "direct", "new"] {
            assert_eq!(fs::read(path(name)).unwrap(), [1; 8192], "{name}");
        }
        assert!(!path("renamed").exists());
        assert!(
            fs::read(path("unsynced")).is_ok_and(|bytes| bytes.is_empty())
                || !path("unsynced").exists()
        );
        // The disk is as good as before.
        write("after", b"after").sync_all().unwrap();
        disk.cut_power().unwrap();
        assert_eq!(fs::read(path("after")).unwrap(), b"after");
        disk.fill(0).unwrap();
        assert!(fs::write(path("too much"), [1; 4096]).is_err());
        disk.free();
        fs::write(path("enough"), [1; 4096]).unwrap();
    }

    #[test]
    fn damage_changes_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        use crate::plan::Damage;
        for kind in [
            Damage::Truncate(500),
            Damage::Flip(999),
            Damage::Zero(0),
            Damage::Scramble(900),
        ] {
            fs::write(&path, [7; 10_000]).unwrap();
            damage(&path, kind).unwrap();
            let bytes = fs::read(&path).unwrap();
            assert_ne!(bytes, [7; 10_000], "{kind:?}");
            assert!(bytes.len() == 10_000 || kind == Damage::Truncate(500));
        }
    }
}
