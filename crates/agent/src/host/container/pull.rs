//! How far a pull is, from the messages that the engine sends about each layer.

use std::collections::BTreeMap;

use api::agent::PullProgress;
use bollard::models::CreateImageInfo;

/// The layers of an image that is being pulled.
#[derive(Debug, Default)]
pub(crate) struct Layers {
    layers: BTreeMap<String, Layer>,
}

#[derive(Debug, Default)]
struct Layer {
    /// What the engine said last: the status, and how much of how much.
    said: (String, u64, u64),
    total: u64,
    downloaded: u64,
    extracted: u64,
    /// Its size is known, or does not matter because the layer is here.
    sized: bool,
}

impl Layers {
    /// Takes in a message; answers whether it tells of progress, and not only that the engine lives.
    pub(crate) fn note(&mut self, info: &CreateImageInfo) -> bool {
        let status = info.status.as_deref().unwrap_or_default();
        let is_layer = matches!(
            status,
            "Pulling fs layer"
                | "Waiting"
                | "Downloading"
                | "Verifying Checksum"
                | "Download complete"
                | "Extracting"
                | "Pull complete"
                | "Already exists"
        );
        let Some(id) = info.id.as_ref().filter(|_| is_layer) else {
            return false;
        };
        let layer = self.layers.entry(id.clone()).or_default();
        let detail = info.progress_detail.as_ref();
        let current = detail.and_then(|detail| detail.current).unwrap_or(0).max(0) as u64;
        let total = detail.and_then(|detail| detail.total).unwrap_or(0).max(0) as u64;
        // A download that is resumed counts from zero, up to what was left: less than the sums, but progress.
        let said = (status.to_owned(), current, total);
        let is_news = layer.said != said;
        layer.said = said;
        if total > 0 {
            layer.total = layer.total.max(total);
            layer.sized = true;
        }
        match status {
            "Downloading" => layer.downloaded = layer.downloaded.max(current),
            "Verifying Checksum" | "Download complete" => layer.downloaded = layer.total,
            "Extracting" => {
                layer.downloaded = layer.total;
                layer.extracted = layer.extracted.max(current);
            }
            "Pull complete" | "Already exists" => {
                layer.sized = true;
                layer.downloaded = layer.total;
                layer.extracted = layer.total;
            }
            _ => {}
        }
        is_news
    }

    /// The sum over all layers.
    pub(crate) fn progress(&self) -> PullProgress {
        let sum = |part: fn(&Layer) -> u64| self.layers.values().map(part).sum();
        PullProgress {
            downloaded_bytes: sum(|layer| layer.downloaded),
            extracted_bytes: sum(|layer| layer.extracted),
            total_bytes: sum(|layer| layer.total),
            is_total_bytes_final: !self.layers.is_empty() && self.layers.values().all(|layer| layer.sized),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = r#"
{"status":"Pulling from library/debian","id":"bookworm"}
{"status":"Pulling fs layer","progressDetail":{},"id":"a1"}
{"status":"Pulling fs layer","progressDetail":{},"id":"b2"}
{"status":"Already exists","progressDetail":{},"id":"c3"}
{"status":"Downloading","progressDetail":{"current":50,"total":100},"id":"a1"}
{"status":"Download complete","progressDetail":{},"id":"a1"}
{"status":"Extracting","progressDetail":{"current":30,"total":100},"id":"a1"}
{"status":"Downloading","progressDetail":{"current":10,"total":40},"id":"b2"}
{"status":"Pull complete","progressDetail":{},"id":"a1"}
{"status":"Pull complete","progressDetail":{},"id":"b2"}
{"status":"Status: Downloaded newer image for debian:bookworm"}
"#;

    #[test]
    fn layers_add_up() {
        let mut layers = Layers::default();
        let mut seen = Vec::new();
        for line in STREAM.lines().filter(|line| !line.is_empty()) {
            layers.note(&serde_json::from_str(line).unwrap());
            let progress = layers.progress();
            seen.push((
                progress.downloaded_bytes,
                progress.extracted_bytes,
                progress.total_bytes,
                progress.is_total_bytes_final,
            ));
        }
        assert_eq!(seen[0], (0, 0, 0, false));
        assert_eq!(seen[4], (50, 0, 100, false));
        assert_eq!(seen[6], (100, 30, 100, false));
        assert_eq!(seen[7], (110, 30, 140, true));
        assert_eq!(seen[10], (140, 140, 140, true));
    }

    #[test]
    fn a_message_that_repeats_another_is_no_progress() {
        let mut layers = Layers::default();
        let mut note = |line: &str| layers.note(&serde_json::from_str(line).unwrap());
        let half = r#"{"status":"Downloading","progressDetail":{"current":50,"total":100},"id":"a1"}"#;
        let more = r#"{"status":"Downloading","progressDetail":{"current":51,"total":100},"id":"a1"}"#;
        let seen = [half, half, more, more, r#"{"status":"Pulling from library/debian"}"#].map(&mut note);
        assert_eq!(seen, [true, false, true, false, false]);
        assert!(note(r#"{"status":"Download complete","progressDetail":{},"id":"a1"}"#));
    }

    #[test]
    fn a_download_that_is_resumed_makes_progress() {
        let mut layers = Layers::default();
        let mut note = |current: u64, total: u64| {
            let detail = format!(r#"{{"current":{current},"total":{total}}}"#);
            let line = format!(r#"{{"status":"Downloading","progressDetail":{detail},"id":"a1"}}"#);
            layers.note(&serde_json::from_str(&line).unwrap())
        };
        let seen = [(80, 100), (5, 20), (10, 20), (10, 20)].map(|(current, total)| note(current, total));
        assert_eq!(seen, [true, true, true, false]);
        let progress = layers.progress();
        assert_eq!((progress.downloaded_bytes, progress.total_bytes), (80, 100));
    }
}
