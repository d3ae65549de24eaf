//! How fast an account may ask: a bucket of tokens for each action and region, refilled by the second.
//!
//! The figures are those of EC2's documentation of request throttling as they are remembered. Actions that make many
//! things at once have a second bucket, from which they take a token for each thing.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::ApiError;

/// A bucket's size and what is put in each second.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// How many tokens the bucket holds.
    pub capacity: f64,
    /// How many come in each second.
    pub per_second: f64,
}

const READING: Rate = Rate { capacity: 100.0, per_second: 20.0 };
/// Lists that are neither filtered nor cut into pages.
const LISTING: Rate = Rate { capacity: 50.0, per_second: 10.0 };
const WRITING: Rate = Rate { capacity: 50.0, per_second: 5.0 };
const RUN_INSTANCES: Rate = Rate { capacity: 5.0, per_second: 2.0 };
const TERMINATE_INSTANCES: Rate = Rate { capacity: 100.0, per_second: 5.0 };
const CREATE_VOLUME: Rate = Rate { capacity: 100.0, per_second: 5.0 };
const CREATE_TAGS: Rate = Rate { capacity: 100.0, per_second: 10.0 };
const SMALL: Rate = Rate { capacity: 20.0, per_second: 10.0 };

/// What other services than EC2 let pass.
const OTHERS: Rate = Rate { capacity: 100.0, per_second: 20.0 };

const RUN_RESOURCES: Rate = Rate { capacity: 1000.0, per_second: 2.0 };
const TERMINATE_RESOURCES: Rate = Rate { capacity: 1000.0, per_second: 20.0 };

/// The buckets of an account.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    buckets: BTreeMap<(String, String), Bucket>,
    /// Rates that were set by hand, by the names of their buckets.
    rates: BTreeMap<String, Rate>,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    filled_at: Timestamp,
}

impl Throttle {
    /// Sets the rate of an action, or of its resources where `resources:` stands before its name.
    pub(crate) fn set_rate(&mut self, name: &str, rate: Rate) {
        self.rates.insert(name.to_owned(), rate);
        self.buckets.retain(|(_, known), _| known != name);
    }

    /// Takes a token for a request.
    pub(crate) fn take_request(
        &mut self,
        region: &str,
        service: &str,
        action: &str,
        lists_all: bool,
        now: Timestamp,
    ) -> Result<(), ApiError> {
        let rate = match (service, action) {
            ("ec2", "RunInstances") => RUN_INSTANCES,
            ("ec2", "TerminateInstances") => TERMINATE_INSTANCES,
            ("ec2", "CreateVolume") => CREATE_VOLUME,
            ("ec2", "CreateTags" | "DeleteTags") => CREATE_TAGS,
            ("ec2", "DescribeSpotInstanceRequests" | "CreateSecurityGroup" | "CreateNetworkInterface") => SMALL,
            ("ec2", _) if action.starts_with("Describe") && lists_all => LISTING,
            ("ec2", _) if action.starts_with("Describe") || action.starts_with("Get") => READING,
            ("ec2", _) => WRITING,
            _ => OTHERS,
        };
        self.take(region, action, rate, 1.0, now).map_err(|()| match service {
            "ec2" => ApiError::with_status(503, "RequestLimitExceeded", "Request limit exceeded."),
            "sts" | "iam" => ApiError::client("Throttling", "Rate exceeded"),
            "servicequotas" => ApiError::client("TooManyRequestsException", "Rate exceeded"),
            _ => ApiError::client("ThrottlingException", "Rate exceeded"),
        })
    }

    /// Takes a token for each thing that a request makes or ends.
    pub(crate) fn take_resources(
        &mut self,
        region: &str,
        action: &str,
        count: usize,
        now: Timestamp,
    ) -> Result<(), ApiError> {
        let rate = match action {
            "RunInstances" => RUN_RESOURCES,
            "TerminateInstances" => TERMINATE_RESOURCES,
            _ => return Ok(()),
        };
        self.take(region, &format!("resources:{action}"), rate, count as f64, now)
            .map_err(|()| ApiError::with_status(503, "RequestLimitExceeded", "Request limit exceeded."))
    }

    fn take(&mut self, region: &str, name: &str, rate: Rate, count: f64, now: Timestamp) -> Result<(), ()> {
        let rate = self.rates.get(name).copied().unwrap_or(rate);
        let key = (region.to_owned(), name.to_owned());
        let bucket = self.buckets.entry(key).or_insert(Bucket { tokens: rate.capacity, filled_at: now });
        let seconds = now.duration_since(bucket.filled_at).as_secs_f64().max(0.0);
        bucket.tokens = (bucket.tokens + seconds * rate.per_second).min(rate.capacity);
        bucket.filled_at = now;
        if bucket.tokens < count {
            return Err(());
        }
        bucket.tokens -= count;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(number: i64) -> Timestamp {
        Timestamp::from_second(1_790_000_000 + number).unwrap()
    }

    #[test]
    fn a_burst_is_taken_and_then_the_rate() {
        let mut throttle = Throttle::default();
        let mut run = |at| throttle.take_request("us-west-2", "ec2", "RunInstances", false, second(at)).is_ok();
        let burst: Vec<bool> = (0..6).map(|_| run(0)).collect();
        assert_eq!(burst, [true, true, true, true, true, false]);
        assert_eq!([run(1), run(1), run(1)], [true, true, false]);
    }

    #[test]
    fn a_thousand_machines_empty_the_second_bucket() {
        let mut throttle = Throttle::default();
        let mut run = |count, at| throttle.take_resources("us-west-2", "RunInstances", count, second(at)).is_ok();
        assert_eq!([run(1000, 0), run(1, 0), run(2, 1), run(1, 1)], [true, false, true, false]);
    }

    #[test]
    fn regions_and_actions_have_their_own_buckets() {
        let mut throttle = Throttle::default();
        throttle.set_rate("RunInstances", Rate { capacity: 1.0, per_second: 0.0 });
        let mut take = |region, action| throttle.take_request(region, "ec2", action, false, second(0)).is_ok();
        assert!(take("us-west-2", "RunInstances") && !take("us-west-2", "RunInstances"));
        assert!(take("us-east-1", "RunInstances") && take("us-west-2", "CreateTags"));
    }
}
