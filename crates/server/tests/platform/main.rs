//! The platform of the server: users, projects, configuration, errors, secrecy, start and end.
#![cfg(test)]

mod accounts;
mod backends;
mod errors;
mod harness;
mod load;
mod members;
mod obstacles;
mod paths;
mod postgres;
mod roles;
mod secrecy;
mod starts;
mod uploads;
