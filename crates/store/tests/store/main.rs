//! The store's tests, each on every engine.
#![cfg(test)]

mod accounts;
mod harness;
mod leases;
mod things;
