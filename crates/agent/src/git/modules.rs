//! Where a repository's submodules are: the file `.gitmodules`.

use std::collections::BTreeMap;

/// The addresses of submodules by the folders that they go into.
pub(super) fn addresses(text: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let (mut path, mut url) = (None, None);
    let mut is_submodule = false;
    for line in text.lines().map(str::trim).chain(["[end]"]) {
        if line.starts_with('[') {
            if let (true, Some(path), Some(url)) = (is_submodule, path.take(), url.take()) {
                found.insert(path, url);
            }
            (path, url) = (None, None);
            is_submodule = line.to_ascii_lowercase().starts_with("[submodule");
            continue;
        }
        let Some((name, value)) = line.split_once('=').filter(|_| !line.starts_with(['#', ';'])) else { continue };
        match name.trim().to_ascii_lowercase().as_str() {
            "path" => path = Some(plain(value).trim_end_matches('/').to_owned()),
            "url" => url = Some(plain(value)),
            _ => {}
        }
    }
    found
}

/// A value without quotes, escapes, and a comment after it.
fn plain(text: &str) -> String {
    let mut value = String::new();
    let (mut is_quoted, mut characters) = (false, text.trim().chars());
    while let Some(character) = characters.next() {
        match character {
            '"' => is_quoted = !is_quoted,
            '\\' => value.extend(characters.next()),
            '#' | ';' if !is_quoted => break,
            other => value.push(other),
        }
    }
    value.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_found_by_folder() {
        let text = "# x\n[submodule \"one\"]\n\tpath = libs/one\n\turl = ../one.git ; here\n[core]\n\tpath = no\n\turl = no\n\
                    [submodule \"two\"]\n\turl = \"https://h/a#b\"\n\tpath = two/\n\tbranch = x\n[submodule \"three\"]\n\tpath = 3\n";
        let found = addresses(text);
        let expected = [("libs/one", "../one.git"), ("two", "https://h/a#b")];
        assert_eq!(found.iter().map(|(path, url)| (path.as_str(), url.as_str())).collect::<Vec<_>>(), expected);
    }
}
