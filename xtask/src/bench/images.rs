//! Images unpacked by us and by others, from a layout and from a registry, all of it in memory.

use std::ffi::OsString;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::contender::{last_words, quantile};
use super::peers::LeftOut;
use super::{done, order, write};
use crate::exec;
use crate::places;
use crate::tools::{self, Tool};

const TOOLS: [Tool; 5] = [
    Tool::program("time", "time", "tell what a command used"),
    Tool::program(
        "docker-registry",
        "docker-registry",
        "be the registry on this machine",
    ),
    Tool::program("umoci", "umoci", "be compared with"),
    Tool::program("skopeo", "skopeo", "be compared with"),
    Tool::program("podman", "podman", "be compared with"),
];
const OURS: &str = "cofferdam";
/// Name, layers, files of each layer, and bytes of each file.
const IMAGES: [(&str, u32, u32, u32); 3] = [
    ("one large layer", 1, 63_400, 22 << 10),
    ("one layer of small files", 1, 50_000, 1 << 10),
    ("ten layers", 10, 3000, 22 << 10),
];
/// How long one of them may take with one image.
const LIMIT: Duration = Duration::from_mins(10);
/// How long the registry may take to listen.
const LISTEN: Duration = Duration::from_secs(20);
/// Unpacks all layers of an image's blobs into the directory `$0`.
const GNU_TAR: &str = r#"for blob; do tar -xzf "$blob" -C "$0" || exit; done"#;

/// The words of a command that works into an empty directory.
type Words = Box<dyn Fn(&Path) -> Vec<OsString>>;

struct Contender {
    name: &'static str,
    words: Words,
    uses: Vec<Use>,
}

/// What one run used: seconds on the clock, of the processors, and the memory of its largest process in MiB.
#[derive(Clone, Copy)]
struct Use {
    elapsed: f64,
    cpu: f64,
    memory: f64,
}

#[derive(Serialize)]
struct Results {
    cpus: usize,
    rounds: u32,
    percent: u32,
    images: Vec<Image>,
    /// Microseconds to find an image that is present with its unpacked layers.
    look_up_us: f64,
}

#[derive(Serialize)]
struct Image {
    name: &'static str,
    lines: Vec<Line>,
    left_out: Vec<LeftOut>,
}

/// The best time, medians, and how they compare with ours.
#[derive(Serialize)]
struct Line {
    name: &'static str,
    best_s: f64,
    elapsed_s: f64,
    elapsed_times_ours: f64,
    cpu_times_ours: f64,
    memory_mib: f64,
}

pub(crate) fn run(rounds: u32, percent: u32) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!(
            "images are unpacked as root; run `sudo -E env PATH=\"$PATH\" cargo xtask bench --images`"
        );
    }
    tools::require(&TOOLS)?;
    exec::catch_signals();
    // Podman makes a name of an image's path and wants it in lower case.
    let scratch = tempfile::Builder::new()
        .prefix(&format!("cofferdam-bench-{}", std::process::id()))
        .rand_bytes(0)
        .tempdir_in("/dev/shm")
        .context("cannot make a directory in memory, in /dev/shm")?;
    let programs = Programs::build()?;
    let registry = Registry::start(scratch.path())?;
    let mut images = Vec::new();
    for (number, (name, layers, files, bytes)) in IMAGES.into_iter().enumerate() {
        let layout = scratch.path().join(format!("image-{number}"));
        let files = (files * percent / 100).max(1);
        let mut make = Command::new(&programs.images);
        make.arg("make").arg(&layout);
        make.args([layers, files, bytes].map(|n| n.to_string()));
        done(make, exec::quiet)?;
        images.push(compare(
            name,
            programs.for_layout(&layout)?,
            scratch.path(),
            rounds,
        )?);
        if number == 0 {
            let pushed = format!("{}/bench:1", registry.host);
            let mut copy = Command::new(&programs.copy);
            copy.arg(&layout).arg(format!("docker://{pushed}"));
            done(copy, exec::quiet)?;
            let pulls = programs.for_registry(&layout, &pushed);
            let name = "one large layer, from a registry on this machine";
            images.push(compare(name, pulls, scratch.path(), rounds)?);
        }
    }
    let mut look_up = Command::new(&programs.images);
    look_up.arg("look-up").arg(scratch.path().join("image-2"));
    look_up.arg(scratch.path().join("store")).arg("1000");
    let results = Results {
        cpus: thread::available_parallelism().map_or(1, usize::from),
        rounds,
        percent,
        images,
        look_up_us: done(look_up, exec::quiet)?
            .trim()
            .parse()
            .context("the time to look an image up is no number")?,
    };
    println!(
        "\nfinding a present image and its unpacked layers: {} µs",
        results.look_up_us
    );
    println!(
        "{} rounds with {} CPUs, images of {} % of their size",
        results.rounds, results.cpus, results.percent
    );
    println!("\nwritten: {}", write("images", &results)?.display());
    Ok(())
}

