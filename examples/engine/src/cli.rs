//! The command line: what a person types, parsed into types.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand};

/// Run OCI images as containers.
///
/// An image is a directory or a file on disk: an OCI image layout, or an
/// archive made by `docker save`, `podman save`, `buildah push` or `skopeo
/// copy`. It is verified, unpacked, given limits and run; nothing is left
/// behind.
#[derive(Debug, Parser)]
#[command(name = "cofferdam", version, about, propagate_version = true)]
pub(crate) struct Cli {
    /// Directory for running containers' files.
    ///
    /// It must be on a filesystem that overlayfs can write to (ext4, xfs,
    /// btrfs, tmpfs). [default: /var/lib/cofferdam for root, else
    /// $XDG_DATA_HOME/cofferdam or ~/.local/share/cofferdam]
    #[arg(long, global = true, value_name = "DIR", env = "COFFERDAM_ROOT")]
    pub(crate) root: Option<PathBuf>,

    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a command in a new container.
    Run(Run),
    /// Make an image of a directory.
    Pack(Pack),
}

/// Run a command in a new container.
///
/// The container has its own pid, mount, uts, ipc, net and cgroup namespaces,
/// and a user namespace when it is started by an ordinary user. Its root is
/// the image under a writable layer that is thrown away afterwards.
///
/// Exit status: the command's own; 128+N if signal N ended it; 125 if
/// cofferdam itself failed, 126 if the command could not be executed, 127 if
/// it was not found.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cofferdam run ./image                               the image's own command
  cofferdam run ./image:v2 sh -c 'echo hello'         a tag in an OCI layout
  cofferdam run --memory 64M --pids 32 ./app.tar      with limits
  cofferdam run --summary ./image touch /new          then say what it changed")]
pub(crate) struct Run {
    /// Memory limit in bytes, with suffix K, M, G or T (powers of 1024).
    #[arg(short, long, value_name = "SIZE")]
    pub(crate) memory: Option<Size>,

    /// Most processes and threads that the container may have at once.
    #[arg(long, visible_alias = "pids-limit", value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) pids: Option<u64>,

    /// Share of the machine's CPU time, in CPUs: 0.5 is half of one CPU.
    #[arg(long, value_name = "NUMBER")]
    pub(crate) cpus: Option<Cpus>,

    /// Go on when a limit cannot be set, and say which and why.
    ///
    /// Without it, a limit that cannot be set is an error, and the command is
    /// not started.
    #[arg(long)]
    pub(crate) best_effort_limits: bool,

    /// Host name inside. [default: the container's id]
    #[arg(long, value_name = "NAME")]
    pub(crate) hostname: Option<String>,

    /// Set an environment variable; NAME alone takes its value from here.
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<String>,

    /// Working directory inside. [default: the image's]
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<PathBuf>,

    /// User to run as: a name or number of the image. [default: the image's]
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<String>,

    /// Program to run in place of the image's entrypoint.
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) entrypoint: Option<String>,

    /// Make the container's root filesystem read-only.
    #[arg(long)]
    pub(crate) read_only: bool,

    /// Afterwards, print to standard error how it ended and what it changed.
    #[arg(long)]
    pub(crate) summary: bool,

    /// Afterwards, write the same as JSON to a file.
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,

    /// Image: PATH or PATH:TAG of an OCI layout, or of a saved archive.
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,

    /// Command and its arguments. [default: the image's]
    #[arg(
        value_name = "COMMAND",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub(crate) command: Vec<String>,
}

/// Make an image of a directory.
///
/// The image is an OCI layout in a directory, with one layer in which everything
/// belongs to root. The same directory gives the same image, byte for byte, if
/// SOURCE_DATE_EPOCH is set.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  cofferdam pack ./rootfs ./image:v1 --env PATH=/bin /bin/sh")]
pub(crate) struct Pack {
    /// Set an environment variable for containers of the image.
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = variable)]
    pub(crate) env: Vec<(String, String)>,

    /// Working directory of containers of the image.
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,

    /// User of containers of the image.
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<String>,

    /// The directory to pack.
    #[arg(value_name = "DIRECTORY")]
    pub(crate) directory: PathBuf,

    /// The image to write: PATH or PATH:TAG of an OCI layout, made if it is missing.
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,

    /// Command and its arguments that containers of the image run.
    #[arg(
        value_name = "COMMAND",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub(crate) command: Vec<String>,
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is no variable; write NAME=VALUE")),
    }
}

