//! What there is to run: the test programs, and each test's class.

use std::collections::BTreeMap;
use std::io::BufReader;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use cargo_metadata::{Message, MetadataCommand, TargetKind};
use serde::{Deserialize, Serialize};

use super::binary::{self, Binary, TestResult};
use crate::exec;
use crate::places;

/// Listing tests is nothing; a program that hangs there is broken.
const LISTING: Duration = Duration::from_mins(1);
/// Cargo may have to wait for another cargo, and then compile everything.
const BUILDING: Duration = Duration::from_hours(1);

/// A kind of test, by what it needs and what it shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) enum Class {
    Unit,
    Doc,
    Property,
    Root,
    Kvm,
    Lab,
    Systemd,
}

impl Class {
    pub(crate) const ALL: [Class; 7] = [
        Class::Unit,
        Class::Doc,
        Class::Property,
        Class::Root,
        Class::Kvm,
        Class::Lab,
        Class::Systemd,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Class::Unit => "unit",
            Class::Doc => "doc",
            Class::Property => "property",
            Class::Root => "root",
            Class::Kvm => "kvm",
            Class::Lab => "lab",
            Class::Systemd => "systemd",
        }
    }

    /// Whether tests of the class are marked `#[ignore]`, since not everybody can run them.
    pub(crate) fn is_ignored(self) -> bool {
        matches!(self, Class::Root | Class::Kvm | Class::Lab | Class::Systemd)
    }

    fn of_reason(reason: &str) -> Option<Class> {
        match reason {
            "needs root" => Some(Class::Root),
            "needs kvm" => Some(Class::Kvm),
            "needs lab" => Some(Class::Lab),
            "needs systemd" => Some(Class::Systemd),
            _ => None,
        }
    }

    fn of_name(target: &str, test: &str) -> Class {
        let is_property =
            target.starts_with("properties") || test.split("::").any(|part| part == "properties");
        if is_property {
            Class::Property
        } else {
            Class::Unit
        }
    }
}

/// All test programs, and how cargo is told which packages they are of.
pub(crate) struct Plan {
    pub(crate) binaries: Vec<Binary>,
    pub(crate) selection: Vec<String>,
    /// Whether a package among them is a library, whose docs may have examples.
    pub(crate) has_docs: bool,
}

impl Plan {
    /// Builds the tests of the packages named, or of all, and asks each program what it has.
    pub(crate) fn build(packages: &[String]) -> Result<Plan> {
        let metadata = MetadataCommand::new()
            .manifest_path(places::workspace().join("Cargo.toml"))
            .no_deps()
            .exec()
            .context("cannot read the workspace")?;
        let mut names = Vec::new();
        for wanted in packages {
            let found = metadata.packages.iter().find(|p| {
                let folder = p.manifest_path.parent().and_then(|d| d.file_name());
                p.name.as_str() == wanted || folder == Some(wanted)
            });
            match found {
                Some(package) => names.push(package.name.to_string()),
                None => bail!(
                    "there is no package {wanted}; there are: {}",
                    metadata
                        .packages
                        .iter()
                        .map(|p| p.name.as_str())
                        .collect::<Vec<_>>()
                        .join(", ")
                ),
            }
        }
        let is_wanted = |name: &str| names.is_empty() || names.iter().any(|n| n == name);
        let has_docs = metadata.packages.iter().any(|p| {
            let mut targets = p.targets.iter();
            is_wanted(&p.name) && targets.any(|t| t.kind.contains(&TargetKind::Lib) && t.doctest)
        });
        // What stands behind a feature is tested too.
        let mut selection = vec!["--all-features".to_owned()];
        if names.is_empty() {
            selection.push("--workspace".to_owned());
        }
        for name in &names {
            selection.extend(["--package".to_owned(), name.clone()]);
        }

        eprintln!("building the programs, the examples and the tests");
        if is_wanted("xtask") {
            // Its tests run the programs, which are no dependencies of its.
            let mut command = Command::new(places::cargo());
            command
                .args(["build", "--workspace", "--bins", "--examples"])
                // As the tests are built, or all that has features is built twice.
                .arg("--all-features")
                .current_dir(places::workspace());
            if !exec::run(command, BUILDING, exec::aloud)?.success() {
                bail!("the programs do not build; cargo said why above");
            }
        }
        let mut command = Command::new(places::cargo());
        command
            .args(["test", "--no-run"])
            .arg("--message-format=json-render-diagnostics")
            .args(&selection)
            .current_dir(places::workspace())
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start cargo")?;
        let stdout = child.stdout.take().context("cargo has no output")?;
        let mut binaries = Vec::new();
        for message in Message::parse_stream(BufReader::new(stdout)) {
            if let Err(interrupted) = exec::go_on() {
                exec::end_all();
                return Err(interrupted);
            }
            let Message::CompilerArtifact(artifact) = message.context("cannot read cargo")? else {
                continue;
            };
            let Some(executable) = artifact.executable.filter(|_| artifact.profile.test) else {
                continue;
            };
            let package = metadata
                .packages
                .iter()
                .find(|p| p.id == artifact.package_id)
                .context("cargo built a package that it did not list")?;
            let directory = package
                .manifest_path
                .parent()
                .unwrap_or(&package.manifest_path);
            binaries.push(Binary {
                package: package.name.to_string(),
                version: package.version.to_string(),
                target: artifact.target.name,
                executable: executable.into_std_path_buf(),
                directory: PathBuf::from(directory),
                tests: BTreeMap::new(),
            });
        }
        let status = child.wait().context("cannot wait for cargo")?;
        exec::go_on()?;
        if !status.success() {
            bail!("the tests do not build; cargo said why above");
        }
        binaries.sort_by(|a, b| (&a.package, &a.target).cmp(&(&b.package, &b.target)));
        for binary in &mut binaries {
            ask(binary)?;
        }
        Ok(Plan {
            binaries,
            selection,
            has_docs,
        })
    }

