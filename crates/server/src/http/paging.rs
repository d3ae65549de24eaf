//! Pages of users and projects.

use jiff::Timestamp;
use serde_json::json;
use store::Page;
use uuid::Uuid;

use super::error::{Error, Problem, Result, check_bounds};

/// The most items of a page, and how many there are unless told.
const MOST: u32 = 2000;

/// What requests for lists have in common.
#[derive(Debug)]
pub struct Listing {
    /// Only names that contain this.
    pub name_pattern: Option<String>,
    /// The last page's last time.
    pub prev_time: Option<Timestamp>,
    /// The last page's last identifier.
    pub prev_id: Option<Uuid>,
    /// At most this many.
    pub limit: Option<u32>,
    /// Oldest first.
    pub ascending: bool,
}

/// The page that a request asks for.
pub fn page(listing: Listing) -> Result<Page> {
    let limit = listing.limit.unwrap_or(MOST);
    check_bounds("limit", limit, 0, MOST)?;
    if let Some(pattern) = &listing.name_pattern {
        check_pattern(pattern)?;
    }
    let after = listing.prev_time.map(|time| (time, listing.prev_id));
    Ok(Page { name_pattern: listing.name_pattern, after, ascending: listing.ascending, limit })
}

fn check_pattern(pattern: &str) -> Result<()> {
    if pattern.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_') {
        return Ok(());
    }
    let regex = "^[a-zA-Z0-9-_]*$";
    Err(Error::invalid_body(&[Problem {
        kind: "string_pattern_mismatch",
        loc: Problem::body(&["name_pattern"]),
        message: format!("String should match pattern '{regex}'"),
        input: json!(pattern),
        context: Some(json!({ "pattern": regex })),
    }]))
}
