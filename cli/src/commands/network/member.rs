//! Commands through the index, with the credentials of this machine.

use potluck_core::{
    PeerId, Problem, Reason,
    index_client::{self, IndexClient, ListedMember},
    model::{IndexedFile, QueryKey},
    network::{
        credentials::Credentials,
        join_code::JoinCode,
        stored_identity::StoredIdentity,
        tls::{TlsContext, TlsMaterial},
    },
};
use potluck_peer::home::{Home, NETWORK_KEY};
use serde_json::json;

use crate::{
    arguments::file_query::FileQuery,
    commands::network::args::{
        InviteArgs, JoinArgs, LeaveArgs, RekeyArgs, RevokeArgs, SetIndexArgs, UnbindArgs,
        UnregisterArgs, find_member, index_url,
    },
    commands::network::host::{MemberRow, print_code, print_index, print_members, print_revoked},
    context::CommandContext,
    error::CommandError,
    lookup,
    output::text,
    peer::default_home,
};

/// `network join`.
pub(super) async fn join(context: &CommandContext, args: JoinArgs) -> Result<(), CommandError> {
    let folder = context.credentials_folder()?;
    let code = match (&args.code, &args.code_file) {
        (_, Some(file)) => index_client::read_code(file)?,
        (Some(code), None) if code == "-" => index_client::read_code("-".as_ref())?,
        (Some(code), None) => code
            .parse()
            .map_err(|error| CommandError::new(Reason::InvalidCode, format!("{error}")))?,
        (None, None) => return Err(CommandError::usage("give a join code, or --code-file")),
    };
    let name = args.name.unwrap_or_else(index_client::machine_name);
    let credentials = index_client::join(&folder, &code, &name).await?;
    let info = credentials.member().info();
    let identity = info.and_then(|info| info.identity());
    let role = identity
        .as_ref()
        .map_or("member", |identity| identity.role.as_str());
    let id = credentials.member().key().member_id().to_string();
    if context.out.is_json() {
        return context.out.print_object(&json!({
            "network": credentials.name(), "member": id, "name": name, "role": role,
            "index": code.index, "credentials": folder,
        }));
    }
    context.out.print_line(format_args!(
        "joined the network {} as {} ({role}); peer, share and get use it from now on",
        text::escape(credentials.name()),
        text::escape(&name),
    ))
}

/// `network invite`.
pub(super) async fn invite(
    context: &CommandContext,
    args: &InviteArgs,
) -> Result<(), CommandError> {
    let credentials = credentials(context).await?;
    let given = context.given_index().map(index_url).transpose()?;
    let url = match given {
        Some(url) => url,
        None => index_of(&credentials)?,
    };
    let code = JoinCode::generate(&url, credentials.ca_hash().map_err(Problem::from)?)
        .ok_or_else(|| CommandError::usage("the address of the index is too long: give --index"))?;
    let expires = context
        .index()?
        .create_invite(code.secret.hash(), args.role, Some(args.uses), Some(args.ttl))
        .await?;
    print_code(context, args, &url, &code.expose(), expires)
}

/// `network members`.
pub(super) async fn members(context: &CommandContext) -> Result<(), CommandError> {
    credentials(context).await?;
    let members = context.index()?.members().await?;
    print_members(context, members.iter().map(row))
}

fn row(member: &ListedMember) -> MemberRow<'_> {
    MemberRow {
        id: member.id.to_string(),
        name: &member.name,
        role: member.role,
        state: member.state,
        peers: member.peers,
        joined: member.joined,
        expires: member.expires,
    }
}

/// `network revoke`.
pub(super) async fn revoke(
    context: &CommandContext,
    args: &RevokeArgs,
) -> Result<(), CommandError> {
    credentials(context).await?;
    let index = context.index()?;
    let members = index.members().await?;
    let member = find_member(&members, &args.member, |m| m.id.to_string(), |m| &m.name)?;
    let voided = index.revoke_member(member.id).await?;
    print_revoked(context, &member.id.to_string(), &member.name, voided as usize)
}

