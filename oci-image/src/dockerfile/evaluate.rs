//! From the instructions of a stage to steps and a configuration.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::json;

use super::diagnostic::Diagnostic;
use super::expand::Expander;
use super::health::duration;
use super::instruction::{
    Check, Command, Heredoc, Instruction, InstructionKind, Transfer, TransferSource, Word,
};
use super::mount::Mount;
use super::parse;
use super::plan::{Base, PlannedStage, is_predefined};
use super::source::Source;
use super::step::{Action, CopySource, CopyStep, From, Network, Program, RunStep, Security, Step};
use super::values::{absolute, is_git, is_signal, is_url, ports, set_variable, variable};
use crate::config::{HistoryEntry, ImageConfig};
use crate::error::Result;

/// A stage with its variables expanded.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct EvaluatedStage {
    /// What is to be done, in order.
    pub steps: Vec<Step>,
    /// The configuration that results; `rootfs` is still that of the base, and so is the history without the steps.
    pub config: ImageConfig,
    /// The values of the `ARG`s that hold at its end, and so at the start of a stage that is based on it.
    pub args: BTreeMap<String, String>,
}

impl EvaluatedStage {
    /// How the steps are told in the image's history; `created` is the time in RFC 3339.
    pub fn history(&self, created: Option<&str>) -> Vec<HistoryEntry> {
        self.steps
            .iter()
            .map(|step| HistoryEntry {
                created: created.map(str::to_owned),
                created_by: Some(step.created_by.clone()),
                empty_layer: matches!(step.action, Action::Configure),
                ..HistoryEntry::default()
            })
            .collect()
    }
}

impl PlannedStage {
    /// Evaluates the stage on top of an image, whose `ONBUILD` triggers come first.
    ///
    /// For [`Base::Scratch`], give an empty configuration, which gets the usual `PATH`; for [`Base::Stage`], there is
    /// [`PlannedStage::evaluate_after`].
    ///
    /// # Errors
    ///
    /// [`Error::Dockerfile`](crate::Error::Dockerfile) with the first problem.
    pub fn evaluate(&self, base: &ImageConfig) -> Result<EvaluatedStage> {
        self.evaluate_with(base, BTreeMap::new())
    }

    /// Evaluates the stage on top of the stage that it is based on ([`Base::Stage`]), with that one's `ARG`s.
    ///
    /// # Errors
    ///
    /// [`Error::Dockerfile`](crate::Error::Dockerfile) with the first problem.
    pub fn evaluate_after(&self, base: &EvaluatedStage) -> Result<EvaluatedStage> {
        self.evaluate_with(&base.config, base.args.clone())
    }

    fn evaluate_with(
        &self,
        base: &ImageConfig,
        args: BTreeMap<String, String>,
    ) -> Result<EvaluatedStage> {
        let mut state = State {
            stage: self,
            source: Arc::clone(&self.context.source),
            escape: self.context.escape,
            config: base.clone(),
            args,
            has_cmd: false,
            steps: Vec::new(),
        };
        state.config.os.clone_from(&self.platform.os);
        state
            .config
            .architecture
            .clone_from(&self.platform.architecture);
        if self.platform.variant.is_some() {
            state.config.variant.clone_from(&self.platform.variant);
        }
        if self.base == Base::Scratch && variable(&state.config.config.env, "PATH").is_none() {
            set_variable(&mut state.config.config.env, "PATH", DEFAULT_PATH);
        }
        let triggers = std::mem::take(&mut state.config.config.on_build);
        for (number, text) in triggers.into_iter().enumerate() {
            let name = format!("ONBUILD trigger {} of the base image", number + 1);
            let source = Arc::new(Source::new(name, text));
            let Some(instruction) = parse::trigger(&source)? else {
                continue;
            };
            let own = std::mem::replace(&mut state.source, source);
            let escape = std::mem::replace(&mut state.escape, '\\');
            state.step(&instruction)?;
            state.source = own;
            state.escape = escape;
        }
        for instruction in &self.instructions {
            state.step(instruction)?;
        }
        Ok(EvaluatedStage {
            steps: state.steps,
            config: state.config,
            args: state.args,
        })
    }
}

/// Where programs are in an image that starts from nothing.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

struct State<'a> {
    stage: &'a PlannedStage,
    source: Arc<Source>,
    escape: char,
    config: ImageConfig,
    /// The values of `ARG`s that the stage, or one that it is based on, has declared.
    args: BTreeMap<String, String>,
    has_cmd: bool,
    steps: Vec<Step>,
}

type Evaluated<T> = std::result::Result<T, Diagnostic>;

