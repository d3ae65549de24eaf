//! This crate against the real OpenSSH: an `sshd` of each test's own, with its own settings, keys and users.
//!
//! Skipped, and said so, where `DSTACK_TEST_SSHD` does not name the server. The tests are root and make users.

#![cfg(test)]

mod commands;
mod connections;
mod files;
mod hosts;
mod jumps;
mod kept;
mod login;
mod support;
