//! The real programs, together, as people and official clients use them.

#![cfg(test)]

mod attached;
mod aws_boots;
mod cloud_machines;
mod containers;
mod crashes;
mod dev_environments;
mod engine;
mod entered;
mod faults;
mod gang;
mod hostile;
mod hosts;
mod local;
mod mpi;
mod official_attach;
mod official_client;
mod postgres;
mod repos;
mod rig;
mod secrecy;
mod ssh_fleets;
mod test_hosts;