    pub(crate) fn count(&self, class: Class) -> usize {
        self.binaries.iter().map(|b| b.names(class).len()).sum()
    }

    pub(crate) fn has_package(&self, name: &str) -> bool {
        self.binaries.iter().any(|b| b.package == name)
    }
}

/// Fills in the tests of a program: all there are, and the classes of those marked `#[ignore]`,
/// whose reasons libtest says when it leaves them out.
fn ask(binary: &mut Binary) -> Result<()> {
    let who = binary.name();
    let list = |more: &[&str]| -> Result<Vec<String>> {
        let mut command = binary.command();
        command.args(["--list", "--format", "terse"]).args(more);
        let ran = exec::run(command, LISTING, exec::quiet)?;
        if !ran.success() {
            bail!(
                "{who} does not list its tests ({}):\n{}",
                ran.end(),
                ran.output
            );
        }
        let names = ran.output.lines().filter_map(|l| l.strip_suffix(": test"));
        Ok(names.map(str::to_owned).collect())
    };
    let all = list(&[])?;
    let ignored = list(&["--ignored"])?;
    let mut reasons = BTreeMap::new();
    if !ignored.is_empty() {
        let mut command = binary.command();
        command
            .args(["--exact", "--format", "pretty"])
            .args(&ignored);
        let ran = exec::run(command, LISTING, exec::quiet)?;
        reasons.extend(binary::results(&ran.output));
    }
    for name in all {
        let class = if ignored.contains(&name) {
            let reason = match reasons.get(&name) {
                Some(TestResult::Ignored(reason)) => reason.as_str(),
                _ => "",
            };
            Class::of_reason(reason).with_context(|| {
                format!(
                    "test {name} of {who} is ignored for the reason {reason:?}; a test may only \
                     be ignored as \"needs root\", \"needs kvm\", \"needs lab\" or \
                     \"needs systemd\""
                )
            })?
        } else {
            Class::of_name(&binary.target, &name)
        };
        binary.tests.insert(name, class);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_come_from_names_and_reasons() {
        assert_eq!(Class::of_name("properties", "a"), Class::Property);
        assert_eq!(Class::of_name("properties_tar", "a"), Class::Property);
        assert_eq!(Class::of_name("x", "m::properties::a"), Class::Property);
        assert_eq!(Class::of_name("x", "m::a_properties"), Class::Unit);
        assert_eq!(Class::of_reason("needs kvm"), Some(Class::Kvm));
        assert_eq!(Class::of_reason("slow"), None);
        assert_eq!(Class::of_reason(""), None);
    }
}