/// Runs all in turn, each round beginning with another; what does not work here is left out.
fn compare(
    name: &'static str,
    contenders: Vec<Contender>,
    scratch: &Path,
    rounds: u32,
) -> Result<Image> {
    let mut left_out = Vec::new();
    let mut able = Vec::new();
    for contender in contenders {
        eprintln!("{name}: {} for the first time", contender.name);
        match once(&contender, scratch)? {
            Ok(_) => able.push(contender),
            Err(why) if contender.name == OURS => bail!("{OURS} cannot do its work: {why}"),
            Err(reason) => left_out.push(LeftOut {
                name: contender.name,
                reason,
            }),
        }
    }
    for round in 0..rounds {
        eprintln!("{name}: round {} of {rounds}", round + 1);
        for at in order(round, able.len()) {
            let contender = &mut able[at];
            match once(contender, scratch)? {
                Ok(used) => contender.uses.push(used),
                Err(why) => bail!("{} failed in round {}: {why}", contender.name, round + 1),
            }
        }
    }
    let at = |contender: &Contender, percent, of: fn(&Use) -> f64| {
        let mut values: Vec<f64> = contender.uses.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        quantile(&values, percent)
    };
    let median = |contender: &Contender, of| at(contender, 50, of);
    let ours = able
        .iter()
        .find(|contender| contender.name == OURS)
        .context("we are among those that are compared")?;
    let (elapsed, cpu) = (
        median(ours, |used| used.elapsed),
        median(ours, |used| used.cpu),
    );
    let lines = able
        .iter()
        .map(|contender| Line {
            name: contender.name,
            best_s: at(contender, 0, |used| used.elapsed),
            elapsed_s: median(contender, |used| used.elapsed),
            elapsed_times_ours: median(contender, |used| used.elapsed) / elapsed,
            cpu_times_ours: median(contender, |used| used.cpu) / cpu,
            memory_mib: median(contender, |used| used.memory),
        })
        .collect();
    let image = Image {
        name,
        lines,
        left_out,
    };
    // Now, as the next one takes minutes.
    print(&image);
    Ok(image)
}

/// Runs it once into a new directory, which is removed afterwards; what it used, or its last words.
fn once(contender: &Contender, scratch: &Path) -> Result<Result<Use, String>> {
    let (directory, report) = (scratch.join("unpacked"), scratch.join("used"));
    fs::create_dir(&directory).context("cannot make a directory to unpack into")?;
    let mut command = Command::new("time");
    command
        .args(["--format", "%e %U %S %M", "--output"])
        .arg(&report)
        .args((contender.words)(&directory))
        .envs(settings(&directory)?)
        .env("TMPDIR", &directory);
    let ran = exec::run(command, LIMIT, exec::quiet)?;
    fs::remove_dir_all(&directory)
        .with_context(|| format!("cannot remove what {} unpacked", contender.name))?;
    if !ran.success() {
        return Ok(Err(last_words(&ran.output, ran.end())));
    }
    let report = fs::read_to_string(&report).context("cannot read what time wrote")?;
    let numbers: Vec<f64> = report
        .split_whitespace()
        .filter_map(|number| number.parse().ok())
        .collect();
    let [elapsed, user, system, kibibytes] = numbers[..] else {
        bail!("time wrote something else than four numbers: {report:?}");
    };
    Ok(Ok(Use {
        elapsed,
        cpu: user + system,
        memory: kibibytes / 1024.0,
    }))
}

