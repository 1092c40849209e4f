//! Dockerfiles: parsed with the place of every word, and evaluated to steps with plain values.
//!
//! Nothing here runs anything. [`Dockerfile::parse`] reads a file and reports *all* that is wrong with it, like a
//! compiler; [`Dockerfile::plan`] says which stages a build needs and what they start from; [`PlannedStage::evaluate`]
//! or [`evaluate_after`](PlannedStage::evaluate_after) turns the instructions of a stage into [`Step`]s, with variables expanded, and the configuration of the image that
//! results. [`IgnoreFile`] says which files of the context are sent.
//!
//! ```
//! use oci_image::dockerfile::{Action, Base, BuildOptions, Dockerfile};
//! use oci_image::{ImageConfig, Platform};
//!
//! let file = Dockerfile::parse(
//!     "Dockerfile",
//!     r#"
//! ARG VERSION=12
//! FROM debian:${VERSION}-slim
//! ENV GREETING="good morning"
//! COPY --chown=1000 hello.sh /usr/bin/
//! ENTRYPOINT ["hello.sh"]
//! "#,
//! )?;
//! let plan = file.plan(&BuildOptions::new().arg("VERSION", "13"))?;
//! let stage = &plan.stages()[0];
//! assert_eq!(*stage.base(), Base::Image("debian:13-slim".to_owned()));
//!
//! // Whoever builds gets the base image; its configuration is what the stage starts with.
//! let built = stage.evaluate(&ImageConfig::new(&Platform::host()))?;
//! assert_eq!(built.config.config.env, ["GREETING=good morning"]);
//! let Action::Copy(copy) = &built.steps[1].action else { unreachable!() };
//! assert_eq!((copy.destination.as_str(), copy.chown.as_deref()), ("/usr/bin/", Some("1000")));
//!
//! // What is wrong is shown where it stands.
//! let error = Dockerfile::parse("Dockerfile", "FROM scratch\nCOPPY . /src\n").unwrap_err();
//! assert_eq!(
//!     error.to_string(),
//!     "error: there is no instruction `COPPY`
//!  --> Dockerfile:2:1
//!   |
//! 2 | COPPY . /src
//!   | ^^^^^ did you mean `COPY`?"
//! );
//! # Ok::<(), oci_image::Error>(())
//! ```
//!
//! The language is that of Docker's documentation with the frontend `docker/dockerfile:1`.

mod checks;
mod diagnostic;
mod directives;
mod evaluate;
mod expand;
mod flags;
mod glob;
mod health;
mod heredoc;
mod ignore;
mod instruction;
mod lines;
mod mount;
mod parse;
mod plan;
mod print;
mod source;
mod step;
mod values;
mod words;

use std::path::Path;
use std::sync::Arc;

pub use diagnostic::{Diagnostic, Diagnostics, Severity};
pub use directives::Directives;
pub use evaluate::EvaluatedStage;
pub use ignore::IgnoreFile;
pub use instruction::{
    Check, Command, Heredoc, Instruction, InstructionKind, Transfer, TransferSource, Word,
};
pub use mount::{Mount, MountKind, Sharing};
pub use plan::{Base, BuildOptions, Plan, PlannedStage};
pub use source::{Position, Source, Span};
pub use step::{Action, CopySource, CopyStep, From, Network, Program, RunStep, Security, Step};

use crate::error::{Error, Result};
use crate::limits::{Limits, check_bytes};

/// A Dockerfile that has been parsed.
#[derive(Clone, Debug, PartialEq)]
pub struct Dockerfile {
    source: Arc<Source>,
    directives: Directives,
    /// `ARG` before the first stage.
    globals: Vec<Instruction>,
    stages: Vec<Stage>,
    warnings: Vec<Diagnostic>,
}

/// A stage of a Dockerfile: `FROM` and what follows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// `FROM`
    pub from: Instruction,
    /// What follows.
    pub instructions: Vec<Instruction>,
}

impl Stage {
    /// The name after `AS`, in lower case.
    pub fn name(&self) -> Option<String> {
        match &self.from.kind {
            InstructionKind::From { name, .. } => {
                name.as_ref().map(|name| name.text.to_lowercase())
            }
            _ => None,
        }
    }
}

impl Dockerfile {
    /// Parses `text`; messages speak of it as `name`.
    ///
    /// # Errors
    ///
    /// [`Error::Dockerfile`] with everything that is wrong.
    pub fn parse(name: impl Into<String>, text: impl Into<String>) -> Result<Dockerfile> {
        parse::dockerfile(&Arc::new(Source::new(name, text)))
    }

    /// Reads and parses the file at `path`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when it cannot be read, [`Error::Limit`] when it is longer than
    /// [`Limits::document_bytes`], and those of [`Dockerfile::parse`].
    pub fn read(path: impl AsRef<Path>) -> Result<Dockerfile> {
        let path = path.as_ref();
        Dockerfile::parse(path.display().to_string(), read_text(path)?)
    }

    /// The text.
    pub fn source(&self) -> &Arc<Source> {
        &self.source
    }

    /// What the lines before everything else say.
    pub fn directives(&self) -> &Directives {
        &self.directives
    }

    /// The `ARG` instructions before the first stage.
    pub fn globals(&self) -> &[Instruction] {
        &self.globals
    }

    /// The stages.
    pub fn stages(&self) -> &[Stage] {
        &self.stages
    }

    /// What is probably not as it was meant.
    pub fn warnings(&self) -> &[Diagnostic] {
        &self.warnings
    }
}

/// Reads a small file of text.
fn read_text(path: &Path) -> Result<String> {
    use std::io::Read;
    let failed = |source| Error::Io {
        operation: "read",
        path: path.to_owned(),
        source,
    };
    let limit = Limits::default().document_bytes;
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(limit + 1).read_to_string(&mut text))
        .map_err(failed)?;
    check_bytes("the file", text.len() as u64, limit, "document_bytes")?;
    Ok(text)
}
