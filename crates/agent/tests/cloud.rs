//! What an agent tells of a machine that changes: what its cloud says of it, and devices that come late.

#![cfg(test)]

mod support;

use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use api::agent::*;
use support::events::Events;
use support::metadata::Metadata;
use support::*;

const MACHINE: &str = "i-0123456789abcdef0";
const NOTICE: &str = r#"{"action": "terminate", "time": "2026-11-26T08:22:00Z"}"#;

fn agent_of_cloud(url: &str) -> Agent {
    Agent::with_env(
        &["--cloud", "ec2"],
        &[("DSTACK_AGENT_METADATA_URL", url), ("http_proxy", "http://127.0.0.1:9")],
    )
}

#[tokio::test]
async fn an_agent_says_which_machine_it_runs_on() {
    let service = Metadata::of_machine(MACHINE).await;
    let mut agent = agent_of_cloud(&service.url);
    let machine = agent.hello().await.host.cloud.unwrap();
    assert_eq!((machine.cloud, &*machine.instance_id), (Cloud::Ec2, MACHINE));
    assert_eq!(machine.instance_type.as_deref(), Some("p5.48xlarge"));
    assert_eq!(machine.zone.as_deref(), Some("us-east-2a"));
    eventually("it asks again", async || (service.asked("spot/instance-action") > 2).then_some(())).await;
    assert_eq!((service.asked("instance-id"), service.tokens_given()), (1, 1));
    service.check();
}

#[tokio::test]
async fn an_agent_that_is_not_told_to_asks_no_cloud() {
    let service = Metadata::of_machine(MACHINE).await;
    let mut agent = Agent::with_env(&[], &[("DSTACK_AGENT_METADATA_URL", &service.url)]);
    assert_eq!(agent.hello().await.host.cloud, None);
    let (state, _) = agent.run(&script("true")).await;
    assert_eq!(state.exit.unwrap().reason, ExitReason::Done);
    assert_eq!(service.tokens_given(), 0);
}

