//! Private networks: a certificate authority, the certificates of its members and peers, and TLS.
//!
//! | module | contents |
//! |---|---|
//! | [`authority`] | the network's CA: issues certificates and signs revocation lists |
//! | [`certificate`] | what a certificate of the network says: kind, member, role, validity |
//! | [`credentials`], [`credentials_error`] | what a member keeps on disk; the errors that a person sees |
//! | [`folder`] | the folder of `potluck index --network`: the CA, and the index's key and certificate |
//! | [`identity`] | ids of members, roles, and the names that certificates carry |
//! | [`join_code`] | the text that lets a machine join |
//! | [`key`] | P-256 keys and signing requests |
//! | [`own_pki`] | certificates of a PKI that somebody else runs, and roles files |
//! | [`revocations`] | the signed list of revoked members and peers |
//! | [`stored_identity`] | a key with its certificate, in files |
//! | [`tls`] | the settings of connections, and who is at the other end |
//!
//! Names are verified, not addresses. The CA alone chooses the names in a certificate:
//!
//! | kind | DNS name | URI name | use |
//! |---|---|---|---|
//! | index | `index.potluck.internal` | | server |
//! | peer | `<base32 of its id>.peer.potluck.internal` | `potluck:member/MEMBER/ROLE` | server and client |
//! | member | | `potluck:member/MEMBER/ROLE` | client |
//!
//! So a member cannot pose as the index or as another peer: a dialer requires the name of the index,
//! or the name and the key of the peer that the index returned.

pub mod authority;
pub mod certificate;
pub mod credentials;
pub mod credentials_error;
pub mod folder;
pub mod identity;
pub mod join_code;
pub mod key;
pub mod own_pki;
mod pem_file;
pub mod revocations;
pub mod stored_identity;
pub mod tls;
