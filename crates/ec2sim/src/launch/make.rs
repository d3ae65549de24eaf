//! The making of instances, with all that belongs to them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::plan::{Plan, PlannedInterface, PlannedVolume};
use super::room;
use crate::addresses;
use crate::call::Call;
use crate::capacity::{BLOCK_ENDS_EARLY, Market};
use crate::filters::Tags;
use crate::instances::{Instance, State};
use crate::interfaces::{Association, Attachment, Interface};
use crate::ledger::Kind;
use crate::machines::{Machine, MachineEvent, MachineInterface, MachineNetwork};
use crate::settings::millis;
use crate::spot::{self, RequestState, SpotRequest};
use crate::volumes::{Volume, VolumeAttachment};
use crate::world::{Region, Step};

/// Makes that many instances, and answers their identifiers in the order of their indexes.
pub(super) fn make(call: &mut Call<'_>, plan: &Plan, count: usize, token: Option<&String>) -> Vec<String> {
    let region = call.region();
    let reserved = plan.reservations.first().map(|id| region.reservations[id].zone.clone());
    let has_room = |zone: &&String| count <= room::zone_room(region, plan, zone);
    let zone = reserved.or_else(|| plan.zones.iter().find(has_room).cloned());
    let zone = zone.expect("the room was counted before");
    if plan.reservations.is_empty() {
        call.region().capacity.take(&plan.name, &zone, plan.market, count as i64);
    }
    let reservation_id = call.split().1.ids.resource("r");
    let mut ids = Vec::new();
    for index in 0..count {
        let id = make_one(call, plan, &zone, &reservation_id, index, token);
        start(call, plan, &id);
        ids.push(id);
    }
    ids
}

fn make_one(
    call: &mut Call<'_>,
    plan: &Plan,
    zone: &str,
    reservation_id: &str,
    index: usize,
    token: Option<&String>,
) -> String {
    let id = call.split().1.ids.resource("i");
    let now = call.now();
    let region = call.region();
    let has_room = |id: &&String| 0 < region.reservations[*id].available(region, now);
    let reservation = plan.reservations.iter().find(has_room).cloned();
    let interfaces: Vec<String> =
        plan.interfaces.iter().map(|interface| make_interface(call, plan, interface, zone, &id)).collect();
    let volumes: Vec<String> =
        plan.volumes.iter().map(|volume| make_volume(call, plan, volume, zone, &id)).collect();
    let spot_request = (plan.market == Market::Spot).then(|| make_spot_request(call, plan, zone, &id));
    let (region, rest) = call.split();
    let primary = plan
        .interfaces
        .iter()
        .position(|one| one.asked.device == 0 && one.asked.card == plan.kind.network.default_card);
    let primary = &region.interfaces[&interfaces[primary.expect("the layout has a primary interface")]];
    let tags = plan.tags.get("instance").cloned().unwrap_or_default();
    rest.ledger.made(Kind::Instance, &id, &region.name, rest.action, rest.now, &tags);
    let instance = Instance {
        id: id.clone(),
        reservation_id: reservation_id.to_owned(),
        launch_index: index,
        client_token: token.cloned().unwrap_or_default(),
        instance_type: plan.name.clone(),
        vcpus: plan.kind.vcpus,
        image_id: plan.image.id.clone(),
        architecture: plan.image.new.architecture.clone(),
        root_device: plan.image.new.root_device.clone(),
        zone: zone.to_owned(),
        subnet_id: primary.subnet_id.clone(),
        vpc_id: primary.vpc_id.clone(),
        private_ip: primary.private_ip.clone().unwrap_or_default(),
        primary: primary.id.clone(),
        groups: primary.groups.clone(),
        interfaces,
        volumes,
        market: plan.market,
        spot_request,
        reservation,
        placement_group: plan.placement_group.clone(),
        tenancy: plan.tenancy.clone(),
        key_name: plan.key_name.clone(),
        user_data: plan.user_data.as_ref().map(|bytes| STANDARD.encode(bytes)),
        metadata: plan.metadata.clone(),
        profile: plan.profile.clone(),
        terminates_itself: plan.terminates_itself,
        ebs_optimized: plan.ebs_optimized,
        monitoring: plan.monitoring,
        tags,
        launched_at: rest.now,
        states: vec![(rest.now, State::Pending)],
        reason: None,
        transition: String::new(),
        healthy: None,
        console: String::new(),
        place: rest.ids.below(1 << 20),
    };
    region.instances.insert(id.clone(), instance);
    id
}

