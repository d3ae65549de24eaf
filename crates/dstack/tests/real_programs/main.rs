//! The real programs, together, as people and official clients use them.

#![cfg(test)]

mod containers;
mod local;
mod official_client;
mod rig;
