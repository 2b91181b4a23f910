//! The commands of `potluck`, each in a process of its own.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cache;
mod chosen_files;
mod completion;
mod concurrent_commands;
mod configuration;
mod demo;
mod fakes;
mod folders;
mod gateway;
mod get_several;
mod health;
mod id_prefixes;
mod index_maintenance;
mod memory;
mod metrics;
mod offline;
mod origins;
mod private_network;
mod prompt;
mod registration;
mod sandbox;
mod seeding;
mod share_and_get;
mod standard_output;
mod status;
mod traces;
mod transfer;
mod ui;
mod untrusted_input;
