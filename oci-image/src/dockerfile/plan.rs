//! Which stages a build needs, and what they start from.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::diagnostic::{Diagnostic, closest};
use super::expand::Expander;
use super::instruction::{Instruction, InstructionKind, Word};
use super::mount::Mount;
use super::source::Span;
use super::step::From;
use super::{Dockerfile, Source};
use crate::error::{Error, Result};
use crate::platform::Platform;

/// What the caller of a build chooses.
#[derive(Clone, Debug, PartialEq)]
pub struct BuildOptions {
    args: BTreeMap<String, String>,
    target: Option<String>,
    platform: Platform,
    build_platform: Platform,
}

impl Default for BuildOptions {
    fn default() -> BuildOptions {
        BuildOptions::new()
    }
}

impl BuildOptions {
    /// The last stage, for the platform on which this program runs.
    pub fn new() -> BuildOptions {
        let host = Platform::host().without_level();
        BuildOptions {
            args: BTreeMap::new(),
            target: None,
            platform: host.clone(),
            build_platform: host,
        }
    }

    /// A value for a variable that the Dockerfile declares by `ARG`.
    pub fn arg(mut self, name: impl Into<String>, value: impl Into<String>) -> BuildOptions {
        self.args.insert(name.into(), value.into());
        self
    }

    /// The stage to build, by its name or number.
    pub fn target(mut self, target: impl Into<String>) -> BuildOptions {
        self.target = Some(target.into());
        self
    }

    /// For which platform the image is.
    pub fn platform(mut self, platform: Platform) -> BuildOptions {
        self.platform = platform;
        self
    }

    /// On which platform the build runs.
    pub fn build_platform(mut self, platform: Platform) -> BuildOptions {
        self.build_platform = platform;
        self
    }
}

/// What a stage starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Base {
    /// Nothing.
    Scratch,
    /// An image of that name.
    Image(String),
    /// An earlier stage, by its number in the file.
    Stage(usize),
}

/// Which stages a build needs, in an order in which they can be built; the last is the one that is wanted.
#[derive(Clone, Debug)]
pub struct Plan {
    pub(super) stages: Vec<PlannedStage>,
    unused: Vec<String>,
}

impl Plan {
    /// The stages.
    pub fn stages(&self) -> &[PlannedStage] {
        &self.stages
    }

    /// Variables that the caller sets and that no `ARG` declares.
    pub fn unused_args(&self) -> &[String] {
        &self.unused
    }
}

/// A stage of a [`Plan`].
#[derive(Clone, Debug)]
pub struct PlannedStage {
    pub(super) number: usize,
    pub(super) name: Option<String>,
    pub(super) base: Base,
    pub(super) platform: Platform,
    pub(super) needs: BTreeSet<usize>,
    pub(super) images: BTreeSet<String>,
    pub(super) instructions: Vec<Instruction>,
    pub(super) context: Arc<Context>,
}

/// What the stages of a build have in common.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) source: Arc<Source>,
    pub(super) escape: char,
    /// What the caller sets.
    pub(super) args: BTreeMap<String, String>,
    /// `ARG` before the first stage, with values, and the platforms.
    pub(super) globals: BTreeMap<String, String>,
    /// The names of the stages in the order of the file.
    pub(super) names: Vec<Option<String>>,
}

impl PlannedStage {
    /// Its number in the file, from 0.
    pub fn number(&self) -> usize {
        self.number
    }

    /// Its name, in lower case.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// What it starts from.
    pub fn base(&self) -> &Base {
        &self.base
    }

    /// For which platform it is.
    pub fn platform(&self) -> &Platform {
        &self.platform
    }

    /// The stages that must be built before, by their numbers.
    pub fn needs(&self) -> &BTreeSet<usize> {
        &self.needs
    }

    /// The images from which it copies.
    pub fn images(&self) -> &BTreeSet<String> {
        &self.images
    }
}

