//! Commands on the folder of a network, on the machine of its index.

use std::{path::Path, time::SystemTime};

use potluck_core::{Reason, network::identity::Role};
use potluck_index::{MemberSummary, NetworkAdmin, NetworkAdminError, NewCode};
use serde_json::json;

use crate::{
    commands::network::args::{
        BackupArgs, CreateArgs, InviteArgs, RestoreArgs, RevokeArgs, SetIndexArgs, find_member,
        index_url,
    },
    context::CommandContext,
    error::CommandError,
    output::{
        table::{Align, Table},
        text,
    },
};

impl From<NetworkAdminError> for CommandError {
    fn from(error: NetworkAdminError) -> Self {
        let reason = match &error {
            NetworkAdminError::Exists { .. } => Reason::TargetExists,
            NetworkAdminError::System { source, .. } => match source.kind() {
                std::io::ErrorKind::NotFound => Reason::NotFound,
                std::io::ErrorKind::PermissionDenied => Reason::PermissionDenied,
                _ => Reason::of_exhaustion(source).unwrap_or(Reason::Internal),
            },
            _ => Reason::InvalidArgument,
        };
        Self::new(reason, error.to_string())
    }
}

/// `network create`.
pub(super) fn create(context: &CommandContext, args: &CreateArgs) -> Result<(), CommandError> {
    let index = context.given_index().ok_or_else(|| {
        CommandError::usage(
            "give --index, the address under which other machines reach the index, as \
             https://HOST:PORT",
        )
    })?;
    let index = index_url(index)?;
    let folder_name = args
        .dir
        .file_name()
        .map(|name| name.to_string_lossy().into_owned());
    let name = args
        .name
        .clone()
        .or(folder_name)
        .unwrap_or_else(|| "network".to_owned());
    let mut admin = NetworkAdmin::create(&args.dir, &name, &index)?;
    let code = admin.invite(Role::Admin, None, None, None)?;
    let dir = args.dir.display().to_string();
    // With several indexes, this machine's is the first.
    let first = index.split(',').next().unwrap_or_default();
    let port = first.rsplit(':').next().unwrap_or("1313");
    let code_text = code.code.expose();
    if context.out.is_json() {
        return context.out.print_object(&json!({
            "network": name, "dir": dir, "index": index, "role": Role::Admin.as_str(), "uses": 1,
            "expires": rfc3339(code.expires), "code": *code_text,
        }));
    }
    let dir = shlex::try_quote(&dir)
        .map(std::borrow::Cow::into_owned)
        .unwrap_or(dir);
    context.out.print_lines([
        format!("Made the network {} in {dir}. Serve it:", text::escape(&name)),
        format!("  potluck index --listen 0.0.0.0:{port} --network {dir}"),
        "Within an hour, join it as its first admin. The code is a secret:".to_owned(),
        format!("  potluck network join {}", *code_text),
    ])
}

/// `network invite --dir`.
pub(super) fn invite(context: &CommandContext, args: &InviteArgs) -> Result<(), CommandError> {
    let mut admin = open(args.dir.dir.as_deref())?;
    let index = context.given_index().map(index_url).transpose()?;
    let NewCode { code, expires } =
        admin.invite(args.role, Some(args.uses), Some(args.ttl), index.as_deref())?;
    print_code(context, args, &code.index, &code.expose(), expires)
}

/// Prints a new code: its text is the last word.
pub(super) fn print_code(
    context: &CommandContext,
    args: &InviteArgs,
    index: &str,
    code: &str,
    expires: SystemTime,
) -> Result<(), CommandError> {
    if context.out.is_json() {
        return context.out.print_object(&json!({
            "index": index, "role": args.role.as_str(), "uses": args.uses,
            "expires": rfc3339(expires), "code": code,
        }));
    }
    let members = match args.uses {
        1 => format!("one {}", args.role),
        uses => format!("up to {uses} members with the role {}", args.role),
    };
    context.out.print_lines([
        format!(
            "Until {}, {members} can join. The code is a secret:",
            rfc3339(expires)
        ),
        format!("  potluck network join {code}"),
    ])
}

/// `network members --dir`.
pub(super) fn members(context: &CommandContext, dir: &Path) -> Result<(), CommandError> {
    let members = open(Some(dir))?.members()?;
    print_members(context, members.iter().map(MemberRow::from))
}

/// What both lists of members show.
pub(super) struct MemberRow<'a> {
    pub(super) id: String,
    pub(super) name: &'a str,
    pub(super) role: Role,
    pub(super) state: &'a str,
    pub(super) peers: usize,
    pub(super) joined: SystemTime,
    pub(super) expires: SystemTime,
}

