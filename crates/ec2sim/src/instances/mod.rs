//! Instances: what they are, and how they come and go.

mod describe;
mod topology;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::call::Call;
use crate::capacity::Market;
use crate::error::ApiError;
use crate::filters::Tags;
use crate::interfaces;
use crate::ledger::Kind;
use crate::machines::{MachineEvent, Report};
use crate::settings::millis;
use crate::spot::RequestState;
use crate::world::{Step, World};

pub(crate) use describe::{
    describe_instance_attribute, describe_instance_status, describe_instances, get_console_output, render,
};
pub(crate) use topology::describe_instance_topology;

/// The most text of a console that is kept.
const MAX_CONSOLE: usize = 64 * 1024;

/// The state of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Pending,
    Running,
    ShuttingDown,
    Terminated,
    Stopped,
}

impl State {
    pub(crate) fn render(self) -> Value {
        let (code, name) = match self {
            State::Pending => (0, "pending"),
            State::Running => (16, "running"),
            State::ShuttingDown => (32, "shutting-down"),
            State::Terminated => (48, "terminated"),
            State::Stopped => (80, "stopped"),
        };
        json!({"Code": code, "Name": name})
    }
}

/// What the metadata service of an instance does.
#[derive(Debug, Clone)]
pub(crate) struct MetadataOptions {
    /// `required` or `optional`.
    pub(crate) tokens: String,
    pub(crate) hop_limit: i64,
    pub(crate) is_enabled: bool,
    /// `enabled` or `disabled`.
    pub(crate) tags: String,
}

/// An instance.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) id: String,
    pub(crate) reservation_id: String,
    pub(crate) launch_index: usize,
    pub(crate) client_token: String,
    pub(crate) instance_type: String,
    pub(crate) vcpus: u32,
    pub(crate) image_id: String,
    pub(crate) architecture: String,
    pub(crate) root_device: String,
    pub(crate) zone: String,
    pub(crate) subnet_id: String,
    pub(crate) vpc_id: String,
    pub(crate) private_ip: String,
    /// The interface that it is known by.
    pub(crate) primary: String,
    pub(crate) groups: Vec<String>,
    pub(crate) interfaces: Vec<String>,
    /// The disks that are attached, whenever they were.
    pub(crate) volumes: Vec<String>,
    pub(crate) market: Market,
    pub(crate) spot_request: Option<String>,
    pub(crate) reservation: Option<String>,
    pub(crate) placement_group: Option<String>,
    pub(crate) tenancy: String,
    pub(crate) key_name: Option<String>,
    pub(crate) user_data: Option<String>,
    pub(crate) metadata: MetadataOptions,
    pub(crate) profile: Option<String>,
    /// Whether it is terminated where it switches itself off.
    pub(crate) terminates_itself: bool,
    pub(crate) ebs_optimized: bool,
    pub(crate) monitoring: bool,
    pub(crate) tags: Tags,
    pub(crate) launched_at: Timestamp,
    /// Since when it was in which state.
    pub(crate) states: Vec<(Timestamp, State)>,
    /// The code and the text of why it ended.
    pub(crate) reason: Option<(String, String)>,
    /// The short form of it.
    pub(crate) transition: String,
    /// What its checks say, once they say something.
    pub(crate) healthy: Option<bool>,
    pub(crate) console: String,
    /// Where it stands in the data center: instances whose numbers are near stand near.
    pub(crate) place: u32,
}

impl Instance {
    /// The state that it is in.
    pub(crate) fn state(&self) -> State {
        self.states.last().map_or(State::Pending, |(_, state)| *state)
    }

    /// The state that it was in at that time.
    pub(crate) fn state_at(&self, time: Timestamp) -> State {
        let past = self.states.iter().rev().find(|(since, _)| *since <= time);
        past.or(self.states.first()).map_or(State::Pending, |(_, state)| *state)
    }

    /// Whether it ended, or is about to.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.state(), State::ShuttingDown | State::Terminated)
    }
}

/// How an instance that is not there is refused.
pub(crate) fn not_found(id: &str) -> ApiError {
    let is_well_formed = id.strip_prefix("i-").is_some_and(|digits| {
        [8, 17].contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
    });
    if is_well_formed {
        ApiError::client("InvalidInstanceID.NotFound", format!("The instance ID '{id}' does not exist"))
    } else {
        ApiError::client("InvalidInstanceID.Malformed", format!("Invalid id: \"{id}\""))
    }
}