impl Context {
    /// What the name in `--from` means in the stage `number`.
    pub(super) fn from(&self, number: usize, text: &str) -> std::result::Result<From, String> {
        if text.contains('$') {
            return Err(
                "a variable cannot stand here: start a stage by FROM with it, and name that stage"
                    .to_owned(),
            );
        }
        if let Some(stage) = self.names[..number.min(self.names.len())]
            .iter()
            .rposition(|name| name.as_deref() == Some(text.to_lowercase().as_str()))
        {
            return Ok(From::Stage(stage));
        }
        if let Ok(stage) = text.parse::<usize>() {
            if stage < number {
                return Ok(From::Stage(stage));
            }
            return Err(format!("there is no stage {stage} before this one"));
        }
        if self
            .names
            .get(number)
            .is_some_and(|name| name.as_deref() == Some(text))
        {
            return Err(format!("the stage {text:?} cannot copy from itself"));
        }
        Ok(From::Image(text.to_owned()))
    }

    pub(super) fn expand(
        &self,
        word: &Word,
        lookup: &dyn Fn(&str) -> Option<String>,
    ) -> std::result::Result<String, Diagnostic> {
        Expander::new(self.escape, lookup)
            .word(&word.text)
            .map_err(|error| Diagnostic::error(&self.source, word.span, error.0))
    }
}

/// The variables that say for which platform and on which one a build is.
fn platforms(options: &BuildOptions) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    for (prefix, platform) in [
        ("TARGET", &options.platform),
        ("BUILD", &options.build_platform),
    ] {
        for (name, value) in [
            ("PLATFORM", platform.to_string()),
            ("OS", platform.os.clone()),
            ("OSVERSION", platform.os_version.clone().unwrap_or_default()),
            ("ARCH", platform.architecture.clone()),
            ("VARIANT", platform.variant.clone().unwrap_or_default()),
        ] {
            variables.insert(format!("{prefix}{name}"), value);
        }
    }
    variables
}

impl Dockerfile {
    /// Says which stages a build needs, with `FROM` evaluated.
    ///
    /// # Errors
    ///
    /// [`Error::Dockerfile`] with everything that is wrong, [`Error::BadValue`] when there is no stage of the wanted
    /// name.
    pub fn plan(&self, options: &BuildOptions) -> Result<Plan> {
        let names: Vec<_> = self.stages.iter().map(super::Stage::name).collect();
        let target = match &options.target {
            None => self.stages.len() - 1,
            Some(wanted) => find_target(&names, wanted)?,
        };
        let mut globals = platforms(options);
        globals.insert(
            "TARGETSTAGE".to_owned(),
            options
                .target
                .clone()
                .unwrap_or_else(|| "default".to_owned()),
        );
        let mut context = Context {
            source: Arc::clone(&self.source),
            escape: self.directives.escape,
            args: options.args.clone(),
            globals: BTreeMap::new(),
            names,
        };
        let mut declared = BTreeSet::new();
        for instruction in &self.globals {
            let InstructionKind::Arg(list) = &instruction.kind else {
                continue;
            };
            for (name, default) in list {
                let lookup = |name: &str| globals.get(name).cloned();
                let name = context.expand(name, &lookup)?;
                let value = match (options.args.get(&name), default) {
                    (Some(value), _) => Some(value.clone()),
                    (None, Some(default)) => Some(context.expand(default, &lookup)?),
                    (None, None) => None,
                };
                if let Some(value) = value {
                    globals.insert(name.clone(), value);
                }
                declared.insert(name);
            }
        }
        for stage in &self.stages {
            for instruction in &stage.instructions {
                if let InstructionKind::Arg(list) = &instruction.kind {
                    declared.extend(list.iter().map(|(name, _)| name.text.clone()));
                }
            }
        }
        context.globals = globals;
        let context = Arc::new(context);

        let mut planned: BTreeMap<usize, PlannedStage> = BTreeMap::new();
        let mut wanted = vec![target];
        while let Some(number) = wanted.pop() {
            if planned.contains_key(&number) {
                continue;
            }
            let stage = self.planned(number, options, &context)?;
            wanted.extend(&stage.needs);
            planned.insert(number, stage);
        }
        let unused = options
            .args
            .keys()
            .filter(|name| !declared.contains(*name) && !is_predefined(name))
            .cloned()
            .collect();
        Ok(Plan {
            // A stage needs only earlier ones.
            stages: planned.into_values().collect(),
            unused,
        })
    }

