//! Groups of reservations, and reservations that cannot be used.

use backends::{BackendOffer, ErrorKind, MachineState, OffersWanted};
use ec2sim::Kind;
use serde_json::json;

use crate::rig::{REGION, Rig, key, zone_of};

const GROUP: &str = "arn:aws:resource-groups:us-west-2:123456789012:group/training";

fn reserve(rig: &Rig, instance_type: &str, count: u32) {
    let zone = zone_of(instance_type).unwrap();
    let reservation = json!({
        "region": REGION, "zone": zone, "instance_type": instance_type, "count": count, "groups": ["training"],
    });
    rig.control("reservations", reservation);
}

fn of(reservation: &str, least: u32) -> OffersWanted {
    let reservation = Some(reservation.to_owned());
    OffersWanted { least, most: least, cluster: true, spot: Some(false), reservation }
}

async fn offers(rig: &Rig, least: u32) -> Vec<BackendOffer> {
    rig.backend.offers(&of(GROUP, least)).await.unwrap().found
}

#[tokio::test]
async fn a_group_gives_what_its_reservations_have_together_and_nothing_else() {
    let rig = Rig::private().await;
    for count in [1, 2] {
        reserve(&rig, "p5.48xlarge", count);
    }
    reserve(&rig, "g6e.48xlarge", 1);
    // Another one that is in no group.
    let zone = zone_of("p5.48xlarge").unwrap();
    rig.control(
        "reservations",
        json!({ "region": REGION, "zone": zone, "instance_type": "p5.48xlarge", "count": 9 }),
    );
    let offered = offers(&rig, 3).await;
    let told: Vec<(&str, bool)> =
        offered.iter().map(|offer| (offer.instance_type.name.as_str(), offer.availability.is_usable())).collect();
    assert_eq!(told, [("g6e.48xlarge", false), ("p5.48xlarge", true)]);
    let because = offered[0].unavailable_because.as_ref().unwrap();
    assert!(because.contains("has 0 of its 0") || because.contains("1 of its 1 machines free"), "{because}");
    rig.launch(rig.order_for(1, offered[1].clone(), 3, true)).await.unwrap();
    rig.machines(MachineState::Running, 3).await;
    // What the group has no room for is not bought by the hour instead.
    let more = rig.launch(rig.order_for(2, offered[1].clone(), 1, true)).await.unwrap_err();
    assert_eq!(
        (more.kind, more.code.as_deref()),
        (ErrorKind::ReservationUsedUp, Some("ReservationCapacityExceeded"))
    );
    assert_eq!(rig.sim.count_alive(Kind::Instance), 3);
    for index in 0..3 {
        rig.backend.terminate(&key(1, index)).await.unwrap();
    }
}

#[tokio::test]
async fn a_reservation_that_is_nowhere_is_told() {
    let rig = Rig::private().await;
    reserve(&rig, "p5.48xlarge", 1);
    let elsewhere = GROUP.replace("us-west-2", "eu-west-1");
    for unknown in
        ["cr-0123456789abcdef0", "nonsense", "arn:aws:s3:::bucket", &elsewhere, &GROUP.replace("training", "x")]
    {
        let refused = rig.backend.offers(&of(unknown, 1)).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::InvalidRequest);
        assert!(refused.message.contains("is in none of the backend's regions (us-west-2)"), "{refused}");
    }
}
