//! Faults on request: what goes wrong, at which action, and how often.

use serde::{Deserialize, Serialize};

use crate::error::ApiError;

/// The most faults that wait at a time.
const MAX_FAULTS: usize = 1000;

/// Something that shall go wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "FlatFault")]
pub struct Fault {
    /// The action, as `RunInstances`, or `*` for every one.
    pub action: String,
    /// The region, where it matters.
    pub region: Option<String>,
    /// How many calls are let pass before.
    pub after: u32,
    /// How many calls it hits then; without a number, all.
    pub times: Option<u32>,
    /// What happens.
    #[serde(flatten)]
    pub what: Happening,
}

/// What happens to a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Happening {
    /// The call is refused, and nothing was done.
    ErrorBefore {
        /// The code.
        code: String,
        /// The text.
        message: String,
        /// The status of the HTTP answer.
        status: u16,
    },
    /// The call is done, and refused all the same.
    ErrorAfter {
        /// The code.
        code: String,
        /// The text.
        message: String,
        /// The status of the HTTP answer.
        status: u16,
    },
    /// The connection is cut, and nothing was done.
    LostRequest,
    /// The call is done, and the connection is cut before the answer.
    LostReply,
    /// The call is done, and its answer comes late.
    Delay {
        /// How late.
        ms: u64,
    },
}

/// A fault as it is written: all in one object, in which nothing may stand that the fault does not need.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FlatFault {
    action: String,
    region: Option<String>,
    #[serde(default)]
    after: u32,
    times: Option<u32>,
    what: String,
    code: Option<String>,
    message: Option<String>,
    status: Option<u16>,
    ms: Option<u64>,
}

impl TryFrom<FlatFault> for Fault {
    type Error = String;

    fn try_from(flat: FlatFault) -> Result<Fault, String> {
        let FlatFault { action, region, after, times, what, code, message, status, ms } = flat;
        let what = match (what.as_str(), code, message, status, ms) {
            ("error_before", Some(code), Some(message), status, None) => {
                Happening::ErrorBefore { code, message, status: status.unwrap_or(400) }
            }
            ("error_after", Some(code), Some(message), status, None) => {
                Happening::ErrorAfter { code, message, status: status.unwrap_or(400) }
            }
            ("lost_request", None, None, None, None) => Happening::LostRequest,
            ("lost_reply", None, None, None, None) => Happening::LostReply,
            ("delay", None, None, None, Some(ms)) => Happening::Delay { ms },
            (other, ..) => {
                return Err(format!(
                    "`{other}` does not go with what else is said: say error_before or error_after with code, message \
                     and perhaps status; delay with ms; lost_request or lost_reply alone"
                ));
            }
        };
        if times == Some(0) {
            return Err("`times` must be 1 or more".to_owned());
        }
        Ok(Fault { action, region, after, times, what })
    }
}

/// The faults that wait for their calls.
#[derive(Debug, Default)]
pub(crate) struct Faults(Vec<Fault>);

impl Faults {
    pub(crate) fn add(&mut self, fault: Fault) -> Result<(), String> {
        if MAX_FAULTS <= self.0.len() {
            return Err(format!("at most {MAX_FAULTS} faults may wait"));
        }
        self.0.push(fault);
        Ok(())
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    pub(crate) fn waiting(&self) -> &[Fault] {
        &self.0
    }

    /// What happens to this call: each fault that is about it counts it, and the first that is due hits.
    pub(crate) fn hit(&mut self, region: &str, action: &str) -> Option<Happening> {
        let mut hit = None;
        for fault in &mut self.0 {
            let is_about = (fault.action == "*" || fault.action == action)
                && fault.region.as_deref().is_none_or(|wanted| wanted == region);
            if !is_about {
                continue;
            }
            if 0 < fault.after {
                fault.after -= 1;
            } else if hit.is_none() {
                hit = Some(fault.what.clone());
                fault.times = fault.times.map(|times| times.saturating_sub(1));
            }
        }
        self.0.retain(|fault| fault.times != Some(0));
        hit
    }
}

/// The refusal that a fault asks for.
pub(crate) fn refusal(code: &str, message: &str, status: u16) -> ApiError {
    ApiError { status, code: code.to_owned().into(), message: message.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_hits_the_calls_that_it_names() {
        let mut faults = Faults::default();
        let text = r#"{"action": "RunInstances", "after": 1, "times": 2, "what": "lost_reply"}"#;
        faults.add(serde_json::from_str(text).unwrap()).unwrap();
        let mut hits = |action| faults.hit("us-west-2", action).is_some();
        let hits = [
            hits("RunInstances"),
            hits("CreateTags"),
            hits("RunInstances"),
            hits("RunInstances"),
            hits("RunInstances"),
        ];
        assert_eq!(hits, [false, false, true, true, false]);
        assert!(faults.waiting().is_empty());
    }

    #[test]
    fn a_fault_may_be_bound_to_a_region() {
        let mut faults = Faults::default();
        let text = r#"{"action": "*", "region": "us-east-1", "what": "error_before", "code": "Unavailable", "message": "", "status": 503}"#;
        faults.add(serde_json::from_str(text).unwrap()).unwrap();
        assert_eq!(faults.hit("us-west-2", "DescribeVpcs"), None);
        assert!(
            faults.hit("us-east-1", "DescribeVpcs").is_some() && faults.hit("us-east-1", "DescribeVpcs").is_some()
        );
    }
}
