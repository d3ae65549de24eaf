//! A strict simulator of EC2, with the little of STS, IAM, Service Quotas, Pricing and SSM that a backend asks.
//!
//! It is an opponent for tests: it refuses what AWS refuses, with AWS's codes and texts, it shows new things late, runs
//! out of capacity, throttles, loses answers on request, and keeps a book of everything that was ever made. Requests
//! are read and answers are written by the shapes of AWS's own service models, so that it cannot speak in a way that
//! AWS has no words for; a parameter that it knows and does not simulate is refused, and never ignored.
//!
//! All of its state is one value behind one lock, and a call is one function from request to reply
//! ([`Simulator::call`]), which tests may use without HTTP. Time comes from an injected [`Clock`], chance from a seed.
//! `docs/ec2sim.md` tells how to start it as a program, and what it does not simulate.

mod account;
mod actions;
mod addresses;
mod auth;
mod call;
mod capacity;
mod catalog;
mod clock;
mod control;
mod error;
mod faults;
mod filters;
mod hosts;
mod http;
mod ids;
mod images;
mod instances;
mod interfaces;
mod key_pairs;
mod launch;
mod layout;
mod ledger;
mod machines;
mod model;
mod network;
mod parameters;
mod placement_groups;
mod pricing;
mod query;
mod quotas;
mod security_groups;
mod security_rules;
mod settings;
mod simulator;
mod spot;
mod tagging;
mod throttle;
mod types;
mod volumes;
mod world;
mod xml;

pub use auth::{Credential, Request};
pub use call::{Answer, Outcome, Reply};
pub use capacity::{Market, NewReservation};
pub use catalog::instance_types;
pub use clock::Clock;
pub use control::ControlError;
pub use error::ApiError;
pub use faults::{Fault, Happening};
pub use hosts::{ContainerHosts, HostOptions, metadata_service};
pub use http::{CONTROL_PATH, Server, serve};
pub use images::NewImage;
pub use layout::check_layout;
pub use ledger::{Entry, Kind};
pub use machines::{
    HostTrouble, Machine, MachineEvent, MachineGpus, MachineInterface, MachineNetwork, Machines, Report,
};
pub use network::{Egress, NewSubnet, NewVpc};
pub use settings::{ACCESS_KEY, ACCOUNT, Options, SECRET_KEY, Settings, default_credential};
pub use simulator::Simulator;
pub use throttle::Rate;
pub use world::{CallRecord, HostFault, LateRefusal};
