//! The life of a container by its commands, one after the other and against each other.

mod common;

use std::fs;
use std::io::Read as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Bundle, OURS, create, eventually, received, said, stderr, stdout, unique};
use serde_json::{Value, json};

fn sh(script: &str) -> Bundle {
    Bundle::new(&["sh", "-c", script])
}

fn status(bundle: &Bundle, id: &str) -> Value {
    let state: Value = serde_json::from_str(&bundle.done(&["state", id])).unwrap();
    state["status"].clone()
}

#[test]
#[ignore = "needs root"]
fn a_container_goes_from_created_to_gone() {
    let bundle = sh("echo it runs; sleep 1000");
    let id = &unique();
    let pid_file = bundle.path().join("pid");
    create(&bundle, id, &["--pid-file", pid_file.to_str().unwrap()]);
    assert_eq!(said(&bundle), "");
    let state: Value = serde_json::from_str(&bundle.done(&["state", id])).unwrap();
    assert_eq!(state["status"], "created");
    assert_eq!(state["id"], **id);
    assert_eq!(state["bundle"], bundle.path().to_str().unwrap());
    let pid = fs::read_to_string(&pid_file).unwrap();
    assert_eq!(state["pid"].to_string(), pid);

    let again = bundle.ours(&["create", "--bundle", bundle.path().to_str().unwrap(), id]);
    assert!(stderr(&again).contains("already exists"), "{again:?}");
    bundle.done(&["start", id]);
    assert_eq!(status(&bundle, id), "running");
    eventually("the program has spoken", || said(&bundle) == "it runs\n");
    let again = bundle.ours(&["start", id]);
    assert!(stderr(&again).contains("already running"), "{again:?}");
    let refused = bundle.ours(&["delete", id]);
    assert!(
        stderr(&refused).contains("not stopped: running"),
        "{refused:?}"
    );

    let list: Value = serde_json::from_str(&bundle.done(&["list", "--format", "json"])).unwrap();
    assert_eq!(list[0]["id"], **id);
    assert!(bundle.done(&["list"]).contains("running"));
    assert_eq!(bundle.done(&["list", "--quiet"]).trim_end(), *id);

    bundle.done(&["kill", id, "KILL"]);
    eventually("its end", || status(&bundle, id) == "stopped");
    for command in [&["kill", id][..], &["pause", id], &["exec", id, "true"]] {
        let refused = bundle.ours(command);
        assert!(
            stderr(&refused).contains("container not running"),
            "{refused:?}"
        );
    }
    bundle.done(&["delete", id]);
    let refused = bundle.ours(&["state", id]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("does not exist"), "{refused:?}");
    bundle.done(&["delete", "--force", id]);
    assert_eq!(fs::read_dir(bundle.state()).unwrap().count(), 0);
}

