//! What the tests share: archives made byte by byte, and images made of them.
// Each test file uses its own part, and none is a crate that others could reach.
#![allow(dead_code, unreachable_pub, unused_imports, unused_macros)]

pub mod beside_tar;
pub mod damage;
pub mod tar_crate;
pub mod trees;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use oci_image::{
    Algorithm, Devices, Digest, Error, Image, Limits, MediaType, Ownership, Platform, Source,
    UnpackOptions, UnpackReport, Unpacker, Whiteouts, open,
};

/// A tar archive that is written field by field, so that it can be wrong in any way.
#[derive(Default)]
pub struct Tar(pub Vec<u8>);

pub struct Head {
    pub name: Vec<u8>,
    pub flag: u8,
    pub link: Vec<u8>,
    pub size: u64,
    pub mode: u32,
    pub uid: u64,
    pub device: (u32, u32),
    pub magic: &'static [u8; 8],
}

impl Head {
    pub fn new(name: impl AsRef<[u8]>, flag: u8) -> Head {
        Head {
            name: name.as_ref().to_vec(),
            flag,
            link: Vec::new(),
            size: 0,
            mode: if flag == b'5' { 0o755 } else { 0o644 },
            uid: 0,
            device: (0, 0),
            magic: b"ustar\x0000",
        }
    }

    pub fn block(&self) -> [u8; 512] {
        let mut block = [0u8; 512];
        block[..self.name.len()].copy_from_slice(&self.name);
        let mut octal = |range: std::ops::Range<usize>, value: u64| {
            let digits = range.len() - 1;
            block[range.start..range.end - 1]
                .copy_from_slice(format!("{value:0digits$o}").as_bytes());
        };
        octal(100..108, u64::from(self.mode));
        octal(108..116, self.uid);
        octal(116..124, self.uid);
        octal(124..136, self.size);
        octal(136..148, 1_000_000_000);
        octal(329..337, u64::from(self.device.0));
        octal(337..345, u64::from(self.device.1));
        block[156] = self.flag;
        block[157..157 + self.link.len()].copy_from_slice(&self.link);
        block[257..265].copy_from_slice(self.magic);
        checksum(&mut block);
        block
    }
}

pub fn checksum(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|&b| u64::from(b)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
}

impl Tar {
    pub fn new() -> Tar {
        Tar::default()
    }

    pub fn head(mut self, head: &Head) -> Tar {
        self.0.extend_from_slice(&head.block());
        self
    }