/// An amount of memory, as typed: `64M`, `1.5G`, `67108864`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    /// The amount in bytes.
    pub(crate) bytes: u64,
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}` is not an amount of memory; write for example 64M or 1.5G");
        let lower = text.to_ascii_lowercase();
        let stem = lower
            .strip_suffix("ib")
            .or_else(|| lower.strip_suffix('b'))
            .unwrap_or(&lower);
        let (number, shift) = match stem.char_indices().next_back() {
            Some((at, 'k')) => (&stem[..at], 10),
            Some((at, 'm')) => (&stem[..at], 20),
            Some((at, 'g')) => (&stem[..at], 30),
            Some((at, 't')) => (&stem[..at], 40),
            _ => (stem, 0),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(fraction) || fraction.len() > 9 {
            return Err(wrong());
        }
        let unit = 1_u128 << shift;
        let scale: u128 = fraction.bytes().map(|_| 10).product();
        let whole: u128 = whole.parse().map_err(|_| wrong())?;
        let part: u128 = fraction.parse().map_err(|_| wrong())?;
        let bytes = whole
            .checked_mul(unit)
            .map(|bytes| bytes + part * unit / scale)
            .and_then(|bytes| u64::try_from(bytes).ok())
            .ok_or_else(|| format!("`{text}` is more memory than a machine can have"))?;
        if bytes == 0 {
            return Err("a limit of no memory at all; write for example 64M".to_owned());
        }
        Ok(Self { bytes })
    }
}

/// A share of CPU time in CPUs: more than 0, at most 10,000.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Cpus(pub(crate) f64);

impl FromStr for Cpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(cpus) if (0.01..=10_000.0).contains(&cpus) => Ok(Self(cpus)),
            _ => Err(format!(
                "`{text}` is not a number of CPUs from 0.01 to 10000; write for example 0.5 or 2"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_docker_reads_them() {
        let bytes = |text: &str| text.parse::<Size>().map(|size| size.bytes);
        assert_eq!(bytes("67108864"), Ok(64 << 20));
        assert_eq!(bytes("64m"), Ok(64 << 20));
        assert_eq!(bytes("64MiB"), Ok(64 << 20));
        assert_eq!(bytes("64MB"), Ok(64 << 20));
        assert_eq!(bytes("1.5g"), Ok(3 << 29));
        assert_eq!(bytes("512b"), Ok(512));
    }

    #[test]
    fn what_is_no_size_is_refused_with_an_example() {
        for text in [
            "",
            "m",
            "-1",
            "1.m",
            ".5m",
            "64 M",
            "64X",
            "1e3",
            "999999999999T",
            "0",
            "0m",
        ] {
            assert!(text.parse::<Size>().is_err(), "{text:?}");
        }
        assert!("64X".parse::<Size>().unwrap_err().contains("64M"));
    }

    #[test]
    fn cpus_are_positive_numbers() {
        assert_eq!("0.5".parse(), Ok(Cpus(0.5)));
        for text in ["0", "-1", "NaN", "inf", "two", ""] {
            assert!(text.parse::<Cpus>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn options_after_the_image_belong_to_the_command() {
        let cli = Cli::parse_from([
            "cofferdam",
            "run",
            "--pids",
            "9",
            "img",
            "ls",
            "--pids",
            "-l",
        ]);
        let Command::Run(run) = cli.command else {
            panic!("another command was read");
        };
        assert_eq!(run.pids, Some(9));
        assert_eq!(run.command, ["ls", "--pids", "-l"]);
    }
}