#[tokio::test]
async fn a_notice_is_told_at_once_and_whoever_comes_later_learns_of_it() {
    let service = Metadata::of_machine(MACHINE).await;
    let mut agent = agent_of_cloud(&service.url);
    let mut events = Events::of(&mut agent).await;
    let first = events.news("the first", |_| true).await;
    assert_eq!((first.interruption, first.rebalance_at), (None, None));
    // The token grows old meanwhile.
    service.forget_tokens();
    service.set("events/recommendations/rebalance", r#"{"noticeTime": "2026-11-26T08:00:00Z"}"#);
    let warned = events.news("a recommendation", |news| news.rebalance_at.is_some()).await;
    assert_eq!(warned.rebalance_at, Some("2026-11-26T08:00:00Z".parse().unwrap()));
    assert_eq!(warned.interruption, None);
    service.set("spot/instance-action", NOTICE);
    let news = events.news("a notice", |news| news.interruption.is_some()).await;
    let expected = Interruption {
        cloud: Cloud::Ec2,
        action: "terminate".to_owned(),
        at: Some("2026-11-26T08:22:00Z".parse().unwrap()),
    };
    assert_eq!(news.interruption, Some(expected.clone()));
    assert_eq!(agent.hello().await.host.interruption, Some(expected.clone()));
    let again = Events::of(&mut agent).await.news("the first", |_| true).await;
    assert_eq!(again.interruption, Some(expected));
    assert!(service.tokens_given() > 1);
    service.check();
}

#[tokio::test]
async fn a_notice_is_told_by_whoever_hears_it_once() {
    let service = Metadata::of_machine(MACHINE).await;
    let mut agent = agent_of_cloud(&service.url);
    let mut events = Events::of(&mut agent).await;
    // How soon a question follows another is a number that is checked when the agent is built. That the first answer
    // is enough, whatever becomes of all others, is seen here.
    service.set_last_words("spot/instance-action", NOTICE);
    let news = events.news("a notice", |news| news.interruption.is_some()).await;
    assert_eq!(news.interruption.unwrap().action, "terminate");
    service.check();
}

#[tokio::test]
async fn a_notice_is_asked_for_far_more_often_than_anything_else() {
    let service = Metadata::of_machine(MACHINE).await;
    let agent = agent_of_cloud(&service.url);
    let rebalance = "events/recommendations/rebalance";
    eventually("it asks for the rest twice", async || (service.asked(rebalance) == 2).then_some(())).await;
    assert!(service.asked("spot/instance-action") > 5 * service.asked(rebalance));
    drop(agent);
    service.check();
}

#[tokio::test]
async fn a_job_on_a_machine_that_is_taken_back_gets_both_polite_signals() {
    let service = Metadata::of_machine(MACHINE).await;
    let mut agent = agent_of_cloud(&service.url);
    let mut events = Events::of(&mut agent).await;
    let both = "trap 'echo first' INT; trap 'echo second; exit 0' TERM; echo up; while :; do sleep 0.05; done";
    let spec = script(both);
    agent.put(&spec).await;
    agent.wait_for(&spec, "started", |state| state.log_end > 0).await;
    service.set("spot/instance-action", NOTICE);
    events.news("a notice", |news| news.interruption.is_some()).await;
    agent.stop(&spec, 110).await;
    let state = agent.wait_sealed(&spec).await;
    assert_eq!(state.exit.unwrap().reason, ExitReason::Stopped);
    // The shell may tell of the pause that the signal has ended too.
    let said = text(&agent.read_log(spec.id, 0).await.bytes);
    let said: Vec<&str> = said.lines().filter(|line| *line != "Terminated").collect();
    assert_eq!(said, ["up", "first", "second"]);
}

#[tokio::test]
async fn a_notice_whose_time_cannot_be_read_is_a_notice() {
    let service = Metadata::of_machine(MACHINE).await;
    let mut agent = agent_of_cloud(&service.url);
    let mut events = Events::of(&mut agent).await;
    // Nor does anything else that makes no sense hide it.
    service.set("events/recommendations/rebalance", "likely");
    service.set("spot/instance-action", r#"{"action": "stop", "time": "soon"}"#);
    let news = events.news("a notice", |news| news.interruption.is_some()).await;
    assert_eq!(
        news.interruption.unwrap(),
        Interruption { cloud: Cloud::Ec2, action: "stop".to_owned(), at: None }
    );
}

#[tokio::test]
async fn a_silent_service_holds_nothing_up_and_is_asked_again() {
    let service = Metadata::of_machine(MACHINE).await;
    service.be_silent(true);
    let mut agent = agent_of_cloud(&service.url);
    let mut events = Events::of(&mut agent).await;
    assert_eq!(events.news("the first", |_| true).await.cloud, None);
    let (state, _) = agent.run(&script("true")).await;
    assert_eq!(state.exit.unwrap().reason, ExitReason::Done);
    eventually("a warning", async || agent.log().contains("is of no use").then_some(())).await;
    service.be_silent(false);
    let news = events.news("the machine", |news| news.cloud.is_some()).await;
    assert_eq!(news.cloud.unwrap().instance_id, MACHINE);
}

#[tokio::test]
async fn a_machine_without_the_service_is_of_use() {
    // Nobody listens there any more.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let mut agent = agent_of_cloud(&url);
    assert_eq!(agent.hello().await.host.cloud, None);
    let (state, _) = agent.run(&script("true")).await;
    assert_eq!(state.exit.unwrap().reason, ExitReason::Done);
}

/// Adds an RDMA device to the files of a machine.
fn add_device(root: &Path, number: u32, driver: &str) {
    for folder in [format!("infiniband/device{number}"), format!("infiniband_verbs/uverbs{number}")] {
        let folder = root.join("sys/class").join(folder);
        std::fs::create_dir_all(folder.join("device")).unwrap();
        symlink(format!("../../bus/pci/drivers/{driver}"), folder.join("device/driver")).unwrap();
        std::fs::write(folder.join("ibdev"), format!("device{number}\n")).unwrap();
    }
    std::fs::create_dir_all(root.join("dev/infiniband")).unwrap();
    std::fs::write(root.join(format!("dev/infiniband/uverbs{number}")), "").unwrap();
}

#[tokio::test]
async fn devices_that_come_late_are_told_of() {
    let files = tempfile::tempdir().unwrap();
    add_device(files.path(), 0, "efa");
    add_device(files.path(), 1, "mlx5_core");
    std::fs::create_dir_all(files.path().join("sys/class/dmi/id")).unwrap();
    std::fs::write(files.path().join("sys/class/dmi/id/product_name"), "p5en.48xlarge\n").unwrap();
    let root = |name: &str| files.path().join(name).display().to_string();
    let roots = [("DSTACK_AGENT_SYSFS_ROOT", root("sys")), ("DSTACK_AGENT_DEV_ROOT", root("dev"))];
    let roots: Vec<(&str, &str)> = roots.iter().map(|(name, path)| (*name, path.as_str())).collect();
    let mut agent = Agent::with_env(&[], &roots);
    let host = agent.hello().await.host;
    assert_eq!((host.fabric.efa_count(), host.fabric.uverbs.len()), (1, 2));
    assert_eq!(host.product_name.as_deref(), Some("p5en.48xlarge"));
    let mut events = Events::of(&mut agent).await;
    assert_eq!(events.news("the first", |_| true).await.fabric.efa_count(), 1);
    add_device(files.path(), 2, "efa");
    let started = tokio::time::Instant::now();
    let news = events.news("the device", |news| news.fabric.efa_count() == 2).await;
    assert_eq!(news.fabric.uverbs.len(), 3);
    // Long after its start an agent looks only once a minute.
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    add_device(files.path(), 3, "efa");
    assert_eq!(agent.hello().await.host.fabric.efa_count(), 3);
}