/// Settings for skopeo and podman by which all that they keep is in `directory`, locks too: what to set to which path.
fn settings(directory: &Path) -> Result<[(&'static str, PathBuf); 2]> {
    let shown = directory.display();
    let storage = format!(
        "[storage]\ndriver = \"overlay\"\ngraphroot = \"{shown}/root\"\nrunroot = \"{shown}/run\"\n"
    );
    let engine = "[engine]\nlock_type = \"file\"\n".to_owned();
    let set = [
        ("CONTAINERS_STORAGE_CONF", directory.join("storage.conf")),
        ("CONTAINERS_CONF", directory.join("containers.conf")),
    ];
    for ((_, path), text) in set.iter().zip([storage, engine]) {
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(set)
}

/// Our programs.
struct Programs {
    images: PathBuf,
    unpack: PathBuf,
    copy: PathBuf,
}

impl Programs {
    fn build() -> Result<Programs> {
        for words in [
            &["--package", "benches", "--example", "images"][..],
            &[
                "--package",
                "cofferdam-oci-image",
                "--features",
                "registry",
                "--example",
                "unpack",
                "--example",
                "copy",
            ],
        ] {
            let mut cargo = Command::new(places::cargo());
            cargo
                .args(["build", "--release"])
                .args(words)
                .current_dir(places::workspace());
            done(cargo, exec::aloud)?;
        }
        let examples = places::target().join("release/examples");
        Ok(Programs {
            images: examples.join("images"),
            unpack: examples.join("unpack"),
            copy: examples.join("copy"),
        })
    }

    fn inflate(&self, layout: &Path) -> Contender {
        let words: [OsString; 3] = [
            self.images.clone().into(),
            "inflate".into(),
            layout.to_owned().into(),
        ];
        contender("inflating alone", move |_| words.to_vec())
    }

    fn ours(&self, image: OsString) -> Contender {
        let program = self.unpack.clone();
        contender(OURS, move |directory| {
            vec![
                program.clone().into(),
                image.clone(),
                directory.join("rootfs").into(),
            ]
        })
    }

    fn for_layout(&self, layout: &Path) -> Result<Vec<Contender>> {
        let blobs = blobs(layout)?;
        let named = |prefix: &str| -> OsString {
            let mut name = OsString::from(prefix);
            name.push(layout);
            name.push(":latest");
            name
        };
        let umoci = named("");
        let mut all = vec![
            self.inflate(layout),
            self.ours(named("")),
            contender("GNU tar -xz", move |directory| {
                let words: [OsString; 4] =
                    ["sh".into(), "-c".into(), GNU_TAR.into(), directory.into()];
                let blobs = blobs.iter().map(|blob| blob.clone().into());
                words.into_iter().chain(blobs).collect()
            }),
            contender("umoci", move |directory| {
                let words: [OsString; 4] = [
                    "umoci".into(),
                    "unpack".into(),
                    "--image".into(),
                    umoci.clone(),
                ];
                let last = directory.join("bundle").into();
                words.into_iter().chain([last]).collect()
            }),
        ];
        all.extend(containers(named("oci:"), &[], named("oci:"), &[]));
        Ok(all)
    }

    fn for_registry(&self, layout: &Path, pushed: &str) -> Vec<Contender> {
        let mut all = vec![
            self.inflate(layout),
            self.ours(format!("docker://{pushed}").into()),
        ];
        all.extend(containers(
            format!("docker://{pushed}").into(),
            &["--src-tls-verify=false"],
            pushed.into(),
            &["--tls-verify=false"],
        ));
        all
    }
}

/// skopeo and podman, in a mount namespace, as their storage leaves mounts behind.
fn containers(
    for_skopeo: OsString,
    skopeo_options: &'static [&'static str],
    for_podman: OsString,
    podman_options: &'static [&'static str],
) -> [Contender; 2] {
    let skopeo = contender("skopeo to containers-storage", move |_| {
        ["unshare", "--mount", "skopeo", "--insecure-policy", "copy"]
            .iter()
            .chain(skopeo_options)
            .map(OsString::from)
            .chain([
                for_skopeo.clone(),
                "containers-storage:localhost/bench".into(),
            ])
            .collect()
    });
    let podman = contender("podman pull", move |_| {
        ["unshare", "--mount", "podman", "pull", "--quiet"]
            .iter()
            .chain(podman_options)
            .map(OsString::from)
            .chain([for_podman.clone()])
            .collect()
    });
    [skopeo, podman]
}

fn contender(name: &'static str, words: impl Fn(&Path) -> Vec<OsString> + 'static) -> Contender {
    Contender {
        name,
        words: Box::new(words),
        uses: Vec::new(),
    }
}

/// The layers of the only image in a layout, lowest first.
fn blobs(layout: &Path) -> Result<Vec<PathBuf>> {
    let read = |path: &Path| -> Result<serde_json::Value> {
        let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(serde_json::from_slice(&text)?)
    };
    let blob = |descriptor: &serde_json::Value| -> Result<PathBuf> {
        let digest = descriptor["digest"]
            .as_str()
            .context("there is no digest")?;
        Ok(layout.join("blobs").join(digest.replace(':', "/")))
    };
    let index = read(&layout.join("index.json"))?;
    let manifest = read(&blob(&index["manifests"][0])?)?;
    let layers = manifest["layers"]
        .as_array()
        .context("there are no layers")?;
    layers.iter().map(blob).collect()
}

/// A registry in memory, ended when it is dropped.
struct Registry {
    child: Child,
    host: String,
}

impl Registry {
    fn start(scratch: &Path) -> Result<Registry> {
        let host = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .context("cannot find a free port")?
            .to_string();
        let config = scratch.join("registry.yml");
        let settings = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {host}\n",
            scratch.join("registry").display()
        );
        fs::write(&config, settings).context("cannot write the registry's settings")?;
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start docker-registry")?;
        let registry = Registry { child, host };
        let start = Instant::now();
        while TcpStream::connect(&registry.host).is_err() {
            exec::go_on()?;
            if start.elapsed() > LISTEN {
                bail!("docker-registry does not listen on {}", registry.host);
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(registry)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn print(image: &Image) {
    println!(
        "\n{:<50} {:>9} {:>9} {:>8} {:>8} {:>9}",
        image.name, "best", "median", "ours ×", "CPU ×", "memory"
    );
    for line in &image.lines {
        println!(
            "  {:<48} {:>7.2} s {:>7.2} s {:>8.2} {:>8.2} {:>5.0} MiB",
            line.name,
            line.best_s,
            line.elapsed_s,
            line.elapsed_times_ours,
            line.cpu_times_ours,
            line.memory_mib
        );
    }
    for left in &image.left_out {
        println!(
            "  {}: left out, it does not work here: {}",
            left.name, left.reason
        );
    }
}
