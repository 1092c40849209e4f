//! Containers of an ordinary user.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output, Stdio};

use common::{Bundle, OURS, stderr, stdout, unique};
use serde_json::{Value, json};

/// nobody, who has no subordinate ids and no control groups.
const USER: &str = "65534";

fn as_nobody(program: &str, arguments: &[&str]) -> Output {
    Command::new("setpriv")
        .args(["--reuid", USER, "--regid", USER, "--clear-groups", program])
        .args(arguments)
        .env_remove("XDG_RUNTIME_DIR")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[test]
#[ignore = "needs root"]
fn an_ordinary_user_runs_a_container() {
    let bundle = Bundle::new(&["true"]);
    let path = bundle.path().to_str().unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    let config = bundle.path().join("config.json");
    let _ = fs::remove_file(&config);
    // The build directory may be closed to others.
    let runtime = bundle.path().join("runtime");
    fs::copy(OURS, &runtime).unwrap();
    let runtime = runtime.to_str().unwrap();
    let written = as_nobody(runtime, &["spec", "--rootless", "--bundle", path]);
    assert!(written.status.success(), "{}", stderr(&written));
    let mut json: Value = serde_json::from_str(&fs::read_to_string(&config).unwrap()).unwrap();
    json["process"]["args"] = json!([
        "sh",
        "-c",
        "id -u; tr -s ' ' < /proc/self/uid_map; ls /sys; exit 4"
    ]);
    fs::write(&config, json.to_string()).unwrap();

    let id = &unique();
    let homeless = as_nobody(runtime, &["run", "--bundle", path, id]);
    assert!(stderr(&homeless).contains("--root"), "{homeless:?}");
    let state = bundle.path().join("mine");
    let ours = |arguments: &[&str]| {
        as_nobody(
            runtime,
            &[&["--root", state.to_str().unwrap()], arguments].concat(),
        )
    };
    let output = ours(&["run", "--bundle", path, id]);
    let text = stdout(&output);
    assert!(
        text.starts_with("0\n 0 65534 1\n"),
        "{text}{}",
        stderr(&output)
    );
    assert!(text.contains("kernel"), "{text}");
    assert_eq!(output.status.code(), Some(4));

    json["process"]["args"] = json!(["sleep", "1000"]);
    fs::write(&config, json.to_string()).unwrap();
    let script = format!(
        "{runtime} --root {0} run --detach --bundle {path} {id} >/dev/null 2>&1; {runtime} --root {0} exec {id} ps; {runtime} --root {0} kill {id} KILL; sleep 0.2; {runtime} --root {0} delete {id}; {runtime} --root {0} list -q",
        state.display()
    );
    let output = as_nobody("sh", &["-c", &script]);
    assert!(stdout(&output).contains("sleep 1000"), "{output:?}");
    assert!(!stdout(&output).contains(id.as_str()), "{output:?}");
    // Limits that could not be kept are not left out.
    json["linux"]["resources"] = json!({"pids": {"limit": 5}});
    fs::write(&config, json.to_string()).unwrap();
    let refused = ours(&["run", "--bundle", path, id]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        stderr(&refused).contains("linux.cgroupsPath"),
        "{refused:?}"
    );
}
