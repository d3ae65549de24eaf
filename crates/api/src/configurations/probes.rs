//! How the server learns that a replica of a service is ready.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::checked::{Check, checked, constant};
use super::durations::Seconds;
use super::shorthand;

const MAX_PROBES: usize = 10;
const MAX_HEADERS: usize = 16;
const MAX_HEADER_NAME_LENGTH: usize = 256;
const MAX_TEXT_LENGTH: usize = 2048;
/// The longest wait for an answer, in seconds.
const MAX_TIMEOUT: i64 = 300;

constant! {
    /// The protocol of a probe.
    #[derive(Hash)]
    pub struct ProbeType = "http";
}

/// The method of a probe's request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the variants are the names of HTTP methods")]
pub enum ProbeMethod {
    Get,
    Post,
    Put,
    Delete,
    Patch,
    Head,
}

checked! {
    /// A request that succeeds once a replica is ready.
    #[derive(Eq)]
    pub struct ProbeConfig {
        /// The protocol.
        #[serde(rename = "type")]
        pub kind: ProbeType,
        /// The path; null is `/`.
        #[serde(default)]
        pub url: Option<String>,
        /// The method; null is `get`.
        #[serde(default)]
        pub method: Option<ProbeMethod>,
        /// Headers of the request.
        #[serde(default)]
        pub headers: Vec<HttpHeaderSpec>,
        /// The body of the request.
        #[serde(default)]
        pub body: Option<String>,
        /// How long to wait for the answer, in seconds; null is 10.
        #[serde(default)]
        pub timeout: Option<Seconds>,
        /// The time between two probes, in seconds; null is 15.
        #[serde(default)]
        pub interval: Option<Seconds>,
        /// How many in a row must succeed; null is 1.
        #[serde(default, deserialize_with = "shorthand::optional_integer::<_, _, 1, { i32::MAX as i64 }>")]
        pub ready_after: Option<u32>,
        /// Whether to stop once the replica is ready; null is no.
        #[serde(default)]
        pub until_ready: Option<bool>,
    }
}

checked! {
    /// A header of a request.
    #[derive(Eq)]
    pub struct HttpHeaderSpec {
        /// The name.
        pub name: String,
        /// The value; may have `${{ env.X }}` in it.
        pub value: String,
    }
}

impl Check for HttpHeaderSpec {
    fn check(&mut self) -> Result<(), String> {
        check_length("name", &self.name, MAX_HEADER_NAME_LENGTH)?;
        check_length("value", &self.value, MAX_TEXT_LENGTH)
    }
}

fn check_length(key: &str, text: &str, max: usize) -> Result<(), String> {
    let length = text.chars().count();
    if (1..=max).contains(&length) {
        return Ok(());
    }
    Err(format!("`{key}` must have 1 to {max} characters, found {length}"))
}

impl Check for ProbeConfig {
    fn check(&mut self) -> Result<(), String> {
        match &self.url {
            Some(url) if !url.starts_with('/') => {
                return Err(format!("`url` must start with `/`, found `{url}`"));
            }
            _ => {}
        }
        if MAX_HEADERS < self.headers.len() {
            return Err(format!("`headers` can have at most {MAX_HEADERS} entries"));
        }
        if let Some(body) = &self.body {
            check_length("body", body, MAX_TEXT_LENGTH)?;
            let takes_body = !matches!(self.method, None | Some(ProbeMethod::Get | ProbeMethod::Head));
            if !takes_body {
                return Err("`body` needs another `method` than `get` and `head`".to_owned());
            }
        }
        let durations = [("timeout", self.timeout), ("interval", self.interval)];
        for (key, duration) in durations {
            if let Some(Seconds(seconds)) = duration
                && seconds < 1
            {
                return Err(format!("`{key}` must be at least 1 second, found {seconds}"));
            }
        }
        match self.timeout {
            Some(Seconds(seconds)) if MAX_TIMEOUT < seconds => {
                Err(format!("`timeout` must be at most {MAX_TIMEOUT} seconds, found {seconds}"))
            }
            _ => Ok(()),
        }
    }
}

pub(crate) fn check_probes(probes: &[ProbeConfig]) -> Result<(), String> {
    if MAX_PROBES < probes.len() {
        return Err(format!("`probes` can have at most {MAX_PROBES} entries"));
    }
    for (index, probe) in probes.iter().enumerate() {
        if probes[..index].contains(probe) {
            return Err(format!("`probes[{index}]` repeats another probe"));
        }
    }
    Ok(())
}
