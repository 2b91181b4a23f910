//! The properties of files that the file system at a path can store.

use std::path::Path;

/// File systems, by their names in Linux's `mountinfo`, that cannot store modes and links. Some
/// mount options emulate them, so callers also check the files themselves.
#[cfg(target_os = "linux")]
const WITHOUT_MODES: [&[u8]; 8] = [
    b"vfat",
    b"msdos",
    b"exfat",
    b"ntfs",
    b"cifs",
    b"smb3",
    // User-space drivers for disks: exfat-fuse and ntfs-3g.
    b"fuseblk",
    b"fuse.exfat",
];

/// Whether the file system may lack file modes (then every file looks executable) and links. Writes
/// nothing to find out; false if the file system is unknown.
#[cfg(target_os = "linux")]
pub(crate) fn may_lack_modes(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;

    let (Ok(metadata), Ok(mounts)) = (path.metadata(), std::fs::read("/proc/self/mountinfo"))
    else {
        return false;
    };
    let device = format!(
        "{}:{}",
        rustix::fs::major(metadata.dev()),
        rustix::fs::minor(metadata.dev())
    );
    file_system_type(&mounts, device.as_bytes()).is_some_and(|kind| WITHOUT_MODES.contains(&kind))
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn may_lack_modes(_path: &Path) -> bool {
    false
}

/// The file system type with this device number, from `mountinfo`; see proc_pid_mountinfo(5).
#[cfg(target_os = "linux")]
fn file_system_type<'a>(mounts: &'a [u8], device: &[u8]) -> Option<&'a [u8]> {
    mounts.split(|&byte| byte == b'\n').find_map(|line| {
        let mut words = line.split(|&byte| byte == b' ');
        // A dash ends the optional fields; the type follows it.
        (words.nth(2)? == device).then(|| words.skip_while(|word| *word != b"-").nth(1))?
    })
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_type_is_found_by_the_device_number() {
        let mounts = b"27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
            43 27 7:0 / /mnt/a\\040b rw,nosuid - fuseblk /dev/loop0 rw,user_id=0\n\
            44 27 0:50 / /tmp rw shared:2 master:1 - tmpfs tmpfs rw\n";
        let kind = |device: &str| file_system_type(mounts, device.as_bytes());
        assert_eq!(kind("254:0"), Some(&b"ext4"[..]));
        assert_eq!(kind("7:0"), Some(&b"fuseblk"[..]));
        assert_eq!(kind("0:50"), Some(&b"tmpfs"[..]));
        assert_eq!(kind("7:1"), None);
        assert_eq!(file_system_type(b"", b"7:0"), None);
        assert_eq!(file_system_type(b"27 1 7:0 / / rw", b"7:0"), None);
    }
}