#[test]
#[ignore = "needs root"]
fn programs_are_executed_in_a_running_container() {
    let bundle = sh("sleep 1000");
    let id = &unique();
    create(&bundle, id, &[]);
    bundle.done(&["start", id]);
    let exec = |options: &[&str], args: &[&str]| {
        let line: Vec<&str> = [&["exec"], options, &[id.as_str()], args].concat();
        let output = bundle.ours(&line);
        (stdout(&output), output.status.code(), stderr(&output))
    };
    // The container's own names, processes and files.
    let (text, _, error) = exec(
        &[],
        &[
            "sh",
            "-c",
            "hostname; cat /proc/1/cmdline | tr '\\0' ' '; pwd",
        ],
    );
    assert_eq!(text, "cofferdam\nsleep 1000 /\n", "{error}");
    let options = ["--user", "5:6", "--cwd", "/tmp", "--env", "A=b", "-g", "7"];
    let (text, _, error) = exec(&options, &["sh", "-c", "id; pwd; echo $A"]);
    assert_eq!(text, "uid=5 gid=6 groups=7\n/tmp\nb\n", "{error}");
    assert_eq!(exec(&[], &["sh", "-c", "exit 9"]).1, Some(9));
    assert_eq!(exec(&[], &["sh", "-c", "kill -9 $$"]).1, Some(137));
    let (_, code, error) = exec(&[], &["nothing-of-the-kind"]);
    assert_eq!(code, Some(255));
    assert!(
        error.contains("executable file not found in $PATH"),
        "{error}"
    );
    let (text, ..) = exec(
        &["--cap", "CAP_SYS_TIME", "--user", "0"],
        &["grep", "CapEff", "/proc/self/status"],
    );
    let mask = u64::from_str_radix(text.trim().rsplit('\t').next().unwrap(), 16).unwrap();
    assert!(mask & (1 << 25) != 0, "{text}");
    // In the container's control group.
    let (text, ..) = exec(&[], &["cat", "/proc/self/cgroup"]);
    let (own, ..) = exec(&[], &["cat", "/proc/1/cgroup"]);
    assert_eq!(text, own);

    let process = bundle.path().join("process.json");
    let json =
        json!({"args": ["sh", "-c", "echo $X; exit 4"], "cwd": "/", "env": ["PATH=/bin", "X=y"]});
    fs::write(&process, json.to_string()).unwrap();
    let (text, code, error) = exec(&["--process", process.to_str().unwrap()], &[]);
    assert_eq!((text.as_str(), code), ("y\n", Some(4)), "{error}");
    fs::write(&process, r#"{"args": ["x"], "cwd": 5}"#).unwrap();
    let (_, _, error) = exec(&["--process", process.to_str().unwrap()], &[]);
    assert!(error.contains("cwd: "), "{error}");

    let pid = bundle.path().join("pid");
    let (_, code, error) = exec(
        &["--detach", "--pid-file", pid.to_str().unwrap()],
        &["sh", "-c", "exec sleep 77 > /dev/null 2> /dev/null"],
    );
    assert_eq!(code, Some(0), "{error}");
    let pid: u32 = fs::read_to_string(pid).unwrap().parse().unwrap();
    let pids: Vec<u32> = serde_json::from_str(&bundle.done(&["ps", "-f", "json", id])).unwrap();
    assert!(pids.contains(&pid) && pids.len() == 2, "{pids:?}");
    eventually("ps tells", || bundle.done(&["ps", id]).contains("sleep 77"));
    bundle.done(&["delete", "--force", id]);
    assert!(!Path::new(&format!("/proc/{pid}/exe")).exists());
}

#[test]
#[ignore = "needs root"]
fn a_paused_container_stands_still() {
    let bundle = sh("while :; do echo x; sleep 0.02; done");
    let id = &unique();
    create(&bundle, id, &[]);
    bundle.done(&["start", id]);
    eventually("it runs", || said(&bundle).len() > 4);
    bundle.done(&["pause", id]);
    assert_eq!(status(&bundle, id), "paused");
    let before = said(&bundle);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(said(&bundle), before);
    let refused = bundle.ours(&["exec", id, "true"]);
    assert!(stderr(&refused).contains("paused"), "{refused:?}");
    bundle.done(&["resume", id]);
    eventually("it goes on", || said(&bundle).len() > before.len());
    let refused = bundle.ours(&["resume", id]);
    assert!(stderr(&refused).contains("not paused"), "{refused:?}");
    // A frozen process can be killed, too.
    bundle.done(&["pause", id]);
    bundle.done(&["kill", id, "SIGKILL"]);
    eventually("its end", || status(&bundle, id) == "stopped");
    bundle.done(&["delete", id]);
}

#[test]
#[ignore = "needs root"]
fn limits_are_changed_all_or_none() {
    let bundle = sh("sleep 1000");
    let id = &unique();
    create(&bundle, id, &[]);
    bundle.done(&["update", "--memory", "64M", "--pids-limit", "20", id]);
    let stats =
        || -> Value { serde_json::from_str(&bundle.done(&["events", "--stats", id])).unwrap() };
    let now = stats();
    assert_eq!(now["type"], "stats");
    assert_eq!(now["data"]["memory"]["usage"]["limit"], 64 << 20);
    assert_eq!(now["data"]["pids"]["limit"], 20);
    // The processor is none of this machine's: nothing of it is kept.
    let refused = bundle.ours(&["update", "--pids-limit", "30", "--cpuset-cpus", "900", id]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("cpu.cpus"), "{refused:?}");
    assert_eq!(stats()["data"]["pids"]["limit"], 20);

    // Nor of what goes to a file as it is.
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let (file, resources) = if unified {
        let file = format!("/sys/fs/cgroup/{id}/memory.high");
        let resources = json!({"unified": {"memory.high": "1048576"}});
        (file, resources)
    } else {
        let file = format!("/sys/fs/cgroup/memory/{id}/memory.swappiness");
        (file, json!({"memory": {"swappiness": 11}}))
    };
    let before = fs::read_to_string(&file).unwrap();
    let given = bundle.path().join("resources.json");
    let update = |resources: &Value| {
        fs::write(&given, resources.to_string()).unwrap();
        bundle.ours(&["update", "--resources", given.to_str().unwrap(), id])
    };
    let mut wrong = resources.clone();
    wrong["unified"]["rdma.no-such-file"] = json!("1");
    let refused = update(&wrong);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("unified.rdma"), "{refused:?}");
    assert_eq!(fs::read_to_string(&file).unwrap(), before);
    let taken = update(&resources);
    assert!(taken.status.success(), "{}", stderr(&taken));
    assert_ne!(fs::read_to_string(&file).unwrap(), before);
    bundle.done(&["delete", "--force", id]);
}

