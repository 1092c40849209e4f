//! The kernel that the lab boots, and its modules.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::tools::{self, Tool};

const BOOT: &str = "/boot";
const MODULES: &str = "/lib/modules";

/// What the initramfs inserts: the way to the host's files, to this program, and KVM.
const NEEDED: [&str; 8] = [
    "virtio_pci",
    "virtio_console",
    "virtio_rng",
    "9pnet_virtio",
    "9p",
    "overlay",
    "ccp",
    "kvm_amd",
];

/// Debian's kernel, as something that a command may need.
pub(crate) const PACKAGE: Tool = Tool {
    name: "a kernel under /boot with the modules that the lab needs",
    package: "linux-image-amd64",
    why: "boot the lab",
    present: Some(|| newest(Path::new(BOOT), Path::new(MODULES)).is_some()),
};

/// A kernel image and the directory of its modules.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) image: PathBuf,
    pub(crate) version: String,
    modules: PathBuf,
}

impl Kernel {
    /// The newest kernel under /boot that has the modules that the lab needs.
    pub(crate) fn installed() -> Result<Kernel> {
        tools::require(&[PACKAGE])?;
        let image = newest(Path::new(BOOT), Path::new(MODULES))
            .context("no kernel under /boot has the modules that the lab needs")?;
        Kernel::at(&image)
    }

    /// The kernel in this file, with the modules of its version from /lib/modules.
    pub(crate) fn at(image: &Path) -> Result<Kernel> {
        let bytes = fs::read(image).map_err(|error| {
            let shown = image.display();
            match error.kind() {
                io::ErrorKind::PermissionDenied => anyhow::anyhow!(
                    "{shown} may not be read by you; make it readable with `sudo chmod a+r \
                     {shown}`, or give a copy that you may read with --kernel"
                ),
                _ => anyhow::anyhow!(
                    "cannot read the kernel {shown}: {error}; give one with --kernel"
                ),
            }
        })?;
        let version = version_of(&bytes).with_context(|| {
            format!(
                "{} is not a Linux kernel image (bzImage); give one such as /boot/vmlinuz-…",
                image.display()
            )
        })?;
        let modules = Path::new(MODULES).join(&version);
        if !modules.join("modules.dep").is_file() {
            bail!(
                "kernel {version} ({}) has no modules under {}; install the package that it came \
                 from, or choose another kernel with --kernel",
                image.display(),
                modules.display()
            );
        }
        Ok(Kernel {
            image: image.to_path_buf(),
            version,
            modules,
        })
    }

    /// The modules that the lab needs, each after those it depends on, with their content
    /// uncompressed. What is built into the kernel is left out.
    pub(crate) fn modules(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let files = needed(&self.modules)?.map_err(|name| {
            anyhow::anyhow!(
                "kernel {} has no module {name}, which the lab needs; choose another kernel with \
                 --kernel",
                self.version
            )
        })?;
        files
            .iter()
            .map(|file| Ok((module_name(file), read_module(&self.modules.join(file))?)))
            .collect()
    }
}

/// The files of the modules that the lab needs, as [`order`] gives them.
fn needed(modules: &Path) -> Result<Result<Vec<String>, String>> {
    let list = |name: &str| {
        let path = modules.join(name);
        fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}; make it with depmod", path.display()))
    };
    Ok(order(
        &list("modules.dep")?,
        &list("modules.builtin")?,
        &NEEDED,
    ))
}

/// The newest `vmlinuz-VERSION` in `boot` with all needed modules in `modules/VERSION`. Kernels for
/// clouds have fewer than others of the same version.
fn newest(boot: &Path, modules: &Path) -> Option<PathBuf> {
    let mut versions: Vec<String> = fs::read_dir(boot)
        .ok()?
        .flatten()
        .filter_map(|e| Some(e.file_name().to_str()?.strip_prefix("vmlinuz-")?.to_owned()))
        .filter(|version| matches!(needed(&modules.join(version)), Ok(Ok(_))))
        .collect();
    versions.sort_by(|a, b| compare(a, b));
    versions.pop().map(|v| boot.join(format!("vmlinuz-{v}")))
}

