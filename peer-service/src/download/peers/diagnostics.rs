//! Explains why no peer serves the content: the problem of each peer, and the remedy.

use potluck_core::{Problem, Reason, model::Address};

/// Maximum peers that are listed one by one.
const MAX_LISTED: usize = 3;

/// Maximum length of one peer's problem, in characters; part of the text comes from the peer.
const MAX_PEER_PROBLEM: usize = 200;

/// The problem to report if none of these peers serves; `None` for an empty list. Has the peers'
/// reason if all have the same one.
pub(crate) fn no_provider_serves<'a>(
    peers: impl IntoIterator<Item = (&'a Address, &'a Problem)>,
) -> Option<Problem> {
    let mut peers: Vec<_> = peers.into_iter().collect();
    // Sorted, so that the same peers give the same text and a repeated query shows no difference.
    peers.sort_by(|a, b| a.0.cmp(b.0));
    let (_, first) = *peers.first()?;
    let reason = match peers.iter().all(|(_, problem)| problem.reason == first.reason) {
        true => first.reason,
        false => Reason::NoProviders,
    };
    let mut problems: Vec<String> = peers
        .iter()
        .take(MAX_LISTED)
        .map(|(address, problem)| peer_problem(address, &problem.message))
        .collect();
    if peers.len() > MAX_LISTED {
        problems.push(format!("and {} more", peers.len() - MAX_LISTED));
    }
    let mut problem = Problem::new(reason, format!("{}; {}", problems.join("; "), advice(reason)));
    problem.retry_after = first.retry_after.filter(|_| peers.len() == 1);
    Some(problem)
}

/// The problem of one peer, with its address named once.
fn peer_problem(address: &Address, message: &str) -> String {
    let message = message.split(" (os error").next().unwrap_or(message);
    let message: String = message.chars().take(MAX_PEER_PROBLEM).collect();
    match message.contains(&address.to_string()) {
        true => message,
        false => format!("the peer at {address}: {message}"),
    }
}

/// The remedy for the user.
const fn advice(reason: Reason) -> &'static str {
    match reason {
        Reason::Unreachable | Reason::TimedOut => {
            "check the address and that the peer is running, or name another peer that has the file"
        }
        Reason::NotPotluck => {
            "use the address on which the peer listens, as `potluck status` shows it there"
        }
        Reason::NotFound | Reason::FileChanged => {
            "share the file there, or name another peer that has it"
        }
        Reason::PieceNotAvailable => {
            "check that the file still exists there and is unchanged, or name another peer that \
             has it"
        }
        Reason::VerificationFailed => "name another peer that has the file",
        Reason::Busy | Reason::RateLimited => "wait, or name another peer that has the file",
        Reason::TooManyOpenFiles => "the download continues by itself once it can connect",
        _ => {
            "check that one of them is running and shares the file, or name another peer that has it"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> Address {
        Address {
            host: format!("192.0.2.{last}"),
            port: 9,
        }
    }

    fn combined(problems: &[(u8, Reason, &str)]) -> Option<Problem> {
        let peers: Vec<_> = problems
            .iter()
            .map(|&(last, reason, message)| (address(last), Problem::new(reason, message)))
            .collect();
        no_provider_serves(peers.iter().map(|(address, problem)| (address, problem)))
    }

    #[test]
    fn each_peer_is_named_once_with_its_problem_and_advice() {
        let refused = "nothing answers at http://192.0.2.1:9: Connection refused (os error 111)";
        let problem = combined(&[(1, Reason::Unreachable, refused)]).unwrap();
        assert_eq!(problem.reason, Reason::Unreachable);
        let expected = "nothing answers at http://192.0.2.1:9: Connection refused; check the address and that the peer is running";
        assert!(problem.message.starts_with(expected), "{problem}");
        let problem = combined(&[
            (2, Reason::NotFound, "not shared here"),
            (1, Reason::Unreachable, refused),
        ]);
        let problem = problem.unwrap();
        assert_eq!(problem.reason, Reason::NoProviders);
        let expected = "192.0.2.1:9: Connection refused; the peer at 192.0.2.2:9: not shared here; check that one";
        assert!(problem.message.contains(expected), "{problem}");
    }

    #[test]
    fn the_message_about_many_peers_is_short() {
        let long = "x".repeat(10_000);
        let many: Vec<_> = (0..100)
            .map(|last| (last, Reason::NotFound, long.as_str()))
            .collect();
        let problem = combined(&many).unwrap();
        assert_eq!(problem.reason, Reason::NotFound);
        assert!(
            problem.message.contains("; and 97 more; share the file there"),
            "{problem}"
        );
        assert!(problem.message.len() < potluck_core::problem::MAX_MESSAGE_LEN);
        assert_eq!(combined(&[]), None);
    }
}
