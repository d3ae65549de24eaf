//! Events, one a line.

use api::events::Event;
use jiff::tz::TimeZone;

use super::format;

/// One event.
pub(crate) fn line(event: &Event, zone: &TimeZone) -> String {
    let time = format::date_and_time(event.recorded_at, zone);
    let actor = event.actor_user.as_ref().map(|user| format!("[👤{user}] ")).unwrap_or_default();
    let targets: Vec<String> =
        event.targets.iter().map(|target| format!("{} {}", target.r#type, target.name)).collect();
    format!("[{time}] {actor}[{}] {}", targets.join(", "), event.message)
}