impl<'a> From<&'a MemberSummary> for MemberRow<'a> {
    fn from(member: &'a MemberSummary) -> Self {
        Self {
            id: member.id.to_string(),
            name: &member.name,
            role: member.role,
            state: member.state,
            peers: member.peers,
            joined: member.joined,
            expires: member.expires,
        }
    }
}

/// Prints a list of members.
pub(super) fn print_members<'a>(
    context: &CommandContext,
    members: impl Iterator<Item = MemberRow<'a>>,
) -> Result<(), CommandError> {
    let now = SystemTime::now();
    let mut table = Table::new(&[
        ("member", Align::Left),
        ("name", Align::Elastic),
        ("role", Align::Left),
        ("state", Align::Left),
        ("peers", Align::Right),
        ("joined", Align::Left),
    ]);
    let mut count = 0;
    for member in members {
        count += 1;
        let state = match member.state {
            "active" if member.expires <= now => "expired",
            state => state,
        };
        if context.out.is_json() {
            context.out.print_object(&json!({
                "member": member.id, "name": member.name, "role": member.role.as_str(),
                "state": state, "peers": member.peers, "joined": rfc3339(member.joined),
                "expires": rfc3339(member.expires),
            }))?;
            continue;
        }
        table.row([
            member.id,
            text::escape(member.name).into_owned(),
            member.role.to_string(),
            state.to_owned(),
            member.peers.to_string(),
            rfc3339(member.joined),
        ]);
    }
    match (context.out.is_json(), count) {
        (true, _) => Ok(()),
        (false, 0) => {
            context.out.note("nobody has joined yet");
            Ok(())
        }
        (false, _) => context.out.print_lines(table.lines(context.out.width())),
    }
}

/// `network revoke --dir`.
pub(super) fn revoke(context: &CommandContext, args: &RevokeArgs) -> Result<(), CommandError> {
    let mut admin = open(args.dir.dir.as_deref())?;
    let members = admin.members()?;
    let member = find_member(&members, &args.member, |m| m.id.to_string(), |m| &m.name)?;
    let voided = admin.revoke(&member.id)?;
    print_revoked(context, &member.id.to_string(), &member.name, voided)
}

/// Prints what a revocation did.
pub(super) fn print_revoked(
    context: &CommandContext,
    id: &str,
    name: &str,
    voided: usize,
) -> Result<(), CommandError> {
    if context.out.is_json() {
        return context.out.print_object(&json!({
            "member": id, "name": name, "voided_codes": voided,
        }));
    }
    let codes = match voided {
        0 => String::new(),
        1 => ", and voided one code that it made".to_owned(),
        more => format!(", and voided {more} codes that it made"),
    };
    context.out.print_line(format_args!(
        "revoked {} ({id}){codes}; it is out within a minute",
        text::escape(name)
    ))
}

/// `network set-index --dir`.
pub(super) fn set_index(context: &CommandContext, args: &SetIndexArgs) -> Result<(), CommandError> {
    let url = index_url(&args.url)?;
    open(args.dir.dir.as_deref())?.set_index(&url)?;
    print_index(context, &url)
}

/// Prints the new address of the index.
pub(super) fn print_index(context: &CommandContext, url: &str) -> Result<(), CommandError> {
    match context.out.is_json() {
        true => context.out.print_object(&json!({ "index": url })),
        false => context
            .out
            .print_line(format_args!("the index is at {url} from now on")),
    }
}

/// `network backup`.
pub(super) fn backup(context: &CommandContext, args: &BackupArgs) -> Result<(), CommandError> {
    open(Some(&args.dir))?.backup(&args.file)?;
    let file = args.file.display().to_string();
    match context.out.is_json() {
        true => context.out.print_object(&json!({ "file": file })),
        false => context.out.print_line(format_args!(
            "wrote {file}: keep it secret, because it holds the key of the certificate authority"
        )),
    }
}

/// `network restore`.
pub(super) fn restore(context: &CommandContext, args: &RestoreArgs) -> Result<(), CommandError> {
    let admin = NetworkAdmin::restore(&args.dir, &args.file)?;
    let dir = args.dir.display().to_string();
    match context.out.is_json() {
        true => context
            .out
            .print_object(&json!({ "dir": dir, "index": admin.index() })),
        false => context.out.print_line(format_args!(
            "restored the network in {dir}: serve it with `potluck index --network {dir}`; revoke \
             members again that were revoked after the copy was made"
        )),
    }
}

fn open(dir: Option<&Path>) -> Result<NetworkAdmin, CommandError> {
    let dir = dir.ok_or_else(|| CommandError::usage("give --dir, the folder of the network"))?;
    Ok(NetworkAdmin::open(dir)?)
}

/// A time for people and programs, in UTC.
pub(super) fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}
