//! Words for shells.

/// A word that every shell takes as it is.
pub(crate) fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}