/// Compares versions, runs of digits as numbers: 6.1.0-9 is older than 6.1.0-10.
fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a, b);
    loop {
        let split = |s: &str| s.len() - s.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (digits_a, digits_b) = (split(a), split(b));
        if digits_a > 0 && digits_b > 0 {
            let number = |s: &str| s.trim_start_matches('0').to_owned();
            let (x, y) = (number(&a[..digits_a]), number(&b[..digits_b]));
            let order = x.len().cmp(&y.len()).then_with(|| x.cmp(&y));
            if order != Ordering::Equal {
                return order;
            }
            (a, b) = (&a[digits_a..], &b[digits_b..]);
            continue;
        }
        match (a.chars().next(), b.chars().next()) {
            (Some(x), Some(y)) if x == y => (a, b) = (&a[x.len_utf8()..], &b[y.len_utf8()..]),
            (x, y) => return x.cmp(&y),
        }
    }
}

/// The version that a bzImage says it is: its setup header points to a text that begins with it.
/// See Documentation/arch/x86/boot.rst in the kernel's source.
fn version_of(image: &[u8]) -> Option<String> {
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let at = usize::from(u16::from_le_bytes(
        image.get(0x20e..0x210)?.try_into().ok()?,
    )) + 0x200;
    let text = image.get(at..)?.split(|&b| b == 0 || b == b' ').next()?;
    let text = std::str::from_utf8(text).ok()?;
    (!text.is_empty() && !text.contains('/')).then(|| text.to_owned())
}

/// `kernel/net/9p/9pnet.ko.xz` is the module `9pnet`; the kernel takes `-` and `_` for the same.
fn module_name(file: &str) -> String {
    let base = file.rsplit('/').next().unwrap_or(file);
    base.split(".ko").next().unwrap_or(base).replace('-', "_")
}

/// The files of the wanted modules and of all that they depend on, in an order in which they can
/// be inserted. The error is the name of the module that is not there.
fn order(dep: &str, builtin: &str, wanted: &[&str]) -> Result<Vec<String>, String> {
    let builtin: Vec<String> = builtin.lines().map(module_name).collect();
    let lines: HashMap<String, (&str, &str)> = dep
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(file, needs)| (module_name(file), (file, needs)))
        .collect();
    let mut files: Vec<String> = Vec::new();
    for name in wanted {
        let name = name.replace('-', "_");
        let Some((file, needs)) = lines.get(&name) else {
            if builtin.contains(&name) {
                continue;
            }
            return Err(name);
        };
        // depmod lists all that a module needs, directly or not, the last to be inserted first.
        for file in needs.split_whitespace().rev().chain([*file]) {
            if !files.iter().any(|f| f == file) {
                files.push(file.to_owned());
            }
        }
    }
    Ok(files)
}

