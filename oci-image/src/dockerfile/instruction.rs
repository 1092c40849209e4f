//! The instructions of a Dockerfile as they are written, before variables are expanded.

use super::source::Span;

/// A word as it is written: quotes, escapes and variables are still in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// The text.
    pub text: String,
    /// Where it stands.
    pub span: Span,
}

/// An instruction and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// What it says.
    pub kind: InstructionKind,
    /// From its name to the end of its last line.
    pub span: Span,
}

/// What an [`Instruction`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InstructionKind {
    /// Starts a stage.
    From {
        /// The image or the stage that it starts from.
        image: Word,
        /// `--platform`
        platform: Option<Word>,
        /// The name after `AS`.
        name: Option<Word>,
    },
    /// Declares variables that the caller of the build may set: names with their defaults.
    Arg(Vec<(Word, Option<Word>)>),
    /// Sets environment variables.
    Env(Vec<(Word, Word)>),
    /// Sets labels.
    Label(Vec<(Word, Word)>),
    /// Runs a command.
    Run {
        /// The command.
        command: Command,
        /// `--mount`, each as it is written.
        mounts: Vec<Word>,
        /// `--network`
        network: Option<Word>,
        /// `--security`
        security: Option<Word>,
        /// Texts that follow the command.
        heredocs: Vec<Heredoc>,
    },
    /// Copies from the context, a stage or an image.
    Copy(Transfer),
    /// Copies from the context or from elsewhere, and unpacks archives.
    Add(Transfer),
    /// The command of containers, or the arguments of their entrypoint.
    Cmd(Command),
    /// The entrypoint of containers.
    Entrypoint(Command),
    /// The words before commands that are no list.
    Shell(Vec<String>),
    /// Ports on which containers listen.
    Expose(Vec<Word>),
    /// Directories that are volumes.
    Volume(Vec<Word>),
    /// Who runs commands.
    User(Word),
    /// The working directory.
    Workdir(Word),
    /// The signal that ends containers.
    StopSignal(Word),
    /// How to see whether a container works.
    Healthcheck(Check),
    /// An instruction for builds that start from this image.
    OnBuild {
        /// The instruction.
        instruction: Box<Instruction>,
        /// Its text, as it goes into the image.
        text: String,
    },
    /// Who made the image; out of use, a label says it better.
    Maintainer(Word),
}

/// A command in one of its two forms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// A line for the shell.
    Shell(String),
    /// A program and its arguments, written as a list in JSON.
    Exec(Vec<String>),
}

/// `COPY` or `ADD`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// `--from`, of `COPY` alone.
    pub from: Option<Word>,
    /// `--chown`
    pub chown: Option<Word>,
    /// `--chmod`
    pub chmod: Option<Word>,
    /// `--link`
    pub link: bool,
    /// `--parents`, of `COPY` alone.
    pub parents: bool,
    /// `--exclude`
    pub exclude: Vec<Word>,
    /// `--checksum`, of `ADD` alone.
    pub checksum: Option<Word>,
    /// `--keep-git-dir`, of `ADD` alone.
    pub keep_git_dir: bool,
    /// `--unpack`, of `ADD` alone.
    pub unpack: Option<bool>,
    /// What is copied.
    pub sources: Vec<TransferSource>,
    /// Where to.
    pub destination: Word,
}

/// Something that is copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransferSource {
    /// A path, a pattern or an address.
    Path(Word),
    /// A text in the Dockerfile itself; its name is the file's.
    Heredoc(Heredoc),
}

/// A text in the Dockerfile, from `<<NAME` to a line that is `NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heredoc {
    /// The name.
    pub name: String,
    /// The text as it stands there.
    pub contents: String,
    /// Whether variables in it are expanded: no part of its name is quoted.
    pub expand: bool,
    /// Whether tabs at the beginning of lines are left out (`<<-`).
    pub strip_tabs: bool,
    /// The number before `<<`.
    pub descriptor: u32,
    /// Where the name stands.
    pub span: Span,
}

impl Heredoc {
    /// The text, without the tabs that are to be left out.
    pub fn text(&self) -> String {
        if !self.strip_tabs {
            return self.contents.clone();
        }
        self.contents
            .split_inclusive('\n')
            .map(|line| line.trim_start_matches('\t'))
            .collect()
    }
}

/// `HEALTHCHECK`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// No check, not even one of the base image.
    None,
    /// A command.
    Command {
        /// The command.
        command: Command,
        /// `--interval` and the like with their values, in the order of writing.
        options: Vec<(String, Word)>,
    },
}

/// The names of all instructions.
pub(super) const NAMES: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

impl InstructionKind {
    /// Its name, such as `COPY`.
    pub fn name(&self) -> &'static str {
        match self {
            InstructionKind::From { .. } => "FROM",
            InstructionKind::Arg(_) => "ARG",
            InstructionKind::Env(_) => "ENV",
            InstructionKind::Label(_) => "LABEL",
            InstructionKind::Run { .. } => "RUN",
            InstructionKind::Copy(_) => "COPY",
            InstructionKind::Add(_) => "ADD",
            InstructionKind::Cmd(_) => "CMD",
            InstructionKind::Entrypoint(_) => "ENTRYPOINT",
            InstructionKind::Shell(_) => "SHELL",
            InstructionKind::Expose(_) => "EXPOSE",
            InstructionKind::Volume(_) => "VOLUME",
            InstructionKind::User(_) => "USER",
            InstructionKind::Workdir(_) => "WORKDIR",
            InstructionKind::StopSignal(_) => "STOPSIGNAL",
            InstructionKind::Healthcheck(_) => "HEALTHCHECK",
            InstructionKind::OnBuild { .. } => "ONBUILD",
            InstructionKind::Maintainer(_) => "MAINTAINER",
        }
    }
}