#[test]
#[ignore = "needs root"]
fn swap_is_counted_from_the_limit_that_is_there() {
    let bundle = sh("sleep 1000");
    let id = &unique();
    create(&bundle, id, &[]);
    let refused = bundle.ours(&["update", "--memory-swap", "96M", id]);
    assert!(stderr(&refused).contains("memory.swap: "), "{refused:?}");
    bundle.done(&["update", "--memory", "64M", "--memory-swap", "64M", id]);
    bundle.done(&["update", "--memory-swap", "96M", id]);
    let stats: Value = serde_json::from_str(&bundle.done(&["events", "--stats", id])).unwrap();
    let memory = &stats["data"]["memory"];
    assert_eq!(memory["usage"]["limit"], 64 << 20);
    assert_eq!(memory["swap"]["limit"], 32 << 20);
    bundle.done(&["delete", "--force", id]);
}

#[test]
#[ignore = "needs root"]
fn a_process_that_enters_may_be_put_into_a_group_below() {
    let bundle = sh("sleep 1000");
    let id = &unique();
    create(&bundle, id, &[]);
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let (group, option, expected) = if unified {
        (format!("/sys/fs/cgroup/{id}/sub"), "/sub", "0::/sub")
    } else {
        let group = format!("/sys/fs/cgroup/pids/{id}/sub");
        (group, "pids:/sub", ":pids:/sub")
    };
    fs::create_dir(group).unwrap();
    let enter = |option| bundle.ours(&["exec", "--cgroup", option, id, "cat", "/proc/self/cgroup"]);
    let output = enter(option);
    let text = stdout(&output);
    let below: Vec<&str> = text.lines().filter(|line| line.ends_with("/sub")).collect();
    assert_eq!(below.len(), 1, "{text}{}", stderr(&output));
    assert!(below[0].ends_with(expected), "{text}");
    for (option, why) in [("/nowhere", "nowhere"), ("frob:/sub", "frob")] {
        let refused = enter(option);
        assert_eq!(refused.status.code(), Some(255));
        assert!(stderr(&refused).contains(why), "{refused:?}");
    }
    bundle.done(&["delete", "--force", id]);
}

/// What a hook writes down: its point, and the state that it is told.
fn hook(bundle: &Bundle, name: &str) -> Value {
    let file = bundle.path().join("told");
    let script = format!("(echo {name}; cat) >> {}", file.display());
    json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}])
}

