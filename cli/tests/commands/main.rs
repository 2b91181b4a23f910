//! The commands of `potluck`, each in a process of its own.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod chosen_files;
mod completion;
mod concurrent_commands;
mod demo;
mod fakes;
mod folders;
mod get_several;
mod health;
mod id_prefixes;
mod memory;
mod offline;
mod private_network;
mod prompt;
mod registration;
mod sandbox;
mod seeding;
mod share_and_get;
mod standard_output;
mod status;
mod transfer;
mod untrusted_input;
