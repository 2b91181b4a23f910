//! Which machine this is, as far as that can be told.
//!
//! The id is systemd's and D-Bus's (machine-id(5)): made when the operating system is installed,
//! and made anew for a machine that was cloned properly. It says nothing in a container, whose id
//! may be made at each start, nor where it is only of this boot.

use std::path::Path;

use sha2::{Digest as _, Sha256};

/// Where the id is; the second is of systems without systemd.
const FILES: [&str; 2] = ["/etc/machine-id", "/var/lib/dbus/machine-id"];

/// Where systemd keeps an id that is of this boot only.
const TRANSIENT: &str = "/run/machine-id";

/// What shows that this is a container: Docker, Podman, systemd-nspawn and others.
const CONTAINER_FILES: [&str; 3] = ["/.dockerenv", "/run/.containerenv", "/run/systemd/container"];
const CONTAINER_VARIABLES: [&str; 2] = ["container", "KUBERNETES_SERVICE_HOST"];

/// Longest id that is read, in bytes: 32 digits, with room.
const MAX_LEN: u64 = 256;

/// A machine, as 64 hex digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MachineId(String);

impl MachineId {
    /// This machine; `None` where nothing tells it from others for good.
    pub(crate) fn of_this() -> Option<Self> {
        let is_container = CONTAINER_FILES.iter().any(|path| Path::new(path).exists())
            || CONTAINER_VARIABLES
                .iter()
                .any(|name| std::env::var_os(name).is_some());
        if is_container || Path::new(TRANSIENT).exists() {
            return None;
        }
        FILES.iter().find_map(|path| {
            use std::io::Read as _;
            let mut text = String::new();
            let file = std::fs::File::open(path).ok()?;
            file.take(MAX_LEN).read_to_string(&mut text).ok()?;
            Self::from_text(text.trim())
        })
    }

    /// From the id that the machine has. Not told as it is: machine-id(5) asks for a hash of one's
    /// own.
    pub(crate) fn from_text(text: &str) -> Option<Self> {
        // So systemd marks a machine that has none yet.
        if text.is_empty() || text == "uninitialized" {
            return None;
        }
        let mut hash = Sha256::new();
        hash.update(b"potluck/machine/v1\0");
        hash.update(text.as_bytes());
        Some(Self(hex::encode(hash.finalize())))
    }

    /// Whether a text could be one.
    pub(crate) fn is_one(text: &str) -> bool {
        text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_are_told_apart_and_not_told() {
        let [a, b] = ["a", "b"].map(|text| MachineId::from_text(text).unwrap());
        assert_ne!(a, b);
        assert!(MachineId::is_one(a.as_str()) && !MachineId::is_one("a"));
        for none in ["", "uninitialized"] {
            assert_eq!(MachineId::from_text(none), None);
        }
    }
}
