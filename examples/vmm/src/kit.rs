//! Initial RAM disks for a distribution's own kernels: busybox, the modules that this machine's
//! devices need, and a first program.

use std::collections::HashMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::boot::linux;
use crate::cli::GuestArgs;
use crate::error::Error;

const MODULES: &str = "/lib/modules";
const INIT: &[u8] = include_bytes!("kit/init.sh");

/// What a stock kernel needs for our devices. What is built into it is left out.
const WANTED: [&str; 11] = [
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
    "virtio_console",
    "virtio_balloon",
    "vmw_vsock_virtio_transport",
    "pvpanic-mmio",
    "crc32c_generic",
    "ext4",
    "af_packet",
];
/// Of these a kernel may have none.
const OPTIONAL: [&str; 4] = [
    "pvpanic-mmio",
    "vmw_vsock_virtio_transport",
    "af_packet",
    "crc32c_generic",
];

fn fail<T>(what: impl Into<String>) -> Result<T, Error> {
    Err(Error::Kit { what: what.into() })
}

/// Writes the initial RAM disk that the command line asks for.
pub(crate) fn write(args: &GuestArgs) -> Result<(), Error> {
    let Some(kernel) = &args.kernel else {
        return fail("no kernel was given");
    };
    let kernel = find_kernel(kernel)?;
    let archive = archive(&kernel, args)?;
    fs::write(&args.output, archive).map_err(|source| Error::Write {
        path: args.output.clone(),
        source,
    })
}

/// The kernel's file: a path, or what a Debian package has under /boot.
fn find_kernel(given: &Path) -> Result<PathBuf, Error> {
    if given.exists() || given.components().count() > 1 {
        return Ok(given.to_owned());
    }
    let mut package = given.to_owned();
    // A package such as linux-image-amd64 is empty and depends on the one that has the kernel.
    for _ in 0..3 {
        let list = format!("/var/lib/dpkg/info/{}.list", package.display());
        let files = fs::read_to_string(&list).unwrap_or_default();
        if let Some(kernel) = files.lines().find(|f| f.starts_with("/boot/vmlinuz-")) {
            return Ok(kernel.into());
        }
        let depends = Command::new("dpkg-query")
            .args(["-W", "-f", "${Depends}"])
            .arg(&package)
            .stderr(Stdio::null())
            .output();
        let depends = depends.map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
        let Some(next) = depends.ok().and_then(|d| {
            d.split([',', '|'])
                .filter_map(|p| p.split_whitespace().next())
                .find(|p| p.starts_with("linux-image-"))
                .map(PathBuf::from)
        }) else {
            break;
        };
        package = next;
    }
    fail(format!(
        "{} is neither a file nor an installed package with a kernel: give a file such as /boot/vmlinuz-…",
        given.display()
    ))
}