    fn planned(
        &self,
        number: usize,
        options: &BuildOptions,
        context: &Arc<Context>,
    ) -> Result<PlannedStage> {
        let stage = &self.stages[number];
        let mut problems = Vec::new();
        let fail = |span: Span, message: String| Diagnostic::error(&self.source, span, message);
        let InstructionKind::From {
            image, platform, ..
        } = &stage.from.kind
        else {
            return Err(fail(stage.from.span, "a stage starts with FROM".to_owned()).into());
        };
        let lookup = |name: &str| context.globals.get(name).cloned();
        let base = context.expand(image, &lookup)?;
        if base.trim().is_empty() {
            return Err(fail(image.span, format!("{:?} is empty here", image.text))
                .help("give the variable a default: ARG before the first FROM, or ${NAME:-value}")
                .into());
        }
        let platform = match platform {
            None => options.platform.clone(),
            Some(word) => {
                let text = context.expand(word, &lookup)?;
                text.parse::<Platform>()
                    .map_err(|error| fail(word.span, error.to_string()))?
            }
        };
        let mut needs = BTreeSet::new();
        let mut images = BTreeSet::new();
        let earlier = context.names[..number]
            .iter()
            .rposition(|name| name.as_deref() == Some(base.to_lowercase().as_str()));
        let base = match earlier {
            Some(stage) => {
                needs.insert(stage);
                Base::Stage(stage)
            }
            None if base == "scratch" => Base::Scratch,
            None => match base.parse::<crate::reference::Reference>() {
                Ok(_) => Base::Image(base),
                Err(error) => return Err(fail(image.span, error.to_string()).into()),
            },
        };
        for instruction in &stage.instructions {
            let mut note = |span: Span, text: &str| match context.from(number, text) {
                Ok(From::Stage(stage)) => {
                    needs.insert(stage);
                }
                Ok(From::Image(name)) => {
                    images.insert(name);
                }
                Ok(From::Context) => {}
                Err(message) => problems.push(fail(span, message)),
            };
            match &instruction.kind {
                InstructionKind::Copy(transfer) => {
                    if let Some(from) = &transfer.from {
                        note(from.span, &from.text);
                    }
                }
                InstructionKind::Run { mounts, .. } => {
                    for mount in mounts {
                        // What holds variables can only be read when they have values, but not the stage it names.
                        let _ = Mount::parse(
                            &mount.text,
                            &mut |value| Ok(value.to_owned()),
                            &mut |name| {
                                note(mount.span, name);
                                Ok(From::Context)
                            },
                        );
                    }
                }
                _ => {}
            }
        }
        if !problems.is_empty() {
            return Err(problems.into());
        }
        Ok(PlannedStage {
            number,
            name: stage.name(),
            base,
            platform,
            needs,
            images,
            instructions: stage.instructions.clone(),
            context: Arc::clone(context),
        })
    }
}

fn find_target(names: &[Option<String>], wanted: &str) -> Result<usize> {
    let lower = wanted.to_lowercase();
    if let Some(found) = names
        .iter()
        .rposition(|name| name.as_deref() == Some(&lower))
    {
        return Ok(found);
    }
    if let Some(number) = wanted.parse::<usize>().ok().filter(|n| *n < names.len()) {
        return Ok(number);
    }
    let near = closest(&lower, names.iter().flatten().map(String::as_str));
    Err(Error::BadValue {
        what: "target",
        text: match near {
            Some(near) => format!("{wanted} (did you mean {near}?)"),
            None => crate::error::excerpt(wanted),
        },
        reason: "the Dockerfile has no stage of that name or number",
    })
}

/// Variables that every command of a build sees when the caller sets them.
pub(super) fn is_predefined(name: &str) -> bool {
    matches!(
        name.to_ascii_uppercase().as_str(),
        "HTTP_PROXY" | "HTTPS_PROXY" | "FTP_PROXY" | "NO_PROXY" | "ALL_PROXY"
    ) || name == "SOURCE_DATE_EPOCH"
        || name.starts_with("BUILDKIT_")
}