fn make_interface(
    call: &mut Call<'_>,
    plan: &Plan,
    planned: &PlannedInterface,
    zone: &str,
    instance_id: &str,
) -> String {
    let is_only = plan.interfaces.len() == 1;
    let (region, rest) = call.split();
    let subnet_id = planned.subnet_id.clone().or_else(|| {
        let is_default = |subnet: &&crate::network::Subnet| subnet.zone == zone && subnet.public_by_default;
        region.network.subnets.values().find(is_default).map(|subnet| subnet.id.clone())
    });
    let subnet_id = subnet_id.expect("a default VPC has a subnet in each zone");
    let subnet = region.network.subnet(&subnet_id).expect("the subnet was found before");
    let vpc_id = subnet.vpc_id.clone();
    let has_address = planned.asked.interface_type != "efa-only";
    let private_ip = if has_address { subnet.take_address().map(|address| address.to_string()) } else { None };
    let wants_public = planned.asked.public.unwrap_or(subnet.public_by_default) && is_only;
    let public_ip = if wants_public { addresses::unused_address(region) } else { None };
    let tags = plan.tags.get("network-interface").cloned().unwrap_or_default();
    let interface = Interface {
        id: rest.ids.resource("eni"),
        subnet_id,
        vpc_id,
        zone: zone.to_owned(),
        private_ip,
        mac: rest.ids.mac(),
        interface_type: planned.asked.interface_type.clone(),
        groups: planned.groups.clone(),
        description: planned.description.clone(),
        tags,
        made_at: rest.now,
        attachment: Some(Attachment {
            id: rest.ids.resource("eni-attach"),
            instance_id: instance_id.to_owned(),
            card: planned.asked.card,
            device: planned.asked.device,
            delete_on_termination: planned.delete_on_termination,
            at: rest.now,
        }),
        association: public_ip.map(|public_ip| Association { public_ip, own: None }),
    };
    let id = interface.id.clone();
    rest.ledger.made(Kind::NetworkInterface, &id, &region.name, rest.action, rest.now, &interface.tags);
    region.interfaces.insert(id.clone(), interface);
    id
}

fn make_volume(
    call: &mut Call<'_>,
    plan: &Plan,
    planned: &PlannedVolume,
    zone: &str,
    instance_id: &str,
) -> String {
    let (region, rest) = call.split();
    let volume = Volume {
        id: rest.ids.resource("vol"),
        zone: zone.to_owned(),
        size_gib: planned.size_gib,
        volume_type: planned.volume_type.clone(),
        iops: planned.iops,
        throughput: planned.throughput,
        encrypted: planned.encrypted,
        kms_key_id: planned.kms_key_id.clone(),
        snapshot_id: planned.snapshot_id.clone(),
        tags: plan.tags.get("volume").cloned().unwrap_or_default(),
        made_at: rest.now,
        attachment: Some(VolumeAttachment {
            instance_id: instance_id.to_owned(),
            device: planned.device.clone(),
            delete_on_termination: planned.delete_on_termination,
            at: rest.now,
        }),
    };
    let id = volume.id.clone();
    rest.ledger.made(Kind::Volume, &id, &region.name, rest.action, rest.now, &volume.tags);
    region.volumes.insert(id.clone(), volume);
    id
}

fn make_spot_request(call: &mut Call<'_>, plan: &Plan, zone: &str, instance_id: &str) -> String {
    let (region, rest) = call.split();
    let price = plan.max_price.or_else(|| spot::price(&region.name, &plan.name, 0)).unwrap_or_default();
    let tags: Tags = plan.tags.get("spot-instances-request").cloned().unwrap_or_default();
    let request = SpotRequest {
        id: rest.ids.spot_request(),
        instance_id: instance_id.to_owned(),
        instance_type: plan.name.clone(),
        image_id: plan.image.id.clone(),
        zone: zone.to_owned(),
        price: format!("{price:.6}"),
        made_at: rest.now,
        tags,
        state: RequestState::Active,
    };
    let id = request.id.clone();
    rest.ledger.made(Kind::SpotInstancesRequest, &id, &region.name, rest.action, rest.now, &request.tags);
    region.spot_requests.insert(id.clone(), request);
    id
}