#[test]
#[ignore = "needs root"]
fn hooks_are_told_in_order() {
    let mut bundle = sh("true");
    let mut hooks = json!({});
    for point in [
        "prestart",
        "createRuntime",
        "createContainer",
        "poststart",
        "poststop",
    ] {
        hooks[point] = hook(&bundle, point);
    }
    hooks["startContainer"] = json!([{"path": "/bin/sh", "args": ["sh", "-c", "hostname > /tmp/host; cat > /tmp/state"]}]);
    bundle.set("/hooks", hooks);
    bundle.set("/root/readonly", json!(false));
    let id = &unique();
    create(&bundle, id, &[]);
    let told = || fs::read_to_string(bundle.path().join("told")).unwrap();
    let points = || -> Vec<String> {
        let text = told();
        let names = text
            .split('{')
            .next()
            .into_iter()
            .chain(text.split('}').skip(1));
        names
            .filter_map(|part| {
                let name = part.split('{').next()?.trim();
                (!name.is_empty()).then(|| name.to_owned())
            })
            .collect()
    };
    assert_eq!(points(), ["prestart", "createRuntime", "createContainer"]);
    assert!(told().contains(r#""status":"creating""#), "{}", told());
    assert!(!bundle.rootfs().join("tmp/host").exists());
    bundle.done(&["start", id]);
    assert_eq!(points().last().unwrap(), "poststart");
    let read = |name: &str| fs::read_to_string(bundle.rootfs().join("tmp").join(name)).unwrap();
    assert_eq!(read("host"), "cofferdam\n");
    let state: Value = serde_json::from_str(&read("state")).unwrap();
    assert_eq!(state["status"], "created");
    assert_eq!(state["id"], **id);
    eventually("its end", || status(&bundle, id) == "stopped");
    bundle.done(&["delete", id]);
    assert_eq!(points().last().unwrap(), "poststop");
    assert!(told().contains(r#""status":"stopped""#), "{}", told());
}

#[test]
#[ignore = "needs root"]
fn hooks_that_fail_or_hang_end_the_container() {
    for (point, hook, word) in [
        (
            "createRuntime",
            json!([{"path": "/bin/sh", "args": ["sh", "-c", "echo no >&2; exit 3"]}]),
            "no",
        ),
        (
            "createContainer",
            json!([{"path": "/nowhere"}]),
            "not found",
        ),
        (
            "prestart",
            json!([{"path": "/bin/sleep", "args": ["sleep", "100"], "timeout": 1}]),
            "timeout",
        ),
        (
            "startContainer",
            json!([{"path": "/bin/sh", "args": ["sh", "-c", "exit 3"]}]),
            "3",
        ),
        (
            "poststart",
            json!([{"path": "/bin/sh", "args": ["sh", "-c", "exit 3"]}]),
            "3",
        ),
    ] {
        let mut bundle = sh("sleep 1000");
        bundle.set("/hooks", json!({point: hook}));
        let id = &unique();
        let output = bundle.command(OURS, id).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{point}");
        let message = stderr(&output);
        assert!(message.contains(&format!("hooks.{point}[0]")), "{message}");
        assert!(message.contains(word), "{message}");
        bundle.done(&["delete", "--force", id]);
    }
}

#[test]
#[ignore = "needs root"]
fn of_commands_at_once_one_makes_the_container() {
    let bundle = sh("sleep 1000");
    bundle.write();
    let id = &unique();
    let spawn = |arguments: &[&str]| {
        Command::new(OURS)
            .arg("--root")
            .arg(bundle.state())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    for _ in 0..5 {
        let path = bundle.path().to_str().unwrap();
        let mut creating: Vec<_> = (0..6)
            .map(|_| spawn(&["create", "--bundle", path, id]))
            .collect();
        let made = creating
            .iter_mut()
            .map(|child| child.wait().unwrap())
            .filter(std::process::ExitStatus::success)
            .count();
        assert_eq!(made, 1);
        let mut starting: Vec<_> = (0..4).map(|_| spawn(&["start", id])).collect();
        let started = starting
            .iter_mut()
            .map(|child| child.wait().unwrap())
            .filter(std::process::ExitStatus::success)
            .count();
        assert_eq!(started, 1);
        assert_eq!(status(&bundle, id), "running");
        let mut deleting: Vec<_> = (0..4).map(|_| spawn(&["delete", "--force", id])).collect();
        for child in &mut deleting {
            assert!(child.wait().unwrap().success());
        }
        assert_eq!(fs::read_dir(bundle.state()).unwrap().count(), 0);
    }
}

#[test]
#[ignore = "needs root"]
fn a_command_killed_at_any_moment_leaves_what_can_be_deleted() {
    let bundle = sh("sleep 1000");
    bundle.write();
    let path = bundle.path().to_str().unwrap();
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap();
    let before = mounts();
    for step in 0..40 {
        let id = &unique();
        let mut child = Command::new(OURS)
            .arg("--root")
            .arg(bundle.state())
            .args(["create", "--bundle", path, id])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_micros(400 * step));
        child.kill().unwrap();
        child.wait().unwrap();
        bundle.done(&["delete", "--force", id]);
        // Of one that was cut off before it had a name, nothing is known, and it is used again.
        let output = bundle.ours(&["create", "--bundle", path, id, "--pid-file", "/dev/null/x"]);
        assert!(stderr(&output).contains("pid file"), "{output:?}");
        assert_eq!(fs::read_dir(bundle.state()).unwrap().count(), 0, "{step}");
        for root in ["pids", "memory", "unified", ""] {
            let group = Path::new("/sys/fs/cgroup").join(root).join(id);
            assert!(!group.exists(), "{}", group.display());
        }
    }
    assert_eq!(mounts(), before);
}

#[test]
#[ignore = "needs root"]
fn the_terminal_is_handed_over() {
    let mut bundle = sh("tty; stty size; echo done");
    bundle.set("/process/terminal", json!(true));
    bundle.set("/process/consoleSize", json!({"height": 33, "width": 77}));
    let id = &unique();
    let socket = bundle.path().join("console");
    let listener = UnixListener::bind(&socket).unwrap();
    let receiver = std::thread::spawn(move || fs::File::from(received(&listener).0));
    create(&bundle, id, &["--console-socket", socket.to_str().unwrap()]);
    let mut master = receiver.join().unwrap();
    assert!(master.as_raw_fd() > 2);
    bundle.done(&["start", id]);
    let mut text = Vec::new();
    // The end of a terminal whose other side is closed is an error.
    let _ = master.read_to_end(&mut text);
    let text = String::from_utf8(text).unwrap();
    assert_eq!(text, "/dev/pts/0\r\n33 77\r\ndone\r\n");
    bundle.done(&["delete", "--force", id]);

    let refused = bundle.ours(&["create", "--bundle", bundle.path().to_str().unwrap(), id]);
    assert!(stderr(&refused).contains("--console-socket"), "{refused:?}");
}

#[test]
#[ignore = "needs root"]
fn a_pidfd_is_handed_over() {
    let bundle = sh("sleep 1000");
    let id = &unique();
    let socket = bundle.path().join("pidfd");
    let listener = UnixListener::bind(&socket).unwrap();
    let option = ["--pidfd-socket", socket.to_str().unwrap()];
    let number = |fd: std::os::fd::OwnedFd| {
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).unwrap();
        let line = info.lines().find_map(|line| line.strip_prefix("Pid:"));
        line.expect("it is a pidfd").trim().to_owned()
    };
    create(&bundle, id, &option);
    let (pidfd, text) = received(&listener);
    let pid = number(pidfd);
    assert_eq!(String::from_utf8(text).unwrap(), pid);
    let state: Value = serde_json::from_str(&bundle.done(&["state", id])).unwrap();
    assert_eq!(state["pid"].to_string(), pid);
    bundle.done(&["start", id]);

    let pid_file = bundle.path().join("pid");
    let entered = bundle
        .command_of(&["exec", "--detach", option[0], option[1], "--pid-file"])
        .arg(&pid_file)
        .args([id, "sleep", "1000"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    assert!(entered.unwrap().success());
    let (pidfd, _) = received(&listener);
    assert_eq!(number(pidfd), fs::read_to_string(pid_file).unwrap());
    bundle.done(&["delete", "--force", id]);
}

#[test]
#[ignore = "needs root"]
fn run_joins_its_own_terminal() {
    let mut bundle = sh("stty size; read line; echo got $line; exit 6");
    bundle.set("/process/terminal", json!(true));
    bundle.write();
    let line = format!(
        "stty rows 21 cols 43; {OURS} --root {} run --bundle {} {}; echo status $?; stty -a | grep -c ' echo '",
        bundle.state().display(),
        bundle.path().display(),
        unique(),
    );
    // script(1) gives it a terminal.
    let mut child = Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    std::thread::sleep(Duration::from_millis(600));
    std::io::Write::write_all(&mut input, b"word\n").unwrap();
    let mut text = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    child.wait().unwrap();
    assert!(text.contains("21 43\r\n"), "{text}");
    assert!(text.contains("got word\r\nstatus 6\r\n1\r\n"), "{text}");
}

#[test]
#[ignore = "needs root"]
fn descriptors_are_preserved() {
    let bundle = sh("cat <&3; cat <&4; echo $LISTEN_FDS $LISTEN_PID; ls /proc/self/fd | wc -l");
    bundle.write();
    let script = format!(
        "exec 3</etc/hostname 4</etc/hostname; LISTEN_FDS=1 exec {OURS} --root {} run --preserve-fds 1 --bundle {} {}",
        bundle.state().display(),
        bundle.path().display(),
        unique()
    );
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    let name = fs::read_to_string("/etc/hostname").unwrap();
    // The three streams, the two, and the directory that is listed.
    assert_eq!(
        stdout(&output),
        format!("{name}{name}1 1\n6\n"),
        "{}",
        stderr(&output)
    );
}

#[test]
#[ignore = "needs root"]
fn short_containers_never_hang() {
    let bundle = Bundle::new(&["true"]);
    bundle.write();
    for _ in 0..100 {
        let id = unique();
        let begin = Instant::now();
        let output = bundle.command(OURS, &id).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(begin.elapsed() < Duration::from_secs(30));
    }
}

#[test]
#[ignore = "needs root"]
fn errors_are_logged_as_engines_read_them() {
    let bundle = Bundle::new(&["true"]);
    let log = bundle.path().join("log");
    let log = log.to_str().unwrap();
    for (format, expected) in [("json", r#""level":"error""#), ("text", "level=error msg=")] {
        let _ = fs::remove_file(log);
        let output = bundle.ours(&["--log", log, "--log-format", format, "state", "nobody"]);
        assert_eq!(output.status.code(), Some(1));
        let text = fs::read_to_string(log).unwrap();
        assert!(
            text.contains(expected) && text.contains("does not exist"),
            "{text}"
        );
    }
}
