//! `kill -9` at any moment, and a damaged database: little is lost.

use std::path::Path;

use potluck_core::proto::v1;
use potluck_testkit::{
    content::{bytes, id_of, write_file},
    control::Control,
    services::SeededFile,
    system::disk::names_in,
    transfer::{assert_done, next_state, transfer_request, until, until_end, until_units_done},
    wait::wait_until,
};

use crate::start;

#[tokio::test(flavor = "multi_thread")]
async fn resumes_after_each_of_three_kills() {
    let file = SeededFile::new(24_000_000, 5).await;
    let (home, target) = (file.path("peer"), file.path("out"));
    let request = v1::StartTransferRequest {
        max_bytes_per_second: Some(6_000_000),
        detach: true,
        ..file.request(&target)
    };
    let mut resumed = 0;
    for round in 1..=3u64 {
        let mut program = start(&home);
        let mut events = Control::in_home(&home)
            .await
            .start_transfer(request.clone())
            .await;
        // Far enough past the last start that a checkpoint was written in between.
        let has_checkpoint = |transfer: &v1::Transfer| {
            assert_ne!(transfer.state(), v1::TransferState::Failed, "{transfer:?}");
            transfer.bytes_done >= round * 6_000_000
        };
        let transfer = until("it has more", &mut events, has_checkpoint).await;
        assert!(
            round == 1 || transfer.resumed_bytes > resumed,
            "{round}: {transfer:?}"
        );
        resumed = transfer.resumed_bytes;
        program.kill();
        assert!(!target.exists());
    }
    let _program = start(&home);
    let mut events = Control::in_home(&home).await.start_transfer(request).await;
    let last = until_end(&mut events).await;
    assert_done(&last);
    assert!(last.resumed_bytes > resumed, "{last:?}");
    file.assert_arrived_at(&target);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_detached_transfer_resumes_by_itself_after_a_kill() {
    let file = SeededFile::new(8_000_000, 6).await;
    let (home, target) = (file.path("peer"), file.path("out"));
    let request = v1::StartTransferRequest {
        max_bytes_per_second: Some(3_000_000),
        detach: true,
        ..file.request(&target)
    };
    let mut program = start(&home);
    let mut events = Control::in_home(&home).await.start_transfer(request).await;
    until_units_done(&mut events, 2).await;
    program.kill();
    let _program = start(&home);
    wait_until("the file is complete", async || target.exists()).await;
    file.assert_arrived_at(&target);
}

async fn shared_paths(home: &Path) -> Vec<String> {
    let items = Control::in_home(home).await.library().await;
    items.into_iter().map(|item| item.path).collect()
}

/// Rounds of each command, with a kill at each answer.
const KILLS: usize = 5;

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_the_answer_loses_no_change() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("peer");
    let mut program = start(&home);
    let control = async || Control::in_home(&home).await;
    for round in 0..KILLS {
        let id = id_of(&[round as u8; 10]);
        let request = v1::StartTransferRequest {
            detach: true,
            ..transfer_request(id, &dir.path().join(format!("out {round}")))
        };
        let mut events = control().await.start_transfer(request).await;
        let transfer_id = next_state(&mut events).await.transfer_id;
        program.kill();
        program = start(&home);
        let transfer = async || control().await.transfer(transfer_id).await;
        assert!(transfer().await.is_some(), "round {round}: get --detach");

        control().await.pause(transfer_id).await;
        program.kill();
        program = start(&home);
        let state = transfer().await.unwrap().state();
        assert_eq!(state, v1::TransferState::Paused, "round {round}: pause");

        let request = v1::AdjustTransferRequest {
            transfer_id,
            max_bytes_per_second: Some(1000),
            priority: Some(3),
        };
        control().await.adjust(request).await.unwrap();
        program.kill();
        program = start(&home);
        let adjusted = transfer().await.unwrap();
        let limits = (adjusted.max_bytes_per_second, adjusted.priority);
        assert_eq!(limits, (1000, 3), "round {round}: adjust");
        let state = adjusted.state();
        assert_eq!(state, v1::TransferState::Paused, "round {round}: adjust");

        control().await.resume(transfer_id).await;
        program.kill();
        program = start(&home);
        let state = transfer().await.unwrap().state();
        assert_ne!(state, v1::TransferState::Paused, "round {round}: resume");

        control().await.cancel(transfer_id).await;
        program.kill();
        program = start(&home);
        assert!(transfer().await.is_none(), "round {round}: cancel");

        let path = write_file(dir.path(), &format!("shared {round}"), &bytes(1000, round as u64));
        let path = path.canonicalize().unwrap();
        let path_text = path.to_str().unwrap().to_owned();
        control().await.shared_item(&path).await;
        program.kill();
        program = start(&home);
        assert!(
            shared_paths(&home).await.contains(&path_text),
            "round {round}: share"
        );

        let target = v1::unshare_request::Target::Path(path_text.clone());
        control().await.try_unshare(target).await.unwrap();
        program.kill();
        program = start(&home);
        assert!(
            !shared_paths(&home).await.contains(&path_text),
            "round {round}: unshare"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn starts_with_a_damaged_database_and_shares_the_files_folder() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("peer");
    for n in 0..20 {
        write_file(&home, &format!("files/{n}"), &bytes(1000, n));
    }
    let mut program = start(&home);
    wait_until("all files are shared", async || {
        shared_paths(&home).await.len() == 20
    })
    .await;
    program.kill();
    let database = home.join("state/potluck.redb");
    let whole = std::fs::read(&database).unwrap();
    for random_seed in 1..=8 {
        let noise = bytes(96, random_seed);
        let mut damaged = whole.clone();
        for position in noise.chunks(4) {
            let at = u32::from_le_bytes(position.try_into().unwrap()) as usize;
            damaged[at % whole.len()] ^= position[0] | 1;
        }
        std::fs::write(&database, damaged).unwrap();
        let mut program = start(&home);
        wait_until("all files are shared again", async || {
            shared_paths(&home).await.len() == 20
        })
        .await;
        let status = Control::in_home(&home).await.status().await;
        let names = names_in(&home.join("state")).into_iter();
        let aside: Vec<_> = names.filter(|name| name.contains("damaged")).collect();
        assert_eq!(
            aside.is_empty(),
            status.warnings.is_empty(),
            "{aside:?} {status:?}"
        );
        for name in aside {
            assert!(status.warnings[0].contains(&name), "{status:?}");
            std::fs::remove_file(home.join("state").join(name)).unwrap();
        }
        program.kill();
    }
}