/// What a machine's surroundings are called.
fn network_of(region: &Region, primary: &Interface) -> MachineNetwork {
    let subnet = &region.network.subnets[&primary.subnet_id];
    MachineNetwork {
        vpc_id: primary.vpc_id.clone(),
        vpc_cidr: region.network.vpcs[&primary.vpc_id].cidr.clone(),
        subnet_id: primary.subnet_id.clone(),
        subnet_cidr: subnet.cidr(),
        zone_id: subnet.zone_id.clone(),
    }
}

fn group_names(region: &Region, primary: &Interface) -> Vec<String> {
    primary.groups.iter().filter_map(|id| region.security_groups.get(id)).map(|group| group.name.clone()).collect()
}

/// Lets an instance boot, and tells whoever plays it.
fn start(call: &mut Call<'_>, plan: &Plan, id: &str) {
    let account = call.account();
    let now = call.now();
    let region = call.region();
    let instance = &region.instances[id];
    let interfaces: Vec<MachineInterface> = instance
        .interfaces
        .iter()
        .zip(&plan.interfaces)
        .map(|(id, planned)| MachineInterface {
            id: id.clone(),
            card: planned.asked.card,
            device: planned.asked.device,
            interface_type: planned.asked.interface_type.clone(),
            private_ip: region.interfaces[id].private_ip.clone(),
            mac: region.interfaces[id].mac.clone(),
        })
        .collect();
    let primary = &region.interfaces[&instance.primary];
    let association = primary.association.as_ref();
    let root = plan.volumes.iter().find(|volume| volume.device == plan.image.new.root_device);
    let mut machine = Machine {
        instance_id: id.to_owned(),
        region: region.name.clone(),
        zone: instance.zone.clone(),
        instance_type: instance.instance_type.clone(),
        image_id: plan.image.id.clone(),
        image_name: plan.image.new.name.clone(),
        architecture: instance.architecture.clone(),
        reservation_id: instance.reservation_id.clone(),
        launch_index: instance.launch_index,
        account,
        user_data: plan.user_data.clone().unwrap_or_default(),
        public_key: plan
            .key_name
            .as_ref()
            .and_then(|name| region.key_pairs.get(name))
            .map(|key| key.public_key.clone()),
        key_name: plan.key_name.clone(),
        network: network_of(region, primary),
        security_groups: group_names(region, primary),
        placement_group: plan.placement_group.clone(),
        gpus: plan.kind.gpus(),
        private_ip: instance.private_ip.clone(),
        public_ip: association.map(|association| association.public_ip.clone()),
        interfaces,
        metadata_hop_limit: plan.metadata.hop_limit,
        metadata_enabled: plan.metadata.is_enabled,
        metadata_tokens_required: plan.metadata.tokens == "required",
        metadata_tags: plan.metadata.tags == "enabled",
        iam_instance_profile: plan.profile.clone(),
        // These three are not the region's to know.
        iam_role: None,
        mlx5_devices: 0,
        trouble: None,
        is_spot: plan.market == Market::Spot,
        tags: instance.tags.clone(),
        root_volume_gib: root.map_or(plan.image.new.root_gib, |volume| volume.size_gib),
        launched_at: now,
    };
    let world = &mut *call.world;
    machine.iam_role = machine.iam_instance_profile.as_ref().and_then(|name| world.profiles.get(name).cloned());
    machine.mlx5_devices = if world.settings.mlx5_too.contains(&plan.name) { 2 } else { 0 };
    machine.trouble = world.take_host_fault(&plan.name);
    world.outbox.push(MachineEvent::Launched(Box::new(machine)));
    schedule(call, plan, id);
}

/// Puts into order what will happen to an instance.
fn schedule(call: &mut Call<'_>, plan: &Plan, id: &str) {
    let region = call.region();
    let instance = &region.instances[id];
    let block = instance.reservation.as_ref().filter(|_| instance.market == Market::CapacityBlock);
    let block_ends = block.and_then(|id| region.reservations[id].ends_at);
    let region_name = region.name.clone();
    let zone = region.instances[id].zone.clone();
    let world = &mut *call.world;
    let boots_at = world.now + millis(world.settings.boot_ms);
    match world.take_late_refusal(&region_name, &plan.name, &zone) {
        Some((code, message)) => world.schedule(boots_at, &region_name, id, Step::Fail(code, message)),
        None => world.schedule(boots_at, &region_name, id, Step::Run),
    }
    if let Some(ends_at) = block_ends {
        let code = "Server.CapacityBlockEnded".to_owned();
        let message = format!("{code}: The capacity block is about to end");
        world.schedule(ends_at - BLOCK_ENDS_EARLY, &region_name, id, Step::Fail(code, message));
    }
}