/// Refuses instances that are not there, or not seen yet.
pub(crate) fn find_all(call: &mut Call<'_>, ids: &[String]) -> Result<(), ApiError> {
    let seen_since = call.now() - millis(call.world.settings.instance_unseen_ms);
    let instances = &call.region().instances;
    let missing: Vec<&String> = ids
        .iter()
        .filter(|id| instances.get(*id).is_none_or(|instance| seen_since < instance.launched_at))
        .collect();
    if let Some(malformed) = missing.iter().map(|id| not_found(id)).find(|error| error.code.ends_with("Malformed"))
    {
        return Err(malformed);
    }
    match missing[..] {
        [] => Ok(()),
        [id] => Err(not_found(id)),
        _ => {
            let ids: Vec<&str> = missing.into_iter().map(String::as_str).collect();
            let message = format!("The instance IDs '{}' do not exist", ids.join(", "));
            Err(ApiError::client("InvalidInstanceID.NotFound", message))
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Termination {
    instance_ids: Vec<String>,
}

/// TerminateInstances: all of them, or none where one is not there.
pub(crate) fn terminate_instances(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let ids = call.read::<Termination>()?.instance_ids;
    find_all(call, &ids)?;
    call.proceed()?;
    call.take_resources(ids.len())?;
    let region = call.region.clone();
    let mut rows = Vec::new();
    for id in &ids {
        let before = call.region().instances[id].state();
        end(call.world, &region, id, &Ended::ByUser);
        let after = call.region().instances[id].state();
        rows.push(json!({
            "InstanceId": id,
            "PreviousState": before.render(),
            "CurrentState": after.render(),
        }));
    }
    Ok(json!({"TerminatingInstances": rows}))
}

/// Why an instance ends.
#[derive(Debug)]
pub(crate) enum Ended {
    /// Somebody told AWS to, through the API or the console.
    ByUser,
    /// It switched itself off.
    ByItself,
    /// It was a spot instance, and is needed elsewhere.
    Interrupted,
    /// AWS did, for that code and text.
    ByAws(String, String),
}

/// Begins to end an instance; one that is ending already ends as it does.
pub(crate) fn end(world: &mut World, region_name: &str, id: &str, why: &Ended) {
    let now = world.now;
    let gone_at = now + millis(world.settings.shutdown_ms);
    let Some(instance) = world.regions.get_mut(region_name).and_then(|region| region.instances.get_mut(id)) else {
        return;
    };
    if instance.is_over() {
        return;
    }
    instance.states.push((now, State::ShuttingDown));
    let (code, message) = match why {
        Ended::ByUser => ("Client.UserInitiatedShutdown", "Client.UserInitiatedShutdown: User initiated shutdown"),
        Ended::ByItself => {
            ("Client.InstanceInitiatedShutdown", "Client.InstanceInitiatedShutdown: Instance initiated shutdown")
        }
        Ended::Interrupted => {
            ("Server.SpotInstanceTermination", "Server.SpotInstanceTermination: Spot instance termination")
        }
        Ended::ByAws(code, message) => (code.as_str(), message.as_str()),
    };
    instance.reason = Some((code.to_owned(), message.to_owned()));
    instance.transition = match why {
        Ended::ByUser => format!("User initiated ({})", now.strftime("%Y-%m-%d %H:%M:%S GMT")),
        Ended::ByAws(code, _) if code.starts_with("Server.") => code.clone(),
        _ => code.to_owned(),
    };
    let request = instance.spot_request.clone();
    let region = world.regions.get_mut(region_name).expect("the region was there before");
    if let Some(request) = request.and_then(|request| region.spot_requests.get_mut(&request)) {
        request.state = match why {
            Ended::Interrupted | Ended::ByAws(..) => RequestState::EndedByAws,
            Ended::ByUser | Ended::ByItself => RequestState::EndedByUser,
        };
        world.ledger.gone(Kind::SpotInstancesRequest, &request.id, now);
    }
    world.outbox.push(MachineEvent::Ending { instance_id: id.to_owned() });
    world.schedule(gone_at, region_name, id, Step::End);
    if world.settings.shutdown_ms == 0 {
        world.advance(now);
    }
}

/// Lets the next thing happen to an instance.
pub(crate) fn take_step(world: &mut World, region_name: &str, id: &str, step: Step) {
    let now = world.now;
    let Some(instance) = world.regions.get_mut(region_name).and_then(|region| region.instances.get_mut(id)) else {
        return;
    };
    match step {
        Step::Run if instance.state() == State::Pending => {
            instance.states.push((now, State::Running));
            world.outbox.push(MachineEvent::Running { instance_id: id.to_owned() });
        }
        Step::Run => {}
        Step::Interrupt => end(world, region_name, id, &Ended::Interrupted),
        Step::Fail(code, message) => end(world, region_name, id, &Ended::ByAws(code, message)),
        Step::End => finish(world, region_name, id),
        Step::Forget => {
            if let Some(region) = world.regions.get_mut(region_name) {
                region.instances.remove(id);
            }
        }
    }
}

/// Ends an instance, and all that shall go with it.
fn finish(world: &mut World, region_name: &str, id: &str) {
    let now = world.now;
    let Some(region) = world.regions.get_mut(region_name) else { return };
    let Some(instance) = region.instances.get_mut(id) else { return };
    if instance.state() != State::ShuttingDown {
        return;
    }
    instance.states.push((now, State::Terminated));
    if instance.reservation.is_none() {
        region.capacity.take(&instance.instance_type, &instance.zone, instance.market, -1);
    }
    let interfaces = std::mem::take(&mut instance.interfaces);
    let volumes = std::mem::take(&mut instance.volumes);
    for id in volumes {
        let Some(volume) = region.volumes.get_mut(&id) else { continue };
        let goes = volume.attachment.as_ref().is_some_and(|attachment| attachment.delete_on_termination);
        volume.attachment = None;
        if goes {
            region.volumes.remove(&id);
            world.ledger.gone(Kind::Volume, &id, now);
        }
    }
    for id in interfaces {
        remove_interface(world, region_name, &id);
    }
    world.ledger.gone(Kind::Instance, id, now);
    world.outbox.push(MachineEvent::Ended { instance_id: id.to_owned() });
    let forgotten_at = now + millis(world.settings.terminated_seen_ms);
    world.schedule(forgotten_at, region_name, id, Step::Forget);
}

/// Removes an interface of an instance that is gone, or lets it stay alone if that was asked for.
fn remove_interface(world: &mut World, region_name: &str, id: &str) {
    let interface = world.regions.get_mut(region_name).and_then(|region| region.interfaces.get_mut(id));
    let Some(interface) = interface else { return };
    let goes = interface.attachment.as_ref().is_none_or(|attachment| attachment.delete_on_termination);
    interface.attachment = None;
    if goes {
        interfaces::remove(world, region_name, id);
    }
}

/// Tells a spot instance that it will be taken away.
pub(crate) fn interrupt(world: &mut World, region_name: &str, id: &str, notice_ms: u64) -> Result<(), String> {
    let ends_at = world.now + millis(notice_ms);
    let region = world.regions.get_mut(region_name).ok_or("there is no such region")?;
    let instance = region.instances.get(id).filter(|one| !one.is_over()).ok_or("there is no such instance")?;
    let request = instance.spot_request.as_ref().ok_or("it is no spot instance")?;
    if let Some(request) = region.spot_requests.get_mut(request)
        && request.state == RequestState::Active
    {
        request.state = RequestState::MarkedForTermination;
    }
    world.outbox.push(MachineEvent::SpotNotice { instance_id: id.to_owned(), ends_at });
    world.schedule(ends_at, region_name, id, Step::Interrupt);
    Ok(())
}

/// Takes what a machine tells of itself.
pub(crate) fn report(world: &mut World, report: &Report) -> Result<(), String> {
    let id = &report.instance_id;
    let region = world.regions.values().find(|region| region.instances.contains_key(id));
    let region_name = region.map(|region| region.name.clone()).ok_or("there is no such instance")?;
    let now = world.now;
    let region = world.regions.get_mut(&region_name).expect("the region was found");
    let instance = region.instances.get_mut(id).expect("the instance was found");
    instance.healthy = report.healthy.or(instance.healthy);
    if let Some(text) = &report.console {
        instance.console.push_str(text);
        let mut surplus = instance.console.len().saturating_sub(MAX_CONSOLE);
        while !instance.console.is_char_boundary(surplus) {
            surplus += 1;
        }
        instance.console.drain(..surplus);
    }
    if report.powered_off && !instance.is_over() {
        if instance.terminates_itself {
            end(world, &region_name, id, &Ended::ByItself);
        } else {
            instance.states.push((now, State::Stopped));
            "Client.InstanceInitiatedShutdown".clone_into(&mut instance.transition);
        }
    }
    Ok(())
}