/// `network leave`.
pub(super) async fn leave(context: &CommandContext, args: &LeaveArgs) -> Result<(), CommandError> {
    let folder = context.credentials_folder()?;
    let credentials = Credentials::load(&folder).map_err(Problem::from)?;
    let told = async { context.index()?.leave().await.map_err(CommandError::from) }.await;
    match told {
        Ok(()) => {}
        // The index knows already.
        Err(error) if error.is(Reason::Revoked) || error.is(Reason::NotAMember) => {}
        Err(error) if args.offline => {
            context.out.warn(format_args!(
                "the index was not told; ask an admin to revoke this member ({})",
                credentials.member().key().member_id()
            ));
            drop(error);
        }
        Err(error) => {
            return Err(error.hint(
                "the credentials were kept; `potluck network leave --offline` removes them without \
                 telling the index",
            ));
        }
    }
    let name = credentials.name().to_owned();
    credentials.remove().map_err(Problem::from)?;
    match context.out.is_json() {
        true => context
            .out
            .print_object(&json!({ "network": name, "left": true })),
        false => context.out.print_line(format_args!(
            "left the network {}; its credentials are removed from this machine",
            text::escape(&name)
        )),
    }
}

/// `network rekey`.
pub(super) async fn rekey(context: &CommandContext, args: RekeyArgs) -> Result<(), CommandError> {
    let credentials = credentials(context).await?;
    let home = match args.home {
        Some(home) => home,
        None => default_home()?,
    };
    // Locks the home, so that no peer uses the key meanwhile.
    let opened = Home::open(&home).map_err(Problem::from)?;
    let state = opened.state();
    let failed = |error| CommandError::from(Problem::from(error));
    let old = StoredIdentity::open(&state, NETWORK_KEY).map_err(failed)?;
    let old_id = old.key().peer_id();
    let url = index_of(&credentials)?;
    if old.certificate().is_some() {
        let material = TlsMaterial::member(&credentials, &old).map_err(failed)?;
        let tls = TlsContext::new(material)
            .map_err(|error| CommandError::new(Reason::InvalidArgument, error.to_string()))?;
        let as_peer = secured(&url, &tls)?;
        let left = async {
            as_peer.unregister(None, None).await?;
            as_peer.leave().await
        };
        if let Err(problem) = left.await
            // The index closes the connection of a peer that left, at times before it answers. A key
            // that it refuses is not in use.
            && !matches!(
                problem.reason,
                Reason::Revoked | Reason::NotAMember | Reason::CertificateExpired
            )
        {
            return Err(problem.into());
        }
    }
    old.remove().map_err(failed)?;
    let mut new = StoredIdentity::open(&state, NETWORK_KEY).map_err(failed)?;
    let request = new
        .key()
        .signing_request()
        .map_err(|error| CommandError::new(Reason::Internal, error.to_string()))?;
    let certificate = secured(&url, &index_client::member_context(&credentials)?)?
        .enroll_peer(request)
        .await?;
    let now = std::time::SystemTime::now();
    new.store_certificate(&certificate, credentials.ca(), now)
        .map_err(failed)?;
    drop(opened);
    let new_id = new.key().peer_id();
    match context.out.is_json() {
        true => context.out.print_object(&json!({
            "home": home, "old_peer": old_id, "peer": new_id,
        })),
        false => context.out.print_line(format_args!(
            "the peer in {} has a new key: {} is now {}",
            home.display(),
            old_id.short(),
            new_id.short()
        )),
    }
}

/// `network set-index`.
pub(super) fn set_index(context: &CommandContext, args: &SetIndexArgs) -> Result<(), CommandError> {
    let url = index_url(&args.url)?;
    let folder = context.credentials_folder()?;
    let mut credentials = Credentials::load(&folder).map_err(Problem::from)?;
    credentials
        .set_indexes(url.split(',').map(ToOwned::to_owned).collect())
        .map_err(Problem::from)?;
    print_index(context, &url)
}

/// `network unbind`.
pub(super) async fn unbind(
    context: &CommandContext,
    args: &UnbindArgs,
) -> Result<(), CommandError> {
    context.renew_membership().await?;
    let index = context.index()?;
    let id = match args.id {
        Some(id) => id,
        None => {
            let key = QueryKey::Name(args.name.clone());
            let found = index.query(&key, 1, None).await?.files;
            match &found[..] {
                [only] => only.file.id,
                [] => {
                    return Err(CommandError::new(
                        Reason::NotFound,
                        format!("no file that a peer shares now has the name `{}`", args.name),
                    )
                    .hint("a name of other files can be removed with --id ID"));
                }
                several => {
                    let ids: Vec<String> =
                        several.iter().map(|found| found.file.id.to_string()).collect();
                    return Err(CommandError::new(
                        Reason::AmbiguousName,
                        format!("several files have the name `{}`: {}", args.name, ids.join(", ")),
                    )
                    .hint("choose one with --id ID"));
                }
            }
        }
    };
    let removed = index.remove_bindings(id, Some(&args.name)).await?;
    if context.out.is_json() {
        return context.out.print_object(&json!({
            "id": id, "name": args.name, "removed": removed,
        }));
    }
    if removed == 0 {
        return Err(CommandError::new(
            Reason::NotFound,
            format!("you bound no name `{}` to {}", args.name, id.short()),
        )
        .hint("an admin can remove names that others bound"));
    }
    context.out.print_line(format_args!(
        "removed the name {} from {}; a peer that shares the file under this name shows it until it \
         stops",
        text::escape(&args.name),
        id.short()
    ))
}