fn read_module(path: &Path) -> Result<Vec<u8>> {
    // Busybox is in every lab, and its xz and gzip are all that Debian's kernels need.
    let words: &[&str] = match path.extension().and_then(|e| e.to_str()) {
        Some("xz") => &["busybox", "xz", "-d", "-c"],
        Some("gz") => &["busybox", "gzip", "-d", "-c"],
        Some("zst") => &["zstd", "-d", "-c", "-q"],
        _ => {
            return fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        }
    };
    let (program, package) = match words[0] {
        "zstd" => ("zstd", "zstd"),
        _ => ("busybox", "busybox-static"),
    };
    tools::require(&[Tool::program(
        program,
        package,
        "uncompress the kernel's modules",
    )])?;
    let output = Command::new(program)
        .args(&words[1..])
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {program}"))?;
    if !output.status.success() {
        bail!(
            "{program} could not uncompress {}: {}",
            path.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "\
kernel/drivers/virtio/virtio.ko.xz: kernel/drivers/virtio/virtio_ring.ko.xz
kernel/drivers/virtio/virtio_ring.ko.xz:
kernel/net/9p/9pnet.ko.xz:
kernel/net/9p/9pnet_virtio.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/drivers/virtio/virtio.ko.xz kernel/drivers/virtio/virtio_ring.ko.xz
kernel/arch/x86/kvm/kvm-amd.ko: kernel/arch/x86/kvm/kvm.ko
kernel/arch/x86/kvm/kvm.ko:
";

    #[test]
    fn modules_come_after_what_they_need() {
        let names = |wanted: &[&str]| -> Vec<String> {
            let files = order(DEP, "kernel/fs/overlayfs/overlay.ko\n", wanted).unwrap();
            files.iter().map(|f| module_name(f)).collect()
        };
        assert_eq!(
            names(&["9pnet_virtio", "kvm_amd", "overlay"]),
            [
                "virtio_ring",
                "virtio",
                "9pnet",
                "9pnet_virtio",
                "kvm",
                "kvm_amd"
            ]
        );
        assert_eq!(names(&["kvm-amd"]), ["kvm", "kvm_amd"]);
    }

    #[test]
    fn a_module_that_is_nowhere_is_named() {
        assert_eq!(
            order(DEP, "", &["virtio", "overlay"]),
            Err("overlay".to_owned())
        );
    }

    /// "module", as `xz` and `gzip -n` pack it.
    const PACKED: [(&str, &[u8]); 2] = [
        (
            "xz",
            b"\xfd\x37\x7a\x58\x5a\x00\x00\x04\xe6\xd6\xb4\x46\x02\x00\x21\x01\x16\x00\x00\x00\x74\x2f\
          \xe5\xa3\x01\x00\x05\x6d\x6f\x64\x75\x6c\x65\x00\x00\x00\x34\x50\x33\x07\x72\xfc\x7c\xbd\
          \x00\x01\x1e\x06\xc1\x2f\xa4\x1d\x1f\xb6\xf3\x7d\x01\x00\x00\x00\x00\x04\x59\x5a",
        ),
        (
            "gz",
            b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xcb\xcd\x4f\x29\xcd\x49\x05\x00\x28\x26\x24\x0c\
          \x06\x00\x00\x00",
        ),
    ];

    #[test]
    fn compressed_modules_are_uncompressed() {
        let dir = tempfile::tempdir().unwrap();
        for (ending, bytes) in PACKED {
            let path = dir.path().join(format!("a b.ko.{ending}"));
            fs::write(&path, bytes).unwrap();
            assert_eq!(read_module(&path).unwrap(), b"module", "{ending}");
            fs::write(&path, &bytes[..bytes.len() - 9]).unwrap();
            let error = read_module(&path).unwrap_err().to_string();
            assert!(error.contains("a b.ko"), "{error}");
        }
    }

    #[test]
    fn versions_compare_as_numbers() {
        for (older, newer) in [
            ("6.1.0-9-amd64", "6.1.0-10-amd64"),
            ("5.10.0-1", "6.1.0-1"),
            ("6.1", "6.1.1"),
            ("6.1.0-56-amd64", "6.12.1"),
        ] {
            assert_eq!(compare(older, newer), Ordering::Less, "{older} {newer}");
            assert_eq!(compare(newer, older), Ordering::Greater, "{newer} {older}");
        }
        assert_eq!(compare("6.1.0-56", "6.1.0-56"), Ordering::Equal);
    }

    #[test]
    fn the_newest_kernel_with_modules_is_chosen() {
        let dir = tempfile::tempdir().unwrap();
        let (boot, modules) = (dir.path().join("boot"), dir.path().join("mod ules"));
        fs::create_dir(&boot).unwrap();
        for version in [
            "6.1.0-9-amd64",
            "6.1.0-10-amd64",
            "6.1.0-10-cloud-amd64",
            "6.9.0",
        ] {
            fs::write(boot.join(format!("vmlinuz-{version}")), "").unwrap();
        }
        assert_eq!(newest(&boot, &modules), None);
        for (version, has) in [
            ("6.1.0-9-amd64", &NEEDED[..]),
            ("6.1.0-10-amd64", &NEEDED),
            ("6.1.0-10-cloud-amd64", &NEEDED[1..]),
        ] {
            let dir = modules.join(version);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("modules.dep"), "").unwrap();
            let builtin = has.iter().map(|name| format!("kernel/{name}.ko\n"));
            fs::write(dir.join("modules.builtin"), builtin.collect::<String>()).unwrap();
        }
        assert_eq!(
            newest(&boot, &modules),
            Some(boot.join("vmlinuz-6.1.0-10-amd64"))
        );
    }

    #[test]
    fn a_kernel_says_its_version() {
        let mut image = vec![0; 0x400];
        assert_eq!(version_of(&image), None);
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20e..0x210].copy_from_slice(&0x100u16.to_le_bytes());
        image[0x300..0x310].copy_from_slice(b"6.1.0-56-amd64 (");
        assert_eq!(version_of(&image).as_deref(), Some("6.1.0-56-amd64"));
        assert_eq!(version_of(&image[..0x2ff]), None);
    }
}
