//! When a scheduled run starts.

use serde::de::{Error, SeqAccess};
use serde::{Deserialize, Deserializer};

use super::checked::{Check, checked};
use super::shorthand::{self, Refusal, Shorthand, impl_shorthand};

checked! {
    /// Starts a run at each time that one of the crontab lines names, in UTC.
    #[derive(Eq)]
    pub struct Schedule {
        /// Lines of five fields: minute, hour, day of month, month, day of week.
        #[serde(deserialize_with = "cron_lines")]
        pub cron: Vec<String>,
    }
}

impl Check for Schedule {}

fn cron_lines<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(CronLines::deserialize(deserializer)?.0)
}

struct CronLines(Vec<String>);

impl Shorthand for CronLines {
    const EXPECTING: &'static str = "a crontab line such as `0 8 * * 1-5`, or a list of them";

    fn from_text(text: &str) -> Result<Self, Refusal> {
        check_cron(text)?;
        Ok(CronLines(vec![text.to_owned()]))
    }

    fn from_list<'de, A: SeqAccess<'de>>(list: A) -> Result<Self, A::Error> {
        let lines: Vec<String> = shorthand::items(list)?;
        if lines.is_empty() {
            return Err(A::Error::custom("`cron` needs at least one crontab line"));
        }
        for line in &lines {
            check_cron(line).map_err(A::Error::custom)?;
        }
        Ok(CronLines(lines))
    }
}

impl_shorthand!(CronLines);

/// A field of a crontab line: its name, its bounds and the names of its values from the first on.
struct Field {
    name: &'static str,
    min: u32,
    max: u32,
    words: &'static [&'static str],
}

const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const FIELDS: [Field; 5] = [
    Field { name: "minute", min: 0, max: 59, words: &[] },
    Field { name: "hour", min: 0, max: 23, words: &[] },
    Field { name: "day of month", min: 1, max: 31, words: &[] },
    Field { name: "month", min: 1, max: 12, words: &MONTHS },
    // Sunday is both 0 and 7.
    Field { name: "day of week", min: 0, max: 7, words: &DAYS },
];

fn check_cron(line: &str) -> Result<(), String> {
    let parts: Vec<&str> = line.split_whitespace().collect();
    if parts.len() != FIELDS.len() {
        return Err(format!(
            "a crontab line has 5 fields (minute hour day month weekday), `{line}` has {}",
            parts.len()
        ));
    }
    for (part, field) in parts.iter().zip(&FIELDS) {
        let is_valid = part.split(',').all(|item| field.accepts(item));
        if !is_valid {
            return Err(format!("`{part}` is no {} in the crontab line `{line}`", field.name));
        }
    }
    Ok(())
}

impl Field {
    /// Whether `item` is `*`, a value or a range, each with a `/step` or not.
    fn accepts(&self, item: &str) -> bool {
        let (range, step) = match item.split_once('/') {
            Some((range, step)) => (range, Some(step)),
            None => (item, None),
        };
        let is_step = step.is_none_or(|step| step.parse::<u32>().is_ok_and(|step| 0 < step));
        let is_range = range == "*"
            || match range.split_once('-') {
                None => self.value(range).is_some(),
                Some((first, last)) => match (self.value(first), self.value(last)) {
                    (Some(first), Some(last)) => first <= last,
                    _ => false,
                },
            };
        is_step && is_range
    }

    fn value(&self, text: &str) -> Option<u32> {
        let word = self.words.iter().position(|word| word.eq_ignore_ascii_case(text));
        let value = match word {
            Some(index) => self.min + index as u32,
            None => text.parse().ok()?,
        };
        (self.min..=self.max).contains(&value).then_some(value)
    }
}