fn archive(kernel: &Path, args: &GuestArgs) -> Result<Vec<u8>, Error> {
    let image = fs::read(kernel).map_err(|source| Error::ReadKernel {
        path: kernel.to_owned(),
        source,
    })?;
    let Some(version) = linux::version(&image) else {
        return fail(format!("{} is no Linux kernel (bzImage)", kernel.display()));
    };
    let modules = Path::new(MODULES).join(&version);
    let mut cpio = Cpio::default();
    for directory in ["bin", "modules", "dev", "proc", "sys"] {
        cpio.entry(directory, 0o040_755, &[]);
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .iter()
        .find_map(|p| fs::read(p).ok());
    let Some(busybox) = busybox else {
        return fail("there is no busybox: install the package busybox-static");
    };
    cpio.entry("bin/busybox", 0o100_755, &busybox);
    cpio.entry("init", 0o100_755, INIT);
    if let Some(init) = &args.init {
        let program = fs::read(init).map_err(|source| Error::ReadInitrd {
            path: init.clone(),
            source,
        })?;
        cpio.entry("guest-init", 0o100_755, &program);
    }
    let mut order = String::new();
    let more = args.module.iter().map(String::as_str);
    for file in find_modules(&modules, WANTED.iter().copied().chain(more))? {
        let name = module_name(&file);
        cpio.entry(
            &format!("modules/{name}"),
            0o100_644,
            &read_module(&modules.join(&file))?,
        );
        order += &name;
        order.push('\n');
    }
    cpio.entry("modules/order", 0o100_644, order.as_bytes());
    Ok(cpio.finish())
}

/// `kernel/net/a-b.ko.xz` is the module `a_b`.
fn module_name(file: &str) -> String {
    let base = file.rsplit('/').next().unwrap_or(file);
    base.split(".ko").next().unwrap_or(base).replace('-', "_")
}

/// The files of the modules and of those they depend on, in an order in which they can be inserted.
fn find_modules<'a>(
    root: &Path,
    wanted: impl Iterator<Item = &'a str>,
) -> Result<Vec<String>, Error> {
    let list = |name: &str| fs::read_to_string(root.join(name));
    let (Ok(dependencies), Ok(builtin)) = (list("modules.dep"), list("modules.builtin")) else {
        return fail(format!(
            "{} has no modules.dep and modules.builtin: install the package that the kernel came from",
            root.display()
        ));
    };
    let lines: HashMap<String, (&str, &str)> = dependencies
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(file, needs)| (module_name(file), (file, needs)))
        .collect();
    let mut files: Vec<String> = Vec::new();
    for name in wanted {
        let Some((file, needs)) = lines.get(&name.replace('-', "_")) else {
            let is_builtin = builtin
                .lines()
                .any(|l| module_name(l) == name.replace('-', "_"));
            if is_builtin || OPTIONAL.contains(&name) {
                continue;
            }
            return fail(format!("{} has no module {name}", root.display()));
        };
        for file in needs.split_whitespace().rev().chain([*file]) {
            if !files.iter().any(|f| f == file) {
                files.push(file.to_owned());
            }
        }
    }
    Ok(files)
}

/// A module's content, uncompressed.
fn read_module(path: &Path) -> Result<Vec<u8>, Error> {
    let (program, package) = match path.extension().and_then(|e| e.to_str()) {
        Some("xz") => ("xz", "xz-utils"),
        Some("gz") => ("gzip", "gzip"),
        Some("zst") => ("zstd", "zstd"),
        _ => {
            return fs::read(path)
                .or_else(|e| fail(format!("cannot read {}: {e}", path.display())));
        }
    };
    let output = Command::new(program)
        .args(["-d", "-c"])
        .arg(path)
        .stdin(Stdio::null())
        .output();
    match output {
        Ok(output) if output.status.success() => Ok(output.stdout),
        Ok(output) => fail(format!(
            "{program} cannot uncompress {}: {}",
            path.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Err(e) => fail(format!(
            "cannot start {program}: {e}; install the package {package}"
        )),
    }
}

/// An archive as the kernel unpacks it: cpio(5), "new ASCII format". No times: the same content gives
/// the same archive.
#[derive(Default)]
struct Cpio {
    bytes: Vec<u8>,
    count: usize,
}

impl Cpio {
    fn entry(&mut self, path: &str, mode: u32, data: &[u8]) {
        self.count += 1;
        let (inode, size, name) = (self.count, data.len(), path.len() + 1);
        // Inode, mode, uid, gid, links, time, size, devices, length of the name, checksum.
        let header = format!(
            "070701{inode:08x}{mode:08x}{0:08x}{0:08x}{1:08x}{0:08x}{size:08x}{0:08x}{0:08x}{0:08x}{0:08x}{name:08x}{0:08x}",
            0, 1
        );
        self.bytes.extend(header.as_bytes());
        self.bytes.extend(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        // Writing to a vector cannot fail.
        let _ = self.bytes.write_all(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}
