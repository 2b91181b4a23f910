//! Makes the certificates, the signing request and the list of revocations in `fuzz/data`, from
//! which fuzzing starts. Their keys are thrown away.

use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

use potluck_core::{
    PeerId,
    network::{
        authority::{Authority, Grant},
        identity::{MemberId, Role},
        key::{IdentityKey, SigningRequest},
        revocations::RevocationList,
    },
};

fn main() -> anyhow::Result<()> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("data");
    let folder = tempfile::tempdir()?;
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_796_000_000);
    let authority = Authority::create(&folder.path().join("network"), "kitchen", now)?;
    let key = IdentityKey::generate()?;
    let request = key.signing_request()?;
    let parsed = SigningRequest::parse(&request)?;
    let member = key.member_id();
    let week = Duration::from_secs(7 * 24 * 3600);
    let grants = [
        ("index.der", Grant::Index),
        (
            "member.der",
            Grant::Member {
                member,
                name: "laptop",
                role: Role::Publisher,
            },
        ),
        (
            "peer.der",
            Grant::Peer {
                member,
                name: "laptop",
                role: Role::Reader,
            },
        ),
    ];
    for (name, grant) in grants {
        fs::write(data.join(name), authority.issue(&parsed, grant, week, now)?)?;
    }
    fs::write(data.join("ca.der"), authority.certificate())?;
    fs::write(data.join("request.der"), request)?;
    let list = RevocationList {
        number: 7,
        made_at: now,
        members: [MemberId([1; 16]), MemberId([2; 16])].into(),
        peers: [PeerId([3; 32])].into(),
    };
    fs::write(
        data.join("revocations"),
        authority.sign_revocations(list)?.as_bytes(),
    )?;
    Ok(())
}