/// `network unregister`.
pub(super) async fn unregister(
    context: &CommandContext,
    args: &UnregisterArgs,
) -> Result<(), CommandError> {
    context.renew_membership().await?;
    let index = context.index()?;
    let file = match &args.file {
        Some(query) => Some(only_file(&index, query).await?),
        None => None,
    };
    let peer = args
        .provider
        .as_deref()
        .map(|text| find_peer(file.as_ref(), text))
        .transpose()?;
    let id = file.map(|file| file.file.id);
    let removed = index.remove_registrations(peer, id).await?;
    if context.out.is_json() {
        return context
            .out
            .print_object(&json!({ "id": id, "peer": peer, "removed": removed }));
    }
    let count = match removed {
        0 => {
            return Err(CommandError::new(
                Reason::NotFound,
                "no such registrations: they were removed already, or the peer has stopped",
            ));
        }
        1 => "one registration".to_owned(),
        count => format!("{count} registrations"),
    };
    context.out.print_line(format_args!(
        "removed {count}; a peer that still shares the file registers it again, unless its member is \
         revoked"
    ))
}

/// The only file that a query finds.
async fn only_file(index: &IndexClient, query: &FileQuery) -> Result<IndexedFile, CommandError> {
    /// More than this is the same to a person.
    const MAX_PROVIDERS: u32 = 1_000;
    let mut found = lookup::find_files(index, query, MAX_PROVIDERS).await?;
    match (found.len(), found.pop()) {
        (1, Some(only)) => Ok(only),
        (_, None) => Err(lookup::not_found(query)),
        (_, Some(last)) => {
            let others = found.iter().chain([&last]).map(|found| found.file.id.to_string());
            let ids: Vec<String> = others.collect();
            Err(CommandError::new(
                Reason::AmbiguousName,
                format!("several files match `{}`: {}", query.argument(), ids.join(", ")),
            )
            .hint("give the id of one of them"))
        }
    }
}

/// A peer as a person writes it: its id, or the first digits (at least eight) of a provider's id.
fn find_peer(file: Option<&IndexedFile>, text: &str) -> Result<PeerId, CommandError> {
    if let Ok(id) = text.parse() {
        return Ok(id);
    }
    let Some(file) = file else {
        return Err(CommandError::usage(
            "give the 64 hex digits of the peer's id (`potluck query --full-ids`), or a file too",
        ));
    };
    let digits = text.to_ascii_lowercase();
    let matches = |peer: &PeerId| digits.len() >= 8 && peer.to_string().starts_with(&digits);
    let providers: Vec<PeerId> = file.providers.iter().map(|provider| provider.peer).collect();
    match providers.iter().filter(|peer| matches(peer)).collect::<Vec<_>>()[..] {
        [only] => Ok(*only),
        [] => Err(CommandError::new(
            Reason::NotFound,
            format!("no provider of this file has the id `{text}`"),
        )
        .hint("`potluck query` lists the providers; give at least 8 digits of an id")),
        _ => Err(CommandError::new(
            Reason::AmbiguousName,
            format!("several providers of this file have an id that starts with `{text}`"),
        )
        .hint("give more digits")),
    }
}

/// The credentials of this machine, with a certificate that is valid now.
async fn credentials(context: &CommandContext) -> Result<Credentials, CommandError> {
    context.renew_membership().await?;
    let folder = context.credentials_folder()?;
    Ok(Credentials::load(&folder).map_err(Problem::from)?)
}

/// The URL of the index, or those of several, separated by commas.
fn index_of(credentials: &Credentials) -> Result<String, CommandError> {
    match credentials.indexes() {
        [] => Err(CommandError::new(
            Reason::InvalidArgument,
            "the credentials name no index: set it with `potluck network set-index URL`",
        )),
        urls => Ok(urls.join(",")),
    }
}

fn secured(urls: &str, tls: &TlsContext) -> Result<IndexClient, CommandError> {
    Ok(IndexClient::new(index_client::secured(urls, tls)?))
}