impl State<'_> {
    fn lookup(&self, name: &str) -> Option<String> {
        variable(&self.config.config.env, name)
            .map(str::to_owned)
            .or_else(|| self.args.get(name).cloned())
    }

    fn fail(&self, word: &Word, message: impl Into<String>) -> Diagnostic {
        Diagnostic::error(&self.source, word.span, message)
    }

    fn word(&self, word: &Word) -> Evaluated<String> {
        Expander::new(self.escape, &|name| self.lookup(name))
            .word(&word.text)
            .map_err(|error| self.fail(word, error.0))
    }

    fn words(&self, word: &Word) -> Evaluated<Vec<String>> {
        Expander::new(self.escape, &|name| self.lookup(name))
            .words(&word.text)
            .map_err(|error| self.fail(word, error.0))
    }

    fn optional(&self, word: Option<&Word>) -> Evaluated<Option<String>> {
        word.map(|word| self.word(word)).transpose()
    }

    fn step(&mut self, instruction: &Instruction) -> Evaluated<()> {
        let mut created_by = String::new();
        let action = self.action(instruction, &mut created_by)?;
        self.steps.push(Step {
            action,
            created_by,
            config: self.config.config.clone(),
            source: Arc::clone(&self.source),
            span: instruction.span,
        });
        Ok(())
    }

    fn action(&mut self, instruction: &Instruction, created_by: &mut String) -> Evaluated<Action> {
        let name = instruction.kind.name();
        let mut told = Vec::new();
        let mut action = Action::Configure;
        match &instruction.kind {
            InstructionKind::From { .. } => {}
            InstructionKind::Arg(list) => {
                let mut new = Vec::new();
                for (name, default) in list {
                    let name = self.word(name)?;
                    let default = self.optional(default.as_ref())?;
                    let context = &self.stage.context;
                    let value = context
                        .args
                        .get(&name)
                        .cloned()
                        .or(default)
                        .or_else(|| context.globals.get(&name).cloned());
                    told.push(match &value {
                        Some(value) => format!("{name}={value}"),
                        None => name.clone(),
                    });
                    new.extend(value.map(|value| (name, value)));
                }
                self.args.extend(new);
            }
            InstructionKind::Env(list) => {
                for (name, value) in self.pairs(list)? {
                    told.push(format!("{name}={value}"));
                    set_variable(&mut self.config.config.env, &name, &value);
                }
            }
            InstructionKind::Label(list) => {
                for (name, value) in self.pairs(list)? {
                    told.push(format!("{name}={value}"));
                    self.config.config.labels.insert(name, value);
                }
            }
            InstructionKind::Run {
                command,
                mounts,
                network,
                security,
                heredocs,
            } => {
                let program = self.program(command, heredocs);
                told.push(match &program {
                    Program::Args(args) => args.join(" "),
                    Program::Script { name, .. } => format!("/dev/pipes/{name}"),
                });
                let mut env = self.config.config.env.clone();
                let predefined = self
                    .stage
                    .context
                    .args
                    .iter()
                    .filter(|(name, _)| is_predefined(name));
                for (name, value) in predefined.chain(&self.args) {
                    if variable(&self.config.config.env, name).is_none() {
                        set_variable(&mut env, name, value);
                    }
                }
                action = Action::Run(Box::new(RunStep {
                    program,
                    env,
                    user: self.config.config.user.clone(),
                    working_dir: self.working_dir(),
                    mounts: self.mounts(mounts)?,
                    network: match network.as_ref().map(|word| word.text.as_str()) {
                        Some("none") => Network::None,
                        Some("host") => Network::Host,
                        _ => Network::Default,
                    },
                    security: match security.as_ref().map(|word| word.text.as_str()) {
                        Some("insecure") => Security::Insecure,
                        _ => Security::Sandbox,
                    },
                }));
            }
            InstructionKind::Copy(transfer) | InstructionKind::Add(transfer) => {
                let is_add = matches!(instruction.kind, InstructionKind::Add(_));
                let copy = self.transfer(transfer, is_add)?;
                told = copy_told(&copy);
                action = if is_add {
                    Action::Add(Box::new(copy))
                } else {
                    Action::Copy(Box::new(copy))
                };
            }
            InstructionKind::Cmd(command) => {
                self.config.config.cmd = self.command(command);
                told.push(json!(self.config.config.cmd).to_string());
                self.has_cmd = true;
            }
            InstructionKind::Entrypoint(command) => {
                self.config.config.entrypoint = self.command(command);
                told.push(json!(self.config.config.entrypoint).to_string());
                // What the base image would give to another entrypoint means nothing to this one.
                if !self.has_cmd {
                    self.config.config.cmd.clear();
                }
            }
            InstructionKind::Shell(words) => {
                self.config.config.shell.clone_from(words);
                told.push(json!(words).to_string());
            }
            InstructionKind::Expose(words) => {
                for word in words {
                    for text in self.words(word)? {
                        for port in ports(&text).map_err(|message| self.fail(word, message))? {
                            told.push(port.clone());
                            self.config.config.exposed_ports.insert(port, json!({}));
                        }
                    }
                }
            }
            InstructionKind::Volume(words) => {
                for word in words {
                    let path = self.word(word)?;
                    if path.trim().is_empty() {
                        return Err(self.fail(word, "the path of the volume is empty"));
                    }
                    told.push(path.clone());
                    self.config.config.volumes.insert(path, json!({}));
                }
            }
            InstructionKind::User(word) => {
                let user = self.word(word)?;
                if user.trim().is_empty() {
                    return Err(self.fail(word, "the user is empty"));
                }
                told.push(user.clone());
                self.config.config.user = user;
            }
            InstructionKind::Workdir(word) => {
                let path = self.word(word)?;
                let path = absolute(&self.working_dir(), &path, false);
                told.push(path.clone());
                self.config.config.working_dir.clone_from(&path);
                action = Action::Workdir(path);
            }
            InstructionKind::StopSignal(word) => {
                let signal = self.word(word)?;
                if !is_signal(&signal) {
                    return Err(self
                        .fail(word, format!("there is no signal {signal:?}"))
                        .label("write it as SIGTERM or 15"));
                }
                told.push(signal.clone());
                self.config.config.stop_signal = signal;
            }
            InstructionKind::Healthcheck(check) => {
                let value = healthcheck(check);
                told.push(value["Test"].to_string());
                self.config.config.healthcheck = Some(value);
            }
            InstructionKind::OnBuild { text, .. } => {
                told.push(text.clone());
                self.config.config.on_build.push(text.clone());
            }
            InstructionKind::Maintainer(word) => {
                told.push(word.text.clone());
                self.config.author = Some(word.text.clone());
            }
        }
        *created_by = format!("{name} {}", told.join(" "));
        Ok(action)
    }

    /// Names and values, all with the variables as they were before the instruction.
    fn pairs(&self, list: &[(Word, Word)]) -> Evaluated<Vec<(String, String)>> {
        list.iter()
            .map(|(name, value)| {
                let text = self.word(name)?;
                if text.is_empty() {
                    return Err(self.fail(name, "the name is empty"));
                }
                Ok((text, self.word(value)?))
            })
            .collect()
    }

    fn working_dir(&self) -> String {
        match self.config.config.working_dir.as_str() {
            "" => "/".to_owned(),
            path => path.to_owned(),
        }
    }

    fn shell(&self) -> Vec<String> {
        if !self.config.config.shell.is_empty() {
            return self.config.config.shell.clone();
        }
        let default: &[&str] = if self.config.os == "windows" {
            &["cmd", "/S", "/C"]
        } else {
            &["/bin/sh", "-c"]
        };
        default.iter().map(|word| (*word).to_owned()).collect()
    }

    fn command(&self, command: &Command) -> Vec<String> {
        match command {
            Command::Exec(words) => words.clone(),
            Command::Shell(line) if line.is_empty() => Vec::new(),
            Command::Shell(line) => {
                let mut words = self.shell();
                words.push(line.clone());
                words
            }
        }
    }

    fn program(&self, command: &Command, heredocs: &[Heredoc]) -> Program {
        let Command::Shell(line) = command else {
            return Program::Args(self.command(command));
        };
        let alone = Word {
            text: line.clone(),
            span: super::Span::default(),
        };
        match heredocs {
            [] => Program::Args(self.command(command)),
            [text] if super::heredoc::announced(&alone).is_some() => {
                let contents = text.text();
                if contents.starts_with("#!") {
                    return Program::Script {
                        name: text.name.clone(),
                        contents,
                    };
                }
                Program::Args(self.command(&Command::Shell(contents)))
            }
            // The shell reads them as it would in a script.
            texts => {
                let mut script = line.clone();
                for text in texts {
                    script.push('\n');
                    script.push_str(&text.contents);
                    script.push_str(&text.name);
                }
                Program::Args(self.command(&Command::Shell(script)))
            }
        }
    }

    fn mounts(&self, words: &[Word]) -> Evaluated<Vec<Mount>> {
        words
            .iter()
            .map(|word| {
                let mut expand = |value: &str| {
                    Expander::new(self.escape, &|name| self.lookup(name))
                        .word(value)
                        .map_err(|error| error.0)
                };
                let mut mount = Mount::parse(&word.text, &mut expand, &mut |name| {
                    self.stage.context.from(self.stage.number, name)
                })
                .map_err(|message| self.fail(word, message))?;
                if let Some(target) = &mut mount.target {
                    *target = absolute(&self.working_dir(), target, false);
                }
                Ok(mount)
            })
            .collect()
    }

    fn transfer(&self, transfer: &Transfer, is_add: bool) -> Evaluated<CopyStep> {
        let from = match &transfer.from {
            None => From::Context,
            Some(word) => self
                .stage
                .context
                .from(self.stage.number, &word.text)
                .map_err(|message| self.fail(word, message))?,
        };
        let mut sources = Vec::new();
        for source in &transfer.sources {
            sources.push(match source {
                TransferSource::Heredoc(heredoc) => CopySource::Inline {
                    name: heredoc.name.clone(),
                    contents: self.inline(heredoc)?,
                },
                TransferSource::Path(word) => {
                    let text = self.word(word)?;
                    if text.is_empty() {
                        return Err(self.fail(word, format!("{:?} is empty here", word.text)));
                    }
                    if is_add && is_git(&text) {
                        CopySource::Git(text)
                    } else if is_url(&text) {
                        if !is_add {
                            return Err(self
                                .fail(word, "COPY does not fetch what is elsewhere")
                                .label("use ADD"));
                        }
                        CopySource::Url(text)
                    } else {
                        CopySource::Path(text)
                    }
                }
            });
        }
        let destination = self.word(&transfer.destination)?;
        if destination.is_empty() {
            return Err(self.fail(&transfer.destination, "the destination is empty here"));
        }
        // A directory, if there may be several files.
        if sources.len() > 1 && !destination.ends_with('/') {
            return Err(self
                .fail(
                    &transfer.destination,
                    "with several sources, the destination must be a directory",
                )
                .label("end it with `/`"));
        }
        let chmod = self.optional(transfer.chmod.as_ref())?;
        if let (Some(mode), Some(word)) = (&chmod, &transfer.chmod) {
            let digits = mode.bytes().all(|b| matches!(b, b'0'..=b'7'));
            let letters = mode.bytes().all(|b| b"ugoa+-=rwxXst,".contains(&b))
                && mode.contains(['+', '-', '=']);
            if mode.is_empty() || !(digits && mode.len() <= 5 || letters) {
                return Err(self
                    .fail(word, format!("{mode:?} is no mode"))
                    .label("write it as 755 or u=rwx,go=rx"));
            }
        }
        let checksum = self.optional(transfer.checksum.as_ref())?;
        if let (Some(text), Some(word)) = (&checksum, &transfer.checksum) {
            let is_commit = matches!(sources.as_slice(), [CopySource::Git(_)]);
            if !is_commit && let Err(error) = text.parse::<crate::digest::Digest>() {
                return Err(self.fail(word, error.to_string()));
            }
        }
        Ok(CopyStep {
            from,
            sources,
            destination: absolute(&self.working_dir(), &destination, true),
            chown: self.optional(transfer.chown.as_ref())?,
            chmod,
            link: transfer.link,
            parents: transfer.parents,
            exclude: transfer
                .exclude
                .iter()
                .map(|word| self.word(word))
                .collect::<Evaluated<_>>()?,
            checksum,
            keep_git_dir: transfer.keep_git_dir,
            unpack: transfer.unpack,
        })
    }

    /// The text of a file: variables are expanded, quotes are part of it.
    fn inline(&self, heredoc: &Heredoc) -> Evaluated<String> {
        let text = heredoc.text();
        if !heredoc.expand {
            return Ok(text);
        }
        let word = Word {
            text: String::new(),
            span: heredoc.span,
        };
        Expander::new(self.escape, &|name| self.lookup(name))
            .text(&text)
            .map_err(|error| self.fail(&word, error.0))
    }
}

