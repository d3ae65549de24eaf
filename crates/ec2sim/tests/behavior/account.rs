//! An account of a simulated cloud whose clock the test moves, asked without HTTP.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ec2sim::{
    ACCESS_KEY, Credential, Kind, Machines, Options, Outcome, Reply, Request, Settings, Simulator,
    default_credential,
};
use jiff::Timestamp;
use serde_json::Value;

/// The name of the image that the documented example uses.
const IMAGE: &str = "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04) 20241115";

pub(crate) const START: &str = "2026-03-01T12:00:00Z";

/// A caller in one region.
#[derive(Debug, Clone)]
pub(crate) struct Account {
    pub(crate) simulator: Simulator,
    pub(crate) region: &'static str,
    pub(crate) access_key: &'static str,
}

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) status: u16,
    pub(crate) code: String,
    pub(crate) message: String,
}

/// Fields of a form.
pub(crate) type Fields = Vec<(String, String)>;

pub(crate) fn fields(given: &[(&str, &str)]) -> Fields {
    given.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// A cloud in which all happens at once, and which may be asked as fast as one likes: its clock stands still.
pub(crate) fn calm() -> Settings {
    Settings { throttle: false, ..Settings::immediate() }
}

/// A cloud in which things take their time.
pub(crate) fn slow() -> Settings {
    Settings { boot_ms: 3_000, shutdown_ms: 2_000, instance_unseen_ms: 500, stale_ms: 300, ..calm() }
}

impl Account {
    pub(crate) fn new(settings: Settings) -> Account {
        Account::open(settings, None)
    }

    pub(crate) fn open(settings: Settings, machines: Option<Arc<dyn Machines>>) -> Account {
        let mut options = Options::manual(START.parse::<Timestamp>().unwrap(), settings);
        // These requests are signed in form only.
        options.credentials = vec![Credential { secret_key: None, ..default_credential() }];
        let simulator = match machines {
            Some(machines) => Simulator::with_machines(options, machines),
            None => Simulator::new(options),
        };
        Account { simulator, region: "us-west-2", access_key: ACCESS_KEY }
    }

    pub(crate) fn call(&self, action: &str, given: &Fields) -> Reply {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("Action", action).append_pair("Version", "2016-11-15").extend_pairs(given);
        let time = self.simulator.now().strftime("%Y%m%dT%H%M%SZ").to_string();
        let scope = format!("{}/{}/{}/ec2/aws4_request", self.access_key, &time[..8], self.region);
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host;x-amz-date, Signature={}",
            "0".repeat(64)
        );
        let headers = [("host", "localhost".to_owned()), ("x-amz-date", time), ("authorization", authorization)];
        self.simulator.call(&Request {
            method: "POST".to_owned(),
            path: "/".to_owned(),
            query: String::new(),
            headers: headers.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<BTreeMap<_, _>>(),
            body: form.finish().into_bytes(),
        })
    }

    /// Asks, and expects some answer.
    #[track_caller]
    pub(crate) fn ask_with(&self, action: &str, given: &Fields) -> Result<String, Refused> {
        let reply = self.call(action, given);
        let Outcome::Answer(answer) = reply.outcome else { panic!("{action}: the connection was cut") };
        assert!(!answer.body.contains("Ec2simBroken"), "{}", answer.body);
        if answer.status == 200 {
            return Ok(answer.body);
        }
        let text = |name| texts(&answer.body, name).remove(0);
        Err(Refused { status: answer.status, code: text("Code"), message: text("Message") })
    }

    #[track_caller]
    pub(crate) fn ask(&self, action: &str, given: &[(&str, &str)]) -> Result<String, Refused> {
        self.ask_with(action, &fields(given))
    }

    /// The code of the refusal that is expected.
    #[track_caller]
    pub(crate) fn refused(&self, action: &str, given: &[(&str, &str)]) -> String {
        self.ask(action, given).expect_err(action).code
    }

    pub(crate) fn order(&self, name: &str, body: &Value) -> Value {
        self.simulator.control(name, body).unwrap_or_else(|error| panic!("{name} {body}: {error:?}"))
    }

    pub(crate) fn pass(&self, millis: u64) {
        self.simulator.advance_clock(Duration::from_millis(millis));
    }

    pub(crate) fn alive(&self, kind: Kind) -> usize {
        self.simulator.count_alive(kind)
    }

    pub(crate) fn image(&self) -> String {
        let images =
            self.ask("DescribeImages", &[("Filter.1.Name", "name"), ("Filter.1.Value.1", IMAGE)]).unwrap();
        texts(&images, "imageId").remove(0)
    }

    /// A subnet by its name, as `private-us-west-2a`.
    pub(crate) fn subnet(&self, name: &str) -> String {
        let found =
            self.ask("DescribeSubnets", &[("Filter.1.Name", "tag:Name"), ("Filter.1.Value.1", name)]).unwrap();
        texts(&found, "subnetId").remove(0)
    }

    /// The fields of a launch of one plain interface.
    pub(crate) fn launch(&self, instance_type: &str, zone: &str, count: (u32, u32)) -> Fields {
        fields(&[
            ("ImageId", &self.image()),
            ("InstanceType", instance_type),
            ("MinCount", &count.0.to_string()),
            ("MaxCount", &count.1.to_string()),
            ("NetworkInterface.1.DeviceIndex", "0"),
            ("NetworkInterface.1.SubnetId", &self.subnet(&format!("private-{zone}"))),
        ])
    }

    /// Launches, and answers the identifiers of the instances.
    #[track_caller]
    pub(crate) fn run(&self, launch: &Fields) -> Vec<String> {
        texts(&self.ask_with("RunInstances", launch).unwrap(), "instanceId")
    }

    /// The state of an instance as it is described.
    pub(crate) fn state(&self, id: &str) -> Result<String, Refused> {
        let described = self.ask("DescribeInstances", &[("InstanceId.1", id)])?;
        let state = described.split("<instanceState>").nth(1).unwrap();
        Ok(texts(state, "name").remove(0))
    }

    #[track_caller]
    pub(crate) fn terminate(&self, ids: &[String]) {
        let given: Fields =
            ids.iter().enumerate().map(|(index, id)| (format!("InstanceId.{}", index + 1), id.clone())).collect();
        self.ask_with("TerminateInstances", &given).unwrap();
    }
}

/// The texts of all elements of that name.
pub(crate) fn texts(xml: &str, name: &str) -> Vec<String> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let parts = xml.split(open.as_str()).skip(1);
    parts.filter_map(|part| part.split(close.as_str()).next()).map(str::to_owned).collect()
}

/// Sets a field, or adds it.
pub(crate) fn set(fields: &mut Fields, name: &str, value: &str) {
    fields.retain(|(known, _)| known != name);
    fields.push((name.to_owned(), value.to_owned()));
}
