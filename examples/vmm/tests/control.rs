//! What the control socket's clients can ask, and what they get when they ask for what there is not.

mod common;

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use common::{Running, Scratch, busy, counts, run};

fn start(dir: &Scratch, kernel: &str) -> Running {
    let args = ["boot", "--kernel", kernel, "--memory", "16", "--cpus", "2"];
    let mut machine = Running::start(dir, "it", &args);
    machine.wait_for(|out| counts(out).len() > 1);
    machine
}

#[test]
#[ignore = "needs kvm"]
fn a_paused_machine_stands_still_until_it_is_resumed() {
    let dir = Scratch::new();
    let mut machine = start(&dir, &busy(&dir));
    // Twice is as good as once, and so it is for going on.
    for _ in 0..2 {
        assert_eq!(machine.ask("PUT /pause", "").0, 200);
    }
    let exits = |machine: &Running| machine.ask("GET /metrics", "").1["exits"].clone();
    let (before, said) = (exits(&machine), machine.out());
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!((exits(&machine), machine.out()), (before, said.clone()));
    for _ in 0..2 {
        assert_eq!(machine.ask("PUT /resume", "").0, 200);
    }
    machine.wait_for(|out| counts(out).len() > counts(&said).len() + 2);
    // One that is paused can be ended all the same.
    assert_eq!(machine.ask("PUT /pause", "").0, 200);
    machine.shut_down();
}

#[test]
#[ignore = "needs kvm"]
fn it_tells_of_the_machine_and_what_it_did() {
    let dir = Scratch::new();
    let kernel = busy(&dir);
    let machine = start(&dir, &kernel);
    let printed = run(&[
        "config", "--kernel", &kernel, "--memory", "16", "--cpus", "2",
    ]);
    let printed: serde_json::Value = serde_json::from_str(&printed.out).unwrap();
    assert_eq!(machine.ask("GET /machine", ""), (200, printed));
    let (status, metrics) = machine.ask("GET /metrics", "");
    assert_eq!(status, 200);
    assert_eq!(metrics["guest_memory_bytes"], 16 << 20);
    let resident = metrics["guest_resident_bytes"].as_u64().unwrap();
    // It counts in a hundred pages.
    assert!((100 << 12..16 << 20).contains(&resident), "{metrics}");
    assert!(metrics["exits"]["port_out"].as_u64().unwrap() > 9);
    let devices = metrics["devices"].as_array().unwrap().iter();
    let kinds: Vec<_> = devices.map(|d| d["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["entropy", "balloon"]);
    assert_eq!(machine.ask("PUT /balloon", "{\"mib\":4}").0, 200);
    let (_, metrics) = machine.ask("GET /metrics", "");
    assert_eq!(metrics["devices"][1]["wanted_bytes"], 4 << 20);
    machine.shut_down();
}

#[test]
#[ignore = "needs kvm"]
fn what_is_no_request_is_refused_and_does_no_harm() {
    let dir = Scratch::new();
    let mut machine = start(&dir, &busy(&dir));
    for (request, body, status) in [
        ("GET /", "", 404),
        ("DELETE /machine", "", 405),
        ("GET /shutdown", "", 405),
        ("PUT /snapshot", "", 400),
        ("PUT /snapshot", "{\"to\":\"s\",\"more\":1}", 400),
        ("PUT /balloon", "{\"mib\":-1}", 400),
        ("PUT /balloon", &"x".repeat(70_000), 413),
    ] {
        let (got, answer) = machine.ask(request, body);
        assert_eq!(got, status, "{request} {body}: {answer}");
        assert!(answer["error"].is_string(), "{answer}");
    }
    for text in [
        "nonsense\r\n\r\n",
        "GET /machine SPDY\r\n\r\n",
        "PUT /pause HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        &format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(5000)),
    ] {
        let mut stream = UnixStream::connect(dir.path("it.control")).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 400 Bad Request\r\n"),
            "{text}: {answer}"
        );
    }
    // One who goes before the answer, and one who says nothing.
    drop(machine.begin("GET /metrics", ""));
    drop(UnixStream::connect(dir.path("it.control")).unwrap());
    let said = counts(&machine.out()).len();
    machine.wait_for(|out| counts(out).len() > said);
    machine.shut_down();
}
