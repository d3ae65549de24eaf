//! Faults on request, and what is left behind by each.

use std::net::SocketAddr;
use std::time::Duration;

use ec2sim::{Kind, Outcome, Simulator, serve};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::account::{Account, calm, set};

#[test]
fn errors_come_before_or_after_the_effect() {
    let account = Account::new(calm());
    let launch = account.launch("p4d.24xlarge", "us-west-2a", (1, 1));
    let fault = |what| json!({"action": "RunInstances", "times": 1, "what": what, "code": "Unavailable", "message": "x", "status": 503});
    for (what, left) in [("error_before", 0), ("error_after", 1)] {
        account.order("faults", &fault(what));
        let refused = account.ask_with("RunInstances", &launch).unwrap_err();
        assert_eq!((refused.status, refused.code.as_str()), (503, "Unavailable"));
        assert_eq!(account.alive(Kind::Instance), left, "{what}");
    }
    account.run(&launch);
}

#[test]
fn a_lost_reply_is_found_again_by_its_token() {
    let account = Account::new(calm());
    let mut launch = account.launch("p4d.24xlarge", "us-west-2a", (2, 2));
    set(&mut launch, "ClientToken", "token");
    for (what, left) in [("lost_request", 0), ("lost_reply", 2)] {
        account.order("faults", &json!({"action": "RunInstances", "times": 1, "what": what}));
        assert_eq!(account.call("RunInstances", &launch).outcome, Outcome::Cut);
        assert_eq!(account.alive(Kind::Instance), left, "{what}");
    }
    assert_eq!(account.run(&launch).len(), 2);
    assert_eq!(account.alive(Kind::Instance), 2);
}

#[test]
fn a_late_answer_is_done_at_once() {
    let account = Account::new(calm());
    account.order("faults", &json!({"action": "*", "after": 2, "times": 1, "what": "delay", "ms": 700}));
    // The image and the subnet are asked for first.
    let launch = account.launch("p4d.24xlarge", "us-west-2a", (1, 1));
    assert_eq!(account.call("RunInstances", &launch).delay, Duration::from_millis(700));
    assert_eq!(account.alive(Kind::Instance), 1);
}

#[test]
fn a_fault_that_makes_no_sense_is_refused() {
    let account = Account::new(calm());
    for body in [
        json!({"action": "RunInstances", "what": "explode"}),
        json!({"action": "RunInstances", "what": "lost_reply", "ms": 1}),
        json!({"action": "RunInstances", "what": "error_before", "code": "X"}),
        json!({"action": "RunInstances", "what": "lost_reply", "colour": "red"}),
        json!({"action": "RunInstances", "what": "lost_reply", "times": 0}),
    ] {
        assert!(account.simulator.control("faults", &body).is_err(), "{body}");
    }
}

/// Over HTTP, a cut is the end of the connection in the middle of an answer, after which nothing more comes.
#[tokio::test]
async fn a_cut_connection_is_cut() {
    let account = Account::new(calm());
    let simulator: Simulator = account.simulator.clone();
    let server = serve(simulator, SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    account.order("faults", &json!({"action": "DescribeVpcs", "times": 1, "what": "lost_reply"}));
    let now = account.simulator.now().strftime("%Y%m%dT%H%M%SZ").to_string();
    let body = "Action=DescribeVpcs&Version=2016-11-15";
    let request = format!(
        "POST / HTTP/1.1\r\nhost: x\r\nx-amz-date: {now}\r\ncontent-length: {}\r\nauthorization: AWS4-HMAC-SHA256 \
         Credential={}/{}/us-west-2/ec2/aws4_request, SignedHeaders=host;x-amz-date, Signature={}\r\n\r\n{body}",
        body.len(),
        account.access_key,
        &now[..8],
        "0".repeat(64)
    );
    let ask = async || {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = vec![0; 64 * 1024];
        let mut got = Vec::new();
        let reading = async {
            loop {
                match stream.read(&mut answer).await {
                    Ok(0) | Err(_) => return true,
                    Ok(count) => got.extend_from_slice(&answer[..count]),
                }
                if got.ends_with(b"</DescribeVpcsResponse>") {
                    return false;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(10), reading).await.expect("something happens")
    };
    assert!(ask().await, "the first answer is cut");
    assert!(!ask().await, "the second comes");
}