    pub fn data(mut self, data: &[u8]) -> Tar {
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn with_data(self, name: impl AsRef<[u8]>, flag: u8, data: impl AsRef<[u8]>) -> Tar {
        let data = data.as_ref();
        let mut head = Head::new(name, flag);
        head.size = data.len() as u64;
        self.head(&head).data(data)
    }

    pub fn file(self, name: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Tar {
        self.with_data(name, b'0', data)
    }

    pub fn dir(self, name: impl AsRef<[u8]>) -> Tar {
        self.head(&Head::new(name, b'5'))
    }

    pub fn link(self, flag: u8, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Tar {
        let mut head = Head::new(name, flag);
        head.link = target.as_ref().to_vec();
        self.head(&head)
    }

    pub fn symlink(self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Tar {
        self.link(b'2', name, target)
    }

    pub fn hardlink(self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Tar {
        self.link(b'1', name, target)
    }

    /// A PAX header of `records` for the entry that follows.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Tar {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            write!(data, "{length} {key}=").unwrap();
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.with_data("pax", b'x', data)
    }

    pub fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

/// Options that work for every user: one owner, no devices.
pub fn options(whiteouts: Whiteouts) -> UnpackOptions {
    let me = fs::metadata("/proc/self").unwrap();
    UnpackOptions::new(whiteouts)
        .ownership(Ownership::Squash {
            uid: me.uid(),
            gid: me.gid(),
        })
        .devices(Devices::Skip)
}

/// Unpacks an archive over what `dir` holds, carrying out its whiteouts.
pub fn unpack(archive: &[u8], dir: &Path) -> Result<UnpackReport, Error> {
    unpack_with(archive, dir, &options(Whiteouts::Apply))
}

pub fn unpack_with(
    archive: &[u8],
    dir: &Path,
    options: &UnpackOptions,
) -> Result<UnpackReport, Error> {
    Unpacker::new(options.clone(), Limits::default()).unpack(archive, File::open(dir).unwrap())
}

/// A directory with a `root` to unpack into and a neighbour that nothing may touch.
pub struct Arena {
    dir: tempfile::TempDir,
}

impl Arena {
    pub fn new() -> Arena {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        fs::write(dir.path().join("outside/secret"), "untouched").unwrap();
        Arena { dir }
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    pub fn outside(&self) -> PathBuf {
        self.dir.path().join("outside")
    }

    /// Unpacks all layers of an image into the root.
    pub fn unpack(&self, image: &Image) -> Result<UnpackReport, Error> {
        image.unpack_flat(File::open(self.root()).unwrap(), &options(Whiteouts::Apply))
    }

    /// The neighbour is as it was, and nothing else is beside the root.
    pub fn assert_untouched(&self) {
        let list = |path: &Path| {
            let mut names: Vec<_> = fs::read_dir(path)
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            names.sort();
            names
        };
        assert_eq!(list(self.dir.path()), ["outside", "root"]);
        assert_eq!(list(&self.outside()), ["secret"]);
        assert_eq!(
            fs::read(self.outside().join("secret")).unwrap(),
            b"untouched"
        );
        let secret = fs::metadata(self.outside().join("secret")).unwrap();
        assert_eq!(secret.nlink(), 1);
    }
}

/// A media type, an archive, and how it is stored.
pub type Layer = (&'static str, Vec<u8>, Vec<u8>);

pub fn plain_layer(archive: &[u8]) -> Layer {
    (MediaType::OCI_LAYER, archive.to_vec(), archive.to_vec())
}

pub fn gzip_layer(archive: &[u8]) -> Layer {
    (MediaType::OCI_LAYER_GZIP, archive.to_vec(), gzip(archive))
}

/// An image in a layout of its own: a layer that all of these have, and one that hides a file of it.
pub fn image_in(dir: &Path, text: &str) -> Image {
    let path = dir.join(format!("source-{text}"));
    if !path.exists() {
        let shared = Tar::new()
            .dir("etc/")
            .file("etc/shared", vec![7; 50_000])
            .end();
        let own = Tar::new()
            .file("etc/own", text)
            .file("etc/.wh.shared", "")
            .end();
        let layers = [shared, own].map(|tar| gzip_layer(&tar));
        layout(&path, "latest", &layers);
    }
    open(&path).unwrap()
}

/// The only image of a source, read with other limits.
pub fn open_with(path: &Path, set: impl FnOnce(&mut Limits)) -> Image {
    let mut limits = Limits::default();
    set(&mut limits);
    let source = Source::open_with(path, limits).unwrap();
    source.image(None, &Platform::host()).unwrap()
}

/// Writes a layout by hand: `layers` as blobs with their uncompressed forms, named `name`.
pub fn layout(path: &Path, name: &str, layers: &[Layer]) -> Digest {
    layout_by(Algorithm::Sha256, path, name, layers)
}

/// Like [`layout`], with digests of another kind.
pub fn layout_by(algorithm: Algorithm, path: &Path, name: &str, layers: &[Layer]) -> Digest {
    let blob = |bytes: &[u8]| {
        let digest = Digest::of(algorithm, bytes);
        let dir = path.join("blobs").join(algorithm.as_str());
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(digest.hex()), bytes).unwrap();
        digest
    };
    let diff_ids: Vec<String> = layers
        .iter()
        .map(|(_, plain, _)| Digest::of(algorithm, plain).to_string())
        .collect();
    let config = serde_json::json!({
        "architecture": Platform::host().architecture,
        "os": "linux",
        "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
    .to_string();
    let config_digest = blob(config.as_bytes());
    let layers: Vec<_> = layers
        .iter()
        .map(|(media_type, _, stored)| {
            serde_json::json!({"mediaType": media_type, "digest": blob(stored).to_string(), "size": stored.len()})
        })
        .collect();
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config_digest.to_string(), "size": config.len(),
        },
        "layers": layers,
    })
    .to_string();
    let digest = blob(manifest.as_bytes());
    add_to_index(path, name, &digest, manifest.len());
    digest
}

fn add_to_index(path: &Path, name: &str, digest: &Digest, size: usize) {
    fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let index = path.join("index.json");
    let mut value: serde_json::Value = match fs::read(&index) {
        Ok(bytes) => serde_json::from_slice(&bytes).unwrap(),
        Err(_) => serde_json::json!({"schemaVersion": 2, "manifests": []}),
    };
    value["manifests"]
        .as_array_mut()
        .unwrap()
        .push(serde_json::json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": digest.to_string(), "size": size,
            "annotations": {"org.opencontainers.image.ref.name": name},
        }));
    fs::write(index, value.to_string()).unwrap();
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    ::zstd::stream::encode_all(bytes, 1).unwrap()
}

/// Bytes that hardly compress, the same each time.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 1u32;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_le_bytes()[3]
    })
    .take(length)
    .collect()
}

/// What a program says that must succeed.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Runs buildah or podman in a directory, with a storage and locks there that are theirs alone.
#[track_caller]
pub fn with_storage(program: &str, dir: &Path, args: &[&str]) -> String {
    let settings = dir.join("containers.conf");
    fs::write(&settings, "[engine]\nlock_type = \"file\"\n").unwrap();
    let said = run(Command::new(program)
        .args(["--storage-driver", "vfs", "--root"])
        .arg(dir.join("root"))
        .arg("--runroot")
        .arg(dir.join("run"))
        .args(args)
        .current_dir(dir)
        .env("CONTAINERS_CONF", settings)
        .env("TMPDIR", dir));
    said.trim().to_owned()
}

/// Archives a directory with the system's tar.
pub fn tar_directory(directory: &Path, archive: &Path, options: &[&str]) {
    run(Command::new("tar")
        .args(options)
        .arg("-C")
        .arg(directory)
        .arg("-cf")
        .arg(archive)
        .arg("."));
}

/// The cause of an error is what the pattern says.
macro_rules! assert_cause {
    ($error:expr, $($cause:tt)+) => {
        assert!(matches!($error.cause(), $($cause)+), "{}", $error)
    };
}
pub(crate) use assert_cause;
