//! Pages of lists of accounts, in the official order: by time, and within one moment by identifier against it.

use jiff::Timestamp;
use uuid::Uuid;

use crate::db::Value;

/// One page of a list that is ordered by time.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// Only names that contain this, in any letter case.
    pub name_pattern: Option<String>,
    /// The last page's last item; without an identifier, everything beyond that time.
    pub after: Option<(Timestamp, Option<Uuid>)>,
    /// Oldest first.
    pub ascending: bool,
    /// At most this many.
    pub limit: u32,
}

impl Page {
    /// The conditions of this page on columns that a prefix names (`u.`), each one beginning with ` AND `.
    pub(crate) fn conditions(&self, prefix: &str, values: &mut Vec<Value>) -> String {
        let name = self.name_condition(prefix, values);
        let Some((time, id)) = self.after else { return name };
        let beyond = if self.ascending { ">" } else { "<" };
        values.push(Value::from(time));
        let time = values.len();
        let Some(id) = id else {
            return format!("{name} AND {prefix}created_at {beyond} ${time}");
        };
        // Within one moment identifiers run against time: the official paging.
        let id_beyond = if self.ascending { "<" } else { ">" };
        values.push(Value::from(id));
        let id = values.len();
        format!(
            "{name} AND ({prefix}created_at {beyond} ${time} \
             OR ({prefix}created_at = ${time} AND {prefix}id {id_beyond} ${id}))"
        )
    }

    /// The name condition alone, for counting.
    pub(crate) fn name_condition(&self, prefix: &str, values: &mut Vec<Value>) -> String {
        let Some(pattern) = &self.name_pattern else { return String::new() };
        let escaped = pattern.to_lowercase().replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_");
        values.push(Value::from(format!("%{escaped}%")));
        format!(" AND {prefix}name_lower LIKE ${} ESCAPE '\\'", values.len())
    }

    /// The order and the limit.
    pub(crate) fn order(&self, prefix: &str, values: &mut Vec<Value>) -> String {
        values.push(Value::from(self.limit));
        let (time, id) = if self.ascending { ("ASC", "DESC") } else { ("DESC", "ASC") };
        format!(" ORDER BY {prefix}created_at {time}, {prefix}id {id} LIMIT ${}", values.len())
    }
}
