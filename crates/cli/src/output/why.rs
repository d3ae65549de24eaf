//! Why something is as it is: what it waits for, what was tried for it, and what happened to it.

use api::why::{Attempt, AttemptOutcome, StoryLine, Why};
use jiff::tz::TimeZone;

use super::{Cell, Table, format};
use crate::printer::{ERROR, SECONDARY, STRONG, SUCCESS, WARNING};
use crate::session::Session;

/// How many of the things that an event is about are named.
const NAMED: usize = 2;

/// Prints an answer for people.
pub(crate) fn print(session: &mut Session, why: &Why) -> anyhow::Result<()> {
    let zone = session.zone.clone();
    let printer = &mut session.printer;
    let title = format!("{} {}", why.kind.as_str(), why.name);
    let title = printer.styled(&title, STRONG);
    printer.line(format!("{title} is {}", why.status))?;
    if let Some(reason) = &why.reason {
        printer.warning(reason)?;
    }
    for note in &why.notes {
        printer.warning(note)?;
    }
    if !why.next.is_empty() {
        printer.blank()?;
        printer.styled_line("What happens next", STRONG)?;
        for step in &why.next {
            let at = step.at.map(|at| format!("{}: ", format::date_and_time(at, &zone))).unwrap_or_default();
            printer.line(format!(" - {at}{}", step.what))?;
        }
    }
    if !why.attempts.is_empty() {
        printer.blank()?;
        printer.styled_line("What was tried", STRONG)?;
        printer.table(&attempts(&why.attempts, &zone))?;
    }
    printer.blank()?;
    printer.styled_line("What happened", STRONG)?;
    if why.story.is_empty() {
        printer.styled_line(" Nothing that is still remembered", SECONDARY)?;
    }
    for line in &why.story {
        let text = story_line(line, why, &zone);
        printer.line(text)?;
    }
    Ok(())
}

/// The purchases, one a row.
fn attempts(attempts: &[Attempt], zone: &TimeZone) -> Table {
    let mut table = Table::new(&["TIME", "BACKEND", "INSTANCE TYPE", "PRICE", "RESULT", "ERROR"]);
    for attempt in attempts {
        let place = attempt.zone.as_ref().unwrap_or(&attempt.region);
        let spot = if attempt.spot { " (spot)" } else { "" };
        let (result, style) = match attempt.outcome {
            AttemptOutcome::Open if attempt.next_try_at.is_some() => ("waits".to_owned(), WARNING),
            AttemptOutcome::Open => ("asked".to_owned(), WARNING),
            AttemptOutcome::Bought => ("bought".to_owned(), SUCCESS),
            AttemptOutcome::BoughtInPart => {
                (format!("{} of {} bought", attempt.made.unwrap_or_default(), attempt.count), WARNING)
            }
            AttemptOutcome::Failed => ("failed".to_owned(), ERROR),
        };
        table.row(vec![
            format::date_and_time(attempt.at, zone).into(),
            backend_and_place(&attempt.backend, place).into(),
            format!("{} × {}{spot}", attempt.count, attempt.instance_type).into(),
            format::price(attempt.price).into(),
            Cell::styled(result, style),
            error(attempt).into(),
        ]);
    }
    table
}

fn backend_and_place(kind: &str, place: &str) -> String {
    // A place of its own kind is named once.
    if kind == place { kind.to_owned() } else { format!("{kind} ({place})") }
}

fn error(attempt: &Attempt) -> String {
    let word = attempt.code.as_ref().or(attempt.kind.as_ref());
    match (word, &attempt.message) {
        (Some(word), Some(message)) => format!("{word}: {message}"),
        (word, message) => word.or(message.as_ref()).cloned().unwrap_or_default(),
    }
}

fn story_line(line: &StoryLine, why: &Why, zone: &TimeZone) -> String {
    let itself = format!("{} {}", why.kind.as_str(), why.name);
    let others: Vec<&str> = line.about.iter().filter(|about| **about != itself).map(String::as_str).collect();
    let more = others.len().saturating_sub(NAMED);
    let mut about = others[..others.len() - more].join(", ");
    if more > 0 {
        about.push_str(&format!(" and {more} more"));
    }
    let about = if about.is_empty() { String::new() } else { format!("[{about}] ") };
    let actor = line.actor.as_ref().map(|user| format!("[👤{user}] ")).unwrap_or_default();
    format!("[{}] {actor}{about}{}", format::date_and_time(line.at, zone), line.message)
}

#[cfg(test)]
mod tests {
    use api::why::WhyKind;
    use serde_json::json;

    use super::*;

    fn why() -> Why {
        serde_json::from_value(json!({
            "kind": "fleet", "name": "lab", "id": uuid::Uuid::nil(), "project_name": "main", "status": "active",
            "reason": null, "next": [], "notes": [], "attempts": [
                {"at": "2026-11-26T12:00:00Z", "backend": "aws", "instance_type": "p5.48xlarge", "region": "us-west-2",
                 "zone": "us-west-2a", "spot": false, "price": 98.32, "count": 2, "least": 2, "outcome": "failed",
                 "made": null, "kind": "no_capacity", "code": "InsufficientInstanceCapacity",
                 "message": "We have none.", "next_try_at": null},
                {"at": "2026-11-26T12:00:01Z", "backend": "aws", "instance_type": "p5.48xlarge", "region": "us-west-2",
                 "zone": "us-west-2b", "spot": true, "price": 40.0, "count": 4, "least": 2, "outcome": "bought_in_part",
                 "made": 3, "kind": null, "code": null, "message": null, "next_try_at": null},
            ],
            "story": [{"at": "2026-11-26T12:00:00Z", "about": ["fleet lab", "instance lab-0", "instance lab-1",
                "job a-0-0"], "actor": null, "message": "Buying"}],
        }))
        .unwrap()
    }

    #[test]
    fn each_attempt_is_a_row_with_what_was_said() {
        let table = attempts(&why().attempts, &TimeZone::UTC).render(None, false);
        let rows: Vec<&str> = table.lines().map(str::trim_end).collect();
        assert_eq!(rows.len(), 3, "{table}");
        assert!(rows[1].contains("aws (us-west-2a)") && rows[1].contains("2 × p5.48xlarge"), "{table}");
        assert!(rows[1].contains(" failed "), "{table}");
        assert!(rows[1].ends_with(" InsufficientInstanceCapacity: We have none."), "{table}");
        assert!(rows[2].contains("4 × p5.48xlarge (spot)") && rows[2].ends_with("3 of 4 bought"), "{table}");
    }

    #[test]
    fn a_line_names_what_else_it_is_about() {
        let why = why();
        assert_eq!(why.kind, WhyKind::Fleet);
        let line = story_line(&why.story[0], &why, &TimeZone::UTC);
        assert!(line.ends_with("] [instance lab-0, instance lab-1 and 1 more] Buying"), "{line}");
    }
}
