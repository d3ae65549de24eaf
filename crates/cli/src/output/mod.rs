//! What commands show: one file per kind of thing, each turning wire types into [`Table`]s or lines.

pub(crate) mod events;
pub(crate) mod fleets;
pub(crate) mod format;
pub(crate) mod gateways;
pub(crate) mod offers;
pub(crate) mod plans;
pub(crate) mod runs;
mod table;
pub(crate) mod volumes;
pub(crate) mod why;

pub(crate) use table::{Cell, Table};
