//! What a build does, step by step, with plain values.

use std::sync::Arc;

use super::mount::Mount;
use super::source::{Source, Span};
use crate::config::ContainerConfig;

/// One instruction, evaluated.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Step {
    /// What is to be done.
    pub action: Action,
    /// How the step is told in the image's history, such as `COPY hello.sh /usr/bin/`.
    pub created_by: String,
    /// The configuration after the step.
    pub config: ContainerConfig,
    /// The text in which the instruction stands.
    pub source: Arc<Source>,
    /// Where it stands there.
    pub span: Span,
}

/// What is to be done in a [`Step`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Action {
    /// Nothing but what is in [`Step::config`].
    Configure,
    /// Runs a command and keeps what it changes.
    Run(Box<RunStep>),
    /// Copies files: `COPY`.
    Copy(Box<CopyStep>),
    /// Copies files, fetches and unpacks archives: `ADD`.
    Add(Box<CopyStep>),
    /// Makes the directory, if it is missing, that belongs to the user of the step.
    Workdir(String),
}

/// `RUN`
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RunStep {
    /// What is executed.
    pub program: Program,
    /// The environment: that of the image and the arguments of the build, as `NAME=VALUE`.
    pub env: Vec<String>,
    /// The user, as in the configuration.
    pub user: String,
    /// The working directory.
    pub working_dir: String,
    /// What is there while it runs.
    pub mounts: Vec<Mount>,
    /// Which network it sees.
    pub network: Network,
    /// Whether it runs with all privileges.
    pub security: Security,
}

/// What a [`RunStep`] executes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Program {
    /// A program and its arguments; a line for the shell has the shell before it.
    Args(Vec<String>),
    /// A script with its own interpreter (`#!`), which must be put into an executable file of that name outside of
    /// what is kept.
    Script {
        /// The file's name.
        name: String,
        /// What is in it.
        contents: String,
    },
}

/// `--network`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// That of the build.
    #[default]
    Default,
    /// None but loopback.
    None,
    /// The host's.
    Host,
}

/// `--security`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Security {
    /// As every container.
    #[default]
    Sandbox,
    /// With all privileges; whoever builds must have allowed it.
    Insecure,
}

/// `COPY` and `ADD`
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CopyStep {
    /// From where.
    pub from: From,
    /// What.
    pub sources: Vec<CopySource>,
    /// Where to: an absolute path; with a slash at its end it is a directory.
    pub destination: String,
    /// The owner, as `user`, `user:group` or numbers; root unless it is given.
    pub chown: Option<String>,
    /// The mode, in octal digits or letters.
    pub chmod: Option<String>,
    /// The files are a layer of their own that does not depend on what is below it.
    pub link: bool,
    /// The directories above a source are made, too.
    pub parents: bool,
    /// Patterns of what is left out.
    pub exclude: Vec<String>,
    /// The digest that what is fetched must have.
    pub checksum: Option<String>,
    /// A repository that is fetched keeps its `.git`.
    pub keep_git_dir: bool,
    /// Whether an archive is unpacked; `None` for what `ADD` does by itself: local ones are, fetched ones are not.
    pub unpack: Option<bool>,
}

/// One source of a [`CopyStep`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopySource {
    /// A path, possibly with wildcards, below the root of [`CopyStep::from`].
    Path(String),
    /// A text from the Dockerfile.
    Inline {
        /// The name of the file.
        name: String,
        /// What is in it.
        contents: String,
    },
    /// Something to be fetched by HTTP.
    Url(String),
    /// A Git repository to be fetched.
    Git(String),
}

/// Where files come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum From {
    /// The build's context.
    Context,
    /// An earlier stage, by its number in the file.
    Stage(usize),
    /// An image, or another context of that name.
    Image(String),
}
