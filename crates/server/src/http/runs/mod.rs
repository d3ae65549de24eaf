//! Runs: plans, submissions, what there is, and its end.

mod apply;
mod check;
mod delete;
mod enter;
mod list;
mod offers;
mod plan;
mod rows;
mod stop;
mod stream;
mod warnings;

pub use apply::apply;
pub use delete::delete;
pub use enter::enter;
pub use list::{get, list};
pub use plan::get_plan;
pub(super) use plan::{all_offers, wants_no_accelerator};
pub use rows::RunRows;
pub use stop::stop;
pub use stream::{StreamQuery, stream};

/// The answer to somebody who was overtaken.
const CHANGED: &str = "Failed to apply plan. Resource has been changed. Try again or use force apply.";

/// The answer where a run of that name is active and cannot become what is wanted.
const CANNOT_OVERRIDE: &str = "Cannot override active run. Stop the run first.";