fn healthcheck(check: &Check) -> serde_json::Value {
    let Check::Command { command, options } = check else {
        return json!({"Test": ["NONE"]});
    };
    let mut value = json!({
        "Test": match command {
            Command::Exec(words) => {
                let mut test = vec!["CMD".to_owned()];
                test.extend(words.clone());
                test
            }
            Command::Shell(line) => vec!["CMD-SHELL".to_owned(), line.clone()],
        }
    });
    for (name, word) in options {
        let (key, number) = match name.as_str() {
            "interval" => ("Interval", duration(&word.text)),
            "timeout" => ("Timeout", duration(&word.text)),
            "start-period" => ("StartPeriod", duration(&word.text)),
            "start-interval" => ("StartInterval", duration(&word.text)),
            _ => ("Retries", word.text.parse().ok()),
        };
        if let Some(number) = number.filter(|number| *number != 0) {
            value[key] = number.into();
        }
    }
    value
}

fn copy_told(copy: &CopyStep) -> Vec<String> {
    let mut told = Vec::new();
    for (name, value) in [("chown", &copy.chown), ("chmod", &copy.chmod)] {
        told.extend(value.as_ref().map(|value| format!("--{name}={value}")));
    }
    told.extend(copy.sources.iter().map(|source| match source {
        CopySource::Path(text) | CopySource::Url(text) | CopySource::Git(text) => text.clone(),
        CopySource::Inline { name, .. } => format!("<<{name}"),
    }));
    told.push(copy.destination.clone());
    told
}
